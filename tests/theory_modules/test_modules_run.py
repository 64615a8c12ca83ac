"""``python -m theory_modules.NAME`` for the modules whose demonstration takes no time."""

from __future__ import annotations

import pytest


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    module = __import__(f"theory_modules.{name}", fromlist=["main"])
    module.main()
    return capsys.readouterr().out


def test_the_phases_show_the_published_growth_and_peak(capsys: pytest.CaptureFixture[str]):
    printed = shown("exponential_lr_phases", capsys)
    assert "1.4812334 (published 1.481)" in printed
    assert "epoch  79: rate 10^12.48" in printed  # read off the published figure: near 10^12.5


def test_the_recursion_shows_every_optimiser(capsys: pytest.CaptureFixture[str]):
    printed = shown("exponential_lr_recursion", capsys)
    assert [line.split(":")[0] for line in printed.splitlines() if line[0] != " "][1:] == [
        "sgd",
        "nesterov",
        "sgdw",
        "adamw",
    ]


def test_the_way_back_comes_back(capsys: pytest.CaptureFixture[str]):
    assert float(shown("exponential_lr_reverse", capsys).split()[-1]) < 1e-11


@pytest.mark.slow
def test_invariance_of_three_networks_is_reported(capsys: pytest.CaptureFixture[str]):
    printed = shown("scale_invariance", capsys)
    assert "0 of 4 tensors" in printed
    assert "7 of 9 tensors" in printed
