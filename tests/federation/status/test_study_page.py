"""The page has its parts, says how old it is, is safe against hostile words, and never invents a figure."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from federation.status.study_metrics import study_metrics
from federation.status.study_page import study_page
from federation.status.study_status import DOWN, STOPPED, UP, StudyStatus, StudyWatch

from .exposition_parser import parse
from .page_reader import PageReader, is_harmless
from .study_files import (
    HOSTILE,
    NOW,
    SITES,
    charge,
    events_of_a_run,
    make_study,
    stamp,
    write_audit,
    write_events,
)

CLIENT: dict[str, Any] = {
    "differential_privacy": "client",
    "encoding": "none",
    "max_update_norm": 1.0,
    "over_norm": "clip",
    "noise_multiplier": 5.0,
}


def status_of(
    tmp_path: Path, *, rounds: int = 3, sites: tuple[str, ...] = SITES, coordinator: str = UP, **settings: Any
) -> StudyStatus:
    study = make_study(tmp_path / "study", sites)
    folder = write_events(study, "trial-1", events_of_a_run(rounds, sites=sites, **settings))
    (folder / ".lock").write_text(str(os.getpid()))
    if settings:
        charge(folder, rounds, noise_multiplier=5.0)
    watch = StudyWatch(study)
    watch.read_events()
    presence = {100: "online", 101: "online", 102: "offline"}
    return watch.status(NOW, coordinator=coordinator, presence=presence if coordinator == UP else None)


def test_every_part_is_there_in_words(tmp_path: Path) -> None:
    page = PageReader(study_page(status_of(tmp_path)))
    for words in (
        "The coordinator of fl.example.org:9443 was up when this page was written.",
        "Written on 2026-11-26 09:00:00 UTC.",
        "more than 2 minutes old by your clock, the coordinator is down",
        "2 of 3 online",
        "trial-1: running",
        "3 of 10",
        "eastern offline 1,202",
        "refused (policy) at most 1 round a run is allowed here. What to do: ask the site",
        "gateway 2027-11-26",
        "365 days left",
        "What leaks was not measured",
    ):
        assert words in page.text, words
    assert page.tags.count("svg") == 1
    assert page.refresh == "30"


def test_it_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    assert is_harmless(study_page(status_of(tmp_path, **CLIENT)))


def test_hostile_names_and_reasons_are_words_and_nothing_else(tmp_path: Path) -> None:
    sites = (*SITES, HOSTILE)
    study = make_study(tmp_path / "study", sites)
    hostile = {"round": 1, "site": HOSTILE, "reason": HOSTILE, "hint": HOSTILE, "kind": HOSTILE}
    folder = write_events(
        study,
        "trial-1",
        [
            *events_of_a_run(3, sites=sites),
            *({"event": f"site-{what}", "time": stamp(5), **hostile} for what in ("refused", "rejected")),
            {"event": "waiting-for-sites", "present": [], "absent": [HOSTILE]},
            {"event": "run-failed", "reason": HOSTILE, "hint": HOSTILE, "time": stamp(1)},
        ],
    )
    write_audit(folder, "round-1/a", 0.6, verdict=HOSTILE, attack=HOSTILE)
    watch = StudyWatch(study)
    watch.read_events()
    status = watch.status(NOW, coordinator=DOWN, presence=None, down_reason=HOSTILE)
    document = study_page(status)
    assert is_harmless(document)
    assert "<script" not in document
    assert "\u202e" not in document
    assert '<script>alert("x")</script>' in PageReader(document).text  # to be read, not to be run
    families = parse(study_metrics(status))
    named = {dict(sample.labels).get("site", "") for sample in families["instahide_run_site_answers_total"]}
    assert any("<script>" in name for name in named)


def test_encodings_alone_have_no_epsilon_on_the_page_nor_in_the_metrics(tmp_path: Path) -> None:
    status = status_of(tmp_path)
    assert status.runs[0].progress.settings["encoding"] == "instahide"
    assert "epsilon" not in study_page(status).lower()
    assert "epsilon" not in study_metrics(status).lower()


def test_epsilon_is_shown_where_noise_was_paid_for(tmp_path: Path) -> None:
    status = status_of(tmp_path, **CLIENT)
    [row] = status.runs[0].epsilon
    assert row.epsilon is not None
    assert f"the run one whole site {row.epsilon:.3g} 1e-05" in PageReader(study_page(status)).text
    [sample] = parse(study_metrics(status))["instahide_run_epsilon"]
    assert sample.value == row.epsilon


def test_differential_privacy_without_a_figure_says_so(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    write_events(study, "trial-1", events_of_a_run(1, differential_privacy="example", encoding="none"))
    watch = StudyWatch(study)
    watch.read_events()
    page = PageReader(study_page(watch.status(NOW, coordinator=UP, presence={})))
    assert "Differential privacy is on; no figure yet" in page.text


def test_audited_rounds_make_a_second_curve(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    folder = write_events(study, "trial-1", events_of_a_run(3))
    for number in (1, 2, 3):
        write_audit(folder, f"round-{number}/membership", 0.5 + 0.1 * number)
    watch = StudyWatch(study)
    watch.read_events()
    status = watch.status(NOW, coordinator=UP, presence={})
    page = PageReader(study_page(status))
    assert page.tags.count("svg") == 2
    assert "3 model-membership auc 0.800 0.750 to 0.850 leaks" in page.text
    [sample] = parse(study_metrics(status))["instahide_run_audit_figure"]
    assert sample.value == pytest.approx(0.8)


@pytest.mark.parametrize(("coordinator", "words"), [(DOWN, "is down"), (STOPPED, "was stopped, in order")])
def test_a_coordinator_that_is_not_up_is_said_first(tmp_path: Path, coordinator: str, words: str) -> None:
    page = PageReader(study_page(status_of(tmp_path, coordinator=coordinator)))
    assert f"The coordinator of fl.example.org:9443 {words}" in page.text
    assert "3 admitted" in page.text
    assert "only a running coordinator knows who is connected" in page.text


def test_a_study_without_anything_yet(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", ())
    document = study_page(StudyWatch(study).status(NOW, coordinator=UP, presence={}))
    assert "No hospital is admitted yet" in document
    assert "No run was started yet" in document
    assert is_harmless(document)


def test_a_long_run_does_not_make_a_long_page(tmp_path: Path) -> None:
    document = study_page(status_of(tmp_path, rounds=3000))
    assert len(document) < 150_000
    assert "2999" in PageReader(document).text  # the last round is kept


def test_certificates_near_their_end_are_warned_of_at_the_top(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", days=20)
    page = PageReader(study_page(StudyWatch(study).status(NOW, coordinator=UP, presence={})))
    warned = page.text.index("The certificate gateway.crt: 20 days left.")
    assert warned < page.text.index("In one look")
    ended = StudyWatch(study).status(NOW + timedelta(days=30), coordinator=UP, presence={})
    assert "The certificate gateway.crt: has ended." in PageReader(study_page(ended)).text


def test_metrics_hold_what_the_events_say(tmp_path: Path) -> None:
    status = status_of(tmp_path)
    values = {
        (sample.name, *sorted(value for name, value in sample.labels if name != "study")): sample.value
        for samples in parse(study_metrics(status)).values()
        for sample in samples
    }
    expiry = next(one.ends for one in status.certificates if one.name == "gateway")
    assert expiry is not None
    assert values["instahide_coordinator_up",] == 1
    assert values["instahide_status_timestamp_seconds",] == NOW.timestamp()
    assert values["instahide_certificate_expiry_timestamp_seconds", "gateway"] == expiry.timestamp()
    assert values["instahide_site_online", "eastern"] == 0
    assert values["instahide_site_online", "st-mary"] == 1
    assert values["instahide_run_rounds_total", "trial-1"] == 3
    assert values["instahide_run_round_duration_seconds_sum", "trial-1"] == 7.5
    assert values["instahide_run_round_duration_seconds_count", "trial-1"] == 3
    assert values["instahide_run_state", "running", "trial-1"] == 1
    assert values["instahide_run_state", "finished", "trial-1"] == 0
    assert values["instahide_run_site_answers_total", "eastern", "refused", "trial-1"] == 1
    assert values["instahide_run_site_refusals_total", "eastern", "policy", "trial-1"] == 1
    assert values["instahide_run_accuracy_ratio", "plain query", "trial-1"] == pytest.approx(1 - 0.6**3)


def test_presence_that_nobody_knows_is_no_metric(tmp_path: Path) -> None:
    families = parse(study_metrics(status_of(tmp_path, coordinator=DOWN)))
    assert "instahide_site_online" not in families
    assert families["instahide_coordinator_up"][0].value == 0


def test_the_table_of_metrics_in_the_documents_is_complete(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    folder = write_events(study, "trial-1", events_of_a_run(3, **CLIENT))
    charge(folder, 3, noise_multiplier=5.0)
    write_audit(folder, "round-1/membership", 0.6)
    watch = StudyWatch(study)
    watch.read_events()
    written = parse(study_metrics(watch.status(NOW, coordinator=UP, presence={100: "online"})))
    kinds = re.findall(r"# TYPE (\S+) (\S+)", study_metrics(watch.status(NOW, coordinator=UP, presence={})))
    document = Path(__file__).parents[3] / "federation" / "coordinator" / "README.md"
    table = document.read_text().split("<!-- metrics")[1].split("<!-- end of metrics")[0]
    assert set(re.findall(r"^\| `(\w+)` \| (\w+) \|", table, flags=re.MULTILINE)) == set(kinds)
    assert set(written) == {name for name, _ in kinds}
