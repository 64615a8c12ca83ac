"""Runs with secure aggregation, of which one machine meets a fault and the others do not.

The others live in a process of their own (``other_machine.py``): sites keep their sessions while their
coordinator is killed and resumed, and a coordinator goes on, or waits, while a site is killed and started
again. Rounding is at random, so no two runs have equal bits; every sum is held against the clear one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..federation.coordinator import fakes
from ..federation.coordinator.masked_sites import SITES, SIZES, Hospitals, change_of, metrics_of
from . import other_machine
from .action import Action
from .masked_runs import Answers, revealed, sites_of_last_sum, wrong_sums
from .run_actions import CoordinatorRun
from .whole_files import half_files

END = "end"
NODES = {name: node for node, name in SITES.items()}


def note_of(folder: Path) -> Path:
    """Where the way to the other machine stands: beside the folder that meets the fault."""
    return folder.parent / "other-machine"


class MaskedRun(CoordinatorRun):
    """A coordinator's run of two rounds and a measurement over five sites that outlive it."""

    rounds = 2
    strategy = "fedavg"
    confirm_survivors = False

    def __init__(self) -> None:
        self.answers: list[str] = []

    def settings(self, folder: Path) -> dict[str, Any]:
        return {
            "secure_aggregation": True,
            "confirm_survivors": self.confirm_survivors,
            "roster": ROSTER,
            "max_site_examples": 1000,
            "minimum_sites": 3,
            "num_server_rounds": self.rounds,
            "keep_checkpoints": 9,
            "audit_folder": str(folder / "study"),
        }

    def config(self, folder: Path, **settings: Any) -> Any:
        return fakes.prepare(folder / "run", SITES, **(self.settings(folder) | settings))

    def perform(self, folder: Path, again: bool) -> None:
        from federation.config import RunConfig
        from federation.coordinator import rounds

        sites = other_machine.find(note_of(folder)) if again else None
        if sites is None:
            sites = other_machine.start(_serve_sites, note_of(folder))

        def ask(node: int, request: Any) -> Any:
            sites.send((node, request))
            return sites.recv()

        clock = fakes.FakeClock()
        waits = {"round_deadline": 60.0, "start_deadline": 30.0, "settle_time": 2.0}
        files = {"run_directory": str(folder / "run"), "resume": again}
        config = RunConfig(**(self.settings(folder) | waits | files))
        grid = fakes.FakeGrid(clock, ask, online=dict.fromkeys(SITES, "first"))
        rounds.run(config, grid, clock=clock)
        sites.send(END)
        self.answers = sites.recv()

    def look(self, folder: Path) -> list[str]:
        return super().look(folder) + wrong_sums(folder / "run", clear) + revealed(folder, SECRETS)

    def phase(self, folder: Path, label: str) -> str:
        from federation.coordinator.events import read_events

        events = read_events(folder / "run" / "events.jsonl")
        last = events[-1] if events else {}
        place = _CYCLES.get(last.get("kind", ""), "") if last.get("event") == "site-replied" else ""
        return place or _PLACES.get(last.get("event", "")) or super().phase(folder, label)

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log

        run = folder / "run"
        return {
            "wrong": self.look(folder),
            "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
            "last sum": sites_of_last_sum(run),
            "answers of the sites": self.answers,
            "audit problems": list(read_log(folder / "study" / "audit.jsonl").problems),
        }


class ConfirmedRun(MaskedRun):
    """The same with ``confirm-survivors``."""

    confirm_survivors = True


class MaskedSite(Action):
    """A hospital's worker in a run of a coordinator and four other sites, until a sum has it in again.

    The coordinator goes on without it while it is away, with the sum over the others, and resumes the
    run when it is back.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.last: list[str] = []

    def prepare(self, folder: Path) -> None:
        from federation.site.audit import site_identity
        from federation.site.worker_config import load_worker_config

        from ..federation.site import site_examples as examples

        config = examples.write_site(folder, policy=examples.UNASKED + "minimum-cohort-size = 1\n")
        site_identity(load_worker_config(config))

    def perform(self, folder: Path, again: bool) -> None:
        from federation.site.audit import site_identity
        from federation.site.worker import open_site
        from federation.site.worker_config import load_worker_config
        from instahide.errors import RefusedError

        config = load_worker_config(folder / "worker.toml")
        coordinator = other_machine.find(note_of(folder)) if again else None
        if coordinator is None:
            key = site_identity(config).public_line
            run = Path(tempfile.mkdtemp(prefix="coordinator-", dir=folder.parent))
            coordinator = other_machine.start(_Coordinator(run, key).serve, note_of(folder))
        tasks = open_site(config).tasks
        trained = _listen_to(tasks)
        while True:
            request = coordinator.recv()
            if isinstance(request, tuple):
                self.faults, self.last = request
                return
            record = request.aggregation_record
            reply = tasks.answer(
                request.kind, request.to_mapping(), request.arrays, aggregation_record=record
            )
            coordinator.send((reply, trained[-1] if trained else None))
            if reply.refusal is not None:
                raise RefusedError(reply.refusal.reason, hint=reply.refusal.hint)

    def look(self, folder: Path) -> list[str]:
        return half_files(folder)

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log

        return {
            "wrong": self.faults,
            "last sum": self.last,
            "audit problems": list(read_log(folder / "state" / "audit.jsonl").problems),
        }


NORTH = 11
"""The node of the hospital that meets the fault, called "north" as in ``site_examples``."""


class _Coordinator:
    """Runs one round, then, with what became of it, another; and one more for a site that comes back."""

    def __init__(self, run: Path, key_of_north: str) -> None:
        self.run, self.key_of_north = run, key_of_north
        self.clear: dict[tuple[str, int], Any] = {}
        self.answers = Answers()
        self.connection: Any = None

    def serve(self, accept: other_machine.Accept) -> None:
        from federation.hidden_sum import roster_entry, to_vector

        from ..federation.site import site_examples as examples

        weights = examples.initial_weights()
        self.sites = SITES | {NORTH: "north"}
        others = {node: name for node, name in self.sites.items() if node != NORTH}
        self.hospitals = Hospitals(others, len(to_vector(weights)))
        roster = (roster_entry("north", self.key_of_north), *self.hospitals.roster)
        target, stamp, told = 0, 0, False
        while not told:
            if self.connection is None:
                self.connection, stamp = accept(), stamp + 1
            target += 1
            self._run(target, roster, weights, f"start {stamp}")
            told = target >= 2 and self._tell()

    def _tell(self) -> bool:
        """Tell the hospital that this was all, if it is still there."""
        if self.connection is not None:
            try:
                self.connection.send((self._faults(), sites_of_last_sum(self.run)))
                return True
            except OSError:
                self.connection = None
        return False

    def _run(self, target: int, roster: tuple[str, ...], weights: Any, stamp: str) -> None:
        from safetensors.numpy import save_file

        from federation.coordinator import rounds

        from ..federation.site import site_examples as examples

        settings = {key.replace("-", "_"): value for key, value in examples.RUN.items()} | {
            "num_views": 1,
            "secure_aggregation": True,
            "roster": roster,
            "max_site_examples": 1000,
            "num_server_rounds": target,
            "keep_checkpoints": 9,
            "resume": target > 1,
        }
        config = fakes.prepare(self.run, self.sites, **settings)
        save_file(weights, self.run / "initial.safetensors")
        clock = fakes.FakeClock()
        self.grid = fakes.FakeGrid(clock, self._ask, online=dict.fromkeys(self.sites, stamp))
        rounds.run(config, self.grid, clock=clock)

    def _ask(self, node: int, request: Any) -> Any:
        reply = self._ask_north(request) if node == NORTH else self.hospitals(node, request)
        if request.kind == "query.unmask" and reply is not None and reply.refusal is None:
            self.answers.note(node, reply.aggregation_record)
        return reply

    def _ask_north(self, request: Any) -> Any:
        try:
            self.connection.send(request)
            reply, trained = self.connection.recv()
        except (EOFError, OSError):  # it was killed
            self.connection = None
            self.grid.online.pop(NORTH)
            return None
        if request.kind == "train":
            self.clear["north", request.server_round] = trained
        return reply

    def _faults(self) -> list[str]:
        def clear_of(site: str, server_round: int) -> tuple[NDArray[np.float32], int]:
            if site == "north":
                change, number = self.clear[site, server_round]
                return change, number
            node = NODES[site]
            return change_of(node, server_round, self.hospitals.length), SIZES[node]

        return wrong_sums(self.run, clear_of) + self.answers.faults


def _listen_to(tasks: Any) -> list[tuple[NDArray[np.float32], int]]:
    """What this site trains, before it is masked: kept by the test, to hold the sum against it."""
    heard: list[tuple[NDArray[np.float32], int]] = []
    report = tasks._masked.report

    def listening(request: Any, change: Any, metrics: Any) -> bytes:
        heard.append((change, metrics["num-examples"]))
        return bytes(report(request, change, metrics))

    tasks._masked.report = listening
    return heard


def _serve_sites(accept: other_machine.Accept) -> None:
    """Five sites, for one coordinator after the other, until one says that it has ended."""
    hospitals, answers = _hospitals(), Answers()
    while True:
        coordinator = accept()
        try:
            while (message := coordinator.recv()) != END:
                node, request = message
                reply = hospitals(node, request)
                if request.kind == "query.unmask" and reply.refusal is None:
                    answers.note(node, reply.aggregation_record)
                coordinator.send(reply)
        except (EOFError, OSError):
            continue
        coordinator.send(answers.faults)
        return


def _hospitals() -> Hospitals:
    """The same keys in every process."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    hospitals = Hospitals()
    hospitals.keys = {node: Ed25519PrivateKey.from_private_bytes(bytes([node]) * 32) for node in SITES}
    return hospitals


def clear(site: str, server_round: int) -> tuple[NDArray[np.float32], int]:
    """A site's update, as :class:`Hospitals` makes it up."""
    return change_of(NODES[site], server_round), int(metrics_of(NODES[site])["num-examples"])


ROSTER = _hospitals().roster
SECRETS = {name: change_of(node, 1).tobytes() for name, node in NODES.items()}

_PLACES = {"session-opened": "taking masked reports", "sum-opened": "between sum and checkpoint"}
_CYCLES = {
    "query.session": "opening a session",
    "train": "taking masked reports",
    "evaluate": "taking masked measurements",
    "query.confirm": "confirming the survivors",
    "query.unmask": "opening the sum",
}
