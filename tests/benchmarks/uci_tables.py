"""The published grid on small tables: ours beside a plain loop, and what ninety tables would take.

    python tests/benchmarks/uci_tables.py [--uci DIR] [--skip-loop] [--ninety] [--largest N]

Loop    the grid as one would write it: for each of 15 kernels and 7 penalties the kernel by arccos in NumPy,
        and a fit of scikit-learn's SVC; then the four scores at the choice
Shared  the same fits with each kernel computed once
Ours    theory_modules.uci_protocol.score

All three on the same tables in one process, one thread, processor seconds; choices and accuracies are
compared, and the benchmark fails where they differ. ``--ninety`` makes tables of random numbers with the
rows, features, classes and kinds of features (numbers or a few levels, hence many equal rows) of the
tables of the published comparison, and times ours on them: nobody's accuracy, but the cost of the real
ones.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from theory_modules.svm_grid import active_path
from theory_modules.uci_contenders import DECADES, MAX_DEPTH, contenders
from theory_modules.uci_protocol import TableScore, score
from theory_modules.uci_tables import Split, UciTable, list_tables, read_table

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
CONTINUOUS = 0
# rows, features, classes, levels of a feature
NINETY = [
    *[
        (5000, 21, 3, 0),
        (5000, 40, 3, 0),
        (4898, 11, 7, 0),
        (4601, 57, 2, 0),
        (4521, 16, 2, 4),
        (4177, 8, 3, 0),
    ],
    *[
        (3196, 36, 2, 2),
        (3190, 60, 3, 4),
        (2536, 72, 2, 0),
        (2310, 18, 7, 0),
        (2201, 3, 2, 2),
        (2126, 21, 10, 0),
    ],
    *[(2126, 21, 3, 0), (1941, 27, 7, 0), (1728, 6, 4, 3), (1600, 64, 100, 0), (1600, 64, 100, 0)],
    *[(1599, 64, 100, 0), (1599, 11, 6, 0), (1593, 256, 10, 2), (1484, 8, 10, 0), (1473, 9, 3, 4)],
    *[(1022, 41, 2, 0), (1022, 25, 3, 0), (1000, 24, 2, 4), (1000, 7, 10, 2), (961, 5, 2, 4), (958, 9, 2, 3)],
    *[(912, 25, 2, 0), (912, 32, 3, 0), (846, 18, 4, 0), (768, 8, 2, 0), (768, 8, 3, 8), (768, 8, 3, 8)],
    *[(748, 4, 2, 0), (699, 9, 2, 10), (690, 15, 2, 3), (690, 14, 2, 3), (625, 4, 3, 5), (600, 60, 6, 0)],
    *[
        (583, 9, 2, 0),
        (569, 30, 2, 0),
        (531, 100, 9, 0),
        (512, 35, 2, 4),
        (476, 166, 2, 0),
        (452, 262, 13, 0),
    ],
    *[(435, 16, 2, 2), (366, 34, 6, 4), (360, 90, 15, 0), (351, 33, 2, 0), (336, 7, 8, 0), (330, 17, 15, 2)],
    *[(310, 6, 2, 0), (310, 6, 3, 0), (306, 3, 2, 0), (303, 13, 5, 0), (294, 12, 2, 0), (286, 9, 2, 4)],
    *[(270, 13, 2, 0), (214, 9, 6, 0), (210, 7, 3, 0), (208, 60, 2, 0), (200, 12, 5, 0), (198, 33, 2, 0)],
    *[(195, 22, 2, 0), (194, 28, 8, 3), (182, 12, 2, 0), (178, 13, 3, 0), (155, 19, 2, 0), (151, 5, 3, 3)],
    *[(150, 4, 3, 0), (148, 18, 4, 3), (131, 10, 2, 0), (123, 12, 5, 0), (120, 6, 2, 2), (120, 6, 2, 2)],
    *[(108, 7, 6, 3), (106, 9, 6, 0), (106, 57, 2, 4), (105, 7, 3, 3), (102, 7, 2, 3), (101, 16, 7, 2)],
    *[
        (100, 9, 2, 3),
        (92, 7, 3, 3),
        (90, 8, 3, 3),
        (32, 56, 3, 3),
        (24, 4, 3, 3),
        (16, 4, 2, 2),
        (10, 29, 2, 2),
    ],
]


def kernel_by_arccos(x: np.ndarray, z: np.ndarray, depth: int, fixed: int) -> np.ndarray:
    S = x @ z.T
    T = S if fixed == 0 else 0 * S
    q = np.maximum(np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1), 1e-9)
    for layer in range(2, depth + 1):
        c = np.clip(S / q, -1, 1)
        angle = np.arccos(c)
        q = q / 2
        S = q * (np.sin(angle) + c * (np.pi - angle)) / np.pi
        T = T * (np.pi - angle) / np.pi / 2 + (S if layer > fixed else 0)
    return T


class Loop:
    """The plain loop, with or without kernels shared along the penalties."""

    def __init__(self, table: UciTable, *, share: bool) -> None:
        self._table, self._share = table, share
        self.fit_seconds = 0.0

    def run(self) -> tuple[float, tuple[float, ...]]:
        best, chosen = -1.0, (0.0, 0.0, 0.0)
        for depth in range(1, MAX_DEPTH + 1):
            for fixed in range(depth):
                kernels = None
                for penalty in DECADES:
                    if kernels is None or not self._share:
                        kernels = self._kernels(self._table.tuning, depth, fixed)
                    share = self._accuracy(self._table.tuning, kernels, penalty)
                    if share > best:
                        best, chosen = share, (float(depth), float(fixed), penalty)
        depth, fixed = int(chosen[0]), int(chosen[1])
        shares = [
            self._accuracy(fold, self._kernels(fold, depth, fixed), chosen[2]) for fold in self._table.folds
        ]
        return 100 * float(np.mean(shares)), chosen

    def _kernels(self, split: Split, depth: int, fixed: int) -> tuple[np.ndarray, np.ndarray]:
        train, test = self._table.features[split.train], self._table.features[split.test]
        return kernel_by_arccos(train, train, depth, fixed), kernel_by_arccos(test, train, depth, fixed)

    def _accuracy(self, split: Split, kernels: tuple[np.ndarray, np.ndarray], penalty: float) -> float:
        start = time.process_time()
        machine = SVC(C=penalty, kernel="precomputed").fit(kernels[0], self._table.labels[split.train])
        right = machine.predict(kernels[1]) == self._table.labels[split.test]
        self.fit_seconds += time.process_time() - start
        return float(right.mean())


def random_table(rows: int, features: int, classes: int, levels: int, seed: int) -> UciTable:
    """Classes by a noisy quadratic score, as many as asked; a tenth of the labels is drawn anew."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features))
    if levels:
        x = np.digitize(x, np.linspace(-1.5, 1.5, levels + 1)[1:-1]).astype(float)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    scores = x @ rng.standard_normal((features, classes)) + 0.5 * x**2 @ rng.standard_normal(
        (features, classes)
    )
    labels = scores.argmax(1) if classes <= 20 else rng.permutation(np.arange(rows) % classes)
    again = rng.random(rows) < 0.1
    labels[again] = rng.integers(0, classes, int(again.sum()))

    def split(share: float) -> Split:
        order = rng.permutation(rows)
        return Split(order[: round(share * rows)], order[round(share * rows) :])

    return UciTable(f"{rows} x {features}", x, labels, split(0.5), tuple(split(0.75) for _ in range(4)))


def side_by_side(folder: Path, *, skip_loop: bool) -> None:
    ntk = contenders()["ntk"]
    tables = [read_table(path) for path in list_tables(folder).tables]
    score(tables[0], ntk)  # first calls fill tables of coefficients
    sums = np.zeros(3)
    print(f"{'table':26s} {'rows':>5s}  loop s  (fits)  shared s  ours s  ratio  accuracy  L, L', C")
    for table in tables:
        ours: TableScore = score(table, ntk)
        seconds = [np.nan, np.nan, ours.cpu_seconds]
        fits = np.nan
        if not skip_loop:
            for position, share in enumerate((False, True)):
                loop = Loop(table, share=share)
                start = time.process_time()
                accuracy, chosen = loop.run()
                seconds[position] = time.process_time() - start
                fits = loop.fit_seconds
                same = chosen == ours.settings[0] and abs(accuracy - ours.accuracy) < 1e-9
                if not same:
                    raise AssertionError(
                        f"{table.name}: the loop finds {chosen} {accuracy}, not {ours.settings}"
                    )
        sums += seconds
        print(
            f"{table.name:26s} {len(table.labels):5d} {seconds[0]:7.2f} {fits:7.2f} {seconds[1]:9.2f} "
            f"{seconds[2]:7.3f} {seconds[0] / seconds[2]:6.0f}  {ours.accuracy:8.2f}  "
            + ", ".join(f"{number:g}" for number in ours.settings[0]),
            flush=True,
        )
    print(
        f"{'sum':26s} {'':5s} {sums[0]:7.2f} {'':7s} {sums[1]:9.2f} {sums[2]:7.3f} {sums[0] / sums[2]:6.0f}"
        + ("" if skip_loop else "   same choices and accuracies on every table")
    )


def ninety(largest: int) -> None:
    ntk = contenders()["ntk"]
    print(f"{'rows':>5s} {'features':>8s} {'classes':>7s} {'levels':>6s}  ours s")
    total = 0.0
    sizes = [size for size in NINETY if size[0] <= largest]
    for seed, (rows, features, classes, levels) in enumerate(sizes):
        seconds = score(random_table(rows, features, classes, levels, seed), ntk).cpu_seconds
        total += seconds
        if rows >= 1000 or seconds > 1:
            print(f"{rows:5d} {features:8d} {classes:7d} {levels:6d} {seconds:7.2f}", flush=True)
    print(f"{len(sizes)} tables: {total:.1f} processor seconds, {total / 2:.0f} s on two cores")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uci", type=Path, default=DATA / "tabular" / "uci_kfold")
    parser.add_argument("--skip-loop", action="store_true", help="time ours only")
    parser.add_argument("--ninety", action="store_true", help="random tables of the published sizes instead")
    parser.add_argument(
        "--largest", type=int, default=5000, help="of --ninety, leave out tables of more rows"
    )
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(f"machines by {active_path()}; one thread; processor seconds")
    if options.ninety:
        ninety(options.largest)
    else:
        side_by_side(options.uci, skip_loop=options.skip_loop)


if __name__ == "__main__":
    main()
