"""``manifest.json``: what an encoded folder says about itself, all of it public.

::

    {
      "format": "instahide-encoded",      what this is; refused otherwise
      "format_version": 1,                refused when unknown
      "created_by": "instahide-fl 0.1.0",
      "scheme": "inside" | "cross",
      "law": {...},                       EncoderConfig.to_dict(): the public law of the encoding
      "label_policy": "renormalised" | "private-sum",
      "texture_filter_version": "v1" | null, filter of the public pool, if one was used
      "epochs": 1,                        encodings of each image, stored one epoch after the other
      "num_images": 5000,                 rows in all epochs together
      "image_shape": [3, 32, 32],
      "class_names": ["benign", ...],
      "row_order": "data" | "shuffled-within-shards",
      "values": {"type": "int8", "scale": 127},   int8 or int16: x = stored / scale; else "float32", null
      "shards": [{"name": "shard-00000.safetensors", "num_images": 4096, "bytes": 12, "sha256": "..."}],
      "manifest_sha256": "..."            over the canonical JSON of everything above
    }

There is no path, file name, subject identifier, weight, partner, sign or key in it, and no
field where one could be put: unknown fields are refused. The digest shows a plain edit or a
flipped bit. It is **not a signature**: whoever can rewrite the folder can rewrite the digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .atomic import atomic_write_text
from .encoder_config import EncoderConfig
from .errors import IntegrityError

MANIFEST_NAME = "manifest.json"
FORMAT = "instahide-encoded"
FORMAT_VERSION = 1
SCHEMES = ("inside", "cross")
BYTES_PER_VALUE = {"int8": 1, "int16": 2, "float32": 4}
ROW_ORDERS = ("data", "shuffled-within-shards")
MAX_MANIFEST_BYTES = 64 << 20
_SHARD_NAME = re.compile(r"shard-\d{5}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = "manifest_sha256"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard: its name, rows, length in bytes and SHA-256."""

    name: str
    num_images: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The checked content of ``manifest.json``; see the module's page for each field."""

    created_by: str
    scheme: str
    law: dict[str, Any]
    label_policy: str
    texture_filter_version: str | None
    epochs: int
    num_images: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    row_order: str
    values: dict[str, Any]
    shards: tuple[ShardRecord, ...]

    @property
    def scale(self) -> int | None:
        """Stored integers are ``scale * x``; None when float32 is stored."""
        return self.values["scale"]  # type: ignore[no-any-return]  # checked by parse_manifest

    @property
    def bytes_per_value(self) -> int:
        return BYTES_PER_VALUE[self.values["type"]]

    @property
    def images_per_epoch(self) -> int:
        return self.num_images // self.epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, digest included."""
        body: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        body = json.loads(canonical_json(body))
        return {**body, _DIGEST: hashlib.sha256(canonical_json(body)).hexdigest()}


def stored_values(quantization_levels: int | None) -> dict[str, Any]:
    """How values on the grid j / L (or on none) are stored: the smallest integer type that holds them."""
    if quantization_levels is None:
        return {"type": "float32", "scale": None}
    return {"type": "int8" if quantization_levels <= 127 else "int16", "scale": quantization_levels}


def label_policy(config: EncoderConfig) -> str:
    """Whether rows of labels sum to 1, or to the private coefficients' sum (published law)."""
    return "renormalised" if config.renormalizes_labels else "private-sum"


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, ASCII, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def write_manifest(folder: Path, manifest: Manifest, *, mode: int = 0o644) -> None:
    """Write ``manifest.json`` in one step: from here on the folder counts as whole."""
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=True, allow_nan=False)
    atomic_write_text(folder / MANIFEST_NAME, text + "\n", mode=mode)


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``.

    Raises:
        IntegrityError: absent, not JSON, of an unknown format, edited, or with a field that is
            missing, unknown, of the wrong type or at odds with another.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise _bad(path, f"larger than {MAX_MANIFEST_BYTES >> 20} MiB")
        body = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{folder} has no {MANIFEST_NAME}: not an encoded data set, or an unfinished one",
            hint="finish it with `instahide encode ... --resume`, or encode into a new folder",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"not readable as JSON ({error})") from error
    try:
        return parse_manifest(body)
    except (ValueError, TypeError, KeyError) as error:
        raise _bad(path, str(error)) from error


def parse_manifest(body: Any) -> Manifest:
    """A Manifest from decoded JSON; raises ValueError naming the first thing that is wrong."""
    if not isinstance(body, dict):
        raise ValueError("the top level is not an object")  # noqa: TRY004  # one error type: bad content
    if body.get("format") != FORMAT:
        raise ValueError(f"format is {body.get('format')!r}, not {FORMAT!r}")
    if type(body.get("format_version")) is not int or body["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"format version {body.get('format_version')!r} is unknown, expected {FORMAT_VERSION}"
        )
    _same_names(set(body), {field.name for field in fields(Manifest)} | {"format", "format_version", _DIGEST})
    unsigned = {name: value for name, value in body.items() if name != _DIGEST}
    if body[_DIGEST] != hashlib.sha256(canonical_json(unsigned)).hexdigest():
        raise ValueError("content does not match its own SHA-256, so it was edited or damaged")
    config = EncoderConfig.from_dict(body["law"])
    manifest = Manifest(
        created_by=_text(body, "created_by"),
        scheme=_choice(body, "scheme", SCHEMES),
        law=config.to_dict(),
        label_policy=_expected(body, "label_policy", label_policy(config)),
        texture_filter_version=_filter_version(body["texture_filter_version"]),
        epochs=_positive(body, "epochs"),
        num_images=_positive(body, "num_images"),
        image_shape=_shape(body["image_shape"]),
        class_names=_names(body["class_names"]),
        row_order=_choice(body, "row_order", ROW_ORDERS),
        values=_expected(body, "values", stored_values(config.quantization_levels)),
        shards=tuple(_shard(record) for record in _list(body["shards"], "shards")),
    )
    _check_counts(manifest)
    return manifest


def _check_counts(manifest: Manifest) -> None:
    names = [shard.name for shard in manifest.shards]
    if names != [f"shard-{i:05d}.safetensors" for i in range(len(names))]:
        raise ValueError("shards are not numbered one after the other from 0")
    if sum(shard.num_images for shard in manifest.shards) != manifest.num_images:
        raise ValueError(f"num_images is {manifest.num_images}, not the sum over the shards")
    if manifest.num_images % manifest.epochs:
        raise ValueError(f"num_images {manifest.num_images} is no multiple of epochs {manifest.epochs}")
    row_bytes = math.prod(manifest.image_shape) * manifest.bytes_per_value + 4 * len(manifest.class_names)
    for shard in manifest.shards:
        if shard.bytes < shard.num_images * row_bytes:
            raise ValueError(f"{shard.name} has {shard.bytes} bytes, too few for {shard.num_images} images")


def _bad(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(f"{path.name}: {reason}", hint="get the folder again from where it was encoded")


def _no_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a field occurs twice")
    return dict(pairs)


def _same_names(found: set[str], expected: set[str]) -> None:
    if missing := expected - found:
        raise ValueError(f"field {min(missing)!r} is missing")
    if unknown := found - expected:
        raise ValueError(f"field {min(unknown)!r} is unknown")


def _text(body: dict[str, Any], name: str) -> str:
    if not isinstance(body[name], str) or not body[name]:
        raise ValueError(f"{name} is not a text")
    return str(body[name])


def _choice(body: dict[str, Any], name: str, choices: Sequence[str]) -> str:
    if body[name] not in choices:
        raise ValueError(f"{name} is {body[name]!r}, not one of {', '.join(choices)}")
    return str(body[name])


def _expected(body: dict[str, Any], name: str, value: Any) -> Any:
    """A field that follows from the law: it must say what the law says."""
    if body[name] != value:
        raise ValueError(f"{name} is {body[name]!r}, but the law makes it {value!r}")
    return value


def _positive(body: dict[str, Any], name: str) -> int:
    if type(body[name]) is not int or body[name] < 1:
        raise ValueError(f"{name} is {body[name]!r}, not a positive integer")
    return int(body[name])


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is not a list with something in it")
    return value


def _shape(value: Any) -> tuple[int, int, int]:
    sizes = _list(value, "image_shape")
    if len(sizes) != 3 or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"image_shape is {value!r}, not three positive integers")
    return sizes[0], sizes[1], sizes[2]


def _names(value: Any) -> tuple[str, ...]:
    if any(not isinstance(name, str) for name in _list(value, "class_names")):
        raise ValueError("class_names are not all texts")
    return tuple(value)


def _filter_version(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"texture_filter_version is {value!r}")
    return value


def _shard(value: Any) -> ShardRecord:
    if not isinstance(value, dict):
        raise ValueError("a shard record is not an object")  # noqa: TRY004
    _same_names(set(value), {field.name for field in fields(ShardRecord)})
    if not isinstance(value["name"], str) or not _SHARD_NAME.fullmatch(value["name"]):
        raise ValueError(f"shard name {value['name']!r} is not of the form shard-00000.safetensors")
    if not isinstance(value["sha256"], str) or not _SHA256.fullmatch(value["sha256"]):
        raise ValueError(f"sha256 of {value['name']} is not 64 hexadecimal digits")
    return ShardRecord(
        name=value["name"],
        num_images=_positive(value, "num_images"),
        bytes=_positive(value, "bytes"),
        sha256=value["sha256"],
    )
