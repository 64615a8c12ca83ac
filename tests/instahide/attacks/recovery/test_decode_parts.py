"""The parts of the decoder against brute force: regression, synchronisation, pool sources, simulated law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from instahide.attacks.recovery.pool_sources import BARS, Pool, find_sources, no_sources, row_signs
from instahide.attacks.recovery.regression import octave_bands, remaining_noise, solve_images
from instahide.attacks.recovery.simulated_mixtures import MixtureSimulator, simulate_coefficients
from instahide.attacks.recovery.synchronise import synchronise
from instahide.coefficients import draw_coefficients
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.randomness import Randomness


def planted(count: int, n: int, d: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (N, n) of two images a row, images (n, d) ~ N(0, 1), noise (N, d) ~ N(0, 0.1)."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((count, n), dtype=np.float32)
    for row in weights:
        row[rng.choice(n, 2, replace=False)] = rng.uniform(0.1, 0.4, 2)
    images = rng.normal(size=(n, d)).astype(np.float32)
    noise = math.sqrt(0.1) * rng.normal(size=(count, d)).astype(np.float32)
    return torch.from_numpy(weights), torch.from_numpy(images), torch.from_numpy(noise)


def ridge(weights: np.ndarray, mixtures: np.ndarray, noise: float) -> np.ndarray:
    """The minimiser of |z − W d|²/noise + |d|², as least squares on stacked rows, in float64."""
    n = weights.shape[1]
    stacked = np.concatenate([weights / math.sqrt(noise), np.eye(n)]).astype(np.float64)
    target = np.concatenate([mixtures / math.sqrt(noise), np.zeros((n, mixtures.shape[1]))])
    return np.linalg.lstsq(stacked, target, rcond=None)[0]


def test_one_round_of_regression_is_ridge_regression() -> None:
    weights, images, noise = planted(40, 8, 12, seed=0)
    mixtures = weights @ images + noise
    law = torch.full((40,), 0.1)
    open_signs = torch.zeros((40, 1))
    bands = torch.zeros(12, dtype=torch.long)
    found = solve_images(mixtures, open_signs, weights, bands, law, rounds=1)
    expected = ridge(weights.numpy(), mixtures.numpy(), 0.1)
    np.testing.assert_allclose(found.images.numpy(), expected, atol=1e-4)


def test_the_prediction_of_a_row_is_that_of_a_fit_without_it() -> None:
    weights, images, noise = planted(30, 6, 9, seed=1)
    mixtures = weights @ images + noise
    bands = torch.zeros(9, dtype=torch.long)
    found = solve_images(mixtures, torch.zeros((30, 1)), weights, bands, torch.full((30,), 0.1), rounds=1)
    for row in (0, 7, 29):
        others = np.arange(30) != row
        without = ridge(weights.numpy()[others], mixtures.numpy()[others], 0.1)
        np.testing.assert_allclose(found.prediction[row].numpy(), weights[row].numpy() @ without, atol=1e-4)


@pytest.mark.statistical
def test_noise_of_a_row_is_found_in_its_residuals() -> None:
    # Rows 0..19 have 9 times the variance. An estimate from 400 coefficients has relative sd √(2/400) = 0.07;
    # the two groups differ by a factor of 9 and are told apart by a factor of 3: no false alarm.
    weights, images, noise = planted(60, 4, 400, seed=2)
    noise[:20] *= 3
    bands = torch.zeros(400, dtype=torch.long)
    law = torch.full((60,), 0.1)
    found = solve_images(weights @ images + noise, torch.zeros((60, 1)), weights, bands, law, rounds=4)
    assert float(found.noise[:20].min()) > 3 * float(found.noise[20:].max()) / 2


def test_bands_cover_every_coefficient_by_colour_and_octave() -> None:
    bands = octave_bands((3, 32, 32))
    assert torch.unique(bands).tolist() == list(range(15))
    assert int((bands == 0).sum()) == 4
    assert int((bands == 4).sum()) == 32 * 32 - 16 * 16


@pytest.mark.statistical
@pytest.mark.parametrize(("law", "tolerance"), [("dirichlet", 0.01), ("folded-normal", 0.06)])
def test_expected_squares_of_coefficients_agree_with_draws(law: str, tolerance: float) -> None:
    # The mean of 40,000 sums of squares has relative sd < 0.003 (sums lie in [1/r, 1]); for the folded normal
    # the formula is a ratio of expectations, up to 5 % off.
    rng = np.random.default_rng(3)
    for r in (1, 2, 4):
        draws = (
            rng.exponential(size=(40_000, r)) if law == "dirichlet" else np.abs(rng.normal(size=(40_000, r)))
        )
        draws /= draws.sum(1, keepdims=True)
        expected = remaining_noise(torch.tensor([0.6]), torch.tensor([r]), law)
        assert float(expected) == pytest.approx(0.36 * float((draws**2).sum(1).mean()), rel=tolerance)


def test_rows_that_share_images_agree_on_their_signs() -> None:
    weights, images, noise = planted(120, 10, 200, seed=4)
    turned = torch.from_numpy(np.random.default_rng(5).choice([-1.0, 1.0], 120)).float()
    features = turned[:, None] * (weights @ images + 0.3 * noise) / math.sqrt(0.01)
    scaled = (weights / 0.1).T
    solver = torch.linalg.solve(scaled @ weights + torch.eye(10), scaled)
    odds = torch.zeros(120)
    odds[:40] = 3 * turned[:40]  # a third of the rows is known
    signs = synchronise(features, weights, solver, odds)
    assert bool((signs.sign() == turned).all())


@pytest.mark.statistical
def test_sources_of_a_pool_are_found_with_their_coefficients_and_other_pools_find_nothing() -> None:
    # t of the smallest source is 0.15·√1000/√0.1 = 15 ± 1 against a bar of 6: missed with chance < 1e-15;
    # 4·10⁴ tests of Gaussian noise exceed 6 with chance 4e-5.
    rng = np.random.default_rng(6)
    bands = torch.zeros(1000, dtype=torch.long)
    pool = Pool.of(torch.from_numpy(rng.normal(size=(400, 1000)).astype(np.float32)), bands)
    rows = torch.from_numpy(np.stack([rng.choice(400, 2, replace=False) for _ in range(50)]))
    noise = torch.from_numpy(rng.normal(size=(50, 1000)).astype(np.float32)) * math.sqrt(0.1)
    mixtures = 0.3 * pool.images[rows[:, 0]] + 0.15 * pool.images[rows[:, 1]] + noise
    weights = torch.full((50, 1), 1 / 0.1)
    found, mass = no_sources(50, 2), torch.full((50,), 0.45)
    for bar in BARS:
        found = find_sources(mixtures, weights, found, pool, bar, mass)
    assert torch.equal(found.rows.sort(1).values, rows.sort(1).values)
    by_row = {int(r): float(c) for r, c in zip(found.rows[0], found.coefficients[0], strict=True)}
    assert by_row[int(rows[0, 0])] == pytest.approx(0.3, abs=0.05)  # sd √(0.1/1000) = 0.01
    torch.testing.assert_close(found.coefficients.sum(1), mass)
    assert bool((row_signs(-mixtures, weights, pool) == -1).all())
    other = Pool.of(torch.from_numpy(rng.normal(size=(400, 1000)).astype(np.float32)), bands)
    assert int(find_sources(mixtures, weights, no_sources(50, 2), other, 6.0, mass).found.sum()) == 0


@pytest.mark.statistical
@pytest.mark.parametrize("mode", ["compat", "hardened"])
@pytest.mark.parametrize("law", ["folded-normal", "dirichlet"])
def test_the_attackers_coefficients_follow_the_encoders_law(mode: str, law: str) -> None:
    # Two samples of 4,000: their distribution functions differ by more than 2.1·√(2/4000) = 0.047 with chance
    # 2·exp(−2·2.1²) = 3e-4 under the same law (Kolmogorov-Smirnov); two statistics in four settings: 2.4e-3.
    from scipy.stats import ks_2samp

    config = EncoderConfig(num_mixed=6, num_private=2, mode=mode, coefficient_law=law)
    ours = simulate_coefficients(np.random.default_rng(7), 4000, config, scheme="cross")
    theirs = draw_coefficients(Randomness().stream("coefficients"), 4000, config, num_private=2)
    assert ks_2samp(ours[:, 0], theirs[:, 0]).statistic < 0.047
    assert ks_2samp(ours[:, :2].sum(1), theirs[:, :2].sum(1)).statistic < 0.047
    np.testing.assert_allclose(ours.sum(1), 1, atol=1e-6)


def test_simulated_mixtures_lie_on_the_grid_of_the_released_values() -> None:
    images = torch.rand(50, 1, 8, 8) * 2 - 1
    simulator = MixtureSimulator(images, EncoderConfig(num_mixed=4, mode="hardened"), "cross", seed=0)
    mixtures = simulator.mixtures(20)
    rounded = simulator.rounded(mixtures) * 127
    torch.testing.assert_close(rounded, rounded.round(), atol=1e-4, rtol=0)
    assert float((rounded / 127 - mixtures).abs().max()) <= 1 / 127 + 1e-6


def test_a_handful_of_public_images_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="population"):
        MixtureSimulator(torch.zeros(5, 1, 8, 8), EncoderConfig(), "cross", seed=0)
