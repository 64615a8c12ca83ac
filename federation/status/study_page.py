"""The study's status page: one HTML file, readable without a script, a network or an account.

Everything is in words and numbers first; the curves repeat them as pictures. The page shows what was
true when it was written and says when that was. It is a view: nothing can be changed through it.
"""

from __future__ import annotations

from typing import Final

from instahide.html_page import heading, page, paragraph, table

from .audits import Finding, leak_curves
from .page_parts import (
    REFRESH_SECONDS,
    Cell,
    age_of_the_page,
    curve_over_rounds,
    days_in_words,
    moment_in_words,
    outside,
    table_of_troubles,
    time_in_words,
)
from .run_progress import INFERENCES, REPLIED, TROUBLES
from .study_status import DOWN, STOPPED, UNKNOWN, UP, WARN_DAYS, RunStatus, StudyStatus

IN_DETAIL: Final = 3
MOST_TROUBLES: Final = 20
_FOUND: Final = {True: "leaks", False: "nothing found", None: "undecided"}


def study_page(status: StudyStatus) -> str:
    """The whole document."""
    newest_first = status.runs[::-1]
    return page(
        "Study status",
        _coordinator(status),
        age_of_the_page(status.made_at, "the coordinator"),
        *(paragraph(outside(note), kind="warning") for note in status.notes),
        *_certificate_warnings(status),
        heading("In one look"),
        table(["what", "now"], _summary(status)),
        heading("Hospitals"),
        *_sites(status),
        heading("Runs"),
        *_runs(newest_first, status),
        *(part for run in newest_first[:IN_DETAIL] for part in _one_run(run)),
        heading("Refusals and failures"),
        *_troubles(status),
        heading("Certificates"),
        table(["certificate", "ends", "left"], _certificates(status)),
        heading("What this page does not say"),
        paragraph(
            "It repeats what the coordinator wrote down and was told; it proves nothing. Accuracies are what "
            "the hospitals measured and reported. Leaks are shown only where somebody ran an attack and put "
            "its result into the run's folder; such a figure is a lower bound."
        ),
        refresh_seconds=REFRESH_SECONDS,
    )


def _coordinator(status: StudyStatus) -> str:
    if status.coordinator == UP:
        return paragraph(f"The coordinator of `{status.address}` was up when this page was written.")
    words = {STOPPED: "was stopped, in order", DOWN: "is down"}[status.coordinator]
    reason = f" ({outside(status.down_reason)})" if status.down_reason else ""
    return paragraph(
        f"The coordinator of `{status.address}` {words}{reason}. `instahide coordinator start` starts it.",
        kind="warning",
    )


def _summary(status: StudyStatus) -> list[list[Cell]]:
    online = status.count_online()
    there = f"{len(status.sites)} admitted" if online is None else f"{online} of {len(status.sites)} online"
    rows: list[list[Cell]] = [["hospitals", there]]
    if status.runs:
        last = status.runs[-1]
        rows.append(["last run", f"{last.progress.name}: {last.state}"])
        rows.append(["its rounds", _rounds(last)])
        if last.progress.waiting_for:
            rows.append(["it waits for", last.progress.waiting_for])
        rows.append(["its accuracy", _accuracy(last) or "not measured yet"])
    rows.append(["refusals and failures noted", str(len(status.troubles))])
    gateway = status.certificates[0]
    rows.append(["gateway's certificate", days_in_words(gateway.days_left(status.made_at))])
    return rows


def _rounds(run: RunStatus) -> str:
    planned = run.progress.planned_rounds
    done = f"{run.progress.last_round} of {planned}" if planned else str(run.progress.last_round)
    failed = run.progress.rounds_failed
    return f"{done}; failed attempts: {failed}" if failed else done


def _accuracy(run: RunStatus) -> str:
    last = {mode: run.progress.curve(mode)[-1:] for mode in INFERENCES}
    return ", ".join(
        f"{value:.3f} on {'a ' if mode == 'plain query' else ''}{mode} (round {number})"
        for mode, points in last.items()
        for number, value in points
    )


def _sites(status: StudyStatus) -> list[str]:
    if not status.sites:
        return [paragraph("No hospital is admitted yet: `instahide coordinator admit`.", kind="soft")]
    last = status.runs[-1].progress if status.runs else None
    outcomes = (REPLIED, *TROUBLES)
    rows: list[list[Cell]] = [
        [
            site.name,
            site.status,
            site.images,
            time_in_words(site.last_answer, status.made_at) or "never",
            *(last.answers[site.name, outcome] for outcome in outcomes if last is not None),
        ]
        for site in status.sites
    ]
    counted = [f"{outcome}" for outcome in outcomes] if last is not None else []
    parts = [table(["hospital", "now", "images", "last answer (UTC)", *counted], rows)]
    if last is not None:
        parts.append(paragraph(f"The last five columns count the answers in {last.name}.", kind="soft"))
    if any(site.status == UNKNOWN for site in status.sites):
        parts.append(paragraph("Unknown: only a running coordinator knows who is connected.", kind="soft"))
    return parts


def _runs(runs: list[RunStatus], status: StudyStatus) -> list[str]:
    if not runs:
        return [paragraph("No run was started yet: `instahide coordinator run`.", kind="soft")]
    rows: list[list[Cell]] = [
        [
            run.progress.name,
            run.state,
            _rounds(run),
            *(run.progress.curve(mode)[-1][1] if run.progress.curve(mode) else None for mode in INFERENCES),
            time_in_words(run.progress.last_event_at, status.made_at),
        ]
        for run in runs
    ]
    parts = [table(["run", "state", "rounds", *INFERENCES, "last event (UTC)"], rows)]
    return [*parts, paragraph("Accuracies are of the last model that was measured.", kind="soft")]


def _one_run(run: RunStatus) -> list[str]:
    progress = run.progress
    parts = [heading(f"Run {progress.name}: {run.state}")]
    if progress.end_reason:
        hint = f" {outside(progress.end_hint)}." if progress.end_hint else ""
        words = f"It ended because: {outside(progress.end_reason)}.{hint}"
        parts.append(paragraph(words, kind="warning"))
    if run.state == "interrupted":
        parts.append(
            paragraph("Nothing works on it: `instahide coordinator resume` goes on.", kind="warning")
        )
    if progress.waiting_for:
        parts.append(paragraph(f"It waits for {outside(progress.waiting_for)}."))
    if progress.sites_of_last_round:
        took = "" if progress.last_seconds is None else f" and took {progress.last_seconds:.1f} s"
        parts.append(
            paragraph(
                f"Round {progress.last_round} is of {outside(', '.join(progress.sites_of_last_round))}{took}."
            )
        )
    curves = {mode: progress.curve(mode) for mode in INFERENCES}
    parts += curve_over_rounds(
        curves,
        y_label="accuracy",
        caption=f"{progress.name}: accuracy on the hospitals' test images, over rounds.",
    )
    return [*parts, *_epsilon(run), *_leaks(run)]


def _epsilon(run: RunStatus) -> list[str]:
    """Nothing at all for a run without differential privacy: encodings have none."""
    if run.progress.settings.get("differential-privacy", "none") == "none":
        return []
    if not run.epsilon:
        words = "no figure yet, or the hospitals keep theirs to themselves (`instahide node privacy` there)"
        return [paragraph(f"Differential privacy is on; {words}.")]
    rows: list[list[Cell]] = [
        [
            row.whose,
            row.protects,
            row.problem
            or ("above 30, which promises nothing" if row.epsilon is None else f"{row.epsilon:.3g}"),
            f"{row.delta:g}",
        ]
        for row in run.epsilon
    ]
    return [table(["spent by", "protects", "epsilon", "delta"], rows)]


def _leaks(run: RunStatus) -> list[str]:
    if not run.findings:
        words = "What leaks was not measured: no result of an attack is in this run's audit folder."
        return [paragraph(words, kind="soft")]
    rows: list[list[Cell]] = [[_round(one), one.attack, one.measure, *_figure(one)] for one in run.findings]
    chart = curve_over_rounds(
        {name: points for name, points in leak_curves(run.findings).items() if len(points) > 1},
        y_label="leak",
        caption=f"{run.progress.name}: what attacks measured on the model of a round. For most figures, "
        "higher leaks more.",
    )
    columns = ["round", "attack", "measure", "figure", "95 % interval", "finding", "verdict"]
    words = "Results of attacks on this run, from its audit folder; each is a lower bound of what leaks."
    return [paragraph(words), *chart[:1], table(columns, rows)]


def _round(finding: Finding) -> str:
    return "–" if finding.round is None else str(finding.round)


def _figure(finding: Finding) -> list[Cell]:
    figure = "not measured" if finding.figure is None else f"{finding.figure:.3f}"
    limits = finding.interval
    interval = "" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"
    return [figure, interval, _FOUND[finding.leaked], finding.verdict]


def _troubles(status: StudyStatus) -> list[str]:
    if not status.troubles:
        return [paragraph("None.", kind="soft")]
    return [table_of_troubles(status.troubles[:MOST_TROUBLES], status.made_at)]


def _certificates(status: StudyStatus) -> list[list[Cell]]:
    return [
        [
            one.name,
            "cannot be read" if one.ends is None else moment_in_words(one.ends),
            days_in_words(one.days_left(status.made_at)),
        ]
        for one in status.certificates
    ]


def _certificate_warnings(status: StudyStatus) -> list[str]:
    warnings = []
    for one in status.certificates:
        days = one.days_left(status.made_at)
        if days is None or days < WARN_DAYS:
            warnings.append(
                paragraph(
                    f"The certificate {one.name}.crt: {days_in_words(days)}. `instahide coordinator doctor` "
                    "says what to do.",
                    kind="warning",
                )
            )
    return warnings
