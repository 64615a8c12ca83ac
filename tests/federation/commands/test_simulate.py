"""``instahide simulate``: a folder with the report, or nothing."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest

from federation import cli

QUICK = ["--hospitals", "3", "--set", "model=mlp", "--set", "num-server-rounds=1"]


def test_a_study_leaves_a_page_and_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, settings = tmp_path / "study", tmp_path / "settings.toml"
    settings.write_text("learning-rate = 0.1\n[arm.rate]\nlearning-rate = 0.2\n")
    words = [
        "simulate",
        "--out",
        str(out),
        *QUICK,
        "--settings",
        str(settings),
        "--arm",
        "plain:encoding=none",
    ]
    assert cli.run([*words, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in told["arms"]] == ["rate", "plain"]
    assert json.loads((out / "results.json").read_text()) == {k: v for k, v in told.items() if k != "out"}
    page = (out / "index.html").read_text()
    assert "<svg" in page
    assert "no measurement of a real federation" in page
    assert all(escape(line) in page for line in told["not-simulated"])
    assert cli.run(words) == 2
    assert "in use" in capsys.readouterr().err


def test_a_failed_arm_is_told_and_ends_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    policy = tmp_path / "policy.toml"
    policy.write_text("encoding-required = true\nminimum-examples = 1\nplan-approval = false\n")
    words = ["simulate", "--out", str(tmp_path / "out"), *QUICK, "--policy", str(policy)]
    assert cli.run([*words, "--arm", "plain:encoding=none", "--arm", "coded:encoding=instahide"]) == 5
    shown = capsys.readouterr()
    assert "1 of 2 arms failed: plain" in shown.err
    assert "plain (failed)" in shown.out
    assert "encod" in (tmp_path / "out" / "index.html").read_text()


def test_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("federation.coordinator.rounds.run", interrupt)
    words = ["simulate", "--out", str(tmp_path / "out"), *QUICK, "--scratch", str(tmp_path)]
    assert cli.run(words) == 130
    assert list(tmp_path.iterdir()) == []
    assert "nothing was written" in capsys.readouterr().err
