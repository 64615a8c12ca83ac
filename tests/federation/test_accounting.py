"""What events cost together: three independent accountants, closed forms, and a cap that lasts."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import pytest

from federation.accounting import PrivacyCap, PrivacyEvent, divergence_of, epsilon_of
from instahide.errors import InvalidInputError
from instahide.privacy_curves import gaussian_epsilon, rdp_to_epsilon, sampled_gaussian_rdp

DELTA = 1e-5


def event(
    noise_multiplier: float = 1.1, sample_rate: float = 0.05, num_steps: int = 20, **others: Any
) -> PrivacyEvent:
    values = {"run_name": "run", "server_round": 1, "mechanism": "dp-sgd", "num_draws": 1000 * num_steps}
    return PrivacyEvent(
        noise_multiplier=noise_multiplier, sample_rate=sample_rate, num_steps=num_steps, **(values | others)
    )


MIXED = [event(1.5, 0.05, 10), event(1.5, 0.05, 10), event(3.0, 0.1, 20)]


def test_nothing_spent_is_nothing() -> None:
    assert epsilon_of([], DELTA) == 0.0


def test_runs_with_different_settings_compose_as_googles_accountant_says() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for one in MIXED:
        accountant.compose(
            PoissonSampledDpEvent(one.sample_rate, GaussianDpEvent(one.noise_multiplier)), one.num_steps
        )
    assert epsilon_of(MIXED, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_opacus_accountants_agree_on_runs_with_different_settings() -> None:
    """PRV, and RDP by Opacus' own code, which allows fractional orders where ours takes whole ones."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for one in MIXED:
        for _ in range(one.num_steps):
            accountant.step(noise_multiplier=one.noise_multiplier, sample_rate=one.sample_rate)
    by_moments = epsilon_of(MIXED, DELTA, method="rdp")
    assert by_moments == pytest.approx(accountant.get_epsilon(DELTA), rel=0.02)
    # Opacus lets its PRV figure be off by 0.01 either way.
    assert epsilon_of(MIXED, DELTA, method="prv") == pytest.approx(epsilon_of(MIXED, DELTA), abs=0.015)
    assert epsilon_of(MIXED, DELTA) < by_moments


def test_equal_events_cost_the_same_however_they_are_cut() -> None:
    assert epsilon_of([event(num_steps=5)] * 8, DELTA) == epsilon_of([event(num_steps=40)], DELTA)


def test_everybody_in_every_step_is_the_closed_form() -> None:
    events = [event(4.0, 1.0, 3), event(2.0, 1.0, 1)]
    mu = math.sqrt(3 / 16 + 1 / 4)
    assert epsilon_of(events, DELTA) == pytest.approx(gaussian_epsilon(DELTA, mu), rel=1e-3)


def test_many_draws_of_the_sampler_cost_their_own_error() -> None:
    few, many = event(num_draws=1), event(num_draws=10**13)
    assert epsilon_of([many], DELTA) > epsilon_of([few], DELTA) + 0.1


def test_beyond_thirty_nothing_is_promised() -> None:
    assert epsilon_of([event(0.3, 0.5, 1000)], DELTA) == math.inf


@pytest.mark.parametrize("change", [{"noise_multiplier": 0.0}, {"sample_rate": 1.5}, {"num_steps": 0}])
def test_what_is_no_event_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        event(**({"num_draws": 1} | change))


@pytest.mark.parametrize("order", [2, 7, 40])
@pytest.mark.parametrize(("z", "q"), [(1.1, 0.05), (0.8, 0.3), (3.0, 1.0)])
def test_the_divergence_of_one_order_is_googles(z: float, q: float, order: int) -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant([order])
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(z)), 30)
    ours = rdp_to_epsilon(30 * sampled_gaussian_rdp(z, q, order), order, DELTA)
    assert max(0.0, ours) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_the_divergence_of_a_sampled_release_by_integration() -> None:
    """E over N(0, z²) of ((1−q) + q·density ratio)^α, the definition itself."""
    from scipy.integrate import quad
    from scipy.stats import norm

    z, q, order = 1.3, 0.2, 5

    def integrand(x: float) -> float:
        ratio = math.exp((2 * x - 1) / (2 * z * z))
        return float(norm.pdf(x, scale=z)) * ((1 - q) + q * ratio) ** order

    moment = quad(integrand, -20, 30)[0]
    assert sampled_gaussian_rdp(z, q, order) == pytest.approx(math.log(moment) / (order - 1), rel=1e-6)


def test_the_cap_is_held_at_the_order_fixed_by_the_first_event_whatever_follows() -> None:
    cap = PrivacyCap(max_epsilon=8.0, delta=DELTA)
    order = cap.order(MIXED[0])
    expected = rdp_to_epsilon(divergence_of(MIXED, order), order, DELTA)
    assert cap.epsilon(MIXED) == pytest.approx(expected, rel=1e-6)
    assert cap.epsilon(MIXED) >= epsilon_of(MIXED, DELTA, method="rdp") - 1e-9


def test_the_cap_lasts_about_as_long_as_the_best_accountant_allows() -> None:
    """The price of settings chosen as one goes: at most a quarter of the rounds for an epsilon of 8."""
    cap = PrivacyCap(max_epsilon=8.0, delta=DELTA)
    counts = range(1, 200)
    one, spent = event(), [event()]
    by_cap = bisect_left(counts, True, key=lambda n: not cap.allows(spent, [one] * n))
    by_moments = bisect_left(
        counts, True, key=lambda n: epsilon_of([*spent, *[one] * n], DELTA, method="rdp") > 8.0
    )
    assert 0.75 * by_moments <= by_cap <= by_moments


def test_a_cap_that_is_used_up_allows_nothing_more() -> None:
    cap = PrivacyCap(max_epsilon=3.0, delta=DELTA)
    assert cap.epsilon([]) == 0.0
    assert cap.allows([], [event(num_steps=1)])
    assert not cap.allows([event(num_steps=400)], [event(num_steps=1)])
