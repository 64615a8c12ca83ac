"""A coordinator's run and a hospital's rounds, each with the other side played by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..federation.coordinator import fakes
from .action import Action
from .whole_files import half_files, tensors_digest


class CoordinatorRun(Action):
    """A run of three rounds over a network of this process, with a server optimiser and an audit log.

    The sites' answers are a function of the node, the round and the weights they receive, so two
    runs have equal bits if and only if the coordinator's own state does. Repeating is resuming.
    """

    rounds = 3
    strategy = "fedadam"

    def prepare(self, folder: Path) -> None:
        from federation.identity import IDENTITY_FILE, load_or_create_identity

        (folder / "study").mkdir()
        load_or_create_identity(folder / "study" / IDENTITY_FILE)
        self.config(folder)

    def config(self, folder: Path, **settings: Any) -> Any:
        return fakes.prepare(
            folder / "run",
            num_server_rounds=self.rounds,
            strategy=self.strategy,
            keep_checkpoints=2,
            audit_folder=str(folder / "study"),
            **settings,
        )

    def perform(self, folder: Path, again: bool) -> None:
        from federation.config import RunConfig
        from federation.coordinator import rounds

        clock = fakes.FakeClock()
        config = RunConfig(
            num_server_rounds=self.rounds,
            strategy=self.strategy,
            keep_checkpoints=2,
            round_deadline=60.0,
            start_deadline=30.0,
            settle_time=2.0,
            run_directory=str(folder / "run"),
            audit_folder=str(folder / "study"),
            resume=again,
        )
        rounds.run(config, fakes.FakeGrid(clock), clock=clock)

    def look(self, folder: Path) -> list[str]:
        from federation.coordinator.events import read_events

        faults = half_files(folder)
        read_events(folder / "run" / "events.jsonl")  # every whole line is one
        return faults

    def phase(self, folder: Path, label: str) -> str:
        from federation.coordinator.events import read_events

        seen = [event["event"] for event in read_events(folder / "run" / "events.jsonl")]
        last = seen[-1] if seen else ""
        if last == "site-replied" and "metrics" in label:
            return "between aggregate and checkpoint"
        if last == "site-replied" and ("round-" in label or ".tmp" in label or "checkpoints" in label):
            return "writing the checkpoint"
        return _PHASES.get(last, "before the first event")

    def lost(self, folder: Path) -> int:
        from federation.coordinator.events import read_events

        started = [
            event["round"]
            for event in read_events(folder / "run" / "events.jsonl")
            if event["event"] == "round-started"
        ]
        return len(started) - len(set(started))

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log

        run, log = folder / "run", folder / "study" / "audit.jsonl"
        return {
            "model": tensors_digest(run / "model.safetensors"),
            "last checkpoint": tensors_digest(run / "checkpoints" / f"round-{self.rounds:04d}.safetensors"),
            "metrics": json.loads((run / "metrics.json").read_text())["rounds"],
            "card": (run / "model_card.md").read_text().replace("resume: true", "resume: false"),
            "audit problems": list(read_log(log).problems),
        }


_PHASES = {
    "run-started": "before the first round",
    "run-resumed": "before the first round",
    "waiting-for-sites": "before the first round",
    "round-started": "waiting for replies",
    "site-replied": "waiting for replies",
    "checkpoint-saved": "after the checkpoint",
    "round-finished": "between rounds",
    "evaluation-started": "final evaluation",
    "evaluation-finished": "writing model and card",
    "run-finished": "after the last event",
    "run-failed": "after the last event",
}


class SiteRound(Action):
    """A hospital's worker, opened and asked for two rounds of training on encodings, then closed.

    A refusal is raised here as an error, so that it must bring a reason and a hint. Nothing at a
    site is equal from run to run (fresh secrets); what is compared is what the files say happened.
    """

    def prepare(self, folder: Path) -> None:
        from ..federation.site import site_examples as examples

        policy = examples.UNASKED + "minimum-cohort-size = 1\n"
        examples.write_site(folder, policy=policy)

    def perform(self, folder: Path, again: bool) -> None:
        from federation.site.worker import open_site
        from federation.site.worker_config import load_worker_config
        from instahide.errors import RefusedError

        from ..federation.site import site_examples as examples

        site = open_site(load_worker_config(folder / "worker.toml"))
        for server_round in (1, 2):
            request = examples.request(server_round, num_views=1, minimum_sites=2)
            reply = site.tasks.answer("train", request.to_mapping(), examples.initial_weights())
            if reply.refusal is not None:
                raise RefusedError(reply.refusal.reason, hint=reply.refusal.hint)

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log
        from federation.site.run_history import RunHistory
        from instahide.exposure import THROUGH_UPDATES, ExposureLedger

        from ..federation.site import site_examples as examples

        state = folder / "state"
        counts = ExposureLedger(state / "exposure.sqlite3").counts(
            examples.digit_images(0, 120), kind=THROUGH_UPDATES
        )
        log = read_log(state / "audit.jsonl")
        return {
            "exposures": sorted(set(counts.own.tolist())),  # the budget of one, whatever happened
            "audit problems": list(log.problems),
            "updates sent": sum(record.event == "update-sent" for record in log.records) >= 2,
            "rounds counted": RunHistory(state).rounds_trained()["run"] >= 2,
        }
