"""A site whose data are rows of a table: trained on as they are, never encoded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from federation.messages import SiteReply
from federation.site.dataset import SiteData, load_site_data
from federation.site.local_baseline import train_local
from federation.site.worker import _warn_early
from federation.site.worker_config import WorkerConfig
from instahide.models import build_model

from .site_examples import request
from .test_round_task import LENIENT, Site, read_weights, why

HEADER = "age,sex,ill\n"
FORM = """
label = "ill"
[classes]
"0" = "absent"
"1" = "present"
[[columns]]
name = "age"
low = 20
high = 80
[[columns]]
name = "sex"
low = 0
high = 1
[[columns]]
name = "ill"
"""
NAMES = ["absent", "present"]
WEIGHTS = read_weights(build_model("mlp", image_shape=(1, 2, 2), num_classes=2))


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """Old patients are ill; every seventh age is not known."""
    rng = np.random.default_rng(0)
    rows = [
        f"{'?' if row % 7 == 0 else age},{row % 2},{int(age > 50)}"
        for row, age in enumerate(rng.integers(20, 80, 150))
    ]
    (tmp_path / "columns.toml").write_text(FORM)
    (tmp_path / "ward.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def data(ward: Path) -> SiteData:
    return load_site_data(
        WorkerConfig(
            site_name="north",
            data="ward.csv",
            policy="policy.toml",
            socket="w.sock",
            state_folder="state",
            folder=ward,
        )
    )


def ask(folder: Path, data: SiteData, **settings: object) -> SiteReply:
    site = Site(folder, LENIENT, data)
    mapping = request(1, class_names=NAMES, image_shape=[1, 2, 2], **settings).to_mapping()
    return site.tasks.answer("train", mapping, WEIGHTS)


def test_a_table_is_registered_and_a_part_held_out_like_pictures(data: SiteData) -> None:
    assert data.training.image_shape == (1, 2, 2)
    assert data.class_names == ("absent", "present")
    assert len(data.training) + len(data.test) == 150
    assert len(data.test) > 5


def test_rows_are_trained_on_and_measured_with_plain_queries_only(ward: Path, data: SiteData) -> None:
    reply = ask(ward, data, encoding="none", local_epochs=60, learning_rate=0.1)
    assert reply.refusal is None
    measured = {name for name in reply.metrics if name.startswith("evaluate-accuracy")}
    assert measured == {"evaluate-accuracy-plain"}
    assert reply.metrics["train-loss"] < 0.4


def test_encoding_rows_is_refused_with_the_reason(ward: Path, data: SiteData) -> None:
    kind, reason = why(ask(ward, data, encoding="instahide"))
    assert kind == "policy"
    assert "cannot be hidden by encoding" in reason


def test_rows_with_differential_privacy_are_served(ward: Path, data: SiteData) -> None:
    pytest.importorskip("opacus")
    reply = ask(ward, data, encoding="none", differential_privacy="example", noise_multiplier=2.0)
    assert reply.refusal is None
    assert reply.arrays


def test_the_worker_says_at_its_start_that_rows_cannot_be_encoded(
    data: SiteData, ward: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (ward / "policy.toml").write_text("")
    config = SimpleNamespace(policy="policy.toml", path=lambda name: ward / name)
    _warn_early(SimpleNamespace(config=config, data=data))
    assert "cannot be hidden by encoding" in caplog.text


def test_what_a_hospital_reaches_alone_is_measured_without_an_encoder(data: SiteData) -> None:
    asked = request(1, class_names=NAMES, image_shape=[1, 2, 2], encoding="none", num_server_rounds=3)
    result = train_local(data, asked, device="cpu", threads=1)
    assert result.metrics["num-examples"] == len(data.training)
    assert "evaluate-accuracy-one-view" not in result.metrics
