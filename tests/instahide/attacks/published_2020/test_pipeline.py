"""Networks, colours and the whole pipeline on small pictures with known truth."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from instahide.attacks.published_2020.colour import fit_colour_map
from instahide.attacks.published_2020.network_files import load_networks, save_networks
from instahide.attacks.published_2020.own_release import OwnReleases
from instahide.attacks.published_2020.pair_architectures import UnmaskedPairs, WideResidualPairs
from instahide.attacks.published_2020.pair_network import (
    PairNetworkSettings,
    for_prototypes,
    held_out_auc,
    pair_scores,
    prototype_scores,
)
from instahide.attacks.published_2020.pair_training import train_pair_network
from instahide.attacks.published_2020.pipeline import (
    Networks,
    PipelineSettings,
    published_decode,
    published_pipeline,
    train_networks,
)
from instahide.attacks.published_2020.result import explained_share, published_2020
from instahide.attacks.replica import Replica, make_replica
from instahide.attacks.view import AttackerView
from instahide.encoder_config import EncoderConfig
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

LAW = EncoderConfig(num_mixed=4, num_private=2, mode="compat")


def pictures(count: int, seed: int) -> ImageSet:
    """Dark smooth colour pictures of 16×16 in four classes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 3, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3)).mean(axis=(4, 5))
    return ImageSet((70 + 200 * smooth).clip(0, 255).astype(np.uint8), np.arange(count) % 4)


@lru_cache(maxsize=1)
def drawn() -> Replica:
    """Sixteen pictures, twenty releases each."""
    return make_replica(pictures(16, 1), public=pictures(400, 2), config=LAW, releases=20)


@lru_cache(maxsize=1)
def trained() -> Networks:
    settings = PipelineSettings(pairs=PairNetworkSettings(seconds=2.0))
    return train_networks(drawn().view(pictures(400, 3)), settings)


@pytest.fixture
def replica() -> Replica:
    return drawn()


@pytest.fixture
def networks() -> Networks:
    return trained()


def view_of(replica: Replica) -> AttackerView:
    return replica.view(pictures(400, 3))


def test_own_releases_hold_what_they_say() -> None:
    replica = make_replica(pictures(8, 1), public=pictures(40, 2), config=LAW, releases=1)
    own = OwnReleases(replica.view(pictures(60, 3)), seed=0).draw(10, 6)
    assert own.magnitudes.shape == (60, 3, 16, 16)
    assert (own.private_rows[:, 0] != own.private_rows[:, 1]).all()
    for slot in (0, 1):
        assert (np.bincount(own.private_rows[:, slot]) == 6).all()
    # In the inside scheme nothing else is inside, and the magnitude is that of the sum.
    law = EncoderConfig(num_mixed=2, num_private=2, mode="compat")
    inside = dataclasses.replace(replica.view(pictures(60, 3)), config=law, scheme="inside", public_pool=None)
    own = OwnReleases(inside, seed=0).draw(10, 2)
    weights = torch.from_numpy(own.coefficients)[:, :, None, None, None]
    expected = (weights * own.images[torch.from_numpy(own.private_rows)]).sum(1).abs()
    torch.testing.assert_close(own.magnitudes, expected)


@pytest.mark.statistical
def test_the_unmasked_network_tells_sharing_pairs_apart(replica: Replica, networks: Networks) -> None:
    """400 encodings of 100 fresh images: 2,800 sharing pairs against 77,000 others. Without any signal the
    AUC has sd sqrt(1/(12·2800)) = 0.0055 for independent pairs; only 400 encodings are independent, which
    makes it sqrt(1/(12·400)) = 0.015 at most. 0.6 is passed by chance with probability 1e-11."""
    auc, _ = held_out_auc(networks.pairs, OwnReleases(view_of(replica), seed=9))
    assert auc > 0.6


def test_scores_are_symmetric_and_blind_to_signs(replica: Replica, networks: Networks) -> None:
    few = replica.encoded.images[:40]
    scores = pair_scores(networks.pairs, few)
    assert np.isneginf(np.diag(scores)).all()
    np.testing.assert_array_equal(scores, scores.T)
    flipped = pair_scores(networks.pairs, few * torch.where(torch.rand_like(few) < 0.5, -1.0, 1.0))
    np.testing.assert_allclose(flipped, scores, rtol=1e-5)


def test_equation_two_is_the_likelihood_ratio() -> None:
    """log p(c | shared) − log p(c | not), the sign of the mean a coin, for two Gaussians of one width."""
    network = UnmaskedPairs((1, 4, 4))
    network.shift.fill_(0.2)
    network.spread.fill_(0.07)
    features = torch.nn.functional.normalize(torch.randn(6, 16), dim=1)
    c = (features @ features.T).double()
    density = torch.distributions.Normal(torch.zeros(1).double(), 0.07)
    shared = torch.logaddexp(density.log_prob(c - 0.2), density.log_prob(c + 0.2)) - np.log(2)
    ratio = shared - density.log_prob(c) + 0.2**2 / (2 * 0.07**2)
    torch.testing.assert_close(network.table(features, features).double(), ratio, rtol=1e-4, atol=1e-4)


def test_whitening_is_the_inverse_root_of_the_covariance() -> None:
    network = UnmaskedPairs((1, 4, 4))
    images = torch.randn(500, 1, 4, 4) @ torch.randn(4, 4)
    network.whiten_like(images)
    flat = images.flatten(1)
    covariance = torch.from_numpy(np.cov(flat.numpy().T, bias=True)).float()
    product = network.whitening @ (covariance + 0.03 * torch.eye(16)) @ network.whitening
    torch.testing.assert_close(product, torch.eye(16), atol=1e-3, rtol=0)


def test_prototypes_are_turned_to_agree(networks: Networks, replica: Replica) -> None:
    """A set of three times the same encoding is that encoding."""
    three = for_prototypes(networks.pairs, 3)  # type: ignore[arg-type]
    few = replica.encoded.images[:5].abs()
    scores = prototype_scores(three, few[:, None].expand(-1, 3, -1, -1, -1), few)
    alone = prototype_scores(networks.pairs, few[:, None], few)
    np.testing.assert_allclose(scores, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_prototypes", [1, 3])
def test_the_published_kind_of_network_trains_and_scores(replica: Replica, num_prototypes: int) -> None:
    settings = PairNetworkSettings(
        "wide-residual", depth=10, num_prototypes=num_prototypes, max_steps=2, device="cpu"
    )
    network = train_pair_network(view_of(replica), settings, seed=0)
    prototypes = replica.encoded.images[: 2 * num_prototypes].abs().view(2, num_prototypes, 3, 16, 16)
    scores = prototype_scores(network, prototypes, replica.encoded.images[:5])
    assert scores.shape == (2, 5)
    assert np.isfinite(scores).all()


def test_the_faithful_size_is_a_wide_residual_network_of_28_layers_and_width_6() -> None:
    """3×3 convolutions on the way: 1 + 2·12 and 3 shortcuts make depth 28; 96, 192 and 384 channels."""
    network = WideResidualPairs(3)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) == 25
    assert {c.out_channels for c in convolutions} == {16, 96, 192, 384}
    assert convolutions[0].in_channels == 6
    assert WideResidualPairs(3, 3, depth=10, width=1).body[0].in_channels == 12  # type: ignore[union-attr]


def test_networks_survive_a_file(networks: Networks, replica: Replica, tmp_path: Path) -> None:
    settings = PipelineSettings()
    save_networks(networks, settings, tmp_path / "n.safetensors", shape=(3, 16, 16))
    again = load_networks(tmp_path / "n.safetensors")
    few = replica.encoded.images[:10]
    np.testing.assert_array_equal(pair_scores(again.pairs, few), pair_scores(networks.pairs, few))
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(IntegrityError):
        load_networks(tmp_path / "bad")


def test_a_colour_map_undoes_a_curve() -> None:
    """Pictures darkened by a curve and tinted come back; the map is fitted on other pictures."""
    first, second = (pictures(30, seed).images / 127.5 - 1 for seed in (1, 2))

    def spoil(images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.asarray(np.tanh(images) * 0.5 - np.array([0.3, 0.0, -0.2])[None, :, None, None])

    colours = fit_colour_map(spoil(first), first, seed=0)
    before = np.square(spoil(second) - second).mean()
    after = np.square(colours(spoil(second)) - second).mean()
    assert after < 0.1 * before


def test_evidence_is_the_variance_explained_out_of_sample() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.uniform(0, 1, (400, 3)).astype(np.float32)
    signal = (mixing @ rng.normal(size=(3, 20))).astype(np.float32)
    noise = rng.normal(size=signal.shape).astype(np.float32)
    assert explained_share(signal, mixing) > 0.99
    assert explained_share(noise, mixing) < 0.01
    share = float(signal.var(axis=0).sum() / (signal + noise).var(axis=0).sum())
    # Sampling error of R² over 8,000 values: below 0.02.
    assert explained_share(signal + noise, mixing) == pytest.approx(share, abs=0.05)


def test_the_pipeline_rebuilds_dark_pictures(replica: Replica, networks: Networks) -> None:
    result, recovery = published_2020(view_of(replica), 16, truth=replica.truth, networks=networks)
    assert recovery.images.shape == (16, 3, 16, 16)
    assert np.abs(recovery.images).max() <= 1
    assert result.leaked is True
    assert result.metrics["identification_rate"] > 0.5
    assert result.metrics["mean_ssim"] > result.baselines["mean_ssim"] + 0.1
    assert result.metrics["evidence"] > 2 * result.baselines["evidence"]
    assert {"null", "power"} <= set(result.checks)
    assert result.to_dict()["settings"]["seconds_by_stage"]["objective"] > 0


def test_with_the_pairing_given_the_decoder_does_better_than_without_its_colours(replica: Replica) -> None:
    view, truth = view_of(replica), replica.truth
    originals = truth.images.images / 127.5 - 1
    errors = [
        np.square(
            published_decode(
                view,
                truth.private_rows,
                truth.private_coefficients,
                num_images=16,
                settings=PipelineSettings(colour=colour),
            )
            - originals
        ).mean()
        for colour in (False, True)
    ]
    assert errors[1] < errors[0]


def test_noise_gives_nothing(replica: Replica, networks: Networks) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(320, 3, 16, 16)).astype(np.float32)) * 0.2
    view = dataclasses.replace(view_of(replica), encodings=noise)
    result, _ = published_2020(view, 16, networks=networks)
    assert result.leaked is False
    assert result.verdict.startswith("Nothing recovered")


def test_a_budget_is_kept_to(replica: Replica) -> None:
    result, recovery = published_2020(view_of(replica), 16, max_seconds=1.0, check_null=False)
    assert recovery.images.shape == (16, 3, 16, 16)
    assert result.leaked is None


def test_what_the_attack_cannot_do_is_refused(replica: Replica) -> None:
    view = view_of(replica)
    three = EncoderConfig(num_mixed=4, num_private=3, mode="compat")
    with pytest.raises(InvalidInputError, match="labels"):
        published_pipeline(dataclasses.replace(view, labels=None), 16)
    with pytest.raises(InvalidInputError, match="3 private"):
        published_pipeline(dataclasses.replace(view, config=three), 16)
    with pytest.raises(InvalidInputError, match="320 encodings"):
        published_pipeline(view, 400)
    with pytest.raises(InstaHideError, match="architecture"):
        PairNetworkSettings("transformer")
