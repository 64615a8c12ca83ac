"""The run: wait for the sites, round after round, measure the last model, write it down.

    read initial weights, or the last checkpoint
    for each round:      ask every site to measure these weights and train on from them
                         ≥ minimum-sites valid updates, or the round has failed
                         aggregate → new weights → checkpoint, tables, events
    evaluate:            ask every site to measure the last weights
    write model.safetensors and model_card.md

A run ends in one of two ways: ``run`` returns a :class:`RunResult`, or it raises and
``events.jsonl`` ends with ``run-failed`` and the reason. It never counts an empty round as done.
No Flower, no torch, no sockets in here: the network and the clock are arguments.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instahide.atomic import atomic_write_text, first_error_wins
from instahide.errors import InstaHideError

from ..config import RunConfig
from ..messages import EVALUATE, TRAIN, Arrays, RoundRequest
from ..packing import arrays_sha256
from .checkpoints import Checkpoint
from .client_privacy import NoisyMean
from .collection import Collector
from .grid import Clock, RoundGrid, SystemClock
from .masked_collection import MaskedCollector
from .model_card import write_model_card
from .outputs import MetricsTable, RunDirectory, file_sha256
from .revocations import REVOCATIONS, RevokedNodes
from .shared_noise import SharedNoise, with_noise
from .sites import SiteBook
from .strategies import build_aggregator
from .validation import Update, UpdateValidator


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run leaves: the last weights and the rows of its table."""

    weights: Arrays
    rounds: list[dict[str, Any]]
    model_path: Path


def run(config: RunConfig, grid: RoundGrid, *, clock: Clock | None = None) -> RunResult:
    """Carry out a whole run in ``config.run_directory``.

    Raises InvalidInputError or RefusedError before anything is sent (folder, settings, sites),
    IntegrityError for unusable weights or checkpoints, FederationError when a round or the start
    fails. Every one of them is also the last line of ``events.jsonl`` once that is open.
    """
    directory = RunDirectory(config)
    with first_error_wins(directory.close):
        try:
            return _Run(config, grid, clock or SystemClock(), directory).carry_out()
        except BaseException as problem:  # Ctrl-C and a full disk end a run, too
            # The reason must get out even where the events cannot be written any more.
            with contextlib.suppress(OSError, InstaHideError):
                directory.events.emit("run-failed", **_reason(problem))
            raise


def _reason(problem: BaseException) -> dict[str, str]:
    if isinstance(problem, InstaHideError):
        return {"reason": problem.message, "hint": problem.hint}
    if isinstance(problem, KeyboardInterrupt | SystemExit):
        return {"reason": "interrupted", "hint": "resume the run to go on after its last checkpoint"}
    hint = "check the coordinator's disk and its free space, then resume the run"
    return {
        "reason": f"{type(problem).__name__}: {problem}",
        "hint": hint if isinstance(problem, OSError) else "",
    }


class _Run:
    """The state of one run: round number, weights, rule, table."""

    def __init__(self, config: RunConfig, grid: RoundGrid, clock: Clock, directory: RunDirectory) -> None:
        self._config = config
        self._clock = clock
        self._directory = directory
        self._events = directory.events
        self._table = MetricsTable(directory.path, config.run_name)
        self._aggregator = build_aggregator(config)
        revoked = Path(config.audit_folder) / REVOCATIONS if config.audit_folder else None
        self._book = SiteBook.read(directory.path / "sites.json", revoked=RevokedNodes(revoked))
        self._validator = UpdateValidator(config, self._book)
        collector = MaskedCollector if config.secure_aggregation else Collector
        self._collector = collector(
            config, grid, clock, book=self._book, validator=self._validator, events=self._events
        )
        self._done = 0
        self._first_round = True
        self._weights = directory.initial_weights()
        self._aggregator = with_noise(self._aggregator, config, directory.path, self._weights)

    def carry_out(self) -> RunResult:
        self._start()
        while self._done < self._config.num_server_rounds:
            self._train_one_round(self._done + 1)
        if self._config.evaluate:
            self._evaluate()
        return self._finish()

    def _start(self) -> None:
        sites = self._book.names(self._book.sites)
        facts = {"run-name": self._config.run_name, "num-server-rounds": self._config.num_server_rounds}
        self._events.emit("run-started", **facts, sites=sites, settings=self._config.to_mapping())
        if not self._config.resume:
            return
        checkpoint = self._directory.checkpoints.load_latest(self._events)
        if checkpoint is not None:
            self._done, self._weights = checkpoint.server_round, checkpoint.weights
            self._aggregator.state = dict(checkpoint.state)
            self._validator.sizes = dict(checkpoint.sizes)
            self._table.resume_at(self._done)
        self._events.emit("run-resumed", **{"after-round": self._done})

    def _train_one_round(self, server_round: int) -> None:
        self._events.emit("round-started", round=server_round)
        began = self._clock.monotonic()
        request = self._request(server_round, TRAIN)
        updates = self._in_site_order(self._collector.collect(request, first=self._first_round))
        self._first_round = False
        self._weights = self._aggregator.aggregate(server_round, self._weights, updates)
        seconds = self._clock.monotonic() - began
        incoming = self._table.measured(server_round - 1, updates)
        row = self._table.trained(server_round, updates, seconds=round(seconds, 3))
        self._done = server_round
        # The tables first: on resume, rows beyond the last checkpoint are dropped, none is missing.
        self._table.write()
        self._save()
        facts = {name: row[name] for name in ("num-examples", "train-loss", "seconds") if name in row}
        names = [name for update in updates for name in update.names]
        more: dict[str, Any] = {"aggregate-sha256": arrays_sha256(self._weights)}
        if self._aggregator.left_out:
            more["left-out"] = self._aggregator.left_out
        # The accuracies are of the weights the round began with; the name says so.
        self._events.emit(
            "round-finished", round=server_round, sites=names, metrics=facts, incoming=incoming, **more
        )

    def _request(self, server_round: int, kind: str) -> RoundRequest:
        """The order of this round with the head of our audit log, which the sites keep."""
        request = RoundRequest.for_round(self._config, server_round, self._weights, kind)
        return replace(request, audit_head=self._events.head())

    def _save(self) -> None:
        last = self._done == self._config.num_server_rounds
        if self._done % self._config.checkpoint_every and not last:
            return
        path = self._directory.checkpoints.save(
            Checkpoint(
                server_round=self._done,
                weights=self._weights,
                state=self._aggregator.state,
                sizes=self._validator.sizes,
            )
        )
        digest = file_sha256(path)
        self._events.emit("checkpoint-saved", round=self._done, file=path.name, sha256=digest)

    def _evaluate(self) -> None:
        self._events.emit("evaluation-started", round=self._done)
        request = self._request(self._done, EVALUATE)
        replies = self._in_site_order(self._collector.measure(request))
        averages = self._table.measured(self._done, replies)
        self._table.write()
        names = [name for reply in replies for name in reply.names]
        self._events.emit("evaluation-finished", round=self._done, sites=names, metrics=averages)

    def _finish(self) -> RunResult:
        model_path = self._directory.write_model(self._weights, self._config, self._done)
        guarantee = None
        if isinstance(self._aggregator, NoisyMean | SharedNoise):
            guarantee = self._aggregator.guarantee(self._config.target_delta)
        card = write_model_card(self._config, self._table, self._done, guarantee)
        atomic_write_text(self._directory.path / "model_card.md", card)
        digest = {"model-sha256": file_sha256(model_path)}
        self._events.emit("run-finished", rounds=self._done, model=model_path.name, **digest)
        return RunResult(weights=self._weights, rounds=self._table.rounds, model_path=model_path)

    def _in_site_order(self, updates: list[Update]) -> list[Update]:
        """Tables and averages, like the aggregate, do not depend on who answered first."""
        return sorted(updates, key=lambda update: update.node_id)
