"""A federation in one process is the federation: the same rounds, the same sites, the same mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from federation.config import RunConfig
from federation.simulation import simulate
from federation.site.dataset import SiteData
from federation.site.weights import read_weights
from instahide.errors import FederationError, InvalidInputError
from instahide.images import ImageSet
from instahide.models import build_model
from instahide.training import train
from instahide.training_config import TrainingConfig

CONFIG = RunConfig(
    model="mlp",
    encoding="none",
    evaluate=False,
    num_server_rounds=1,
    local_epochs=3,
    batch_size=64,
    minimum_sites=2,
)


def data(count: int, seed: int, shape: tuple[int, int] = (4, 4)) -> SiteData:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = (rng.integers(0, 100, (count, *shape)) + 100 * labels[:, None, None]).astype(np.uint8)
    images = ImageSet(pixels, labels)
    return SiteData(images, images.subset(np.arange(4)))


def test_one_round_is_the_weighted_mean_of_what_the_sites_train(tmp_path: Path) -> None:
    """All images of a site in one batch, so that their order, which no one fixes, is nothing."""
    sites = {"north": data(20, 1), "south": data(60, 2)}
    found = read_weights(simulate(CONFIG, sites, tmp_path))
    expected = {name: np.zeros_like(array, dtype=np.float64) for name, array in found.items()}
    for site in sites.values():
        model = build_model("mlp", image_shape=(1, 4, 4), num_classes=2)
        config = TrainingConfig(epochs=3, batch_size=64, lr_schedule="constant", device="cpu", num_threads=1)
        train(model, site.training, config)
        for name, array in read_weights(model).items():
            expected[name] += array.astype(np.float64) * len(site.training) / 80
    for name, array in found.items():
        assert np.allclose(array, expected[name], atol=1e-6), name


def test_rounds_learn_what_the_sites_have_in_common(tmp_path: Path) -> None:
    config = RunConfig.from_mapping(CONFIG.to_mapping() | {"num-server-rounds": 10})
    sites = {"north": data(40, 1), "south": data(40, 2)}
    model = simulate(config, sites, tmp_path)
    images = data(50, 3).training
    with torch.no_grad():
        found = model(torch.as_tensor(images.images).float() / 127.5 - 1).argmax(1).numpy()
    assert (found == images.labels).mean() > 0.9
    assert not model.training


def test_each_site_keeps_its_own_records(tmp_path: Path) -> None:
    simulate(CONFIG, {"north": data(20, 1), "south": data(20, 2)}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"coordinator", "site-1", "site-2"}
    assert "update-sent" in (tmp_path / "site-2" / "audit.jsonl").read_text()
    assert (tmp_path / "coordinator" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({}, "0 sites"),
        ({"a": data(9, 1), "b": data(9, 2, (4, 5))}, "2 kinds"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    sites: dict[str, SiteData], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        simulate(CONFIG, sites, tmp_path)


def test_a_hidden_sum_moves_the_model_as_the_updates_in_the_clear_do(tmp_path: Path) -> None:
    """Up to the rounding of a masked update: 32 bits over changes of at most 8 a weight."""
    sites = {"north": data(20, 1), "south": data(60, 2), "west": data(30, 3)}
    hidden = RunConfig.from_mapping(CONFIG.to_mapping() | {"secure-aggregation": True, "minimum-sites": 3})
    for name in "ab":
        (tmp_path / name).mkdir()
    clear, masked = simulate(CONFIG, sites, tmp_path / "a"), simulate(hidden, sites, tmp_path / "b")
    assert "shares-given" in (tmp_path / "b" / "site-2" / "audit.jsonl").read_text()
    for name, array in read_weights(clear).items():
        assert np.allclose(array, read_weights(masked)[name], atol=1e-4), name


def test_too_few_sites_end_the_run_as_they_would_a_real_one(tmp_path: Path) -> None:
    with pytest.raises(FederationError):
        simulate(CONFIG, {"north": data(20, 1)}, tmp_path)


def test_a_whole_run_without_weight_decay_ends_at_the_model_of_the_run_with_it(tmp_path: Path) -> None:
    """Rounds, requests, sites and aggregation included; in float32, hence the tolerance."""
    settings = {"model": "small-cnn", "num-server-rounds": 4, "weight-decay": 0.02, "learning-rate": 0.1}
    sites = {"north": data(20, 1), "south": data(60, 2)}
    models = [
        simulate(
            RunConfig.from_mapping(CONFIG.to_mapping() | settings | {"lr-schedule": schedule}),
            sites,
            tmp_path / schedule,
        )
        for schedule in ("exponential-equivalent", "step")
    ]
    ours, theirs = map(read_weights, models)
    start = read_weights(build_model("small-cnn", image_shape=(1, 4, 4), num_classes=2))
    for name, array in theirs.items():
        assert np.abs(ours[name] - array).max() < 2e-3 * np.abs(array - start[name]).max(), name
