"""A hospital alone: as many steps as the run beside it, and nothing charged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation.messages import ALLOWED_METRICS
from federation.site.local_baseline import main, train_local
from instahide.errors import RefusedError

from .site_examples import initial_weights, request, site_data, write_site


def test_alone_on_plain_images_a_site_learns_its_digits() -> None:
    """60 epochs on 120 of ten digits: plain accuracy far above the 0.1 of guessing (60 test images)."""
    asked = request(encoding="none", local_epochs=6, learning_rate=0.1)
    result = train_local(site_data(), asked, device="cpu", threads=1)
    assert result.metrics["evaluate-accuracy-plain"] > 0.5
    assert set(result.metrics) == ALLOWED_METRICS - {"worker-seconds", "epsilon-spent"}
    assert list(result.arrays) == list(initial_weights())


def test_on_one_encoding_the_weights_move_and_the_three_modes_are_there() -> None:
    result = train_local(site_data(), request(num_server_rounds=2), device="cpu", threads=1)
    start = initial_weights()
    assert any(not np.array_equal(result.arrays[name], start[name]) for name in start)
    assert {f"evaluate-accuracy-{mode}" for mode in ("plain", "one-view", "ten-views")} <= set(result.metrics)


def test_a_run_about_other_classes_is_refused() -> None:
    with pytest.raises(RefusedError):
        train_local(site_data(), request(class_names=["a", "b"]))


def test_its_command_prints_one_line_of_figures_and_leaves_no_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_site(tmp_path)
    run = tmp_path / "run.toml"
    run.write_text('model = "mlp"\nnum-server-rounds = 1\n')
    assert main(["--config", str(config), "--run", str(run)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["site"] == "north"
    assert line["metrics"]["num-examples"] == 120
    assert not (tmp_path / "state").exists()


def test_a_run_file_that_is_not_there_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(write_site(tmp_path)), "--run", str(tmp_path / "run.toml")]) == 2
    assert "run configuration cannot be read" in capsys.readouterr().err
