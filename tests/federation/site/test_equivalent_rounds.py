"""Federated averaging under ``exponential-equivalent``: the global models are those of the original run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from federation.messages import RoundRequest
from federation.site.local_training import learning_rates, training_config
from instahide.errors import InvalidInputError
from instahide.models import ImageClassifier, build_model
from instahide.training import TrainingState, train
from theory_modules.exponential_lr import EquivalentSchedule, scale_invariance_report

from .site_examples import initial_weights, request
from .test_round_task import LENIENT, Site, why

SETTINGS: dict[str, Any] = {
    "model": "small-cnn",
    "learning_rate": 0.2,
    "weight_decay": 0.01,
    "local_epochs": 2,
    "batch_size": 8,
    "encoding": "none",
}
ROUNDS = 3
WEIGHTS = initial_weights("small-cnn")
State = dict[str, torch.Tensor]


@dataclass
class Rows:
    """Images (N, C, H, W) and soft labels (N, K), in float64."""

    images: torch.Tensor
    labels: torch.Tensor


def rows(N: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(N, 1, 8, 8, dtype=torch.float64, generator=generator) + 0.2 * seed
    return Rows(images, torch.softmax(5 * images.mean(dim=(1, 3))[:, :4], dim=1))


UNEQUAL = [rows(16, 1), rows(40, 2), rows(72, 3)]  # 4, 10 and 18 steps a round
EQUAL = [rows(32, seed) for seed in (1, 2, 3)]


def network() -> ImageClassifier:
    return build_model("small-cnn", image_shape=(1, 8, 8), num_classes=4).double()


def federated(
    sites: list[Rows],
    schedule: str,
    equivalent_to: str = "step",
    before_sending: Callable[[ImageClassifier, RoundRequest, int], None] | None = None,
    rounds: int = ROUNDS,
) -> list[State]:
    """The global model after each round: the sites' own loop and schedule, and their weighted mean."""
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    history = []
    for server_round in range(1, rounds + 1):
        asked = request(
            server_round,
            lr_schedule=schedule,
            equivalent_to=equivalent_to,
            num_server_rounds=ROUNDS,
            **SETTINGS,
        )
        mean = {name: torch.zeros_like(value) for name, value in state.items()}
        for number, data in enumerate(sites):
            model.load_state_dict(state)
            N = len(data.images)
            train(
                model,
                data,
                training_config(asked, device="cpu", threads=1),
                resume=TrainingState(seed=100 * server_round + number),
                learning_rates=learning_rates(asked, N),
            )
            if before_sending is not None:
                before_sending(model, asked, N)
            for name, value in model.state_dict().items():
                mean[name] += value * (N / sum(len(site.images) for site in sites))
        state = mean
        history.append(state)
    return history


def difference(one: State, other: State) -> float:
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in other)


@pytest.mark.parametrize("original", ["constant", "step", "cosine"])
def test_every_global_model_is_that_of_the_run_with_weight_decay(original: str) -> None:
    """Sites that took different numbers of steps included: each sends weights at the original's scale."""
    ours = federated(UNEQUAL, "exponential-equivalent", original)
    theirs = federated(UNEQUAL, original)
    assert max(map(difference, ours, theirs)) < 1e-10
    moved = difference(theirs[-1], network().state_dict())
    assert moved > 0.1


def scaled_up(model: ImageClassifier, asked: RoundRequest, N: int) -> None:
    """What a site would send that did not restore the scale: converted tensors P times as large."""
    config = training_config(asked, device="cpu", threads=1)
    num_steps = config.epochs * -(-N // config.batch_size)
    schedule = EquivalentSchedule(
        lr=learning_rates(asked, N), momentum=config.momentum, weight_decay=config.weight_decay
    )
    P = schedule.scales(num_steps)[-1]
    converted = scale_invariance_report(model, torch.zeros(2, 1, 8, 8)).require()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in converted:
                parameter.mul_(P)


def outputs(state: State) -> torch.Tensor:
    """Scores of fresh images, the eps of normalisations out of the way."""
    model = network()
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 0.0
    with torch.no_grad():
        return model(rows(50, 9).images)


@pytest.mark.parametrize(("sites", "same"), [(EQUAL, True), (UNEQUAL, False)], ids=["equal", "unequal"])
def test_without_restoring_the_mean_is_right_only_where_all_took_as_many_steps(
    sites: list[Rows], same: bool
) -> None:
    """P depends on the schedule alone: P·mean(w) is the mean of P·w, but not of P_i·w_i."""
    restored = federated(sites, "exponential-equivalent", "constant", rounds=1)[0]
    grown = federated(sites, "exponential-equivalent", "constant", scaled_up, rounds=1)[0]
    expected, found = outputs(restored), outputs(grown)
    distance = float((expected - found).abs().max() / expected.abs().max())
    assert distance < 1e-12 if same else distance > 1e-2


def test_a_site_answers_with_what_it_would_have_sent_under_weight_decay(tmp_path: Path) -> None:
    replies = []
    for schedule in ("exponential-equivalent", "step"):
        (tmp_path / schedule).mkdir()
        site = Site(tmp_path / schedule, LENIENT)
        # All images in one batch, so that their order, which no one fixes, is nothing.
        settings = SETTINGS | {"batch_size": 128, "local_epochs": 5}
        replies.append(site.ask(2, arrays=WEIGHTS, lr_schedule=schedule, evaluate=False, **settings))
    ours, theirs = replies
    assert ours.refusal is None
    change = {name: theirs.arrays[name] - WEIGHTS[name] for name in theirs.arrays}
    for name, value in change.items():
        assert np.abs(ours.arrays[name] - theirs.arrays[name]).max() < 1e-3 * np.abs(value).max(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mlp"}, "mlp"),
        ({"weight_decay": 0.0}, "weight-decay is 0"),
        ({"proximal_mu": 0.1}, "FedProx"),
        ({"learning_rate": 1.0}, "no growing rate"),
        ({"optimizer": "adamw", "learning_rate": 100.0, "weight_decay": 0.9}, "no growing rate"),
    ],
)
def test_a_run_without_an_equivalent_is_refused_before_it_begins(
    changes: dict[str, Any], message: str
) -> None:
    settings = SETTINGS | {"lr_schedule": "exponential-equivalent"} | changes
    with pytest.raises(InvalidInputError, match=message) as caught:
        request(1, **settings)
    assert caught.value.hint


def test_a_site_refuses_what_it_cannot_convert_even_if_the_coordinator_does_not(tmp_path: Path) -> None:
    """A mapping that another release's checks let through."""
    mapping = request(1, **SETTINGS).to_mapping() | {
        "lr-schedule": "exponential-equivalent",
        "weight-decay": 0.5,
    }
    reply = Site(tmp_path, LENIENT).tasks.answer("train", mapping, WEIGHTS)
    assert why(reply)[0] == "error"
    assert "no growing rate" in why(reply)[1]
