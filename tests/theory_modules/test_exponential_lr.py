"""Rates, roots, closed form, reverse: the arithmetic of the exponential learning rate, without networks."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory_modules.exponential_lr import (
    NoEquivalentScheduleError,
    decay_equivalent,
    exponential_lr_equivalent,
    growth_root,
    largest_decay,
    tapered_exponential,
)
from theory_modules.exponential_lr_demo import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_published_setting_grows_by_the_published_factor() -> None:
    """PreResNet32, CIFAR-10, lr 0.1, momentum 0.9, decay 5e-4: 1.481 an epoch in the paper's figure."""
    alpha = growth_root(0.1, 0.9, 5e-4)
    assert alpha ** (-2 * 391) == pytest.approx(1.4812334, abs=1e-7)
    assert alpha ** (-2 * 390) == pytest.approx(1.4797458, abs=1e-7)


def test_the_recursion_grows_like_the_root_of_the_quadratic() -> None:
    rates = exponential_lr_equivalent(lr=0.1, momentum=0.9, weight_decay=5e-4).learning_rates(600)
    assert rates[-1] / rates[-2] == pytest.approx(growth_root(0.1, 0.9, 5e-4) ** -2, rel=1e-14)


@settings(deadline=None)
@given(
    momentum=st.floats(0.0, 0.97),
    share=st.floats(0.0, 0.9),
    lr=st.floats(1e-3, 10.0),
)
def test_the_root_solves_its_equation_and_the_recursion_settles_there(
    momentum: float, share: float, lr: float
) -> None:
    decay = share * largest_decay("sgd", momentum) / lr
    for smaller in (False, True) if momentum > 0.05 else (False,):
        x = growth_root(lr, momentum, decay, smaller=smaller)
        assert x * x - (1 + momentum - decay * lr) * x + momentum == pytest.approx(0, abs=1e-13)
    schedule = exponential_lr_equivalent(lr, momentum, decay)
    # Convergence is geometric, with the ratio of the smaller root to the larger.
    larger = growth_root(lr, momentum, decay)
    last = next(islice(schedule.steps(), 1499, None))
    before, after = last.before.scale, last.after.scale
    settled = math.ldexp(before.mantissa / after.mantissa, before.exponent - after.exponent)
    ratio = momentum / larger**2
    assert settled == pytest.approx(larger, abs=1e-12 + ratio**1400)


def test_without_momentum_the_rate_is_the_theorem_of_the_talk() -> None:
    """Gradient descent with decay: rate eta * rho^(-2t-1), rho = 1 - lambda * eta."""
    rates = exponential_lr_equivalent(lr=0.3, weight_decay=0.02).learning_rates(50)
    steps = np.arange(50)
    np.testing.assert_allclose(rates, 0.3 * (1 - 0.006) ** (-2.0 * steps - 1), rtol=1e-13)


def test_without_decay_nothing_changes_whatever_the_drops() -> None:
    rates = exponential_lr_equivalent(
        lr=0.1, momentum=0.9, weight_decay=0.0, drops={3: 0.1, 5: 0.5}
    ).learning_rates(7)
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.01] * 2 + [0.005] * 2, rtol=1e-15)


def test_the_recursion_is_the_second_order_form_in_alpha() -> None:
    """alpha_{t+1} = 1 - lambda_t eta_t + gamma (eta_t/eta_{t-1}) (1 - 1/alpha_t); rates P_t P_{t+1} eta_t."""
    eta = [0.1 * (0.2 + abs(math.sin(step))) for step in range(60)]
    decay = [1e-3 * (step % 4) for step in range(60)]
    gamma = [0.9 - 0.01 * (step % 3) for step in range(60)]
    schedule = exponential_lr_equivalent(eta.__getitem__, gamma.__getitem__, decay.__getitem__)
    alpha, scale, expected = 1.0, 1.0, []
    for step in range(60):
        change = gamma[step] * (eta[step] / eta[step - 1]) * (1 - 1 / alpha) if step else 0.0
        alpha = 1 - decay[step] * eta[step] + change
        expected.append(scale * (scale / alpha) * eta[step])
        scale /= alpha
    np.testing.assert_allclose(schedule.learning_rates(60), expected, rtol=1e-12)


def test_the_closed_form_and_its_preset() -> None:
    alpha = growth_root(0.1, 0.9, 5e-4)
    schedule = tapered_exponential(0.1, 0.9, 5e-4)
    np.testing.assert_allclose(
        schedule.learning_rates(300), 0.1 * alpha ** (-2.0 * np.arange(300) - 1), rtol=1e-12
    )
    kappa = (1 - alpha) / (alpha * 0.1)
    assert schedule.buffer_jumps(300) == {0: pytest.approx(-kappa)}
    assert kappa == pytest.approx(
        5e-4 / 0.1 + 0.1 * 5e-4**2 / 0.1**3, rel=2e-3
    )  # the series' first two terms


def test_a_new_phase_starts_with_the_ratio_of_texp() -> None:
    schedule = tapered_exponential(0.1, 0.9, 5e-4, drops={80: 0.1})
    rates = schedule.learning_rates(120)
    old, new = growth_root(0.1, 0.9, 5e-4), growth_root(0.01, 0.9, 5e-4)
    assert rates[80] / rates[79] == pytest.approx(0.1 / (old * new), rel=1e-12)
    assert rates[100] / rates[99] == pytest.approx(new**-2, rel=1e-12)
    jumps = schedule.buffer_jumps(120)
    assert list(jumps) == [0, 80]
    # Second order: (eta - eta') lambda^2 / (1 - gamma)^3 over P^2, to leading order in lambda.
    assert jumps[80] * schedule.scales(80)[-1] ** 2 == pytest.approx(0.09 * 5e-4**2 / 0.1**3, rel=0.02)


def test_momentum_with_the_rate_inside_the_buffer_reproduces_the_rate_outside() -> None:
    """u <- gamma' u + eta g, w <- w - u, against b <- gamma b + g, w <- w - eta b on arbitrary gradients."""
    schedule = exponential_lr_equivalent(lr=0.1, momentum=0.9, weight_decay=5e-4, drops={20: 0.1})
    rates, inside = schedule.learning_rates(40), schedule.momenta_inside_buffer(40)
    rng = np.random.default_rng(0)
    outer = inner = buffer = moved = 0.0
    for step, gradient in enumerate(rng.normal(size=40)):
        buffer = 0.9 * buffer + gradient
        outer -= rates[step] * buffer
        moved = inside[step] * moved + rates[step] * gradient
        inner -= moved
        assert inner == pytest.approx(outer, rel=1e-12)


def test_a_later_start_is_the_same_schedule_from_scale_one() -> None:
    whole = exponential_lr_equivalent(lr=0.1, momentum=0.0, weight_decay=5e-3, drops={30: 0.5})
    scale = whole.scales(20)[-1]
    np.testing.assert_allclose(
        whole.starting_at(20).learning_rates(40) * scale**2, whole.learning_rates(60)[20:], rtol=1e-12
    )


# --- the operators of the talk -----------------------------------------------------------------------------

State = tuple[np.ndarray, float]
Operator = Callable[[State], State]


def pi_one(factor: float) -> Operator:
    return lambda state: (factor * state[0], state[1])


def pi_two(factor: float) -> Operator:
    return lambda state: (state[0], factor * state[1])


def gradient_descent(step: int, rho: float = 1.0) -> Operator:
    """GD_t^rho(theta, eta) = (rho theta - eta grad L_t(theta), eta), L_t(theta) = <a_t, theta/|theta|>."""
    direction = np.random.default_rng(step).normal(size=5)

    def apply(state: State) -> State:
        theta, eta = state
        norm = np.linalg.norm(theta)
        gradient = direction / norm - theta * (direction @ theta) / norm**3
        return rho * theta - eta * gradient, eta

    return apply


def composed(*operators: Operator) -> Operator:
    """The rightmost acts first, as on the slide."""
    return lambda state: reduce(lambda value, operator: operator(value), reversed(operators), state)


def assert_same(first: State, second: State) -> None:
    assert np.linalg.norm(first[0] - second[0]) < 1e-11 * np.linalg.norm(first[0])
    assert first[1] == pytest.approx(second[1], rel=1e-12)


START: State = (np.array([1.0, -2.0, 0.5, 3.0, -0.25]), 0.3)


@settings(deadline=None)
@given(rho=st.floats(0.5, 1.0), step=st.integers(0, 50))
def test_one_step_with_decay_is_a_conjugated_step_without(rho: float, step: int) -> None:
    """GD^rho = Pi_2^rho . Pi_1^rho . GD . Pi_2^(1/rho)."""
    conjugated = composed(pi_two(rho), pi_one(rho), gradient_descent(step), pi_two(1 / rho))
    assert_same(gradient_descent(step, rho)(START), conjugated(START))


@settings(deadline=None)
@given(factor=st.floats(0.1, 10.0), step=st.integers(0, 50))
def test_equivalent_scaling_commutes_with_gradient_descent(factor: float, step: int) -> None:
    scaling = composed(pi_one(factor), pi_two(factor**2))
    descent = gradient_descent(step)
    assert_same(composed(scaling, descent)(START), composed(descent, scaling)(START))
    # Not so if the rate is left alone: the two factors belong together.
    wrong = composed(pi_one(factor), descent)(START)[0]
    if abs(factor - 1) > 0.01:
        assert not np.allclose(wrong, composed(descent, pi_one(factor))(START)[0], rtol=1e-9)


@settings(deadline=None)
@given(rho=st.floats(0.8, 0.999), steps=st.integers(1, 25))
def test_a_whole_run_with_decay_is_a_run_with_exponential_rate(rho: float, steps: int) -> None:
    """The slide's theorem: with r = 1/rho,

    Pi_1^(r^t) Pi_2^(r^2t) GD^rho_{t-1} ... GD^rho_0 = Pi_2^r GD_{t-1} Pi_2^(r^2) ... Pi_2^(r^2) GD_0 Pi_2^r.
    """
    with_decay = composed(
        pi_one(rho**-steps),
        pi_two(rho ** (-2 * steps)),
        *(gradient_descent(step, rho) for step in reversed(range(steps))),
    )
    growing: list[Operator] = [pi_two(1 / rho)]
    for step in reversed(range(steps)):
        growing += [gradient_descent(step), pi_two(rho**-2 if step else 1 / rho)]
    assert_same(with_decay(START), composed(*growing)(START))


# --- the way back ------------------------------------------------------------------------------------------


def original_values(step: int) -> tuple[float, float]:
    return 0.1 * (0.1 ** (step // 150)) * (1 + 0.3 * math.sin(step / 7)), 5e-4 * (
        1 + 0.5 * math.cos(step / 11)
    )


def test_given_the_decay_the_reverse_finds_the_rate() -> None:
    forward = exponential_lr_equivalent(
        lambda step: original_values(step)[0], 0.9, lambda step: original_values(step)[1]
    )
    rates = forward.learning_rates(500)
    found = decay_equivalent(rates, momentum=0.9, weight_decay=lambda step: original_values(step)[1])
    np.testing.assert_allclose(found.learning_rates, [original_values(s)[0] for s in range(500)], rtol=1e-11)
    np.testing.assert_allclose(found.equivalent().learning_rates(500), rates, rtol=1e-11)


def test_given_the_rate_the_reverse_finds_the_decay() -> None:
    forward = exponential_lr_equivalent(
        lambda step: original_values(step)[0], 0.9, lambda step: original_values(step)[1]
    )
    rates = forward.learning_rates(500)
    found = decay_equivalent(rates, momentum=0.9, lr=lambda step: original_values(step)[0])
    # Round trip of the rates; the decay itself loses digits in 1 - alpha where the rate is small.
    np.testing.assert_allclose(found.equivalent().learning_rates(500), rates, rtol=1e-9)
    np.testing.assert_allclose(
        found.weight_decays[:150], [original_values(s)[1] for s in range(150)], rtol=1e-9
    )


@settings(deadline=None)
@given(growth=st.floats(1.0001, 1.02), decay=st.floats(1e-5, 1e-3), momentum=st.sampled_from([0.0, 0.5, 0.9]))
def test_every_growing_rate_is_a_positive_rate_with_any_decay(
    growth: float, decay: float, momentum: float
) -> None:
    rates = 0.1 * growth ** np.arange(300.0)
    found = decay_equivalent(rates, momentum=momentum, weight_decay=decay)
    assert np.all(found.learning_rates > 0)
    np.testing.assert_allclose(found.equivalent().learning_rates(300), rates, rtol=1e-9)


# --- range and refusals ------------------------------------------------------------------------------------


def test_a_rate_beyond_float64_is_refused_and_available_as_a_logarithm() -> None:
    schedule = exponential_lr_equivalent(lr=0.2, momentum=0.9, weight_decay=5e-3)
    with pytest.raises(NoEquivalentScheduleError, match="log2_learning_rates"):
        schedule.learning_rates(40_000)
    logarithms = schedule.log2_learning_rates(40_000)
    assert logarithms[-1] > 1024
    np.testing.assert_allclose(2 ** logarithms[:1000], schedule.learning_rates(1000), rtol=1e-10)


def test_a_rate_of_zero_is_a_step_without_learning() -> None:
    schedule = exponential_lr_equivalent(lambda step: 0.0 if step < 3 else 0.1, 0.9, 5e-3)
    rates = schedule.learning_rates(5)
    assert rates[:3].tolist() == [0.0, 0.0, 0.0]
    assert rates[3] > 0.1


@pytest.mark.parametrize(
    ("optimizer", "momentum", "bound"),
    [
        ("sgd", 0.9, (1 - math.sqrt(0.9)) ** 2),
        ("nesterov", 0.9, (0.1 / 1.9) ** 2),
        ("sgd", 0.5, 0.5**2 * 0.34314575),
    ],
)
def test_complex_roots_are_refused_at_the_bound(optimizer: str, momentum: float, bound: float) -> None:
    assert largest_decay(optimizer, momentum) == pytest.approx(bound, rel=1e-7)
    limit = largest_decay(optimizer, momentum)
    below = exponential_lr_equivalent(1.0, momentum, limit * (1 - 1e-9), optimizer=optimizer)
    assert np.all(np.diff(below.log2_learning_rates(5000)) > 0)
    with pytest.raises(NoEquivalentScheduleError, match="complex roots"):
        exponential_lr_equivalent(1.0, momentum, limit * (1 + 1e-6), optimizer=optimizer)
    # And rightly so: followed step by step, the ray does turn around.
    beyond = exponential_lr_equivalent(lambda step: 1.0, momentum, limit * 1.1, optimizer=optimizer)
    with pytest.raises(NoEquivalentScheduleError, match="turn the weights around"):
        beyond.log2_learning_rates(5000)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, "complex roots"),
        ({"lr": 1.0, "weight_decay": 1.0}, "no positive root"),
        ({"lr": -0.1}, "not negative"),
        ({"lr": math.nan}, "finite"),
        ({"lr": 0.1, "momentum": 1.0}, "outside"),
        ({"lr": 0.1, "drops": {10: 0.0}}, "positive factor"),
        ({"lr": 0.1, "drops": {-1: 0.5}}, "step >= 0"),
        ({"lr": 0.1, "optimizer": "adam"}, "no known equivalent"),
        ({"lr": 0.1, "optimizer": "nesterov"}, "positive momentum"),
        ({"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "drops": {5: 100.0}}, "complex roots"),
    ],
)
def test_what_has_no_equivalent_is_refused_with_a_hint(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(NoEquivalentScheduleError, match=reason) as refused:
        exponential_lr_equivalent(**arguments)  # type: ignore[arg-type]
    assert "hint:" in str(refused.value)


def test_momentum_switched_off_midway_is_refused_at_that_step() -> None:
    schedule = exponential_lr_equivalent(0.1, lambda step: 0.9 if step < 5 else 0.0, 5e-4)
    with pytest.raises(NoEquivalentScheduleError, match="step 5"):
        schedule.learning_rates(6)


@pytest.mark.parametrize(
    ("rates", "options"),
    [
        ([], {"weight_decay": 0.0}),
        ([0.1, 0.0], {"weight_decay": 0.0}),
        ([0.1], {}),
        ([0.1], {"lr": 0.1, "weight_decay": 0.0}),
        ([0.1], {"lr": 0.0}),
        ([0.1, 0.1], {"weight_decay": -100.0}),
    ],
)
def test_the_reverse_refuses_what_it_cannot_solve(rates: list[float], options: dict[str, float]) -> None:
    with pytest.raises(NoEquivalentScheduleError, match="hint:"):
        decay_equivalent(rates, momentum=0.0, **options)


def test_the_demonstration_saves_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "demo.png"
    main(["--steps", "40", "--out", str(figure)])
    assert "no decay, growing rate: largest difference" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_module_runs_by_its_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "theory_modules.exponential_lr", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python -m theory_modules.exponential_lr" in done.stdout
