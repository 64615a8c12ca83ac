"""A study's status as Prometheus metrics: ``metrics.prom`` (names in ``federation/coordinator/README.md``).

Labels are names of runs and of hospitals, inference modes and settings' values; nothing about an
image or a person is in a study's files. Only the last runs are written, so that a long study does
not make ever more series.
"""

from __future__ import annotations

from typing import Final

from .audits import latest_findings
from .prometheus import Family, exposition
from .run_progress import INFERENCES, REPLIED, STATES, TROUBLES
from .study_status import ONLINE, UNKNOWN, UP, RunStatus, StudyStatus

MOST_RUNS: Final = 10
PREFIX: Final = "instahide_"
_SETTINGS: Final = {
    "model": "model",
    "strategy": "strategy",
    "encoding": "encoding",
    "differential_privacy": "differential-privacy",
    "secure_aggregation": "secure-aggregation",
}


def study_metrics(status: StudyStatus) -> str:
    """The text of ``metrics.prom``."""
    runs = status.runs[-MOST_RUNS:]
    families = [*_of_the_study(status), *_of_the_runs(runs), *_of_the_sites(runs), *_of_privacy(runs)]
    return exposition(families, study=status.address)


def _of_the_study(status: StudyStatus) -> list[Family]:
    up = Family(f"{PREFIX}coordinator_up", "gauge", "Whether the coordinator was up when this was written.")
    up.add(status.coordinator == UP)
    written = Family(f"{PREFIX}status_timestamp_seconds", "gauge", "When this was written, Unix time.")
    written.add(status.made_at.timestamp())
    admitted = Family(f"{PREFIX}sites_admitted", "gauge", "Hospitals admitted to the study.")
    admitted.add(len(status.sites))
    online = Family(f"{PREFIX}site_online", "gauge", "Whether a hospital's node is connected.")
    for site in status.sites:
        online.add(None if site.status == UNKNOWN else site.status == ONLINE, site=site.name)
    ends = Family(
        f"{PREFIX}certificate_expiry_timestamp_seconds", "gauge", "When a certificate ends, Unix time."
    )
    for one in status.certificates:
        ends.add(None if one.ends is None else one.ends.timestamp(), certificate=one.name)
    return [up, written, admitted, online, ends]


def _of_the_runs(runs: list[RunStatus]) -> list[Family]:
    about = Family(f"{PREFIX}run_info", "gauge", "Settings of a run, as labels; always 1.")
    state = Family(f"{PREFIX}run_state", "gauge", "1 for the state a run is in, 0 for the others.")
    last = Family(f"{PREFIX}run_round", "gauge", "Number of the last round that was finished.")
    planned = Family(f"{PREFIX}run_planned_rounds", "gauge", "Rounds the run is to have.")
    done = Family(f"{PREFIX}run_rounds_total", "counter", "Rounds finished, repeated ones again.")
    failed = Family(f"{PREFIX}run_failed_rounds_total", "counter", "Attempts at a round below its quorum.")
    taking_part = Family(f"{PREFIX}run_sites", "gauge", "Hospitals whose updates are in the last round.")
    seconds = Family(f"{PREFIX}run_round_duration_seconds", "summary", "Wall-clock time of rounds.")
    latest = Family(f"{PREFIX}run_last_round_duration_seconds", "gauge", "Time of the last round.")
    accuracy = Family(
        f"{PREFIX}run_accuracy_ratio", "gauge", "Accuracy of the last model that was measured, 0 to 1."
    )
    loss = Family(f"{PREFIX}run_train_loss", "gauge", "Mean training loss of the last round.")
    for status in runs:
        run, name = status.progress, status.progress.name
        about.add(1, run=name, **{key: _setting(run.settings.get(kebab)) for key, kebab in _SETTINGS.items()})
        for word in STATES:
            state.add(status.state == word, run=name, state=word)
        last.add(run.last_round, run=name)
        planned.add(run.planned_rounds or None, run=name)
        done.add(run.rounds_finished, run=name)
        failed.add(run.rounds_failed, run=name)
        taking_part.add(len(run.sites_of_last_round), run=name)
        seconds.add(run.seconds_of_rounds, suffix="_sum", run=name)
        seconds.add(run.rounds_finished, suffix="_count", run=name)
        latest.add(run.last_seconds, run=name)
        loss.add(run.train_loss, run=name)
        for inference in INFERENCES:
            for _, value in run.curve(inference)[-1:]:
                accuracy.add(value, run=name, inference=inference)
    return [about, state, last, planned, done, failed, taking_part, seconds, latest, accuracy, loss]


def _of_the_sites(runs: list[RunStatus]) -> list[Family]:
    answers = Family(
        f"{PREFIX}run_site_answers_total", "counter", "Requests to a hospital by how they ended."
    )
    refusals = Family(f"{PREFIX}run_site_refusals_total", "counter", "Refusals of a hospital by kind.")
    for status in runs:
        run = status.progress
        for site in sorted({site for site, _ in run.answers}):
            for outcome in (REPLIED, *TROUBLES):
                answers.add(run.answers[site, outcome], run=run.name, site=site, outcome=outcome)
        for (site, kind), count in sorted(run.refusals.items()):
            refusals.add(count, run=run.name, site=site, kind=kind)
    return [answers, refusals]


def _of_privacy(runs: list[RunStatus]) -> list[Family]:
    """Only of runs with differential privacy; above 30 nothing is promised, hence infinity."""
    epsilon = Family(f"{PREFIX}run_epsilon", "gauge", "Differential privacy spent; +Inf above 30.")
    leak = Family(f"{PREFIX}run_audit_figure", "gauge", "What an attack measured on a round's model.")
    for status in runs:
        name = status.progress.name
        for row in status.epsilon:
            if not row.problem:
                spent = float("inf") if row.epsilon is None else row.epsilon
                epsilon.add(spent, run=name, whose=row.whose, protects=row.protects, delta=f"{row.delta:g}")
        for finding in latest_findings(status.findings):
            leak.add(finding.figure, run=name, attack=finding.attack, measure=finding.measure)
    return [epsilon, leak]


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | str) else ""
