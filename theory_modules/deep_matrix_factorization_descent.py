"""The loop: gradient, test, record, step — for S starts at once, dropping each as it arrives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .deep_matrix_factorization_checkpoint import load_checkpoint, save_checkpoint
from .deep_matrix_factorization_history import Trajectory
from .deep_matrix_factorization_layers import LayerChain
from .deep_matrix_factorization_polish import polish
from .deep_matrix_factorization_problem import Observations
from .deep_matrix_factorization_steps import step_rule


class FactorizationDivergedError(ArithmeticError):
    """The loss left the range of the numbers: the learning rate is too large."""


@dataclass(frozen=True)
class DescentSettings:
    """How long, how fast, and what to keep; every field is explained at ``DeepMatrixFactorization``."""

    step_rule: str
    learning_rate: float | None
    tolerance: float
    max_steps: int
    polish_below: float
    record_every: int
    record_vectors: bool = False
    checkpoint_every: int = 1000
    checkpoint: Path | None = None
    fingerprint: str = ""


@dataclass
class Outcome:
    """Where one start ended."""

    matrix: Tensor
    loss: float
    steps: int
    layers: list[Tensor] = field(default_factory=list)


Progress = Callable[[int, list[float]], None]


class Descent:
    """Drives one chain of S starts to its end; ``outcomes`` and ``trajectories`` are in the starts' order."""

    def __init__(
        self,
        problem: Observations,
        chain: LayerChain,
        settings: DescentSettings,
        *,
        target: Tensor | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.problem, self.chain, self.settings = problem, chain, settings
        self.target, self.progress = target, progress
        self.rule = step_rule(settings.step_rule, chain, problem, settings.learning_rate)
        self.active = list(range(problem.num_problems))
        self.polish_below = [settings.polish_below for _ in self.active]
        self.times = [0.0 for _ in self.active]
        self.trajectories = [Trajectory() for _ in self.active]
        self.outcomes: dict[int, Outcome] = {}
        self.step = 0

    def run(self) -> list[Outcome]:
        """Every start at its tolerance, or at ``max_steps``."""
        if self.settings.checkpoint is not None and self.settings.checkpoint.exists():
            self._restore(load_checkpoint(self.settings.checkpoint, self.settings.fingerprint))
        whole = self.problem
        residual: Tensor | None = None
        self.problem = whole.select(self.active) if len(self.active) < whole.num_problems else whole
        while self.active:
            residual = self.problem.residual(self.chain.forward(), out=residual)
            losses = self.problem.loss(residual).tolist()
            self._report(losses)
            finished, moved = self._finish(losses)
            if finished or moved:
                residual = None
                self._drop(finished)
                continue
            self.chain.backward(self.problem.loss_gradient(residual))
            sizes = self.rule.step(self.chain).tolist()
            for start, size in zip(self.active, sizes, strict=True):
                self.times[start] += size
            self.step += 1
            if self.settings.checkpoint is not None and self.step % self.settings.checkpoint_every == 0:
                save_checkpoint(self.settings.checkpoint, self._state())
        if self.settings.checkpoint is not None:
            save_checkpoint(self.settings.checkpoint, self._state())
        return [self.outcomes[start] for start in range(whole.num_problems)]

    def _report(self, losses: list[float]) -> None:
        if self.settings.record_every and self.step % self.settings.record_every == 0:
            for row, (start, loss) in enumerate(zip(self.active, losses, strict=True)):
                self._record(start, self.step, loss, self.chain.product[row])
            if self.progress is not None:
                self.progress(self.step, losses)

    def _record(self, start: int, step: int, loss: float, W: Tensor) -> None:
        target = None if self.target is None else self.target[start % len(self.target)]
        self.trajectories[start].record(
            step, self.times[start], loss, W, target, vectors=self.settings.record_vectors
        )

    def _finish(self, losses: list[float]) -> tuple[list[int], bool]:
        """Rows that ended at this step, polished where that is due; whether polishing moved any layer."""
        finished, moved = [], False
        for row, (start, loss) in enumerate(zip(self.active, losses, strict=True)):
            if not loss < float("inf"):
                raise FactorizationDivergedError(
                    f"the loss became {loss} after {self.step} steps; use a smaller learning_rate"
                )
            chain, steps, loss_now, row_there = self.chain, self.step, loss, row
            if self.settings.tolerance < loss < self.polish_below[start] and steps < self.settings.max_steps:
                chain, steps, loss_now = self._polish(row, start)
                row_there, moved = 0, True
            if loss_now <= self.settings.tolerance or steps >= self.settings.max_steps:
                W = chain.product[row_there].clone()
                self.outcomes[start] = Outcome(
                    W, loss_now, steps, [layer[row_there].clone() for layer in chain.layers]
                )
                if self.settings.record_every:
                    self._record(start, steps, loss_now, W)
                finished.append(row)
        return finished, moved

    def _polish(self, row: int, start: int) -> tuple[LayerChain, int, float]:
        """Gauss-Newton on one start; where it gives up, the next attempt waits for a third of the loss."""
        one = self.chain.one(row)
        steps, losses = polish(
            one, self.problem.select([row]), self.settings.tolerance, self.settings.max_steps - self.step
        )
        if losses[-1] <= self.settings.tolerance or self.step + steps >= self.settings.max_steps:
            self.trajectories[start].polished_from = self.step
            return one, self.step + steps, losses[-1]
        self.polish_below[start] = losses[-1] / 3
        return one, self.step, losses[-1]

    def _drop(self, finished: list[int]) -> None:
        keep = [row for row in range(len(self.active)) if row not in finished]
        self.active = [self.active[row] for row in keep]
        if keep:
            self.chain, self.problem = self.chain.select(keep), self.problem.select(keep)
            self.rule.select(keep)

    def _state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.settings.fingerprint,
            "step": self.step,
            "active": self.active,
            "polish_below": self.polish_below,
            "times": self.times,
            "layers": self.chain.layers,
            "rule": self.rule.state(),
            "trajectories": [trajectory.to_state() for trajectory in self.trajectories],
            "outcomes": {start: vars(outcome) for start, outcome in self.outcomes.items()},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.active = state["step"], state["active"]
        self.polish_below, self.times = state["polish_below"], state["times"]
        self.chain = LayerChain(state["layers"])
        self.rule.restore(state["rule"])
        self.trajectories = [Trajectory.from_state(t) for t in state["trajectories"]]
        self.outcomes = {start: Outcome(**outcome) for start, outcome in state["outcomes"].items()}


@contextlib.contextmanager
def one_intra_op_thread() -> Iterator[None]:
    """At a few hundred rows, threads cost more than they bring: ten times the wall time with two of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
