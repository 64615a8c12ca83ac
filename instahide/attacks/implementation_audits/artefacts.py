"""Audit: does a file that leaves the house hold a generator's state, a seed, or a key?

The published InstaHide code saves ``torch.get_rng_state()`` in every checkpoint: who gets the model gets
the generator that drew permutations and masks. This scanner goes through files and folders that are to be
shared, archives in archives included, and names what it finds, never the value. It reads

    zip, npz, torch .pt   gzip, tar   npy   safetensors (header and metadata)   pickle   JSON, JSON lines
    TOML, YAML and other text (``name = value``)   any other bytes (MT19937 states, PEM keys)

No pickle is ever loaded: :mod:`.pickle_outline` walks its opcodes. Archives are bounded in size, depth and
number of members. What was not read is said; a scan can show a leak, it cannot prove there is none.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ..cost import Cost
from ..view import AttackResult
from .generator_signatures import Finding, judge_value, scan_bytes
from .pickle_outline import named_values, outlines

MAX_FILE_BYTES = 1 << 30
MAX_UNPACKED_BYTES = 1 << 30
MAX_MEMBERS = 100_000
MAX_DEPTH = 4
MAX_TEXT_BYTES = 64 << 20
MAX_FINDINGS = 200

_INTEGER_TYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
                  "U64": "<u8", "I64": "<i8"}  # fmt: skip
_ASSIGNMENT = re.compile(r"""["']?([A-Za-z_][\w.\-]{0,80})["']?\s*[:=]\s*["']?([^"'\s,#;}\]]{1,400})""")
HARMLESS = {
    r"(^|[._-])(initialization|init|shuffle|split|augment\w*)[_-]?seed$": "weights, splits or batches",
    r"content\.state\.seed$": "orders the batches of a training run",
}
"""Names of seeds that say what they seed, when it is not the encoding."""


@dataclass
class Scan:
    """What a scan found and what it could not read.

    Args:
        findings: in the order met.
        harmless: seeds whose names say that they seed something else.
        unread: files or members left out, with the reason.
        num_files, num_bytes: looked at.
    """

    findings: list[Finding] = field(default_factory=list)
    harmless: list[Finding] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    num_files: int = 0
    num_bytes: int = 0
    unpacked: int = 0

    def add(self, finding: Finding | None) -> None:
        if finding is None or len(self.findings) >= MAX_FINDINGS or finding in self.findings:
            return
        name = finding.where.rsplit(": ", 1)[-1]
        if finding.kind == "seed" and any(re.search(pattern, name) for pattern in HARMLESS):
            self.harmless.append(finding)
        else:
            self.findings.append(finding)


def scan_artefacts(paths: Iterable[Path], *, progress: Callable[..., None] | None = None) -> Scan:
    """Scan files and folders.

    Raises:
        InvalidInputError: a path that does not exist.
    """
    scan = Scan()
    files = [file for path in paths for file in _files_of(path)]
    for i, (file, shown) in enumerate(files):
        if progress is not None:
            progress(i, len(files), "scanning files")
        if file.is_symlink() or not file.is_file():
            continue
        scan.num_files += 1
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            scan.unread.append(f"{shown}: larger than {MAX_FILE_BYTES >> 20} MiB")
            continue
        scan.num_bytes += size
        _scan_data(scan, shown, file.read_bytes(), 0)
    return scan


def audit_artefacts(paths: Iterable[Path], *, progress: Callable[..., None] | None = None) -> AttackResult:
    """Scan what is to be shared; states and keys are leaks, seeds might be."""
    with Cost() as cost:
        scan = scan_artefacts(paths, progress=progress)
    numbers = {kind: sum(f.kind == kind for f in scan.findings) for kind in ("state", "key", "seed")}
    leaked, verdict = _verdict(scan, numbers)
    return AttackResult(
        name="artefacts",
        verdict=verdict,
        leaked=leaked,
        metrics={
            "generator_states": float(numbers["state"]),
            "keys": float(numbers["key"]),
            "seeds": float(numbers["seed"]),
            "files": float(scan.num_files),
            "megabytes": scan.num_bytes / 1e6,
        },
        intervals={},
        baselines={},
        **cost.figures(),
        assumptions=("the attacker gets the scanned files, and nothing else",),
        settings={
            "findings": [{"kind": f.kind, "where": f.where, "what": f.what} for f in scan.findings],
            "harmless": [f.where for f in scan.harmless],
            "unread": scan.unread,
        },
    )


def _verdict(scan: Scan, numbers: dict[str, int]) -> tuple[bool | None, str]:
    if numbers["state"] or numbers["key"]:
        return True, "Generator states or keys are stored in the files: what they drew is known."
    if numbers["seed"]:
        return None, "Seeds are stored in the files; whether the encoder used them cannot be told."
    if scan.unread:
        return None, "Nothing was found in what could be read; some files could not be read."
    return False, "No generator state, seed or key was found in the files."


def _files_of(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            yield file, str(Path(path.name) / file.relative_to(path))
    elif path.is_file():
        yield path, path.name
    else:
        raise InvalidInputError(f"{path} is not there", hint="give files or folders that are to be shared")


def _scan_data(scan: Scan, where: str, data: bytes, depth: int) -> None:
    """One file or member: by its first bytes, not by its name."""
    if depth > MAX_DEPTH:
        scan.unread.append(f"{where}: archives nested too deep")
        return
    for kind, offset, text in scan_bytes(data):
        scan.add(Finding(kind, f"{where}: byte {offset:,}", text))
    if data[:4] == b"PK\x03\x04":
        _scan_zip(scan, where, data, depth)
    elif data[:2] == b"\x1f\x8b":
        _scan_gzip(scan, where, data, depth)
    elif data[257:262] == b"ustar":
        _scan_tar(scan, where, data, depth)
    elif data[:6] == b"\x93NUMPY":
        _scan_npy(scan, where, data)
    elif data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        _scan_pickle(scan, where, data)
    elif _safetensors_header(data) is not None:
        _scan_safetensors(scan, where, data)
    elif where.lower().endswith((".pkl", ".pickle")):
        _scan_pickle(scan, where, data)
    else:
        _scan_text(scan, where, data)


def _scan_zip(scan: Scan, where: str, data: bytes, depth: int) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                scan.unread.append(f"{where}: more than {MAX_MEMBERS:,} members")
            for member in members[:MAX_MEMBERS]:
                inside = f"{where}!{member.filename}"
                if member.flag_bits & 1:
                    scan.unread.append(f"{inside}: locked by a password")
                elif not member.is_dir() and _may_unpack(scan, inside, member.file_size):
                    with archive.open(member) as file:
                        _scan_data(scan, inside, file.read(member.file_size + 1), depth + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError) as error:
        scan.unread.append(f"{where}: damaged archive ({type(error).__name__})")


def _scan_gzip(scan: Scan, where: str, data: bytes, depth: int) -> None:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, max(1, MAX_UNPACKED_BYTES - scan.unpacked))
    except zlib.error:
        scan.unread.append(f"{where}: damaged archive")
        return
    scan.unpacked += len(unpacked)
    if unpacker.unconsumed_tail:
        scan.unread.append(f"{where}: unpacks to too much; its beginning was read")
    _scan_data(scan, f"{where}!", unpacked, depth + 1)


def _scan_tar(scan: Scan, where: str, data: bytes, depth: int) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for number, member in enumerate(archive):
                inside = f"{where}!{member.name}"
                if number >= MAX_MEMBERS:
                    scan.unread.append(f"{where}: more than {MAX_MEMBERS:,} members")
                    return
                file = archive.extractfile(member) if member.isreg() else None
                if file is not None and _may_unpack(scan, inside, member.size):
                    _scan_data(scan, inside, file.read(), depth + 1)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        scan.unread.append(f"{where}: damaged archive ({type(error).__name__})")


def _may_unpack(scan: Scan, where: str, size: int) -> bool:
    if scan.unpacked + size > MAX_UNPACKED_BYTES:
        scan.unread.append(f"{where}: archives unpack to more than {MAX_UNPACKED_BYTES >> 20} MiB")
        return False
    scan.unpacked += size
    return True


def _scan_npy(scan: Scan, where: str, data: bytes) -> None:
    stream = io.BytesIO(data)
    name = Path(where.replace("!", "/")).stem
    try:
        old = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, EOFError) as error:
        scan.unread.append(f"{where}: not a whole .npy ({error})")
        return
    rest = data[stream.tell() :]
    if dtype.hasobject:
        _scan_pickle(scan, where, rest)
    elif len(rest) != dtype.itemsize * math.prod(shape):
        scan.unread.append(f"{where}: not a whole .npy")
    elif np.issubdtype(dtype, np.integer) and rest:
        scan.add(judge_value(f"{where}: {name}", name, np.frombuffer(rest, dtype=dtype)))
    elif dtype.kind in "SU" and rest:
        for text in np.frombuffer(rest, dtype=dtype)[:1000].tolist():
            _scan_named(scan, where, {name: text})


def _scan_pickle(scan: Scan, where: str, data: bytes) -> None:
    for value in outlines(data):
        _scan_named(scan, where, value)


def _safetensors_header(data: bytes) -> dict[str, Any] | None:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or data[8:9] != b"{" or not 2 <= length <= len(data) - 8:
        return None
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _scan_safetensors(scan: Scan, where: str, data: bytes) -> None:
    header = _safetensors_header(data) or {}
    start = 8 + int.from_bytes(data[:8], "little")
    for name, record in header.items():
        if name == "__metadata__":
            _scan_named(scan, where, record)
        elif isinstance(record, dict) and record.get("dtype") in _INTEGER_TYPES:
            dtype = np.dtype(_INTEGER_TYPES[record["dtype"]])
            try:
                first, last = (int(offset) for offset in record["data_offsets"])
            except (KeyError, TypeError, ValueError):
                scan.unread.append(f"{where}: {name} has no place")
                continue
            raw = data[start + first : start + last]
            whole = len(raw) // dtype.itemsize * dtype.itemsize
            if whole:
                scan.add(judge_value(f"{where}: {name}", name, np.frombuffer(raw[:whole], dtype)))


def _scan_text(scan: Scan, where: str, data: bytes) -> None:
    if len(data) > MAX_TEXT_BYTES or b"\x00" in data[:4096]:
        return  # bytes of another kind; they were searched for states and keys above
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return
    documents = _json_documents(text)
    if documents is not None:
        for document in documents:
            _scan_named(scan, where, document)
        return
    for match in _ASSIGNMENT.finditer(text):
        name, value = match.groups()
        scan.add(judge_value(f"{where}: {name}", name.rsplit(".", 1)[-1], value))


def _json_documents(text: str) -> list[Any] | None:
    """The document, or the lines of a JSON-lines file; ``None`` for other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None


def _scan_named(scan: Scan, where: str, value: Any, prefix: str = "") -> None:
    for path, item in named_values(value, prefix):
        name = path.rsplit(".", 1)[-1]
        scan.add(judge_value(f"{where}: {path}" if path else where, name, item))
        if isinstance(item, str) and item.lstrip()[:1] in ("{", "["):
            for document in _json_documents(item) or []:
                if isinstance(document, dict | list):
                    _scan_named(scan, where, document, path)
