"""Contenders and protocols: plain loops over fits, ties, leaks; the fourteen tables where they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.svm import SVC

from tests.theory_modules.uci_made import table
from theory_modules.uci_contenders import (
    KernelContender,
    contenders,
    gaussian_kernels,
    polynomial_kernels,
    tangent_kernels,
)
from theory_modules.uci_networks import WideNetwork, network_accuracy
from theory_modules.uci_protocol import choose, score
from theory_modules.uci_tables import (
    Split,
    UciTable,
)


def test_kernels_are_those_of_scikit_learn():
    made = table()
    x, z = made.features[:20], made.features
    for (gamma,), K in gaussian_kernels(x, z, [(0.01,), (4.0,)]):
        np.testing.assert_allclose(K, rbf_kernel(x, z, gamma=gamma), atol=1e-12)
    for (degree, scale), K in polynomial_kernels(x, z, [(1.0, 0.1), (3.0, 0.01)]):
        np.testing.assert_allclose(
            K, polynomial_kernel(x, z, degree=int(degree), gamma=scale, coef0=1), rtol=1e-12
        )


def test_tangent_kernels_are_those_of_the_plain_recursion():
    made = table()
    x, z = made.features[:9], made.features
    settings = contenders()["ntk"].kernel_settings
    assert len(settings) == 15
    found = dict(tangent_kernels(x, z, settings))
    for one in ((1.0, 0.0), (4.0, 2.0)):
        np.testing.assert_allclose(
            dict(tangent_kernels(x, z, [one]))[one], found[one], rtol=1e-12, atol=1e-12
        )
    q = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1)
    S, T = x @ z.T, 0 * q
    for layer in range(2, 5):  # L = 4, L' = 2
        c = np.clip(S / q, -1, 1)
        angle = np.arccos(c)
        q = q / 2
        S = q * (np.sin(angle) + c * (np.pi - angle)) / np.pi
        T = T * (np.pi - angle) / np.pi / 2 + (S if layer > 2 else 0)
    np.testing.assert_allclose(found[4.0, 2.0], T, rtol=1e-7)


def plain_accuracy(made: UciTable, split: Split, K: np.ndarray, penalty: float) -> float:
    machine = SVC(C=penalty, kernel="precomputed")
    machine.fit(K[np.ix_(split.train, split.train)], made.labels[split.train])
    return float((machine.predict(K[np.ix_(split.test, split.train)]) == made.labels[split.test]).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_protocol_is_a_plain_loop_over_fits(seed):
    made = table(seed=seed)
    contender = contenders()["gaussian"]
    small = replace(contender, kernel_settings=((0.01,), (0.25,)), penalties=(0.1, 1.0, 30.0))
    kernels = {gamma: rbf_kernel(made.features, gamma=gamma) for (gamma,) in small.kernel_settings}
    best, chosen = -1.0, (0.0, 0.0)
    for gamma, K in kernels.items():
        for penalty in small.penalties:
            share = plain_accuracy(made, made.tuning, K, penalty)
            if share > best:
                best, chosen = share, (gamma, penalty)
    found = score(made, small)
    assert found.settings == (chosen,)
    assert found.validation_accuracies == (pytest.approx(100 * best),)
    expected = [100 * plain_accuracy(made, fold, kernels[chosen[0]], chosen[1]) for fold in made.folds]
    assert found.fold_accuracies == pytest.approx(expected)
    assert found.accuracy == pytest.approx(np.mean(expected))


class Remembering:
    """Answers whatever it is told to, and keeps what it was asked."""

    name, setting_names = "remembering", ("number",)

    def __init__(self, shares: list[float]) -> None:
        self.shares, self.asked = shares, []

    def settings(self, made: UciTable) -> list[tuple[float, ...]]:
        return [(float(k),) for k in range(len(self.shares))]

    def accuracies(self, made: UciTable, split: Split, settings: list[tuple[float, ...]]) -> np.ndarray:
        self.asked.append((split, settings))
        return np.array([self.shares[int(number)] for (number,) in settings])


def test_the_first_of_equals_is_chosen():
    made = table()
    assert choose(made, Remembering([0.5, 0.7, 0.7, 0.6]), made.tuning) == ((1.0,), 0.7)


def test_nested_tuning_sees_training_rows_only_and_published_tuning_sees_test_rows():
    made = table()
    contender = Remembering([0.1, 0.2])
    found = score(made, contender, protocol="nested")
    tunings = [split for split, settings in contender.asked if len(settings) == 2]
    scorings = [split for split, settings in contender.asked if len(settings) == 1]
    assert len(tunings) == len(scorings) == len(found.settings) == 4
    for inner, outer in zip(tunings, made.folds, strict=True):
        assert sorted([*inner.train, *inner.test]) == sorted(outer.train)
    assert scorings == list(made.folds)
    overlap = [
        np.intersect1d(np.r_[made.tuning.train, made.tuning.test], fold.test).size for fold in made.folds
    ]
    assert min(overlap) > 0


def test_nothing_of_a_test_row_reaches_what_nested_tuning_chooses():
    made = table(seed=3)
    fold = made.folds[0]
    features, labels = made.features.copy(), made.labels.copy()
    features[fold.test] = 100.0
    labels[fold.test] = 0
    spoiled = replace(made, features=features, labels=labels, folds=(fold,))
    contender = replace(contenders()["ntk"], penalties=(0.01, 1.0, 100.0))
    clean = score(replace(made, folds=(fold,)), contender, protocol="nested")
    assert score(spoiled, contender, protocol="nested").settings == clean.settings


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="published, nested"):
        score(table(), Remembering([1.0]), protocol="mine")


def test_a_training_part_of_one_class_is_answered_with_it():
    made = table(num_classes=2)
    split = Split(np.flatnonzero(made.labels == 1)[:9], np.arange(0, 10))
    contender = contenders()["ntk"]
    assert isinstance(contender, KernelContender)
    assert contender.accuracies(made, split, [(1.0, 0.0, 1.0)]).tolist() == [0.5]


def test_forests_learn_and_are_the_same_every_time():
    made = table(90, seed=2)
    forest = replace(contenders()["random-forest"], num_trees=20)
    assert [setting for (setting,) in forest.settings(made)] == [1.0, 2.0, 4.0]
    shares = forest.accuracies(made, made.tuning, [(2.0,)])
    assert shares == forest.accuracies(made, made.tuning, [(2.0,)])
    assert shares[0] > 0.45  # a third by chance


@pytest.mark.parametrize("parametrization", ["he", "ntk"])
def test_networks_learn_and_are_the_same_every_time(parametrization):
    made = table(90, seed=2)
    settings = {"parametrization": parametrization, "depth": 3, "width": 64}
    settings["learning_rate"] = 0.01 if parametrization == "he" else 0.5
    share = network_accuracy(made, made.tuning, **settings)
    assert share == network_accuracy(made, made.tuning, **settings)
    assert share > 0.45


def test_both_parametrizations_are_the_same_function_and_ntk_has_the_kernels_gradient():
    def network(parametrization: str, width: int = 16) -> WideNetwork:
        generator = torch.Generator().manual_seed(0)
        return WideNetwork(
            4, 1, depth=3, width=width, parametrization=parametrization, generator=generator
        ).double()

    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # weights are drawn in float32; their products with a scale round differently
    torch.testing.assert_close(network("he")(x), network("ntk")(x), rtol=1e-5, atol=1e-6)
    wide = network("ntk", width=1024)
    rows = []
    for point in x:
        wide.zero_grad()
        wide(point[None])[0, 0].backward()
        rows.append(torch.cat([p.grad.flatten() for p in wide.layers]))
    empirical = torch.stack(rows) @ torch.stack(rows).T

    from theory_modules.ntk import fully_connected_ntk

    # the scales multiply the kernel of theory_modules.ntk by (2/d) 2^(L−2), which is 1 for d = 4 and L = 3;
    # an entry's deviation is O(1/√1024) = 3 % of the norm, times a few for the sum over layers; fixed seed
    exact = torch.as_tensor(fully_connected_ntk(x.numpy(), depth=3))
    assert (empirical - exact).norm() < 0.15 * exact.norm()
    with pytest.raises(ValueError, match="he or ntk"):
        network("other")
