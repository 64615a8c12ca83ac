"""What a run leaves behind: loss, error, rank, norm and singular values along the way, one record a start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]


@dataclass
class Trajectory:
    """Values at the recorded steps, the last one at the end of the run. Lists run in step.

    ``error`` is the mean square over *all* entries against ``target`` and stays empty without one;
    ``left_vectors`` (n, k) and ``right_vectors`` (p, k) are kept on demand. ``time`` is the sum of the step
    sizes, the time of gradient flow where the rule has no momentum. ``polished_from`` is the step at which
    Gauss-Newton took over, None if it never did.
    """

    steps: list[int] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    nuclear_norm: list[float] = field(default_factory=list)
    effective_rank: list[float] = field(default_factory=list)
    singular_values: list[FloatArray] = field(default_factory=list)
    left_vectors: list[FloatArray] = field(default_factory=list)
    right_vectors: list[FloatArray] = field(default_factory=list)
    polished_from: int | None = None

    def record(
        self,
        step: int,
        time: float,
        loss: float,
        W: Tensor,
        target: Tensor | None = None,
        vectors: bool = False,
    ) -> None:
        """Append one record of W (n, p); a step already recorded last is replaced."""
        if self.steps and self.steps[-1] == step:
            for values in vars(self).values():
                if isinstance(values, list) and values:
                    values.pop()
        self.steps.append(step)
        self.time.append(time)
        self.loss.append(loss)
        if target is not None:
            self.error.append(float((W - target).double().square().mean()))
        if vectors:
            U, s, Vt = torch.linalg.svd(W.double(), full_matrices=False)
            self.left_vectors.append(U.numpy())
            self.right_vectors.append(Vt.mT.numpy())
        else:
            s = torch.linalg.svdvals(W).double()
        self.singular_values.append(s.numpy())
        self.nuclear_norm.append(float(s.sum()))
        self.effective_rank.append(effective_rank(s.numpy()))

    def to_state(self) -> dict[str, Any]:
        """Plain lists, numbers and tensors, for a checkpoint."""
        arrays = ("singular_values", "left_vectors", "right_vectors")
        return {k: [torch.from_numpy(a) for a in v] if k in arrays else v for k, v in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Trajectory:
        arrays = ("singular_values", "left_vectors", "right_vectors")
        fields: dict[str, Any] = {k: [t.numpy() for t in v] if k in arrays else v for k, v in state.items()}
        return cls(**fields)


def effective_rank(singular_values: Any) -> float:
    """exp of the entropy of the singular values normalised to sum one; 0 for the zero matrix."""
    s = np.abs(np.asarray(singular_values, dtype=np.float64))
    if not s.sum():
        return 0.0
    weights = s[s > 0] / s.sum()
    return float(np.exp(-(weights * np.log(weights)).sum()))
