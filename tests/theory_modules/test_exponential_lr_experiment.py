"""The published experiment at a size that takes seconds: equal runs are equal, others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from theory_modules.exponential_lr_experiment import (
    ARMS,
    Comparison,
    Curve,
    Images,
    Settings,
    compare_schedules,
    digits,
    draw,
    main,
)
from theory_modules.pre_activation_resnet import PreActivationResNet
from theory_modules.scale_invariance import scale_invariance_report

SMALL = Settings(width=4, epochs=2, batch_size=32, double=True)


@pytest.fixture(scope="module")
def found() -> Comparison:
    full = digits()
    return compare_schedules(
        Images(full.inputs[:320], full.labels[:320], full.test_inputs[:100], full.test_labels[:100]),
        SMALL,
        seeds=(0,),
    )


def test_the_equivalent_run_computes_the_same_functions(found: Comparison):
    assert found.loss_distance("equivalent") < 1e-10
    assert found.difference("equivalent")[0] == 0.0
    for ours, theirs in zip(found.curves["equivalent"], found.curves["step decay"], strict=True):
        assert ours.test_accuracies == theirs.test_accuracies


def test_its_weights_and_rate_grow_where_the_originals_shrink(found: Comparison):
    ours, theirs = found.curves["equivalent"][0], found.curves["step decay"][0]
    assert theirs.squared_norms[-1] < ours.squared_norms[-1]
    assert ours.rates[9] > ours.rates[0] > ours.rates[10]  # grows between drops, and drops with the schedule
    assert theirs.rates[9] == theirs.rates[0]


def test_growth_without_drops_is_another_run(found: Comparison):
    assert found.loss_distance("plain growth") > 1e-3
    rates = np.array(found.curves["plain growth"][0].rates)
    assert np.ptp(rates[1:] / rates[:-1]) < 1e-12  # one factor from first to last


def test_a_rounding_away_is_told_from_the_same_run(found: Comparison):
    assert 0 < found.loss_distance("one rounding") < 1e-6


def test_the_interval_is_students_over_the_paired_differences():
    accuracies = {ARMS[0]: [0.5, 0.6, 0.7], ARMS[1]: [0.6, 0.6, 0.9]}
    curves = {arm: [Curve([1.0], [1.0], [a], [1.0]) for a in values] for arm, values in accuracies.items()}
    mean, low, high = Comparison(SMALL, 1, 1, (0, 1, 2), curves).difference(ARMS[1])
    assert mean == pytest.approx(0.1)
    # Differences 0.1, 0, 0.2: standard deviation 0.1; t(0.975, 2) = 4.30265 from a table.
    assert (high - mean, mean - low) == pytest.approx([4.30265 * 0.1 / 3**0.5] * 2, rel=1e-5)


def test_with_one_seed_no_interval_is_claimed():
    curves = {arm: [Curve([1.0], [1.0], [0.5], [1.0])] for arm in ARMS}
    single = Comparison(SMALL, 1, 1, (0,), curves)
    assert single.to_dict()["arms"]["equivalent"]["interval"] is None


def test_every_convolution_of_the_network_converts_and_the_head_does_not():
    torch.manual_seed(0)
    report = scale_invariance_report(
        PreActivationResNet(depth=8, width=4, in_channels=1), torch.randn(8, 1, 8, 8)
    )
    assert set(report.never) == {"head.weight", "head.bias"}
    assert set(report.alone) == {f"blocks.{block}.conv1.weight" for block in range(3)}
    assert set(report.convertible) == set(report.alone) | set(report.jointly)


@pytest.mark.parametrize("depth", [2, 9])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int):
    with pytest.raises(ValueError, match="6n"):
        PreActivationResNet(depth=depth)


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        compare_schedules(digits(), SMALL, seeds=())
    with pytest.raises(ValueError, match="give 1 or more"):
        Settings(epochs=0)


def test_the_curves_are_drawn(found: Comparison, tmp_path: Path):
    pytest.importorskip("matplotlib")
    draw(found, tmp_path / "curves")
    assert (tmp_path / "curves").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_module_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--epochs", "1", "--seeds", "1", "--out", str(tmp_path / "e.png")])
    assert "minus step decay +0.0000" in capsys.readouterr().out
