from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from instahide.attacks.update_inversion import Defence, defend, observe, securely_aggregated
from instahide.attacks.update_inversion.defences import clipped, pruned, with_noise
from instahide.attacks.update_inversion.view import LocalTraining
from instahide.errors import InvalidInputError

from .inversion_examples import batch, case


def test_pruning_keeps_the_largest_of_every_tensor() -> None:
    value = torch.tensor([0.1, -3.0, 2.0, 0.5, -0.2, 1.0, 0.0, -0.3, 0.4, 0.6])
    assert pruned({"w": value}, 0.8)["w"].nonzero()[:, 0].tolist() == [1, 2]
    assert pruned({"w": torch.tensor([1.0])}, 0.99)["w"].tolist() == [1.0]


def test_clipping_shortens_the_whole_and_never_lengthens() -> None:
    update = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert clipped(update, 1.0)["b"].item() == pytest.approx(0.8)
    assert clipped(update, 10.0)["b"].item() == pytest.approx(4.0)


@pytest.mark.statistical
def test_noise_has_the_deviation_asked_for_and_is_never_the_same() -> None:
    """10^5 values: the sample deviation has relative error 1/√(2·10^5) = 0.0022; 5 of these, chance 6e-7."""
    zero = {"w": torch.zeros(100_000)}
    first, second = with_noise(zero, 0.5)["w"], with_noise(zero, 0.5)["w"]
    assert abs(float(first.std()) / 0.5 - 1) < 5 * 0.0022
    assert not torch.equal(first, second)


def test_the_aggregate_of_sites_is_the_gradient_of_all_their_images() -> None:
    view, images, labels = case("mlp", 6)
    parts = [
        observe(view.model, images[i : i + 2], labels[i : i + 2], LocalTraining(num_images=2))
        for i in (0, 2, 4)
    ]
    together = securely_aggregated(parts)
    assert together.num_images == 6
    assert together.defence.num_sites == 3
    for name, value in view.observed.items():
        torch.testing.assert_close(together.observed[name], value, atol=1e-7, rtol=1e-4)


def test_an_aggregate_of_updates_is_simulated_site_by_site() -> None:
    from instahide.attacks.update_inversion.local_update import Simulator

    view, images, labels = case("mlp", 4)
    plan = LocalTraining(num_images=2, batch_size=1, epochs=2, learning_rate=0.1)
    parts = [observe(view.model, images[i : i + 2], labels[i : i + 2], plan, kind="update") for i in (0, 2)]
    together = securely_aggregated(parts)
    for name, value in zip(together.observed, Simulator(together).simulate(images, labels), strict=True):
        torch.testing.assert_close(together.observed[name], value.detach(), atol=1e-6, rtol=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    view, _, _ = case("mlp", 2)
    with pytest.raises(InvalidInputError, match="no updates"):
        securely_aggregated([])
    with pytest.raises(InvalidInputError, match="differ in plan"):
        securely_aggregated([view, replace(view, training=LocalTraining(num_images=2, learning_rate=1.0))])
    with pytest.raises(InvalidInputError, match="clip None"):
        Defence(noise_multiplier=1.0)
    with pytest.raises(InvalidInputError, match="prune is"):
        defend(view, Defence(prune=1.5))
    with pytest.raises(InvalidInputError, match="not finite"):
        replace(view, observed={n: v * float("nan") for n, v in view.observed.items()})
    with pytest.raises(InvalidInputError, match="differ in 1 tensors"):
        replace(view, observed=dict(list(view.observed.items())[1:]))
    with pytest.raises(InvalidInputError, match="labels have shape"):
        replace(view, labels=batch(3)[1])
