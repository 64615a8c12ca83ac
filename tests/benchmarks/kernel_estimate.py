"""Does the kernel's estimate order settings as training does?

    python tests/benchmarks/kernel_estimate.py --data pneumoniamnist.npz [--public cifar.npz] [--epochs 15]

Each setting is measured twice on the same images and the same test images: by `evaluate-kernel`'s regression,
and by training the small CNN on fresh encodings every epoch. Settings: plain images, and encodings of k = 2,
3, 4, 6, 8 as |x| and as they are, by default: eleven. Printed: both accuracies for plain queries and for ten
views, Spearman's and Pearson's correlation over the settings, and what each of the two took.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import pearsonr, spearmanr

from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.evaluation import EvaluationReport, evaluate
from instahide.images import ImageSet
from instahide.kernel_estimate import KERNELS, estimate, plain_rows
from instahide.models import build_model
from instahide.readers import load_images
from instahide.training import train
from instahide.training_config import TrainingConfig


def some(images: ImageSet, most: int) -> ImageSet:
    rows = np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64)
    return images.subset(rows)


def trained(
    data: object, absolute: bool, encoder: Encoder | None, images: ImageSet, test: ImageSet, epochs: int
) -> tuple[EvaluationReport, float]:
    start = time.process_time()
    model = build_model(
        "small-cnn", image_shape=images.image_shape, num_classes=images.num_classes, absolute_input=absolute
    )
    train(model, data, TrainingConfig(epochs=epochs, num_threads=1, device="cpu"))  # type: ignore[arg-type]
    return evaluate(model, test, encoder=encoder), time.process_time() - start


def shares(report: EvaluationReport) -> tuple[float, float]:
    average = report.encoded_average
    return report.plain.accuracy, average.accuracy if average else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="labelled images with a test split")
    parser.add_argument("--public", type=Path, help="a pool; by default all sources are private")
    parser.add_argument("--num-mixed", type=int, nargs="+", default=[2, 3, 4, 6, 8])
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--num-test", type=int, default=300)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    arguments = parser.parse_args()
    how = {"image_size": arguments.image_size}
    images = some(load_images(arguments.data, **how), arguments.num_images)
    test = some(load_images(arguments.data, split="test", **how), arguments.num_test)
    pool = None
    if arguments.public:
        shape = images.image_shape
        pool = ImageSet(load_images(arguments.public, image_size=shape[1], channels=shape[0]).images)
    kernels = arguments.kernels
    print(f"{arguments.data.name}: {len(images)} images of {images.image_shape}, {len(test)} to test")
    print(
        f"{'setting':<20}{'trained: plain':>16}{'views':>7}"
        + "".join(f"{k:>16}{'views':>7}" for k in kernels)
    )
    found: list[list[float]] = []
    seconds = np.zeros(1 + len(kernels))
    for k in [1, *arguments.num_mixed]:
        encoder = None
        if k > 1:
            law = EncoderConfig(num_mixed=k, num_private=k if pool is None else 2)
            encoder = Encoder(law, private=images, public=pool)
        for absolute in (True, False) if encoder is not None else (False,):
            data: object = images if encoder is None else encoder.encode_epoch
            report, spent = trained(data, absolute, encoder, images, test, arguments.epochs)
            row, seconds[0] = [*shares(report)], seconds[0] + spent
            entries = plain_rows(images, len(images))
            if encoder is not None:
                encodings = encoder.encode_epoch()
                entries = encodings.images, encodings.labels
            for column, name in enumerate(kernels, start=1):
                own = estimate(*entries, test, kernel=name, absolute_input=absolute, encoder=encoder)
                row += shares(own.evaluation)
                seconds[column] += own.cpu_seconds
            found.append(row)
            what = "plain images" if encoder is None else f"k = {k}, {'|x|' if absolute else 'as encoded'}"
            cells = zip(row, [16, 7] * (1 + len(kernels)), strict=True)
            print(f"{what:<20}" + "".join(f"{100 * value:{width}.1f}" for value, width in cells), flush=True)
    table = np.array(found)
    for column, name in enumerate(kernels, start=1):
        for mode, words in ((0, "plain query"), (1, "10 views")):
            kept = ~np.isnan(table[:, mode])
            a, b = table[kept, mode], table[kept, 2 * column + mode]
            rank, line = spearmanr(a, b)[0], pearsonr(a, b)[0]
            print(f"{name}, {words}: Spearman {rank:.2f}, Pearson {line:.2f} over {kept.sum()} settings")
    spent_by = zip(("training", *kernels), seconds, strict=True)
    print("processor seconds: " + ", ".join(f"{name} {spent:.0f}" for name, spent in spent_by))


if __name__ == "__main__":
    main()
