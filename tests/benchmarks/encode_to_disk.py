"""Encode a large array to disk: peak memory and rows per second, in a process of its own.

    python tests/benchmarks/encode_to_disk.py                      100,000 images of 3x32x32
    python tests/benchmarks/encode_to_disk.py --images 1000000     3 GB in, 3 GB out; deleted afterwards

Peak memory is the process's largest resident size (``VmHWM`` of /proc/self/status, Linux only),
pages of the mapped input included; of it, ``import`` is what torch alone takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (3, 32, 32)
CHUNK = 10_000


def write_images(path: Path, count: int) -> None:
    """Random pixels, a chunk at a time, as one ``.npy`` file."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, *SHAPE))
    generator = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        stop = min(count, start + CHUNK)
        images[start:stop] = generator.integers(0, 256, (stop - start, *SHAPE), dtype=np.uint8)
    images.flush()


def peak_megabytes() -> float:
    """Largest resident size of this process so far, in 10^6 bytes.

    Not ``ru_maxrss``: a child starts with its parent's, and the parent wrote the input.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def encode(folder: Path) -> dict[str, float]:
    """The measured part: from the mapped file to a verified folder."""
    sys.path.insert(0, str(ROOT))
    from instahide.encode_job import encode_to_folder
    from instahide.encoder_config import EncoderConfig
    from instahide.exposure import ExposureLedger
    from instahide.images import ImageSet

    imported = peak_megabytes()
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    images = ImageSet(pixels, np.arange(len(pixels)) % 10)
    begin = time.perf_counter()
    first_row: list[float] = []

    def on_progress(done: int, total: int) -> None:
        if not first_row:
            first_row.append(time.perf_counter() - begin)

    result = encode_to_folder(
        EncoderConfig(),
        folder / "out",
        private=images,
        ledger=ExposureLedger(folder / "ledger.sqlite3"),
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - begin
    return {
        "images": len(images),
        "seconds": round(seconds, 2),
        "rows_per_second": round(len(images) / seconds),
        "seconds_to_check_and_charge": round(first_row[0], 2),
        "peak_rss_mb": round(peak_megabytes()),
        "import_rss_mb": round(imported),
        "shards": len(result.manifest.shards),
        "written_mb": round(sum(shard.bytes for shard in result.manifest.shards) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(encode(options.measure), indent=2))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        write_images(Path(name) / "images.npy", options.images)
        subprocess.run([sys.executable, __file__, "--measure", name], check=True)


if __name__ == "__main__":
    main()
