"""The classifiers of the published comparison, each a grid of settings on a table.

    ntk            SVM on 15 tangent kernels (L = 1 .. 5 layers, the first L' < L fixed), C = 10⁻² .. 10⁴
    gaussian       SVM on exp(−γ‖x − z‖²), γ = 2⁻¹⁶ .. 2⁸, C = 2⁻⁵ .. 2¹⁴ (grid of Fernández-Delgado et al.)
    polynomial     SVM on (s⟨x, z⟩ + 1)^p, p = 1, 2, 3, s = 10⁻³ .. 10⁻¹, C = 10⁻² .. 10⁴
    random-forest  500 trees, features tried at a split √d, d/3, d/2 or d
    network-he     the finite network (theory_modules.uci_networks), weights as He et al. draw them
    network-ntk    the same with the scales of the tangent kernel in front of unit weights

Machines vote one against one, features and labels as given, kernels not normalised. The order of a grid
matters: where settings tie, the first is taken. A training part of one class is answered with that class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .ntk import fully_connected_ntk, fully_connected_ntk_table
from .svm_grid import fit_svm_grid
from .uci_tables import Split, UciTable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Setting = tuple[float, ...]
Kernels = Iterator[tuple[Setting, FloatArray]]

MAX_DEPTH = 5
_ENTRIES_IN_ONE_PASS = 50_000
DECADES = tuple(10.0**power for power in range(-2, 5))


class Contender(Protocol):
    """A classifier with a grid; ``setting_names`` says what a setting's numbers are."""

    @property
    def name(self) -> str: ...

    @property
    def setting_names(self) -> tuple[str, ...]: ...

    def settings(self, table: UciTable) -> Sequence[Setting]:
        """The grid, in the order that breaks ties."""

    def accuracies(self, table: UciTable, split: Split, settings: Sequence[Setting]) -> FloatArray:
        """Share of the split's test rows that each setting gets right after its training rows."""


@dataclass(frozen=True)
class KernelContender:
    """SVM on a family of kernels; ``kernels`` yields (setting without C, kernel of the two sets of rows)."""

    name: str
    kernel_names: tuple[str, ...]
    kernel_settings: tuple[Setting, ...]
    penalties: tuple[float, ...]
    kernels: Callable[[FloatArray, FloatArray, Sequence[Setting]], Kernels]

    @property
    def setting_names(self) -> tuple[str, ...]:
        return (*self.kernel_names, "C")

    def settings(self, table: UciTable) -> Sequence[Setting]:
        return [(*kernel, penalty) for kernel in self.kernel_settings for penalty in self.penalties]

    def accuracies(self, table: UciTable, split: Split, settings: Sequence[Setting]) -> FloatArray:
        """Each kernel once, training rows against all rows of the split; its penalties along one path."""
        constant = accuracy_of_one_class(table, split)
        if constant is not None:
            return np.full(len(settings), constant)
        wanted: dict[Setting, list[float]] = {}
        for *kernel, penalty in settings:
            wanted.setdefault(tuple(kernel), []).append(penalty)
        rows = np.concatenate([split.train, split.test])
        found: dict[Setting, float] = {}
        x_train, x_all = table.features[split.train], table.features[rows]
        y_train, y_test = table.labels[split.train], table.labels[split.test]
        count = len(split.train)
        for setting, block in self.kernels(x_train, x_all, list(wanted)):
            penalties = sorted(wanted[setting])
            grid = fit_svm_grid(block[:, :count], y_train, penalties)
            right = (grid.predict(block[:, count:].T) == y_test).mean(axis=1)
            found |= {
                (*setting, penalty): float(share) for penalty, share in zip(penalties, right, strict=True)
            }
        return np.array([found[setting] for setting in settings])


@dataclass(frozen=True)
class ForestContender:
    """Random forests; setting: the number of features tried at a split."""

    name: str = "random-forest"
    setting_names: tuple[str, ...] = ("features",)
    num_trees: int = 500

    def settings(self, table: UciTable) -> Sequence[Setting]:
        d = table.features.shape[1]
        return [(float(tried),) for tried in sorted({max(1, round(f)) for f in (d**0.5, d / 3, d / 2, d)})]

    def accuracies(self, table: UciTable, split: Split, settings: Sequence[Setting]) -> FloatArray:
        from sklearn.ensemble import RandomForestClassifier

        shares = []
        for (tried,) in settings:
            forest = RandomForestClassifier(self.num_trees, max_features=int(tried), random_state=0)
            forest.fit(table.features[split.train], table.labels[split.train])
            right = forest.predict(table.features[split.test]) == table.labels[split.test]
            shares.append(float(right.mean()))
        return np.array(shares)


@dataclass(frozen=True)
class NetworkContender:
    """Finite networks; settings: depth and learning rate."""

    name: str
    parametrization: str
    learning_rates: tuple[float, ...]
    width: int = 512
    max_epochs: int = 200
    setting_names: tuple[str, ...] = ("depth", "learning rate")

    def settings(self, table: UciTable) -> Sequence[Setting]:
        return [(float(depth), rate) for depth in range(1, MAX_DEPTH + 1) for rate in self.learning_rates]

    def accuracies(self, table: UciTable, split: Split, settings: Sequence[Setting]) -> FloatArray:
        from .uci_networks import network_accuracy

        return np.array(
            [
                network_accuracy(
                    table,
                    split,
                    parametrization=self.parametrization,
                    depth=int(depth),
                    learning_rate=rate,
                    width=self.width,
                    max_epochs=self.max_epochs,
                )
                for depth, rate in settings
            ]
        )


def accuracy_of_one_class(table: UciTable, split: Split) -> float | None:
    """Where all training rows share a class, how often it is right; else None."""
    classes = np.unique(table.labels[split.train])
    return float((table.labels[split.test] == classes[0]).mean()) if len(classes) == 1 else None


def tangent_kernels(x_train: FloatArray, x_all: FloatArray, settings: Sequence[Setting]) -> Kernels:
    """K_{L,L'}(x_train, x_all): small ones from one pass of the recursion, large ones one after the other."""
    if len(settings) == 1 or len(x_train) * len(x_all) > _ENTRIES_IN_ONE_PASS:
        for setting in settings:
            depth, fixed = (int(number) for number in setting)
            yield setting, fully_connected_ntk(x_train, x_all, depth=depth, num_fixed_layers=fixed)
        return
    depth = int(max(depth for depth, _ in settings))
    table = fully_connected_ntk_table(x_train, x_all, max_depth=depth)
    for setting in settings:
        yield setting, table.pop((int(setting[0]), int(setting[1])))


def gaussian_kernels(x_train: FloatArray, x_all: FloatArray, settings: Sequence[Setting]) -> Kernels:
    """exp(−γ‖x − z‖²); distances once."""
    squares = np.square(x_train).sum(axis=1)[:, None] + np.square(x_all).sum(axis=1) - 2 * x_train @ x_all.T
    squares[:, : len(x_train)][np.diag_indices(len(x_train))] = 0.0
    np.maximum(squares, 0.0, out=squares)
    for (gamma,) in settings:
        yield (gamma,), np.exp(-gamma * squares)


def polynomial_kernels(x_train: FloatArray, x_all: FloatArray, settings: Sequence[Setting]) -> Kernels:
    """(s⟨x, z⟩ + 1)^p; products once."""
    products = x_train @ x_all.T
    for degree, scale in settings:
        yield (degree, scale), (scale * products + 1.0) ** int(degree)


def contenders(**options: Any) -> dict[str, Contender]:
    """All of them by name; ``options`` (width, max_epochs) go to the networks."""
    listed: list[Contender] = [
        KernelContender(
            "ntk",
            ("L", "L'"),
            tuple(
                (float(depth), float(fixed)) for depth in range(1, MAX_DEPTH + 1) for fixed in range(depth)
            ),
            DECADES,
            tangent_kernels,
        ),
        KernelContender(
            "gaussian",
            ("gamma",),
            tuple((2.0**power,) for power in range(-16, 9)),
            tuple(2.0**power for power in range(-5, 15)),
            gaussian_kernels,
        ),
        KernelContender(
            "polynomial",
            ("degree", "scale"),
            tuple((float(degree), 10.0**power) for degree in (1, 2, 3) for power in (-3, -2, -1)),
            DECADES,
            polynomial_kernels,
        ),
        ForestContender(),
        NetworkContender("network-he", "he", (0.001, 0.01), **options),
        NetworkContender("network-ntk", "ntk", (0.1, 1.0), **options),
    ]
    return {contender.name: contender for contender in listed}
