"""The published experiments, by command.

    python -m theory_modules.matrix_completion_experiments --experiment rank5
    python -m theory_modules.matrix_completion_experiments --experiment movielens --data ml-100k

rank5, rank10   reconstruction error against revealed entries: depth 2, 3, 4 and the certified nuclear norm
sensing         the same from Gaussian measurements (--size 50 by default: 100 takes minutes a run)
norm-blow-up    the 2 × 2 problem whose norms go to infinity (Razin and Cohen 2020)
dynamics        Theorem 3 along the flow at depth 1, 2, 3, 4; picture of singular values over time
movielens       RMSE on u1 of MovieLens 100k, from a folder of yours

Tables go to standard output, progress to standard error, a picture to --out where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .deep_matrix_factorization_dynamics import DynamicsReport, factor_flow, verify_dynamics
from .deep_matrix_factorization_problem import FactorizationInputError
from .deep_matrix_factorization_tracking import track_singular_values
from .matrix_completion_curves import Say, completion_curve, draw_curve, sensing_curve
from .matrix_completion_movielens import MovieLensResult, movielens
from .matrix_completion_norm_blow_up import NormBlowUp, norm_blow_up
from .matrix_completion_problems import low_rank_matrix

EXPERIMENTS = ("rank5", "rank10", "sensing", "norm-blow-up", "dynamics", "movielens")
COUNTS = {"rank5": (1600, 1800, 2000, 2500, 3000, 5000), "rank10": (3000, 3500, 4000, 5000)}


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: ``lines`` for people, ``values`` for programs, ``draw`` where there is a
    picture."""

    lines: list[str]
    values: list[dict[str, Any]]
    draw: Callable[[Path], None] | None = None


def singular_value_curves(
    size: int = 20, seed: int = 0, *, say: Say = lambda line: None
) -> tuple[dict[int, tuple[np.ndarray, np.ndarray]], list[DynamicsReport]]:
    """The flow on a rank-3 completion problem: depth → (times (T,), tracked singular values (T, k)), and
    how far each of Theorem 3's formulas is from it."""
    rng = np.random.default_rng(seed)
    target = low_rank_matrix(size, 3, rng)
    mask = rng.random((size, size)) < 0.5
    U, V = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    start = U * np.geomspace(0.1, 0.01, size) @ V.T
    curves, reports = {}, []
    for depth in (1, 2, 3, 4):
        say(f"depth {depth}")
        # Deeper products wait longer where values are small, and need longer to show the later ones.
        step, num_steps = {1: (5e-3, 1200), 2: (1e-3, 2000), 3: (1e-3, 3000), 4: (1e-3, 4000)}[depth]
        flow = factor_flow(target, mask, start, depth=depth, step=step, num_steps=num_steps, record_every=3)
        reports.append(verify_dynamics(flow))
        curves[depth] = flow.times, track_singular_values(flow.path).values
    return curves, reports


def draw_dynamics(curves: dict[int, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Singular values over time, one panel a depth: the rich get richer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axes, (depth, (times, values)) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot(times, values[:, :10])
        axes.set(title=f"depth {depth}", xlabel="time", ylabel="singular values")
    figure.savefig(path, format="png", dpi=130)


def draw_validation(results: dict[int, MovieLensResult], path: Path) -> None:
    """Validation RMSE along the descent, a line a depth, with the step it was stopped at."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for depth, result in results.items():
        (line,) = axes.plot(*zip(*result.validation_curve, strict=True), label=f"depth {depth}")
        axes.plot(result.steps, result.validation_rmse, "o", color=line.get_color())
    least = min(result.validation_rmse for result in results.values())
    axes.set(xlabel="step", ylabel="RMSE on the validation part", ylim=(least - 0.02, least + 0.28))
    axes.legend()
    figure.savefig(path, format="png", dpi=130)


def draw_norm_blow_up(runs: Sequence[NormBlowUp], path: Path) -> None:
    """The free entry and the effective rank while the loss falls, where the determinant starts positive."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    corner, rank = figure.subplots(1, 2)
    positive = list(runs)[::2]
    for found in positive:
        corner.plot(found.losses, found.corners, "o-", label=f"depth {found.depth}")
        rank.plot(found.losses, found.effective_ranks, "o-", label=f"depth {found.depth}")
    longest = max(positive, key=lambda found: len(found.losses))
    corner.plot(longest.losses, longest.bounds, "k--", label="bound")
    corner.set(xscale="log", yscale="log", xlabel="loss", ylabel="|W11|")
    rank.set(xscale="log", xlabel="loss", ylabel="effective rank")
    for axes in (corner, rank):
        axes.invert_xaxis()
        axes.legend()
    figure.savefig(path, format="png", dpi=130)


def run_experiment(
    experiment: str,
    *,
    data: Path | None = None,
    size: int | None = None,
    counts: Sequence[int] | None = None,
    seeds: int = 5,
    depths: Sequence[int] | None = None,
    scale: float = 1e-4,
    say: Say = lambda line: None,
) -> Outcome:
    """One of ``EXPERIMENTS``; what is left out has the size of the published one, or says so above.

    Args:
        data: the folder with ``u1.base`` and ``u1.test`` (movielens).
        size: rows and columns (default 100; sensing 50; dynamics 20).
        counts: numbers of known entries or measurements.
        seeds: instances a count.
        depths: default 2, 3, 4 (movielens: 2).
        scale: of the initialization.
        say: told what is being computed.

    Raises:
        FactorizationInputError: an unknown experiment, movielens without data, or an impossible value.
    """
    if experiment not in EXPERIMENTS:
        raise FactorizationInputError(f"no experiment {experiment!r}; choose from {', '.join(EXPERIMENTS)}")
    if seeds < 1 or (size is not None and size < 2):
        raise FactorizationInputError(f"seeds is {seeds} and size {size}; give 1 or more and 2 or more")
    if experiment == "norm-blow-up":
        return _blow_up_outcome(
            [norm_blow_up(d, positive_determinant=p) for d in (2, 3, 4) for p in (True, False)]
        )
    if experiment == "movielens":
        return _movielens_outcome(data, depths or [2], say)
    if experiment == "dynamics":
        curves, reports = singular_value_curves(size or 20, say=say)
        return Outcome(
            [str(report) for report in reports],
            [asdict(report) for report in reports],
            lambda path: draw_dynamics(curves, path),
        )
    sensing = experiment == "sensing"
    size = size or (50 if sensing else 100)
    rank = 10 if experiment == "rank10" else 5 if not sensing else max(1, size // 20)
    # Sensing: from just above the degrees of freedom r(2n − r) up to three times as many.
    freedom = rank * (2 * size - rank)
    rows = (sensing_curve if sensing else completion_curve)(
        size=size,
        rank=rank,
        counts=counts or COUNTS.get(experiment) or [int(freedom * x) for x in (1.3, 2, 3)],
        seeds=range(seeds),
        scale=scale,
        depths=depths or [2, 3, 4],
        say=say,
    )
    return Outcome(
        [str(row) for row in rows], [row.to_dict() for row in rows], lambda path: draw_curve(rows, path)
    )


def _movielens_outcome(data: Path | None, depths: Sequence[int], say: Say) -> Outcome:
    if data is None:
        raise FactorizationInputError(
            "movielens needs --data: its licence forbids shipping it; get it from its makers"
        )
    results = [
        movielens(
            data, depth=depth, progress=lambda step, rmse: say(f"step {step}: validation RMSE {rmse:.4f}")
        )
        for depth in depths
    ]
    return Outcome(
        [f"depth {depth}: {result}" for depth, result in zip(depths, results, strict=True)],
        [{"depth": depth} | asdict(result) for depth, result in zip(depths, results, strict=True)],
        lambda path: draw_validation(dict(zip(depths, results, strict=True)), path),
    )


def _blow_up_outcome(runs: list[NormBlowUp]) -> Outcome:
    lines, values = [], []
    for index, found in enumerate(runs):
        positive = index % 2 == 0
        lines.append(f"depth {found.depth}, det W(0) {'> 0' if positive else '< 0'}")
        for loss, corner, bound, rank in zip(
            found.losses, found.corners, found.bounds, found.effective_ranks, strict=True
        ):
            promised = f" >= {bound:.2f}" if positive else ""
            lines.append(f"  loss {loss:.1e}  |W11| {corner:.2f}{promised}  effective rank {rank:.4f}")
        if found.sign_lost_at is not None:
            lines.append(f"  stopped: rounding took the determinant's sign at loss {found.sign_lost_at:.1e}")
        numbers = {name: np.asarray(value).tolist() for name, value in asdict(found).items()}
        values.append(numbers | {"positive_determinant": positive})
    return Outcome(lines, values, lambda path: draw_norm_blow_up(runs, path))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m theory_modules.matrix_completion_experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", choices=EXPERIMENTS, required=True)
    parser.add_argument("--data", type=Path, help="folder with u1.base and u1.test (movielens)")
    parser.add_argument("--size", type=int, help="rows and columns (default 100; sensing 50)")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of known entries or measurements")
    parser.add_argument("--seeds", type=int, default=5, help="instances a count (default 5)")
    parser.add_argument("--depths", type=int, nargs="+", help="default 2 3 4 (movielens: 2)")
    parser.add_argument("--scale", type=float, default=1e-4, help="initialization scale (default 1e-4)")
    parser.add_argument("--out", type=Path, help="picture (default EXPERIMENT.png)")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out") or Path(f"{options['experiment']}.png")
    try:
        outcome = run_experiment(options.pop("experiment"), say=_say, **options)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(outcome.lines))
    if outcome.draw is not None and find_spec("matplotlib") is not None:
        outcome.draw(out)
        print(f"figure: {out}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
