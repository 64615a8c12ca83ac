"""Measurements on copies of a model: cotangent rows, degrees of normalisation inputs, bitwise confirmation.

The model handed in is never changed. Copies run in float64 on the CPU, in training mode (batch norm in
evaluation mode is *not* scale invariant) with dropout off, and with eps so small that it drops out of float64
sums; weights and inputs are jittered so that zeros and ones of an initialisation do not pass for identities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .normalization_scale import eps_name, normalization_names, normalizations, scale_all, statistics

Sample = Any  # a tensor, or a tuple, list or dict of tensors, as the model takes them
TINY_EPS = 1e-300  # torch refuses 0 in training mode; this one is lost in any float64 sum
FEWEST_ROWS, MOST_ROWS = 4, 8  # two rows are always ±1 behind a batch norm: every weight would look invariant


def call(model: nn.Module, sample: Sample) -> list[torch.Tensor]:
    """The model's floating-point outputs on ``sample``, flattened to a list.

    Same random numbers every time, for dropout that is not a module (attention's). The caller guards the
    global random state.
    """
    torch.manual_seed(0)
    if isinstance(sample, Mapping):
        output = model(**sample)
    elif isinstance(sample, tuple | list):
        output = model(*sample)
    else:
        output = model(sample)
    return list(_tensors(output))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → tensor for everything that is trained; shared tensors once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def probe_copy(model: nn.Module, *, dtype: torch.dtype | None = torch.float64) -> nn.Module:
    """A CPU copy in training mode without dropout."""
    twin = copy.deepcopy(model).cpu()
    if dtype is not None:
        twin = twin.to(dtype)
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return twin


def set_tiny_eps(model: nn.Module) -> None:
    for module in model.modules():
        name = eps_name(module)
        if name is not None:
            setattr(module, name, TINY_EPS)


def jitter_parameters(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights near the given ones: w·(1 + 0.3 n) + 0.1·size·n', never exactly 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                size = float(parameter.square().mean().sqrt()) or 1 / math.sqrt(
                    max(1, parameter[0].numel() if parameter.ndim else 1)
                )
                first, second = (
                    torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
                    for _ in range(2)
                )
                parameter.mul_(1 + 0.3 * first).add_(0.1 * size * second)


def random_sample(sample: Sample, generator: torch.Generator) -> Sample:
    """Inputs like ``sample`` on 4 to 8 rows: floats with noise of their own spread, integers shuffled."""
    first = next(_every_tensor(sample), None)
    if first is None or first.ndim == 0:
        return sample
    size = len(first)
    rows = torch.randint(0, size, (min(max(size, FEWEST_ROWS), MOST_ROWS),), generator=generator)

    def draw(value: torch.Tensor) -> torch.Tensor:
        value = value.detach().cpu()
        if value.ndim and len(value) == size:
            value = value[rows]
        if value.is_floating_point():
            value = value.double()
            spread = float(value.std()) if value.numel() > 1 else 0.0
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            return value + (spread or 1.0) * noise
        if value.dtype == torch.bool:
            return value
        return value.flatten()[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)

    return map_sample(sample, draw)


def _every_tensor(sample: Sample) -> Iterator[torch.Tensor]:
    items = sample.values() if isinstance(sample, Mapping) else sample
    if isinstance(sample, torch.Tensor):
        items = (sample,)
    yield from (item for item in items if isinstance(item, torch.Tensor))


def map_sample(sample: Sample, function: Any) -> Sample:
    if isinstance(sample, torch.Tensor):
        return function(sample)
    if isinstance(sample, Mapping):
        return {key: map_sample(value, function) for key, value in sample.items()}
    if isinstance(sample, tuple | list):
        return type(sample)(map_sample(value, function) for value in sample)
    return sample


def cotangent_rows(
    model: nn.Module, sample: Sample, num_rows: int, generator: torch.Generator, *, homogeneous: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``num_rows`` rows <∂f/∂w_i, w_i> (K, T) at one draw of weights and inputs, and <f, cotangent> (K,).

    ``homogeneous``: the rows also carry one column −<u_n, c_n> for each normalisation n (K, T + M) and its
    input u_n is probed beside the outputs, so that (x, d) is annihilated iff the outputs stay *and* u_n
    grows as e^(s·d_n). Random mixtures span the same row space as separate rows would.
    Each row is divided by the largest ‖∂f/∂w_i‖·‖w_i‖ in it, so that true zeros are about 1e-15.
    """
    twin = probe_copy(model)
    set_tiny_eps(twin)
    jitter_parameters(twin, generator)
    parameters = list(trainable(twin).values())
    layers = normalization_names(twin) if homogeneous else []
    with _inputs_recorded(twin, layers) as recorded:
        outputs = call(twin, random_sample(sample, generator))
    owners = [number for number, name in enumerate(layers) for _ in recorded[name]]
    inputs = [tensor for name in layers for tensor in recorded[name]]
    probed = [tensor for tensor in (*outputs, *inputs) if tensor.requires_grad]
    rows, values = [], []
    for _ in range(num_rows):
        cotangents = {id(tensor): _cotangent(tensor, generator) for tensor in (*outputs, *inputs)}
        gradients = torch.autograd.grad(
            probed, parameters, [cotangents[id(t)] for t in probed], retain_graph=True, allow_unused=True
        )
        row, size = _products(parameters, gradients)
        growth = [0.0] * len(layers)
        for owner, tensor in zip(owners, inputs, strict=True):
            growth[owner] -= _inner(tensor, cotangents[id(tensor)])
        rows.append([entry / size for entry in (*row, *growth)])
        values.append(sum(_inner(tensor, cotangents[id(tensor)]) for tensor in outputs) / size)
    return np.array(rows).reshape(num_rows, len(parameters) + len(layers)), np.array(values)


def _products(
    parameters: list[nn.Parameter], gradients: tuple[torch.Tensor | None, ...]
) -> tuple[list[float], float]:
    """<gradient, w> for each tensor, and the largest ‖gradient‖·‖w‖."""
    row, size = [], 1e-300
    for parameter, gradient in zip(parameters, gradients, strict=True):
        row.append(0.0 if gradient is None else _inner(gradient, parameter))
        if gradient is not None:
            size = max(size, float(gradient.norm() * parameter.detach().norm()))
    return row, size


def _cotangent(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random, and of a size that gives every tensor a comparable say in a mixed row."""
    random = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    return random / (float(tensor.detach().norm()) or 1.0)


def _inner(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.detach() * second.detach()).sum())


@contextmanager
def _inputs_recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    modules = dict(model.named_modules())

    def record(name: str) -> Any:
        # clone: a later in-place operation must not change what was seen
        return lambda _module, arguments: seen[name].append(arguments[0].clone())

    handles = [modules[name].register_forward_pre_hook(record(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def scale_tensors(model: nn.Module, names: set[str], factor: float) -> None:
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if name in names:
                parameter.mul_(factor)


def input_degrees(
    model: nn.Module, sample: Sample, names: set[str], generator: torch.Generator
) -> dict[str, int] | None:
    """Module name → d where doubling ``names`` multiplies its input by exactly 2^d, else None."""
    twin = probe_copy(model)
    set_tiny_eps(twin)
    jitter_parameters(twin, generator)
    inputs = random_sample(sample, generator)
    layers = normalization_names(twin)
    double = copy.deepcopy(twin)
    scale_tensors(double, names, 2.0)
    with torch.no_grad(), _inputs_recorded(twin, layers) as single_inputs:
        call(twin, inputs)
    with torch.no_grad(), _inputs_recorded(double, layers) as double_inputs:
        call(double, inputs)
    degrees = {}
    for name in layers:
        found = {_degree(a, b) for a, b in zip(single_inputs[name], double_inputs[name], strict=True)}
        if found and (len(found) > 1 or None in found):
            return None
        degrees[name] = found.pop() or 0 if found else 0
    return degrees


def _degree(single: torch.Tensor, double: torch.Tensor) -> int | None:
    """d with double == 2^d · single bit for bit."""
    sizes = float(single.abs().sum()), float(double.abs().sum())
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return 0 if torch.equal(single, double) else None
    degree = round(math.log2(sizes[1] / sizes[0]))
    return degree if torch.equal(double, single * 2.0**degree) else None


def confirmed_bitwise(
    model: nn.Module,
    sample: Sample,
    names: set[str],
    degrees: Mapping[str, int],
    *,
    jitter: torch.Generator | None,
) -> bool:
    """Double ``names``, scale eps and statistics along: are outputs equal bit for bit, trained and evaluated?

    ``jitter=None`` takes the model's own weights and dtype, otherwise random weights in float64.
    """
    inputs = sample
    if jitter is None:
        plain = probe_copy(model, dtype=None)
        wide = next((p.dtype for p in plain.parameters() if p.is_floating_point()), torch.float32)
        inputs = map_sample(sample, lambda v: v.detach().cpu().to(wide if v.is_floating_point() else v.dtype))
    else:
        plain = probe_copy(model)
        jitter_parameters(plain, jitter)
        inputs = random_sample(sample, jitter)
    double = copy.deepcopy(plain)
    scale_tensors(double, names, 2.0)
    scale_all(normalizations(double, degrees), 2.0)
    with torch.no_grad():
        training = _all_equal(call(plain, inputs), call(double, inputs))
        evaluation = _all_equal(call(plain.eval(), inputs), call(double.eval(), inputs))
    return training and evaluation and _statistics_match(plain, double, degrees)


def _all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _statistics_match(plain: nn.Module, double: nn.Module, degrees: Mapping[str, int]) -> bool:
    ones, twos = dict(plain.named_modules()), dict(double.named_modules())
    for name, degree in degrees.items():
        for power, (a, b) in enumerate(
            zip(statistics(ones[name]), statistics(twos[name]), strict=True), start=1
        ):
            if a is not None and b is not None and not torch.equal(a * 2.0 ** (power * degree), b):
                return False
    return True
