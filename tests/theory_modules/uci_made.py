"""Tables made for the tests, and what the fourteen at hand are known to give."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from theory_modules.uci_tables import (
    Split,
    UciTable,
)

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
FOURTEEN = DATA / "tabular" / "uci_kfold"
EXPECTED = {  # accuracy and (L, L', C) of a fit of scikit-learn's SVC a setting, float64 kernels by arccos
    "balloons": (100.00, (2, 0, 1)),
    "breast-cancer-wisc-diag": (96.83, (4, 0, 1)),
    "echocardiogram": (85.61, (3, 2, 1)),
    "ecoli": (86.61, (1, 0, 0.1)),
    "glass": (68.40, (2, 0, 10)),
    "heart-cleveland": (59.54, (2, 0, 0.1)),
    "hepatitis": (82.05, (3, 2, 10)),
    "ionosphere": (94.89, (3, 1, 1)),
    "iris": (97.30, (1, 0, 0.1)),
    "lymphography": (87.16, (3, 1, 1)),
    "primary-tumor": (52.13, (4, 2, 1)),
    "statlog-heart": (88.06, (1, 0, 0.01)),
    "wine": (97.73, (2, 0, 0.1)),
    "zoo": (96.00, (1, 0, 0.1)),
}


def table(rows: int = 60, num_classes: int = 3, seed: int = 0, name: str = "made") -> UciTable:
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % num_classes
    features = rng.standard_normal((rows, 4)) + np.eye(4)[labels]

    def split(share: float) -> Split:
        order = rng.permutation(rows)
        return Split(order[: round(share * rows)], order[round(share * rows) :])

    return UciTable(name, features, labels, split(0.5), tuple(split(0.75) for _ in range(4)))


def write(folder: Path, made: UciTable, **description: object) -> Path:
    """The table as files of the published format."""
    folder.mkdir(parents=True)
    rows = [f"{k + 1}\t" + "\t".join(f"{v:.9g}" for v in x) for k, x in enumerate(made.features)]
    lines = [f"{row}\t{label}" for row, label in zip(rows, made.labels, strict=True)]
    (folder / f"{folder.name}_R.dat").write_text("\n".join(["\tf1\tf2\tf3\tf4\tclase", *lines]) + "\n")
    words = {"fich1": f"{folder.name}_R.dat", "n_patrons1": len(made.labels), **description}
    (folder / f"{folder.name}.txt").write_text("".join(f"{key}= {value}\n" for key, value in words.items()))

    def text(*splits: Split) -> str:
        return "".join(" ".join(map(str, part)) + " \n" for s in splits for part in (s.train, s.test))

    (folder / "conxuntos.dat").write_text(text(made.tuning))
    (folder / "conxuntos_kfold.dat").write_text(text(*made.folds))
    return folder
