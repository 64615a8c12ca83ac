"""Encoding speed, side by side in one run: ours, the published code written plainly, the copy floor.

    python tests/benchmarks/encode.py [--data cifar.npz] [--num-images 50000] [--repeats 5]
    python tests/benchmarks/encode.py --stream 1000000      # memory of a streamed epoch, nothing else

Every contender encodes the same uint8 images into float32. Contenders take turns, ``--repeats`` times,
and the least time of each counts, so that other work on the machine disturbs all alike. Wall seconds
and processor seconds are both printed: on a busy machine only the latter compare.

floor, warm      np.copyto of one epoch's float32 into memory already touched
floor, fresh     the same into newly allocated memory, as encode_epoch's result is
ours, batches    encode_batches(1000), each batch dropped after use: what a training loop does
ours, epoch      encode_epoch(): the whole epoch as one new tensor
published        per-epoch torch code of the 2020 repository: a Python loop over coefficients, k gathered
                 float copies, masks of torch.randint — and no secret worth the name
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from instahide import Encoder, EncoderConfig, ImageSet
from instahide.coefficients import draw_coefficients, mix_labels
from instahide.mixing import to_unit_range
from instahide.mixing_kernel import Recipe, Sources, active_path, mix_records
from instahide.partners import draw_private_partners
from instahide.randomness import Randomness

K = 4
BATCH = 1000


def main() -> None:
    options = parse()
    if options.stream:
        stream_in_child(options.stream)
        return
    if options.stream_child:
        stream(*options.stream_child)
        return
    private = load(options.data, options.num_images)
    d = int(np.prod(private.image_shape))
    print(f"{private!r}, k={K}, inside scheme, mixing path {active_path()!r}, load {os.getloadavg()[0]:.1f}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        compare(private, d, threads, options.repeats)
    torch.set_num_threads(1)
    stages(private, d, options.repeats)
    training_share(private)
    print(f"\npeak resident memory of this whole run: {peak_megabytes():.0f} MB")


def compare(private: ImageSet, d: int, threads: int, repeats: int) -> None:
    source = np.ones((len(private), d), dtype=np.float32)
    target = np.ones_like(source)
    encoders = {
        mode: Encoder(EncoderConfig(num_mixed=K, mode=mode), private=private)
        for mode in ("compat", "hardened")
    }
    contenders: dict[str, Callable[[], object]] = {
        "floor, warm": lambda: np.copyto(target, source),
        "floor, fresh": source.copy,
    }
    for mode, encoder in encoders.items():
        contenders[f"ours, batches, {mode}"] = lambda encoder=encoder: drain(encoder)  # type: ignore[misc]
        contenders[f"ours, epoch, {mode}"] = encoder.encode_epoch
    floats = to_unit_range(private.images)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(private.labels)).float()
    contenders["published, plainly"] = lambda: published_epoch(floats, one_hot)
    print(f"\n{threads} thread(s)            wall s   cpu s   wall/floor  published/this")
    times = in_turns(contenders, repeats)
    slowest = times["published, plainly"][0]
    for name, (wall, cpu) in times.items():
        floor = times["floor, fresh" if "fresh" in name or "epoch" in name else "floor, warm"][0]
        print(f"{name:24s} {wall:8.3f} {cpu:7.3f} {wall / floor:10.1f}x {slowest / wall:10.1f}x")


def stages(private: ImageSet, d: int, repeats: int) -> None:
    """Where an epoch's time goes, one thread, key stream and mixing in the encoder's chunks."""
    count, chunk = len(private), max(1, (1 << 20) // d)
    source, config = Randomness(), EncoderConfig(num_mixed=K, num_private=K)
    partners = draw_private_partners(source.stream("partners"), count, K - 1)
    rows = np.column_stack([np.arange(count), partners])
    coefficients = draw_coefficients(source.stream("coefficients"), count, config)
    weights = (coefficients * 64).astype(np.float32)
    signs, dither = source.stream("signs"), source.stream("dither")
    sign_bits, dither_bytes = signs.read_records(chunk, d // 8), dither.read_records(chunk, d)
    out = torch.ones(count, d)

    def mix(*, quantised: bool) -> None:
        for first in range(0, count, chunk):
            part = slice(first, min(first + chunk, count))
            size = part.stop - part.start
            noise, levels = (dither_bytes[:size], 127) if quantised else (None, None)
            recipe = Recipe(
                [Sources(private.images, rows[part])], weights[part], 16320.0, sign_bits[:size], noise, levels
            )
            mix_records(recipe, out[part], streaming=True)

    labels = private.labels
    assert labels is not None
    work: dict[str, Callable[[], object]] = {
        "sign bits": lambda: [signs.read_records(chunk, d // 8) for _ in range(count // chunk)],
        "dither (hardened)": lambda: [dither.read_records(chunk, d) for _ in range(count // chunk)],
        "coefficients (hardened)": lambda: draw_coefficients(source.stream("coefficients"), count, config),
        "partners": lambda: draw_private_partners(source.stream("partners"), count, K - 1),
        "labels": lambda: mix_labels(labels[rows], coefficients, private.num_classes, config),
        "mix, signs": lambda: mix(quantised=False),
        "mix, signs, quantised": lambda: mix(quantised=True),
    }
    print("\nstages, 1 thread           wall ms   cpu ms")
    for name, (wall, cpu) in in_turns(work, repeats).items():
        print(f"{name:24s} {wall * 1e3:9.1f} {cpu * 1e3:8.1f}")


def training_share(private: ImageSet, batch: int = 128) -> None:
    """Encoding of one batch against one ResNet-18 training step on it, all torch threads, both on the CPU."""
    from torchvision.models import resnet18

    torch.set_num_threads(2)
    encoder = Encoder(EncoderConfig(num_mixed=K), private=private)
    model = resnet18(num_classes=private.num_classes)
    model.conv1 = torch.nn.Conv2d(private.image_shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    encoded = next(encoder.encode_batches(batch))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(encoded.images), encoded.labels).backward()
        optimizer.step()

    times = in_turns({"step": step, "epoch": lambda: drain(encoder, batch)}, 2)
    one_batch = times["epoch"][1] / (len(private) / batch)
    share = one_batch / times["step"][1]
    print(
        f"\nResNet-18 training step, batch {batch}: {times['step'][1]:.2f} cpu s; encoding a batch of it "
        f"(hardened): {one_batch * 1e3:.2f} cpu ms = {share:.3%} of the step"
    )


def published_epoch(
    x: torch.Tensor, y: torch.Tensor, upper: float = 0.65
) -> tuple[torch.Tensor, torch.Tensor]:
    """One epoch as the 2020 code makes it: numpy loop, k gathers, then a mask for each training batch."""
    lams = np.random.normal(0, 1, size=(len(x), K))
    for i in range(len(x)):
        lams[i] = np.abs(lams[i]) / np.sum(np.abs(lams[i]))
        while lams[i].max() > upper:
            lams[i] = np.abs(np.random.normal(0, 1, size=(1, K)))
            lams[i] = lams[i] / np.sum(lams[i])
    weights = torch.from_numpy(lams).float()
    mixed, labels = weights[:, 0, None, None, None] * x, weights[:, :1] * y
    for j in range(1, K):
        select = torch.randperm(len(x))
        mixed += weights[:, j, None, None, None] * x[select]
        labels += weights[:, j, None] * y[select]
    for first in range(0, len(x), 128):
        batch = mixed[first : first + 128]
        batch *= torch.randint(2, size=batch.shape) * 2.0 - 1
    return mixed, labels


def drain(encoder: Encoder, batch: int = BATCH) -> None:
    for _ in encoder.encode_batches(batch):
        pass


def in_turns(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Least wall and least processor seconds of each, all taking turns."""
    least = {name: (float("inf"), float("inf")) for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            least[name] = (min(least[name][0], wall), min(least[name][1], cpu))
    return least


def stream_in_child(count: int) -> None:
    """Encode a file of ``count`` images of 3x32x32 in a fresh process, batch by batch to a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        block = np.random.default_rng(0).integers(0, 256, (1000, 3, 32, 32), dtype=np.uint8)
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 32, 32))
        for first in range(0, count, 1000):
            images[first : first + 1000] = block[: count - first]
        images.flush()
        del images
        command = [sys.executable, __file__, "--stream-child", str(path), str(Path(folder) / "encoded.bin")]
        subprocess.run(command, check=True)


def stream(source: str, target: str) -> None:
    mapped = np.load(source, mmap_mode="r")
    private = ImageSet(mapped, np.arange(len(mapped)) % 10)
    start = time.perf_counter()
    with Path(target).open("wb") as file:
        for batch in Encoder(EncoderConfig(num_mixed=K), private=private).encode_batches(BATCH):
            file.write((batch.images * 127).round().to(torch.int8).numpy().tobytes())
    seconds = time.perf_counter() - start
    print(
        f"{len(mapped):,} images encoded to disk in {seconds:.0f} s, peak resident {peak_megabytes():.0f} MB"
    )


def peak_megabytes() -> float:
    """This process's peak; not ru_maxrss, which a child inherits from the parent that started it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def load(path: Path | None, count: int) -> ImageSet:
    """``count`` CIFAR-sized images: the file's, over and over, or noise without one (equally fast)."""
    if path is None:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        return ImageSet(images, rng.integers(0, 10, count))
    with np.load(path) as arrays:
        read = ImageSet(arrays["x_train"], arrays["y_train"])
    rows = np.arange(count) % len(read)
    return ImageSet(np.ascontiguousarray(read.images[rows]), read.labels[rows])  # type: ignore[index]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Encoding speed against the copy floor and the published code."
    )
    parser.add_argument("--data", type=Path, help=".npz with x_train and y_train")
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--stream", type=int, metavar="N", help="only measure the memory of N streamed images"
    )
    parser.add_argument("--stream-child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
