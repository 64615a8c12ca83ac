"""Reconstruction error against what is known: depth 2, 3, 4 and the certified nuclear norm.

The published comparison (Arora, Cohen, Hu and Luo, NeurIPS 2019): the same n × n matrix of rank r is shown to
every method through m of its entries, or through m Gaussian measurements ⟨A_i, W⟩, and each method's matrix
is compared with the whole truth by the mean square over all n² entries. Where entries are many every method
recovers the matrix; where they are few, deeper products of matrices do when the nuclear norm does not.

``python -m theory_modules.matrix_completion_experiments`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .deep_matrix_factorization import DeepMatrixFactorization, effective_rank
from .matrix_completion_problems import completion_problem, sensing_problem
from .nuclear_norm import complete_by_nuclear_norm, sense_by_nuclear_norm

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One method on one count: errors, nuclear norms, effective ranks and convergence, a value a seed."""

    count: int
    method: str
    errors: list[float]
    norms: list[float]
    ranks: list[float]
    converged: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        worst, median = max(self.errors), float(np.median(self.errors))
        return (
            f"{self.count:6d}  {self.method:8s}  error {median:.1e} (to {worst:.1e})  "
            f"norm {np.mean(self.norms):8.2f}  effective rank {np.mean(self.ranks):5.2f}  "
            f"converged {self.converged} of {len(self.errors)}"
        )


def completion_curve(
    *,
    size: int,
    rank: int,
    counts: Sequence[int],
    seeds: Sequence[int],
    scale: float,
    depths: Sequence[int],
    say: Say = lambda line: None,
) -> list[Row]:
    """Every method on the same instances; deep runs of all seeds go side by side."""
    rows = []
    for count in counts:
        problems = [completion_problem(size, rank, count, seed=seed) for seed in seeds]
        truths, masks = (np.stack(part) for part in zip(*problems, strict=True))
        for depth in depths:
            say(f"{count} entries, depth {depth}")
            model = DeepMatrixFactorization(
                depth, scale, random_state=list(seeds), record_every=0, max_steps=200_000
            ).fit(truths, masks)
            rows.append(_row(count, f"depth {depth}", truths, model.matrix_, int(model.converged_.sum())))
        say(f"{count} entries, nuclear norm")
        results = [complete_by_nuclear_norm(*problem, gap=1e-4) for problem in problems]
        found = np.stack([result.matrix for result in results])
        rows.append(_row(count, "nuclear", truths, found, sum(result.converged for result in results)))
    return rows


def sensing_curve(
    *,
    size: int,
    rank: int,
    counts: Sequence[int],
    seeds: Sequence[int],
    scale: float,
    depths: Sequence[int],
    say: Say = lambda line: None,
) -> list[Row]:
    """As ``completion_curve``, from Gaussian measurements; each seed has its own."""
    rows = []
    for count in counts:
        methods = [*(f"depth {depth}" for depth in depths), "nuclear"]
        found: dict[str, list[np.ndarray]] = {method: [] for method in methods}
        converged = dict.fromkeys(found, 0)
        truths = []
        for seed in seeds:
            say(f"{count} measurements, seed {seed}")
            truth, measurements, values = sensing_problem(size, rank, count, seed=seed)
            truths.append(truth)
            for depth in depths:
                model = DeepMatrixFactorization(depth, scale, random_state=seed, record_every=0)
                model.fit_sensing(measurements, values)
                found[f"depth {depth}"].append(model.matrix_)
                converged[f"depth {depth}"] += model.converged_
            result = sense_by_nuclear_norm(measurements, values, gap=1e-4)
            found["nuclear"].append(result.matrix)
            converged["nuclear"] += result.converged
        for method, matrices in found.items():
            rows.append(_row(count, method, np.stack(truths), np.stack(matrices), converged[method]))
    return rows


def _row(count: int, method: str, truths: np.ndarray, found: np.ndarray, converged: int) -> Row:
    values = np.linalg.svd(found, compute_uv=False)
    return Row(
        count,
        method,
        np.square(found - truths).mean((1, 2)).tolist(),
        values.sum(1).tolist(),
        [effective_rank(s) for s in values],
        converged,
    )


def draw_curve(rows: list[Row], path: Path) -> None:
    """Median error against count, one line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        axes.semilogy(
            [row.count for row in mine],
            [max(np.median(row.errors), 1e-16) for row in mine],
            "o-",
            label=method,
        )
    axes.set(xlabel="known", ylabel="mean square error over all entries")
    axes.legend()
    figure.savefig(path, format="png", dpi=130)


if __name__ == "__main__":
    import sys

    from .matrix_completion_experiments import main

    main(["--experiment", "rank5", *sys.argv[1:]])
