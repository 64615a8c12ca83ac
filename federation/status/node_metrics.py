"""A node's status as Prometheus metrics; labels are names of runs and kinds of refusal, nothing else."""

from __future__ import annotations

from typing import Final

from .connection import CONNECTED
from .node_status import LISTENING, NodeStatus
from .prometheus import Family, exposition

MOST_RUNS: Final = 10
PREFIX: Final = "instahide_node_"


def node_metrics(status: NodeStatus) -> str:
    """The text of ``metrics.prom``."""
    worker = Family(f"{PREFIX}worker_up", "gauge", "Whether the site worker listens.")
    worker.add(status.worker == LISTENING)
    connected = Family(f"{PREFIX}connected", "gauge", "Whether the coordinator has admitted this node.")
    connected.add(status.connection.state == CONNECTED)
    written = Family(f"{PREFIX}status_timestamp_seconds", "gauge", "When this was written, Unix time.")
    written.add(status.made_at.timestamp())
    waiting = Family(f"{PREFIX}plans_waiting", "gauge", "Plans that wait for a decision here.")
    waiting.add(len(status.waiting_plans))
    ends = Family(
        f"{PREFIX}certificate_expiry_timestamp_seconds", "gauge", "When a certificate ends, Unix time."
    )
    if status.authority_ends is not None:
        ends.add(status.authority_ends.timestamp(), certificate="authority")
    families = [worker, connected, written, waiting, ends, *_records(status), *_privacy(status)]
    return exposition(families, node=status.name)


def _records(status: NodeStatus) -> list[Family]:
    updates = Family(f"{PREFIX}updates_total", "counter", "Updates that left, by run.")
    measured = Family(f"{PREFIX}measurements_total", "counter", "Models measured, by run.")
    for run in list(status.records.runs.values())[-MOST_RUNS:]:
        updates.add(run.rounds, run=run.name)
        measured.add(run.measurements, run=run.name)
    refusals = Family(f"{PREFIX}refusals_total", "counter", "Requests refused, by kind.")
    for kind, count in sorted(status.records.refusals.items()):
        refusals.add(count, kind=kind)
    exposures = Family(
        f"{PREFIX}exposures", "gauge", "Encodings behind updates that left, all images together, by role."
    )
    most = Family(f"{PREFIX}exposures_of_one_image", "gauge", "Of the image that was encoded most often.")
    counts = status.records.exposures
    for role in ("own", "partner"):
        exposures.add(counts.get(role), role=role)
    most.add(counts.get("largest"))
    return [updates, measured, refusals, exposures, most]


def _privacy(status: NodeStatus) -> list[Family]:
    """Only where differential privacy was ever charged."""
    spent = Family(f"{PREFIX}epsilon", "gauge", "Differential privacy spent over all runs; +Inf above 30.")
    cap = Family(f"{PREFIX}epsilon_cap", "gauge", "This site's max-epsilon.")
    if (report := status.privacy) is not None:
        delta = f"{report['delta']:g}"
        epsilon = report["epsilon-spent"]
        spent.add(float("inf") if epsilon is None else epsilon, delta=delta)
        cap.add(report["max-epsilon"], delta=delta)
    return [spent, cap]
