"""Finite fully connected ReLU networks beside their kernel, on small tables.

L weight layers, a bias on the scores only (the machines on the kernel have one, too), hidden width m,
softmax cross-entropy, full-batch gradient descent with momentum 0.9. Two parametrizations of the same
functions:

    he      h ← relu(W h),              W ~ N(0, 2/fan-in)
    ntk     h ← relu(√(2/fan-in) W h),  W ~ N(0, 1)         (√(1/fan-in) in front of the last layer)

With *ntk* the rates of all layers agree in the limit m → ∞ and training follows the tangent kernel; with
*he* they do not. Learning rates are tuned for each. Training stops at ``max_epochs`` or at a loss below
10⁻³.

As in the published runs, width is 512, and depth and learning rate are tuned. Rates and number of epochs
here are ours, few enough for a processor: compare these accuracies with each other and with the kernel's,
and with the paper's only roughly.
"""

from __future__ import annotations

import zlib

import torch
from torch import nn

from .uci_tables import Split, UciTable

PARAMETRIZATIONS = ("he", "ntk")
STOP_LOSS = 1e-3
MOMENTUM = 0.9


class WideNetwork(nn.Module):
    """Features (N, d) to scores (N, K); ``depth`` weight layers."""

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        depth: int,
        width: int,
        parametrization: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization is {parametrization!r}; choose he or ntk")
        sizes = [num_features, *[width] * (depth - 1), num_classes]
        gains = [2.0] * (depth - 1) + [1.0]
        self.scales, layers = [], []
        for fan_in, fan_out, gain in zip(sizes[:-1], sizes[1:], gains, strict=True):
            deviation = (gain / fan_in) ** 0.5
            outside = parametrization == "ntk"
            weight = torch.randn(fan_in, fan_out, generator=generator)
            layers.append(nn.Parameter(weight if outside else deviation * weight))
            self.scales.append(deviation if outside else 1.0)
        self.layers = nn.ParameterList(layers)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for number, (weight, scale) in enumerate(zip(self.layers, self.scales, strict=True)):
            h = (h.relu() if number else h) @ weight * scale
        return h + self.bias


def network_accuracy(
    table: UciTable,
    split: Split,
    *,
    parametrization: str,
    depth: int,
    learning_rate: float,
    width: int = 512,
    max_epochs: int = 200,
) -> float:
    """Share of the split's test rows that one trained network gets right; the same on every call."""
    features = torch.as_tensor(table.features, dtype=torch.float32)
    labels = torch.as_tensor(table.labels)
    generator = torch.Generator().manual_seed(zlib.crc32(table.name.encode()) + depth)
    network = WideNetwork(
        features.shape[1],
        int(labels.max()) + 1,
        depth=depth,
        width=width,
        parametrization=parametrization,
        generator=generator,
    )
    x, y = features[split.train], labels[split.train]
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=MOMENTUM)
    for _ in range(max_epochs):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(network(x), y)
        if not loss.isfinite() or loss < STOP_LOSS:
            break
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        predicted = network(features[split.test]).argmax(dim=1)
    return float((predicted == labels[split.test]).float().mean())
