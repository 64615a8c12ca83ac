"""LiRA and RMIA against closed forms, brute force and counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from instahide.attacks.metrics import roc_auc
from instahide.attacks.model_membership import ModelView
from instahide.attacks.model_membership.lira import lira_scores
from instahide.attacks.model_membership.rmia import rmia_scores, tuned_offline_slope
from instahide.attacks.model_membership.shadows import halves
from instahide.attacks.model_membership.view import (
    log_odds_of_probability,
    probability_of_log_odds,
    right_class_log_odds,
)
from instahide.errors import InvalidInputError


def gaussian_toy(
    num_candidates: int, num_shadows: int, *, gain: float = 1.0, seed: int = 0
) -> tuple[ModelView, np.ndarray]:
    """φ ~ N(m_x, 1) without candidate x and N(m_x + gain, 1) with it, m_x ~ N(0, 3²): all is known."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 3, num_candidates)
    members = halves(num_candidates, num_shadows // 2, rng)
    truth = rng.permutation(num_candidates) < num_candidates // 2
    noise = rng.normal(size=(num_shadows + 1, num_candidates))
    shadows = difficulty + gain * members + noise[:-1]
    return ModelView(difficulty + gain * truth + noise[-1], shadows, members), truth


@pytest.mark.statistical
def test_lira_reaches_the_optimal_likelihood_ratio_of_a_known_law() -> None:
    # The optimal ratio orders by φ − m_x: AUC = Φ(1/√2) = 0.760. One threshold for all has Φ(1/√20) =
    # 0.588. 8,000 candidates: standard error of an AUC about 0.006; the estimated means cost a little (with
    # 128 in and out each, the difference of scores has variance 1 + 1/128: 0.001). Five standard errors.
    view, truth = gaussian_toy(8000, 256)
    optimal = stats.norm.cdf(1 / math.sqrt(2))
    for online in (True, False):
        scores = lira_scores(view, online=online)
        assert roc_auc(scores[truth], scores[~truth]) == pytest.approx(optimal, abs=0.03)
    loss = view.target[:, 0]
    assert roc_auc(loss[truth], loss[~truth]) == pytest.approx(stats.norm.cdf(1 / math.sqrt(20)), abs=0.03)


@pytest.mark.statistical
def test_one_variance_for_all_is_better_with_few_shadow_models() -> None:
    # With 4 models in and out, a variance of one's own has 3 degrees of freedom; the fixed one 12,000.
    view, truth = gaussian_toy(4000, 8, gain=1.5)
    fixed, own = (lira_scores(view, fixed_variance=choice) for choice in (True, False))
    assert roc_auc(fixed[truth], fixed[~truth]) > roc_auc(own[truth], own[~truth]) + 0.01
    assert np.array_equal(fixed, lira_scores(view))


@pytest.mark.parametrize("fixed", [True, False])
def test_the_scores_are_those_of_loops_over_scipys_densities(fixed: bool) -> None:
    rng = np.random.default_rng(1)
    target, shadows = rng.normal(size=(5, 2)), rng.normal(size=(8, 5, 2))
    members = np.arange(8)[:, None] % 2 == np.arange(5) % 2
    view = ModelView(target, shadows, members)

    def law(inside: bool, q: int, m: int) -> tuple[float, float]:
        groups = [[shadows[s, i, q] for s in range(8) if members[s, i] == inside] for i in range(5)]
        if fixed:
            squares = sum(sum((v - np.mean(g)) ** 2 for v in g) for g in groups)
            return float(np.mean(groups[m])), math.sqrt(squares / sum(len(g) - 1 for g in groups))
        return float(np.mean(groups[m])), float(np.std(groups[m], ddof=1))

    online, offline = np.zeros(5), np.zeros(5)
    for m in range(5):
        for q in range(2):
            mean_in, sd_in = law(True, q, m)
            mean_out, sd_out = law(False, q, m)
            online[m] += stats.norm.logpdf(target[m, q], mean_in, sd_in)
            online[m] -= stats.norm.logpdf(target[m, q], mean_out, sd_out)
            offline[m] += (target[m, q] - mean_out) / sd_out / math.sqrt(2)
    assert lira_scores(view, fixed_variance=fixed) == pytest.approx(online)
    assert lira_scores(view, online=False, fixed_variance=fixed) == pytest.approx(offline)


def small_view(population: bool) -> ModelView:
    """Two candidates, four shadow models, three population images, all as probabilities."""
    shadows = np.array([[0.5, 0.2], [0.7, 0.4], [0.3, 0.6], [0.1, 0.8]])
    members = np.array([[True, False], [True, False], [False, True], [False, True]])
    about = np.array([0.9, 0.5, 0.1])
    by = np.array([[0.6, 0.5, 0.2]] * 4)
    odds = log_odds_of_probability
    return ModelView(
        odds(np.array([0.8, 0.35])), odds(shadows), members,
        odds(about) if population else None, odds(by) if population else None,
    )  # fmt: skip


def test_rmia_is_the_share_counted_by_hand() -> None:
    # Online: Pr(x1) = (0.6 + 0.2)/2 = 0.4, ratio 2; Pr(x2) = (0.7 + 0.3)/2 = 0.5, ratio 0.7.
    # Population: 0.9/0.6 = 1.5, 0.5/0.5 = 1, 0.1/0.2 = 0.5. γ = 1: x1 dominates 3 of 3, x2 one of 3.
    # γ = 2: 2/2 = 1 dominates 0.5 and, at equality, 1; 0.35 nothing.
    for gamma, counted in ((1.0, (3, 1)), (2.0, (2, 0))):
        scores = rmia_scores(small_view(True), gamma=gamma)
        ties = np.array([2 / 3, 0.7 / 1.7])
        assert scores == pytest.approx((np.array(counted) + ties) / 3, abs=1e-9)


def test_offline_rmia_guesses_the_mean_with_the_candidate() -> None:
    # a = 0.5: Pr(x1) = ½·(1.5·0.2 + 0.5) = 0.4, ratio 2; Pr(x2) = ½·(1.5·0.3 + 0.5) = 0.475, ratio 0.737.
    scores = rmia_scores(small_view(True), online=False, offline_slope=0.5)
    ratio = np.array([2.0, 0.35 / 0.475])
    assert scores == pytest.approx((np.array([3, 1]) + ratio / (1 + ratio)) / 3, abs=1e-9)


def test_the_order_of_rmia_does_not_depend_on_gamma() -> None:
    view, _ = gaussian_toy(300, 16)
    orders = [np.argsort(rmia_scores(view, gamma=gamma)) for gamma in (0.5, 1.0, 2.0)]
    assert np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], orders[2])


def test_the_slope_is_chosen_on_shadow_models_and_without_the_target() -> None:
    view, _ = gaussian_toy(400, 16)
    other = ModelView(-view.target, view.shadows, view.shadow_members)
    assert tuned_offline_slope(view) == tuned_offline_slope(other)


def test_rmia_tells_members_from_others() -> None:
    view, truth = gaussian_toy(2000, 32, gain=2.0)
    for online in (True, False):
        scores = rmia_scores(view, online=online)
        # Standard error of the AUC of 1,000 against 1,000 about 0.012: far above chance and the loss.
        assert roc_auc(scores[truth], scores[~truth]) > 0.75


def test_log_odds_are_exact_where_probabilities_have_no_digits_left() -> None:
    scores = np.array([[50.0, 0.0, -10.0], [800.0, 0.0, 0.0]])
    odds = right_class_log_odds(scores, np.array([0, 0]))
    assert odds[0] == pytest.approx(50 - math.log1p(math.exp(-10)))
    assert odds[1] == pytest.approx(800 - math.log(2))
    softmax = np.exp(scores[0] - 50) / np.exp(scores[0] - 50).sum()
    assert right_class_log_odds(scores[:1], np.array([1]))[0] == pytest.approx(
        math.log(softmax[1] / (1 - softmax[1]))
    )
    assert probability_of_log_odds(log_odds_of_probability(np.array([0.3, 1.0, 0.0]))) == pytest.approx(
        [0.3, 1.0, 0.0]
    )


def test_what_does_not_fit_is_refused() -> None:
    view, _ = gaussian_toy(10, 6)
    with pytest.raises(InvalidInputError, match="shadow models'"):
        ModelView(view.target[:5], view.shadows, view.shadow_members)
    with pytest.raises(InvalidInputError, match="shadow_members"):
        ModelView(view.target, view.shadows, view.shadow_members[:, :5])
    with pytest.raises(InvalidInputError, match="outside fewer than two"):
        ModelView(view.target, view.shadows, np.ones_like(view.shadow_members))
    with pytest.raises(InvalidInputError, match="not all numbers"):
        ModelView(np.full_like(view.target, np.nan), view.shadows, view.shadow_members)
    with pytest.raises(InvalidInputError, match="labels"):
        right_class_log_odds(np.zeros((4, 3)), np.array([0, 1, 2, 3]))
    offline = ModelView(view.target, view.shadows, np.zeros_like(view.shadow_members))
    for attack in (lira_scores, rmia_scores):
        with pytest.raises(InvalidInputError, match="in fewer than two"):
            attack(offline)
    with pytest.raises(InvalidInputError, match="gamma"):
        rmia_scores(view, gamma=0)
