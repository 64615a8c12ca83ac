"""The ``.npy`` format and its zip archive, read with the sizes checked before memory is taken.

``numpy.load`` would do, were the files our own: it allocates what a header declares, inflates
what an archive holds, and hands objects to pickle. Here the declared size must agree with the
file or archive entry that carries it and stay under the cap, and object arrays are refused.
Format: numpy.lib.format, version 1.0 (all that numpy writes for plain arrays).
"""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .limits import Limits, UnreadableError, check_decoded_size, display_name, open_regular, read_exactly

MAX_MEMBERS = 10_000
MAX_RANK = 5
_LOCAL_HEADER = 30  # bytes before the name in a zip's local header (APPNOTE 4.3.7)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int  # bytes before the data

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def shaped(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat.view(self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _read_header(stream: IO[bytes]) -> _Header:
    if np.lib.format.read_magic(stream) != (1, 0):
        raise UnreadableError("a version of the npy format for structured arrays")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise UnreadableError("pickled objects, which are never loaded")
    if len(shape) > MAX_RANK or any(length < 0 for length in shape) or dtype.itemsize == 0:
        raise UnreadableError("an array of no plain shape")
    return _Header(tuple(shape), bool(fortran), dtype, stream.tell())


def read_npy(path: Path, limits: Limits) -> NDArray[Any]:
    """The array in a ``.npy`` file; a read-only memory map above ``limits.map_above_bytes``."""
    with os.fdopen(open_regular(path), "rb") as file:
        header = _read_header(file)
        held = os.fstat(file.fileno()).st_size - header.offset
        if held != header.num_bytes:
            raise UnreadableError(f"declares {header.num_bytes:,} bytes of data and holds {held:,}")
        if header.num_bytes > limits.map_above_bytes:
            return _mapped(file, header, header.offset)
        return header.shaped(read_exactly(file, header.num_bytes))


def list_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an ``.npz`` by lower-case name without ``.npy``."""
    with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise UnreadableError(f"{len(entries):,} members")
        members = {entry.filename.removesuffix(".npy").lower(): entry for entry in entries}
        if len(members) != len(entries):
            raise UnreadableError("two members of one name")
        return members


def read_member(path: Path, entry: zipfile.ZipInfo, limits: Limits) -> NDArray[Any]:
    """One array of an ``.npz``; a memory map when it is large and stored uncompressed."""
    name = display_name(entry.filename)
    if entry.flag_bits & 0x1:
        raise UnreadableError(f"member {name} is password-protected")
    with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
        with archive.open(entry) as stream:
            header = _read_header(stream)
            if entry.file_size != header.offset + header.num_bytes:
                raise UnreadableError(f"member {name} declares sizes that disagree")
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            if stored and header.num_bytes > limits.map_above_bytes:
                return _mapped(file, header, _data_offset(file, entry) + header.offset)
            check_decoded_size(header.num_bytes, f"member {name} of {display_name(path.name)}", limits)
            flat = read_exactly(stream, header.num_bytes)
            if stream.read(1):  # also makes zipfile verify the CRC
                raise UnreadableError(f"member {name} is longer than it declares")
        return header.shaped(flat)


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    local = file.read(_LOCAL_HEADER)
    if len(local) != _LOCAL_HEADER or local[:4] != b"PK\x03\x04":
        raise UnreadableError("a damaged zip directory")
    name_length = int.from_bytes(local[26:28], "little")
    extra_length = int.from_bytes(local[28:30], "little")
    return entry.header_offset + _LOCAL_HEADER + name_length + extra_length


def _mapped(file: IO[bytes], header: _Header, offset: int) -> NDArray[Any]:
    return np.memmap(
        file,  # the open file, so that what was checked is what is mapped
        dtype=header.dtype,
        mode="r",
        offset=offset,
        shape=header.shape,
        order="F" if header.fortran else "C",
    )
