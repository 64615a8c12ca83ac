"""Intervals, rates at few false positives and the decision "leaks" against closed forms and counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from instahide.attacks.membership_outcome import membership_outcome
from instahide.attacks.metrics import (
    clopper_pearson,
    false_positive_rate_limit,
    in_words,
    roc_points,
    true_positive_rate,
    true_positive_rate_interval,
)
from instahide.errors import InvalidInputError


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (7, 20), (20, 20), (3, 1000)])
def test_the_exact_interval_is_scipys(successes: int, trials: int) -> None:
    theirs = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_success_in_n_trials_has_the_limit_of_one_line_of_algebra() -> None:
    # (1 − p)^n = 0.025 solved for p.
    assert clopper_pearson(0, 50)[1] == pytest.approx(1 - 0.025 ** (1 / 50))
    with pytest.raises(InvalidInputError, match="successes"):
        clopper_pearson(3, 2)


@pytest.mark.statistical
def test_the_limit_of_the_false_positive_rate_covers_the_true_one() -> None:
    # Uniform scores: the true rate above threshold t is 1 − t. The limit is exact at 95 %: of 2,000 runs
    # 1,900 are covered, standard deviation 9.7; 1,850 is five below (chance 3e-7).
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        others = rng.uniform(size=300)
        threshold = np.sort(others)[::-1][3]
        covered += 1 - threshold <= false_positive_rate_limit(others, false_positive_rate=0.01)
    assert 1850 <= covered <= 1950


def test_roc_points_are_those_counted_by_hand() -> None:
    members, others = np.array([5.0, 3.5, 1.5]), np.array([4.0, 3.0, 2.0, 1.0])
    assert roc_points(members, others) == [(0.25, 2 / 3), (0.5, 2 / 3), (0.75, 1.0), (1.0, 1.0)]


def test_points_of_the_curve_are_the_rates_reported() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(1, 1, 200), rng.normal(0, 1, 1000)
    points = dict(roc_points(members, others, num_points=2000))
    for rate in (0.001, 0.01, 0.1):
        assert points[rate] == true_positive_rate(members, others, false_positive_rate=rate)
    low, high = true_positive_rate_interval(members, others)
    assert low < true_positive_rate(members, others) < high


@pytest.mark.statistical
def test_equal_groups_are_seldom_called_a_leak() -> None:
    # Two looks at 1.25 % and about as little one-sided each: at most 2.5 % of 400 runs, 10, standard
    # deviation 3.1; 26 is five above.
    rng = np.random.default_rng(2)
    alarms = sum(
        membership_outcome(rng.normal(size=100), rng.normal(size=1000)).leaked is True for _ in range(400)
    )
    assert alarms <= 26


def test_a_few_members_at_the_top_are_a_leak_though_the_average_is_chance() -> None:
    rng = np.random.default_rng(3)
    members = np.concatenate([rng.normal(9, 1, 10), rng.normal(-0.2, 1, 90)])
    outcome = membership_outcome(members, rng.normal(0, 1, 1000))
    assert outcome.intervals["auc"][0] < 0.5
    assert outcome.leaked is True


def test_too_few_images_leave_it_open() -> None:
    outcome = membership_outcome(np.array([1.0, 3.0]), np.array([2.0, 0.0, 4.0]))
    assert outcome.leaked is None
    assert outcome.sentence("a known image", "here").startswith("Undecided")


def test_the_sentence_follows_the_decision() -> None:
    rng = np.random.default_rng(4)
    nothing = membership_outcome(rng.normal(size=300), rng.normal(size=1000))
    found = membership_outcome(rng.normal(2, 1, 300), rng.normal(size=1000))
    assert nothing.leaked is False
    assert nothing.sentence("a known image", "here").startswith("Nothing found")
    assert found.leaked is True
    assert found.sentence("a known image", "here").startswith("A known image is recognised here")


def test_metrics_have_names_for_people() -> None:
    assert in_words("tpr_at_0.1_percent_fpr") == "true positives at 0.1 % false ones"
    assert in_words("tpr_at_1_percent_fpr_lira_online") == "true positives at 1 % false ones: LiRA online"
    assert in_words("share_above_0_7") == "share above 0.7"
    assert in_words("mean_ssim") == "mean SSIM"
