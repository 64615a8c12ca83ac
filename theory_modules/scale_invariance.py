"""Which tensors of a network may be trained with a growing rate? A decision, not a rule of thumb.

The exponential rate is exact only on tensors whose common scale does not change the function. Layer types do
not tell: a convolution before a batch norm converts, the last one before the head does not; a stem on a
residual stream converts only together with everything else that writes to the stream. So it is measured:

1. J[k, i] = <∂f_k/∂w_i, w_i> for random cotangents, weights and inputs, eps → 0. Its null space is exactly
   the space of per-tensor scalings that keep the function (``scaling_null_space``).
2. A set S may share one rate iff its 0/1 vector lies in that space; the heaviest such S is found exactly.
3. Confirmation without tolerance: double S, multiply the eps of every normalisation by 4^d and its running
   mean and variance by 2^d and 4^d (d the measured degree of its input). Powers of two are exact in floating
   point, so outputs must be equal *bit for bit*, in training and in evaluation mode.

>>> report = scale_invariance_report(model, sample)      # doctest: +SKIP
>>> print(report)                                        # doctest: +SKIP

Limits. The measure is of ``model(sample)``: a loss with its own penalty on the weights breaks what it found.
Positive scales only. Batch norms are judged in training mode, as they are trained; frozen ones are not
invariant.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .normalization_scale import normalization_names
from .scale_invariance_probe import (
    Sample,
    confirmed_bitwise,
    cotangent_rows,
    input_degrees,
    trainable,
)
from .scaling_null_space import best_common_set, echelon_rows, null_basis

ZERO = 1e-9  # a column of J below this is a tensor that converts alone (seen: 1e-15 against 1e-3)


class NotScaleInvariantError(ValueError):
    """Equivalence was asked for where it does not hold."""


@dataclass(frozen=True)
class TensorVerdict:
    """One trained tensor: ``verdict`` is "alone", "jointly" or "never"; ``hint`` says what would help."""

    name: str
    numel: int
    verdict: str
    hint: str


@dataclass(frozen=True)
class ScaleInvarianceReport:
    """What ``scale_invariance_report`` found; T trained tensors.

    ``convertible``: the largest set that may share one growing rate (``alone`` ones included), confirmed
    bitwise; empty where nothing converts. ``degrees``: normalisation module → degree of its input in that
    set, for eps and running statistics. ``basis``: (n, T) null space, columns in the order of ``tensors``.
    ``spectral_gap``: relative singular values on either side of the rank decision.
    """

    tensors: tuple[TensorVerdict, ...]
    convertible: tuple[str, ...]
    degrees: dict[str, int]
    basis: NDArray[np.float64]
    spectral_gap: tuple[float, float]

    @property
    def alone(self) -> tuple[str, ...]:
        return self._with("alone")

    @property
    def jointly(self) -> tuple[str, ...]:
        return self._with("jointly")

    @property
    def never(self) -> tuple[str, ...]:
        return self._with("never")

    def _with(self, verdict: str) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors if tensor.verdict == verdict)

    def require(self) -> tuple[str, ...]:
        """``convertible``, or NotScaleInvariantError with the reason where it is empty."""
        if self.convertible:
            return self.convertible
        reasons = "\n".join(f"hint: {tensor.name}: {tensor.hint}" for tensor in self.tensors[:3])
        raise NotScaleInvariantError(
            "no trained tensor may be rescaled without changing the function, so no growing rate is "
            f"equivalent to weight decay here\n{reasons or 'hint: train at least one tensor'}"
        )

    def identities(self) -> list[str]:
        """The null space in words, one vector a line, e.g. "query +1, key -1"."""
        names = [tensor.name for tensor in self.tensors]
        return [
            ", ".join(f"{names[i]} {vector[i]:+g}" for i in np.flatnonzero(np.abs(vector) > ZERO))
            for vector in self.basis
        ]

    def __str__(self) -> str:
        width = max([len(tensor.name) for tensor in self.tensors], default=6)
        lines = [f"{'tensor':<{width}}  {'entries':>9}  {'converts':<8}  in the set  hint"]
        for tensor in self.tensors:
            inside = "yes" if tensor.name in self.convertible else "no"
            lines.append(
                f"{tensor.name:<{width}}  {tensor.numel:>9}  {tensor.verdict:<8}  {inside:<10}  "
                f"{tensor.hint}".rstrip()
            )
        share = sum(t.numel for t in self.tensors if t.name in self.convertible)
        total = sum(t.numel for t in self.tensors)
        lines.append(
            f"{len(self.convertible)} of {len(self.tensors)} tensors "
            f"({share} of {total} entries) share one rate"
        )
        return "\n".join(lines)


def scale_invariance_report(
    model: nn.Module, sample: Sample, *, only: Collection[str] | None = None, seed: int = 0
) -> ScaleInvarianceReport:
    """Decide for each trained tensor whether it converts alone, jointly, or never (module docstring).

    Args:
        model: left unchanged; works on float64 copies on the CPU.
        sample: inputs the model takes, batch first: a tensor, or a tuple, list or dict of tensors.
        only: names allowed into ``convertible`` (e.g. leave scale-and-shift at the original rate).
        seed: for the random weights, inputs and cotangents of the measurement; it decides no secret.

    Raises: NotScaleInvariantError where ``only`` names no trained tensor, or the bitwise confirmation
        contradicts the Jacobian (an eps or a scale hidden where it cannot be adjusted).
    """
    parameters = trainable(model)
    unknown = sorted(set(only or ()) - set(parameters))
    if unknown:
        raise NotScaleInvariantError(
            f"{unknown[0]!r} is no trained tensor of this model\n"
            f"hint: one of {', '.join(list(parameters)[:8])}"
        )
    if not parameters:
        return ScaleInvarianceReport((), (), {}, np.zeros((0, 0)), (0.0, 0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        jacobian, outputs = _jacobian(model, sample, len(parameters), generator)
        rows, gap = echelon_rows(jacobian)
        convertible = _largest_set(rows, parameters, only)
        degrees = input_degrees(model, sample, set(convertible), generator)
        if degrees is None:
            homogeneous = _homogeneous_rows(model, sample, len(parameters), generator)
            convertible = _largest_set(homogeneous, parameters, only)
            degrees = input_degrees(model, sample, set(convertible), generator)
        _confirm(model, sample, set(convertible), degrees, generator)
    verdicts = _verdicts(parameters, jacobian, outputs, rows, convertible)
    degrees = {name: degree for name, degree in (degrees or {}).items() if degree}
    return ScaleInvarianceReport(verdicts, convertible, degrees, null_basis(rows, len(parameters)), gap)


def _jacobian(
    model: nn.Module, sample: Sample, num_tensors: int, generator: torch.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Three draws; the first tells how many columns are zero, so how many rows the rank can need."""
    first = cotangent_rows(model, sample, 3, generator)
    open_columns = int(np.sum(np.abs(first[0]).max(axis=0) > ZERO))
    per_draw = (open_columns + 8) // 2 + 1
    draws = [first, *(cotangent_rows(model, sample, per_draw, generator) for _ in range(2))]
    jacobian = np.concatenate([rows for rows, _ in draws])
    jacobian[:, np.abs(jacobian).max(axis=0) <= ZERO] = 0.0
    return jacobian, np.concatenate([values for _, values in draws])


def _homogeneous_rows(
    model: nn.Module, sample: Sample, num_tensors: int, generator: torch.Generator
) -> NDArray[np.float64]:
    """Echelon rows on (x, d): outputs stay and every normalisation's input grows as a power d_n.

    Needed where scaling keeps the function at eps → 0 though the input of a normalisation is a sum of terms
    of different degree, such as a bias beside a product of two converted tensors.
    """
    num_layers = len(normalization_names(model))
    per_draw = (num_tensors + num_layers + 8) // 2 + 1
    draws = [cotangent_rows(model, sample, per_draw, generator, homogeneous=True)[0] for _ in range(2)]
    return echelon_rows(np.concatenate(draws))[0]


def _largest_set(
    rows: NDArray[np.float64], parameters: dict[str, nn.Parameter], only: Collection[str] | None
) -> tuple[str, ...]:
    names = list(parameters)
    allowed = [i for i, name in enumerate(names) if only is None or name in only]
    columns = [*allowed, *range(len(names), rows.shape[1])]
    chosen = best_common_set(rows[:, columns], _weights([parameters[names[i]] for i in allowed]))
    return tuple(names[allowed[i]] for i in chosen)


def _weights(parameters: list[nn.Parameter]) -> NDArray[np.float64]:
    """By entries, and no tensor so light that the solver's tolerance could lose it."""
    sizes = np.array([parameter.numel() for parameter in parameters], dtype=np.float64)
    weights: NDArray[np.float64] = sizes / sizes.sum() + 1 / len(sizes)
    return weights


def _confirm(
    model: nn.Module,
    sample: Sample,
    names: set[str],
    degrees: dict[str, int] | None,
    generator: torch.Generator,
) -> None:
    if not names:
        return
    if (
        degrees is None
        or not confirmed_bitwise(model, sample, names, degrees, jitter=generator)
        or not confirmed_bitwise(model, sample, names, degrees, jitter=None)
    ):
        raise NotScaleInvariantError(
            f"scaling {len(names)} tensors keeps the function at eps -> 0, but not bit for bit with eps in "
            "place\nhint: an eps or a constant inside a function cannot follow the scale; give it a module "
            "with an `eps`, or leave these tensors out with only="
        )


def _verdicts(
    parameters: dict[str, nn.Parameter],
    jacobian: NDArray[np.float64],
    outputs: NDArray[np.float64],
    rows: NDArray[np.float64],
    convertible: tuple[str, ...],
) -> tuple[TensorVerdict, ...]:
    names = list(parameters)
    basis, weights = null_basis(rows, len(names)), _weights(list(parameters.values()))
    heads = _heads(jacobian, outputs)
    verdicts = []
    for index, name in enumerate(names):
        hint, verdict = "", "alone"
        if np.any(jacobian[:, index]):
            partners = best_common_set(rows, weights, containing=index)
            verdict = "jointly" if partners else "never"
            if not partners:
                hint = _hint(index, names, heads, basis)
            elif name not in convertible:
                hint = "would convert in a lighter set, e.g. with " + ", ".join(
                    names[i] for i in partners if i != index and np.any(jacobian[:, i])
                )
        verdicts.append(TensorVerdict(name, parameters[name].numel(), verdict, hint))
    return tuple(verdicts)


def _heads(jacobian: NDArray[np.float64], outputs: NDArray[np.float64]) -> set[int]:
    """Tensors that scale the output itself, or do as weight and bias: J_i (+ J_j) = <f, c>."""

    def whole(*indices: int) -> bool:
        return bool(np.allclose(jacobian[:, indices].sum(axis=1), outputs, rtol=1e-6, atol=1e-12))

    moving = [int(index) for index in np.flatnonzero(np.abs(jacobian).max(axis=0))]
    pairs = ((i, j) for i in moving for j in moving if i < j and whole(i, j))
    return {i for i in moving if whole(i)} | {index for pair in pairs for index in pair}


def _hint(index: int, names: list[str], heads: set[int], basis: NDArray[np.float64]) -> str:
    if index in heads:
        return "scales the output itself (a head): keep it at the original rate and decay, or freeze it"
    for vector in basis:
        partners = [names[i] for i in np.flatnonzero(vector * vector[index] < 0)]
        if partners:
            return f"only trades against {partners[0]}: put a normalisation between them"
    return "no normalisation undoes its scale: put one behind it, or keep the original rate and decay"


def main() -> None:
    """Reports on three networks: nothing converts, some tensors do, everything but the head does."""
    from .pre_activation_resnet import PreActivationResNet

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    normalised = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
    )
    networks: list[tuple[str, nn.Module, torch.Tensor]] = [
        ("a plain network", plain, torch.randn(8, 8)),
        ("batch and layer norm", normalised, torch.randn(8, 8)),
        ("PreResNet-8", PreActivationResNet(depth=8, width=4), torch.randn(4, 3, 8, 8)),
    ]
    for name, network, sample in networks:
        print(f"{name}\n{scale_invariance_report(network, sample)}\n")


if __name__ == "__main__":
    main()
