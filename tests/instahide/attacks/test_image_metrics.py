from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from instahide.attacks.image_metrics import (
    bootstrap_interval,
    gradient_similarity,
    leaderboard_scores,
    match,
    psnr,
    score_recovery,
    signed_ssim,
    ssim,
    ssim_matrix,
)
from instahide.errors import InvalidInputError


def smooth(count: int, *, channels: int = 3, side: int = 16, seed: int = 0) -> np.ndarray:
    """Random blotches in [-1, 1]: noise averaged over 5×5 windows, stretched."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, side + 4, side + 4))
    windows = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3))
    return np.clip(2 * windows.mean(axis=(4, 5)), -1, 1).astype(np.float32)


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8), (3, 7), (1, 28)])
def test_ssim_and_psnr_are_those_of_scikit_image(channels: int, side: int) -> None:
    originals = smooth(6, channels=channels, side=side)
    noisy = np.clip(originals + 0.2 * smooth(6, channels=channels, side=side, seed=1), -1, 1)
    ours = ssim(noisy, originals)
    for index, (a, b) in enumerate(zip(noisy.astype(float), originals.astype(float), strict=True)):
        theirs = structural_similarity((a + 1) / 2, (b + 1) / 2, data_range=1, channel_axis=0)
        assert ours[index] == pytest.approx(theirs, abs=1e-10)
        theirs = structural_similarity(a, b, data_range=2, channel_axis=0)
        assert signed_ssim(noisy, originals)[index] == pytest.approx(theirs, abs=1e-10)
        assert psnr(noisy, originals)[index] == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=2), abs=1e-8
        )


def test_images_below_the_window_use_the_largest_odd_one_that_fits() -> None:
    a, b = smooth(1, side=6), smooth(1, side=6, seed=3)
    theirs = structural_similarity(
        a[0].astype(float) + 1, b[0].astype(float) + 1, data_range=2, channel_axis=0, win_size=5
    )
    assert ssim(a, b)[0] == pytest.approx(theirs, abs=1e-10)


def test_the_table_of_all_pairs_holds_the_single_pairs() -> None:
    a, b = smooth(5), smooth(7, seed=2)
    table = ssim_matrix(a, b)
    for row in range(5):
        assert table[row] == pytest.approx(ssim(np.repeat(a[row : row + 1], 7, axis=0), b), abs=1e-12)


def test_gradient_similarity_of_one_pixel_is_the_formula_by_hand() -> None:
    """A step of height 1 between two columns: the Prewitt gradient is 1 on both sides of the step."""
    step = np.zeros((1, 1, 4, 4))
    step[..., 2:] = 1.0
    c = 170 * (2 / 255) ** 2
    # Against a flat image: 8 of 16 pixels have g = 1, g' = 0; the others agree.
    assert gradient_similarity(step, np.zeros_like(step))[0] == pytest.approx((8 + 8 * c / (1 + c)) / 16)
    assert gradient_similarity(step, step)[0] == pytest.approx(1.0)


def test_the_match_is_the_best_over_all_permutations() -> None:
    from itertools import permutations

    table = np.random.default_rng(4).normal(size=(5, 5))
    best = max(permutations(range(5)), key=lambda order: sum(table[i, j] for i, j in enumerate(order)))
    assert tuple(match(table)) == best


def test_a_permuted_perfect_recovery_is_perfect() -> None:
    originals = smooth(8)
    score = score_recovery(originals[::-1], originals)
    assert score.matched.tolist() == list(range(8))[::-1]
    assert score.mean_ssim == pytest.approx(1.0)
    assert score.identification_rate == 1.0
    assert math.isinf(score.mean_psnr)


def test_a_flipped_recovery_is_a_failure_though_the_formula_on_signed_values_cannot_see_it() -> None:
    originals = smooth(8)
    score = score_recovery(-originals, originals)
    assert score.mean_ssim < 0.3
    assert signed_ssim(-originals, originals).mean() > 0.7


def test_noise_is_identified_no_more_often_than_the_chance_that_is_reported() -> None:
    originals = smooth(60)
    noise = np.random.default_rng(5).uniform(-1, 1, originals.shape)
    score = score_recovery(noise, originals)
    # Both are rates over 60 images near 0.2 (the match picks favourable pairs): sd 0.052 each, 0.073 of the
    # difference; five of them.
    assert abs(score.identification_rate - score.identification_chance) < 0.37
    assert score.identification_chance > 1 / 60
    assert score_recovery(originals, originals).identification_chance < 0.5


def test_answering_only_the_easy_ones_costs_the_others() -> None:
    originals = smooth(8)
    score = score_recovery(originals[:2], originals)
    assert score.mean_ssim == pytest.approx(0.25)
    assert score.identification_rate == 0.25


def test_more_answers_than_originals_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="recovered images have shape"):
        score_recovery(smooth(9), smooth(8))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30))
def test_unrelated_references_never_improve_a_score(seed: int, count: int) -> None:
    originals = smooth(6, side=8)
    answers = np.clip(originals + 0.6 * smooth(6, side=8, seed=seed), -1, 1)
    without = score_recovery(answers, originals)
    among = score_recovery(answers, originals, decoys=smooth(count, side=8, seed=seed + 1))
    assert among.identification_rate <= without.identification_rate
    assert among.mean_ssim == without.mean_ssim
    assert among.mean_psnr == without.mean_psnr


def test_the_leaderboards_mean_ssim_of_a_perfect_answer_is_about_one_half() -> None:
    originals = smooth(40)
    rows = np.stack([np.arange(40), np.roll(np.arange(40), 1)], axis=1)
    scores = leaderboard_scores(originals[rows[:, 0]], originals, rows)
    assert scores["max_ssim"] == pytest.approx(1.0)
    by_hand = np.mean(
        [
            (1 + structural_similarity(*(originals[[i, j]].astype(float) + 1), data_range=2, channel_axis=0))
            / 2
            for i, j in rows
        ]
    )
    assert scores["mean_ssim_of_both"] == pytest.approx(by_hand)
    assert scores["mean_ssim_of_both"] < 0.6


@pytest.mark.statistical
def test_the_bootstrap_interval_covers_the_mean() -> None:
    # Nominal 95 % over 200 runs: 190 expected, standard deviation 3.1; at 40 values the percentile
    # bootstrap covers about 94 %, so 173 is more than 4 standard deviations low.
    rng = np.random.default_rng(0)
    covered = 0
    for run in range(200):
        low, high = bootstrap_interval(rng.normal(0.3, 1, 40), seed=run)
        covered += low < 0.3 < high
    assert covered >= 173


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 8, 8)), np.full((2, 1, 8, 8), np.nan), np.full((2, 1, 8, 8), 200.0)]
)
def test_images_out_of_range_or_shape_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="images"):
        score_recovery(bad, np.zeros((2, 1, 8, 8)))
