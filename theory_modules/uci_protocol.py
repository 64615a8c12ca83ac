"""Tune, then score: the published rule, and the same rule without its leak.

Published: every setting of the grid is trained on the tuning half and judged on the other; the first best
wins (strict improvement in the grid's order). Its score is the mean accuracy over the four given pairs of
training and test rows. All 179 classifiers of the comparison follow this rule, so that ranks are fair, but
the test rows were seen while tuning.

Nested: for each pair, the same tuning happens inside the training rows alone (halves, each class shared
evenly); the chosen setting is trained on all of them and scored on the test rows. Nothing of a test row is
used before its score.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

import numpy as np

from .uci_contenders import Contender, Setting
from .uci_tables import Split, UciTable, inner_split

PROTOCOLS = ("published", "nested")


@dataclass(frozen=True)
class TableScore:
    """One classifier on one table.

    Attributes:
        accuracy: mean over the pairs, in percent.
        fold_accuracies: of each pair, in percent.
        settings: what was chosen, once (published) or for each pair (nested).
        validation_accuracies: of what was chosen, on the rows it was chosen on, in percent.
        cpu_seconds: processor time of tuning and scoring.
    """

    accuracy: float
    fold_accuracies: tuple[float, ...]
    settings: tuple[Setting, ...]
    validation_accuracies: tuple[float, ...]
    cpu_seconds: float


def score(table: UciTable, contender: Contender, *, protocol: str = "published") -> TableScore:
    """Tune and score one classifier on one table."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    start = time.process_time()
    tunings = [table.tuning] if protocol == "published" else _inner_tunings(table)
    chosen = [choose(table, contender, split) for split in tunings]
    settings = [setting for setting, _ in chosen]
    folds = [
        float(contender.accuracies(table, split, [setting])[0])
        for split, setting in zip(table.folds, settings * (len(table.folds) // len(settings)), strict=True)
    ]
    return TableScore(
        100 * float(np.mean(folds)),
        tuple(100 * share for share in folds),
        tuple(settings),
        tuple(100 * share for _, share in chosen),
        time.process_time() - start,
    )


def choose(table: UciTable, contender: Contender, split: Split) -> tuple[Setting, float]:
    """The first setting with the best accuracy on the split, and that accuracy."""
    settings = contender.settings(table)
    shares = contender.accuracies(table, split, settings)
    first_best = int(np.argmax(shares))
    return settings[first_best], float(shares[first_best])


def _inner_tunings(table: UciTable) -> list[Split]:
    name = zlib.crc32(table.name.encode())
    return [
        inner_split(table.labels, split.train, seed=name + number) for number, split in enumerate(table.folds)
    ]
