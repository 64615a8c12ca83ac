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
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .deep_matrix_factorization import DeepMatrixFactorization, effective_rank
from .deep_matrix_factorization_dynamics import factor_flow, verify_dynamics
from .deep_matrix_factorization_tracking import track_singular_values
from .matrix_completion_movielens import movielens
from .matrix_completion_norm_blow_up import norm_blow_up
from .matrix_completion_problems import completion_problem, low_rank_matrix, sensing_problem
from .nuclear_norm import complete_by_nuclear_norm, sense_by_nuclear_norm

EXPERIMENTS = ("rank5", "rank10", "sensing", "norm-blow-up", "dynamics", "movielens")
COUNTS = {"rank5": (1600, 1800, 2000, 2500, 3000, 5000), "rank10": (3000, 3500, 4000, 5000)}


@dataclass(frozen=True)
class Row:
    """One method on one count: errors, nuclear norms, effective ranks and convergence, a value a seed."""

    count: int
    method: str
    errors: list[float]
    norms: list[float]
    ranks: list[float]
    converged: int

    def __str__(self) -> str:
        worst, median = max(self.errors), float(np.median(self.errors))
        return (
            f"{self.count:6d}  {self.method:8s}  error {median:.1e} (to {worst:.1e})  "
            f"norm {np.mean(self.norms):8.2f}  effective rank {np.mean(self.ranks):5.2f}  "
            f"converged {self.converged} of {len(self.errors)}"
        )


def completion_curve(
    *, size: int, rank: int, counts: Sequence[int], seeds: Sequence[int], scale: float, depths: Sequence[int]
) -> list[Row]:
    """Every method on the same instances; deep runs of all seeds go side by side."""
    rows = []
    for count in counts:
        problems = [completion_problem(size, rank, count, seed=seed) for seed in seeds]
        truths, masks = (np.stack(part) for part in zip(*problems, strict=True))
        for depth in depths:
            _say(f"{count} entries, depth {depth}")
            model = DeepMatrixFactorization(
                depth, scale, random_state=list(seeds), record_every=0, max_steps=200_000
            ).fit(truths, masks)
            rows.append(_row(count, f"depth {depth}", truths, model.matrix_, int(model.converged_.sum())))
        _say(f"{count} entries, nuclear norm")
        results = [complete_by_nuclear_norm(*problem, gap=1e-4) for problem in problems]
        found = np.stack([result.matrix for result in results])
        rows.append(_row(count, "nuclear", truths, found, sum(result.converged for result in results)))
    return rows


def sensing_curve(
    *, size: int, rank: int, counts: Sequence[int], seeds: Sequence[int], scale: float, depths: Sequence[int]
) -> list[Row]:
    """As ``completion_curve``, from Gaussian measurements; each seed has its own."""
    rows = []
    for count in counts:
        methods = [*(f"depth {depth}" for depth in depths), "nuclear"]
        found: dict[str, list[np.ndarray]] = {method: [] for method in methods}
        converged = dict.fromkeys(found, 0)
        truths = []
        for seed in seeds:
            _say(f"{count} measurements, seed {seed}")
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


def singular_value_curves(size: int = 20, seed: int = 0) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Depth → (times (T,), tracked singular values (T, k)) of the flow on a rank-3 completion problem."""
    rng = np.random.default_rng(seed)
    target = low_rank_matrix(size, 3, rng)
    mask = rng.random((size, size)) < 0.5
    U, V = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    start = U * np.geomspace(0.1, 0.01, size) @ V.T
    curves = {}
    for depth in (1, 2, 3, 4):
        # Deeper products wait longer where values are small, and need longer to show the later ones.
        step, num_steps = {1: (5e-3, 1200), 2: (1e-3, 2000), 3: (1e-3, 3000), 4: (1e-3, 4000)}[depth]
        flow = factor_flow(target, mask, start, depth=depth, step=step, num_steps=num_steps, record_every=3)
        print(verify_dynamics(flow))
        curves[depth] = flow.times, track_singular_values(flow.path).values
    return curves


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
    figure.savefig(path, dpi=130)


def draw_dynamics(curves: dict[int, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Singular values over time, one panel a depth: the rich get richer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axes, (depth, (times, values)) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot(times, values[:, :10])
        axes.set(title=f"depth {depth}", xlabel="time", ylabel="singular values")
    figure.savefig(path, dpi=130)


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
    options = parser.parse_args(arguments)
    if options.experiment == "movielens" and options.data is None:
        parser.error("movielens needs --data: its licence forbids shipping it; get it from its makers")
    out = options.out or Path(f"{options.experiment}.png")
    with_pictures = find_spec("matplotlib") is not None
    if options.experiment == "norm-blow-up":
        _print_blow_up()
    elif options.experiment == "movielens":
        for depth in options.depths or [2]:
            result = movielens(options.data, depth=depth, progress=_say_validation)
            print(f"depth {depth}: {result}")
    elif options.experiment == "dynamics":
        curves = singular_value_curves(options.size or 20)
        if with_pictures:
            draw_dynamics(curves, out)
            print(f"figure: {out}")
    else:
        rows = _run_curve(options)
        for row in rows:
            print(row)
        if with_pictures:
            draw_curve(rows, out)
            print(f"figure: {out}")


def _run_curve(options: argparse.Namespace) -> list[Row]:
    sensing = options.experiment == "sensing"
    size = options.size or (50 if sensing else 100)
    rank = 10 if options.experiment == "rank10" else 5 if not sensing else max(1, size // 20)
    # Sensing: from just above the degrees of freedom r(2n − r) up to three times as many.
    freedom = rank * (2 * size - rank)
    counts = options.counts or COUNTS.get(options.experiment) or [int(freedom * x) for x in (1.3, 2, 3)]
    run = sensing_curve if sensing else completion_curve
    return run(
        size=size,
        rank=rank,
        counts=counts,
        seeds=range(options.seeds),
        scale=options.scale,
        depths=options.depths or [2, 3, 4],
    )


def _print_blow_up() -> None:
    for depth in (2, 3, 4):
        for positive in (True, False):
            found = norm_blow_up(depth, positive_determinant=positive)
            print(f"depth {depth}, det W(0) {'> 0' if positive else '< 0'}")
            for loss, corner, bound, rank in zip(
                found.losses, found.corners, found.bounds, found.effective_ranks, strict=True
            ):
                promised = f" >= {bound:.2f}" if positive else ""
                print(f"  loss {loss:.1e}  |W11| {corner:.2f}{promised}  effective rank {rank:.4f}")
            if found.sign_lost_at is not None:
                print(f"  stopped: rounding took the determinant's sign at loss {found.sign_lost_at:.1e}")


def _say_validation(step: int, error: float) -> None:
    _say(f"step {step}: validation RMSE {error:.4f}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
