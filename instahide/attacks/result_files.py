"""Results on disk: one folder an attack, ``result.json`` for programs and PNG sheets for people.

    DIR/result.json          everything in ``AttackResult.to_dict`` and the program's version
    DIR/picture-NAME.png     one sheet a caption; the JSON names caption and file

``instahide attack report`` reads a tree of such folders. A folder is written file by file, each whole or
not there, ``result.json`` last: a folder without it is not a result.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_write_bytes, atomic_write_text
from ..errors import IntegrityError, InvalidInputError
from .view import AttackResult

FORMAT = "instahide-attack-result/1"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class StoredResult:
    """A result as read back: the plain values, and the pictures' captions and files."""

    folder: Path
    values: dict[str, Any]
    pictures: dict[str, Path]


def write_result(result: AttackResult, folder: Path, *, attack: str = "") -> None:
    """Write ``result`` into ``folder``, made if it is not there; ``attack`` is its name in the catalogue."""
    from .. import __version__

    folder.mkdir(parents=True, exist_ok=True)
    sheets: dict[str, str] = {}
    for caption, images in result.pictures.items():
        name = f"picture-{re.sub('[^a-z0-9]+', '-', caption.lower())[:60].strip('-')}.png"
        atomic_write_bytes(folder / name, sheet(images))
        sheets[caption] = name
    document = {
        "format": FORMAT,
        "version": __version__,
        "attack": attack,
        **result.to_dict(),
        "pictures": sheets,
    }
    atomic_write_text(folder / RESULT_FILE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def read_results(root: Path) -> list[StoredResult]:
    """Every result below ``root``, in the order of their folders' names.

    Raises:
        InvalidInputError: no result below it.
        IntegrityError: a file that is not a result.
    """
    files = sorted(root.rglob(RESULT_FILE)) if root.is_dir() else []
    if not files:
        raise InvalidInputError(
            f"{root} holds no attack result", hint="`instahide attack run NAME ... --out DIR` writes one"
        )
    return [_read(file) for file in files]


def sheet(images: NDArray[np.uint8], *, columns: int = 12) -> bytes:
    """PNG of (N, C, H, W) uint8 images in rows of ``columns``, enlarged to at least 64 pixels a side."""
    from ..html_page import picture_grid

    scale = max(1, 64 // max(images.shape[2:]))
    return picture_grid(images, columns=min(columns, len(images)), scale=scale)


def to_pixels(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(N, C, H, W) in [−1, 1] to 8-bit pixels."""
    return np.clip(np.rint((np.asarray(images, np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)


def read_sheet(path: Path) -> bytes:
    """The bytes of a sheet, checked to be a PNG."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n"):
        raise IntegrityError(f"{path} is not a PNG", hint="run the attack again")
    return data


def _read(file: Path) -> StoredResult:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}")
        pictures = {caption: file.parent / Path(name).name for caption, name in values["pictures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{file} is not a result of this program: {error}", hint="run the attack again into a new folder"
        ) from error
    return StoredResult(file.parent, values, pictures)
