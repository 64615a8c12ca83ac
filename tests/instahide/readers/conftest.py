"""Shared ground of the reader tests: small pictures with known pixels, and the real files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SavePicture = Callable[..., Path]


@pytest.fixture
def save_picture(tmp_path: Path) -> SavePicture:
    """Write ``pixels`` (by default 8x8 grey, drawn from the name) below tmp_path."""

    def save(name: str, pixels: np.ndarray | None = None) -> Path:
        if pixels is None:
            pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8), dtype=np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return save


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets, or a skip."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("INSTAHIDE_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the real data sets are not on this machine (INSTAHIDE_DATA)")
    return folder
