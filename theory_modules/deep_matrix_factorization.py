"""Deep matrix factorisation: descent on a product of matrices fills in a matrix without being told to.

**Setting** (S. Arora, N. Cohen, W. Hu, Y. Luo, *Implicit regularization in deep matrix factorization*,
NeurIPS 2019). Some entries of an unknown n × p matrix are revealed, or some linear measurements of it. Write
W = W_N ··· W_1 with no constraint on its rank, start near zero, and descend on the *observed* loss alone.
There are infinitely many W of loss zero. What is found has low rank, the lower the deeper the product, and
agrees with the hidden matrix from fewer entries than nuclear-norm minimisation needs.

**Theorem 3.** Let the start be balanced, W_{j+1}ᵀW_{j+1} = W_jW_jᵀ, and let the layers follow gradient flow.
The product's singular values, signed so as to be analytic in time, obey

    dσ_r/dt = −N · (σ_r²)^(1−1/N) · ⟨∇ℓ(W), u_r v_rᵀ⟩.

At N = 1 every direction moves at its own gradient's speed. At N ≥ 2 the speed carries the factor
N|σ_r|^(2−2/N): what is large grows fast, what is small hardly moves; rank is spent one singular value at a
time. ``deep_matrix_factorization_dynamics`` checks it; ``matrix_completion_norm_blow_up`` shows a problem on
which every norm goes to infinity while the rank falls (Razin and Cohen 2020), so that no norm is what is
minimised.

**Assumptions, and where they fail.** (1) Small start: the published one is Gaussian, scale ``a`` giving a
product of Frobenius norm about a√n; balanced only approximately. (2) Small steps. The default rule bounds the
move of a step, averages gradients, and hands the last digits to minimum-norm Gauss-Newton steps
(``deep_matrix_factorization_polish``): same solutions, not the same path; for the path itself take
``step_rule="gradient-descent"`` or ``"grouped-rmsprop"`` (published) with ``polish_below=0``. (3) Enough
entries: near the edge deeper is not always better, and rows with a handful of entries are recovered last.

**Example.**

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> truth = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 30))
>>> mask = rng.random((30, 30)) < 0.5
>>> model = DeepMatrixFactorization(depth=3, random_state=0).fit(truth, mask)
>>> bool(np.square(model.matrix_ - truth).mean() < 1e-3)
True

Run ``python -m theory_modules.deep_matrix_factorization`` for singular values over time at depth 1, 2, 3, 4.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from .deep_matrix_factorization_checkpoint import fingerprint
from .deep_matrix_factorization_descent import (
    Descent,
    DescentSettings,
    FactorizationDivergedError,
    Progress,
    one_intra_op_thread,
)
from .deep_matrix_factorization_history import Trajectory, effective_rank
from .deep_matrix_factorization_layers import initial_chain
from .deep_matrix_factorization_problem import (
    FactorizationInputError,
    Observations,
    completion,
    sensing,
)

__all__ = [
    "DeepMatrixFactorization",
    "FactorizationDivergedError",
    "FactorizationInputError",
    "Trajectory",
    "effective_rank",
]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class DeepMatrixFactorization(BaseEstimator):  # type: ignore[misc]
    """Fill in an n × p matrix by gradient descent on a product of ``depth`` matrices.

    Several problems or starts run side by side when ``random_state`` is a list of S seeds, or when ``fit``
    gets stacked data (S, n, p); results then carry a leading axis S. A start depends on its own seed only.

    Args:
        depth: N ≥ 1 layers; 1 is plain gradient descent on the entries, which fills in nothing.
        initialization_scale: a; the product starts with Frobenius norm about a√n.
        random_state: a seed, or a list of S; None takes fresh entropy.
        hidden_width: columns of the inner layers, min(n, p) by default (no constraint on the rank).
        start: "gaussian" (published), "balanced" or "identity".
        step_rule: "capped-movement", "grouped-rmsprop" (published) or "gradient-descent".
        learning_rate: the rule's scalar; None for the rule's own (1e-3 published, 0.01 plain; the
            default rule derives its largest move from the data).
        tolerance: stop when the mean square over the observations is at most this (published: 1e-6).
        max_steps: stop there at the latest, with a warning.
        polish_below: loss at which Gauss-Newton takes over; 0 never. Default: 1e-3 times the mean square of
            the observations with "capped-movement", never with the other rules.
        record_every: steps between the records in ``history_``; 0 keeps none.
        record_vectors: keep singular vectors too.
        dtype: "float32" or "float64".
        checkpoint: a file written every ``checkpoint_every`` steps; if it exists, ``fit`` continues from it,
            bit for bit as if never interrupted.
        progress: called with (step, losses of the starts still running) at every record; True prints.

    Attributes:
        matrix_: (n, p), or (S, n, p); float64 array.
        layers_: W_1, ..., W_N as arrays.
        loss_, n_iter_, converged_: a number each, or arrays (S,).
        history_: a ``Trajectory``, or a list of S.
    """

    def __init__(
        self,
        depth: int = 3,
        initialization_scale: float = 1e-3,
        random_state: int | Sequence[int] | None = None,
        *,
        hidden_width: int | None = None,
        start: str = "gaussian",
        step_rule: str = "capped-movement",
        learning_rate: float | None = None,
        tolerance: float = 1e-6,
        max_steps: int = 1_000_000,
        polish_below: float | None = None,
        record_every: int = 100,
        record_vectors: bool = False,
        dtype: str = "float32",
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1000,
        progress: Progress | bool | None = None,
    ) -> None:
        self.depth = depth
        self.initialization_scale = initialization_scale
        self.random_state = random_state
        self.hidden_width = hidden_width
        self.start = start
        self.step_rule = step_rule
        self.learning_rate = learning_rate
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.polish_below = polish_below
        self.record_every = record_every
        self.record_vectors = record_vectors
        self.dtype = dtype
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.progress = progress

    def fit(self, observed: Any, mask: Any, *, target: Any = None) -> DeepMatrixFactorization:
        """Complete ``observed`` (n, p) or (S, n, p) from the entries where ``mask`` is True.

        Entries off the mask are never read (NaN is fine). ``target``, the whole matrix where it is known,
        only adds its error to the records.

        Raises:
            FactorizationInputError: an argument is wrong; the message says which.
            FactorizationDivergedError: the learning rate is too large.
        """
        self._check()
        seeds = self._seeds()
        return self._fit(completion(observed, mask, len(seeds), DTYPES[self.dtype]), seeds, target)

    def fit_sensing(self, measurements: Any, values: Any, *, target: Any = None) -> DeepMatrixFactorization:
        """Find W from ⟨A_i, W⟩ = b_i: ``measurements`` (m, n, p), ``values`` (m,) or (S, m).

        Raises as ``fit`` does.
        """
        self._check()
        seeds = self._seeds()
        return self._fit(sensing(measurements, values, len(seeds), DTYPES[self.dtype]), seeds, target)

    def _fit(self, problem: Observations, seeds: list[int], target: Any) -> DeepMatrixFactorization:
        single = problem.num_problems == 1 and not isinstance(self.random_state, Sequence)
        seeds = seeds if len(seeds) == problem.num_problems else seeds * problem.num_problems
        if target is not None:
            target = torch.as_tensor(np.array(target, dtype=np.float64)).to(DTYPES[self.dtype])
            target = target if target.ndim == 3 else target[None]
            if tuple(target.shape[1:]) != problem.shape or len(target) not in (1, problem.num_problems):
                raise FactorizationInputError(
                    f"target has shape {tuple(target.shape)}, not {problem.shape}; give the whole matrix"
                )
        chain = initial_chain(
            problem.shape,
            depth=self.depth,
            scale=self.initialization_scale,
            seeds=seeds,
            hidden_width=self.hidden_width,
            start=self.start,
            dtype=DTYPES[self.dtype],
        )
        settings = self._settings(problem, chain.layers)
        descent = Descent(problem, chain, settings, target=target, progress=self._progress())
        with one_intra_op_thread(), torch.no_grad():
            outcomes = descent.run()
        self.converged_: Any = np.array([o.loss <= self.tolerance for o in outcomes])
        if not self.converged_.all():
            warnings.warn(
                f"{(~self.converged_).sum()} of {len(outcomes)} starts stopped at max_steps={self.max_steps} "
                f"with loss up to {max(o.loss for o in outcomes):.2e}; raise max_steps or tolerance",
                RuntimeWarning,
                stacklevel=3,
            )
        self.matrix_: Any = torch.stack([o.matrix for o in outcomes]).double().numpy()
        self.layers_ = [torch.stack(same).numpy() for same in zip(*(o.layers for o in outcomes), strict=True)]
        self.loss_: Any = np.array([o.loss for o in outcomes])
        self.n_iter_: Any = np.array([o.steps for o in outcomes])
        self.history_: Any = descent.trajectories
        if single:
            self.matrix_, self.layers_ = self.matrix_[0], [layer[0] for layer in self.layers_]
            self.loss_, self.n_iter_ = float(self.loss_[0]), int(self.n_iter_[0])
            self.converged_, self.history_ = bool(self.converged_[0]), self.history_[0]
        return self

    def _settings(self, problem: Observations, start: list[torch.Tensor]) -> DescentSettings:
        values = problem.residual(torch.zeros(problem.num_problems, *problem.shape, dtype=start[0].dtype))
        polish_below = self.polish_below
        if polish_below is None:
            polished = self.step_rule == "capped-movement"
            polish_below = 1e-3 * float(problem.loss(values).max()) if polished else 0.0
        kept = ("step_rule", "learning_rate", "tolerance", "record_every", "record_vectors", "dtype", "depth")
        return DescentSettings(
            step_rule=self.step_rule,
            learning_rate=self.learning_rate,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            polish_below=polish_below,
            record_every=self.record_every,
            record_vectors=self.record_vectors,
            checkpoint_every=self.checkpoint_every,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            fingerprint=fingerprint({k: getattr(self, k) for k in kept}, [values, *start])
            if self.checkpoint is not None
            else "",
        )

    def _seeds(self) -> list[int]:
        if self.random_state is None:
            return [int(np.random.SeedSequence().generate_state(1)[0])]
        seeds = self.random_state if isinstance(self.random_state, Sequence) else [self.random_state]
        return [int(seed) for seed in seeds]

    def _progress(self) -> Progress | None:
        return _print_progress if self.progress is True else self.progress or None

    def _check(self) -> None:
        """Refuse settings that could only fail later, or silently do something else."""
        least = {"depth": 1, "max_steps": 0, "record_every": 0, "checkpoint_every": 1, "hidden_width": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | np.integer) or value < bound):
                raise FactorizationInputError(f"{name} is {value!r}; give a whole number of at least {bound}")
        for name in ("initialization_scale", "learning_rate", "tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise FactorizationInputError(f"{name} is {value!r}; give a positive number")
        if self.dtype not in DTYPES:
            raise FactorizationInputError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if isinstance(self.random_state, Sequence) and not self.random_state:
            raise FactorizationInputError("random_state is an empty list; give at least one seed")


def _print_progress(step: int, losses: list[float]) -> None:
    print(
        f"step {step}: {len(losses)} running, loss {min(losses):.2e} .. {max(losses):.2e}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    from .matrix_completion_experiments import main

    main(["--experiment", "dynamics", *sys.argv[1:]])
