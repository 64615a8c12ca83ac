"""The dry run: everything a site does in a round, in under a minute, on images that are made up.

Steps in the order in which one builds on the other; each says what it saw, and after the first that
fails the rest is skipped. Nothing of the site is charged or written: the worker that is started has
a folder of its own (``dummy_site``), which is gone at the end.

    dry run: settings     worker.toml, policy, classes and shape; which run this policy lets through
    dry run: worker       a site worker with this site's device and threads is up behind its socket
    dry run: refusals     it refuses an order without the coordinator's signature, and an unapproved plan
    dry run: round        one round: encode (or differential privacy), train, check, aggregate
    dry run: measurement  the model's accuracy on test images came with it
    dry run: audit log    what both sides wrote down is whole and agrees
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instahide.errors import InstaHideError

from ..flower_processes.environment import flower_environment
from ..messages import APPROVAL, POLICY, SESSION, TRAIN, RoundRequest, SiteReply
from ..node_folder import NodeFolder
from ..supervision import ManagedProcess
from .checks import Check, Outcome, State, failed, ok, outcome_of, skipped

if TYPE_CHECKING:
    from ..config import RunConfig
    from .dummy_site import DummySite
    from .rehearsal import RehearsalGrid

SECONDS = 60.0
PREFIX = "dry run: "
AS_REAL = "the real worker would fail alike: see what is named, then run this again"
Row = tuple[str, Outcome]


def dry_run(folder: NodeFolder, *, within: float = SECONDS) -> list[Row]:
    """All steps, for at most ``within`` seconds; a row for each. Nothing is left behind."""
    home = Path(tempfile.mkdtemp(prefix="instahide-dry-run-"))
    rehearsal = _DryRun(folder, home, deadline=time.monotonic() + within)
    steps: list[tuple[str, Callable[[], Outcome]]] = [
        ("settings", rehearsal.settings),
        ("worker", rehearsal.worker),
        ("refusals", rehearsal.refusals),
        ("round", rehearsal.round),
        ("measurement", rehearsal.measurement),
        ("audit log", rehearsal.audit_log),
    ]
    try:
        return _in_order([(PREFIX + name, look) for name, look in steps], within)
    finally:
        rehearsal.stop()
        shutil.rmtree(home, ignore_errors=True)


def _in_order(steps: list[tuple[str, Callable[[], Outcome]]], within: float) -> list[Row]:
    """Run the steps on a thread of their own, which is left behind when the time is up."""
    done: list[Outcome] = []

    def work() -> None:
        for name, look in steps:
            outcome = outcome_of(Check(name, look))
            done.append(outcome)
            if outcome.state is State.failed:
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(within)
    found = list(done)
    if thread.is_alive() and len(found) < len(steps):
        slow = f"not done when {within:g} s were up"
        found.append(failed(slow, fix="a busy or slow machine? see `memory` and `GPU` above, or --wait 300"))
    last = steps[len(found) - 1][0]
    rest = skipped(f"not reached, since `{last}` failed", fix=f"see `{last}`")
    return [(name, found[number] if number < len(found) else rest) for number, (name, _) in enumerate(steps)]


class _DryRun:
    """What one step leaves for the next."""

    def __init__(self, folder: NodeFolder, home: Path, *, deadline: float) -> None:
        self._folder, self._home, self._deadline = folder, home, deadline
        self._process: ManagedProcess | None = None
        self._dummy: DummySite | None = None
        self._made_run: tuple[RunConfig, RehearsalGrid] | None = None
        self._run_folder, self._coordinator = home / "run", home / "coordinator"

    # --- the steps --------------------------------------------------------------------------------

    def settings(self) -> Outcome:
        from .dummy_site import facts_of, make_dummy_site, settings_of

        facts = facts_of(self._folder)
        self._coordinator.mkdir(mode=0o700)
        self._dummy = make_dummy_site(facts, self._home / "site", self._coordinator / "identity.key")
        channels, height, width = facts.image_shape
        return ok(
            f"{facts.num_images:,} made-up images of {channels}×{height}×{width} in "
            f"{len(facts.class_names)} classes; {_in_words(settings_of(facts))}"
        )

    def worker(self) -> Outcome:
        from ..frames import ping

        dummy = self._made()
        started = time.monotonic()
        command = [sys.executable, "-m", "federation.site.worker", "--config", str(dummy.worker_config)]
        self._process = ManagedProcess(
            "the dry run's site worker",
            command,
            log_path=self._home / "worker.log",
            environment=flower_environment(self._home / "flower", num_threads=dummy.facts.config.threads),
        )
        self._process.start()
        if not self._is_ready(dummy):
            end = self._process.log_tail(3).replace("\n", "; ") or "it said nothing"
            return failed(f"the site worker did not come up: {end[-300:]}", fix=AS_REAL)
        said = dummy.ready()
        if tuple(said["image-shape"]) != dummy.facts.image_shape:
            return failed(
                f"images of shape {list(dummy.facts.image_shape)} were read as {said['image-shape']}",
                fix="this is a fault of the dry run: report it with the shape",
            )
        if not ping(dummy.socket):
            return failed("the worker is up and does not answer on its Unix socket", fix=AS_REAL)
        seconds = time.monotonic() - started
        return ok(f"up in {seconds:.1f} s behind a Unix socket, device {said['device']}")

    def refusals(self) -> Outcome:
        from .rehearsal import ask_site

        dummy, request = self._made(), self._order()
        unsigned = ask_site(dummy.socket, request, deadline=self._deadline)
        if not _was_refused(unsigned, POLICY):
            return failed(
                f"an order that no coordinator signed was not refused ({_said(unsigned)})",
                fix="do not start this node; report it",
            )
        if not dummy.facts.policy.plan_approval:
            return ok("an order without the coordinator's signature; plans need no approval here")
        signed = replace(request, audit_head=self._signed_head())
        unapproved = ask_site(dummy.socket, signed, deadline=self._deadline)
        if not _was_refused(unapproved, APPROVAL):
            return failed(
                f"a run nobody has approved was not held back for approval ({_said(unapproved)})",
                fix="see the policy: it may forbid every run, which the reason in brackets tells",
            )
        self._approve(request)
        return ok("an order without the coordinator's signature, and a plan nobody has approved")

    def round(self) -> Outcome:
        from ..coordinator import rounds

        config, grid = self._run
        started = time.monotonic()
        try:
            rounds.run(config, grid)
        except InstaHideError as error:  # its hint is about a run's files, which are gone soon
            return failed(error.message.replace("\n", " "), fix=AS_REAL)
        seconds = time.monotonic() - started
        [metrics] = [reply.metrics for asked, reply in grid.told if asked.kind == TRAIN]
        told = f", loss {metrics['train-loss']:.3g}" if "train-loss" in metrics else ""
        how = "masked in a sum of" if config.secure_aggregation else "one update of"
        return ok(f"{how} {config.minimum_sites} sites, checked and aggregated in {seconds:.1f} s{told}")

    def measurement(self) -> Outcome:
        table = json.loads((self._run_folder / "metrics.json").read_text(encoding="utf-8"))
        rows = json.dumps(table)
        if '"evaluate-accuracy-plain"' not in rows:
            allowed = self._made().facts.policy.allowed_metrics
            if "evaluate-accuracy-plain" not in allowed:
                return ok("the policy keeps accuracies at home, and they were kept")
            return failed("no accuracy came back with the round", fix=AS_REAL)
        return ok("accuracies on the test images came back (of noise: they mean nothing)")

    def audit_log(self) -> Outcome:
        from ..audit_verification import compare_logs, read_log

        site = read_log(self._made().state / "audit.jsonl")
        coordinator = read_log(self._coordinator / "audit.jsonl")
        problems = [*site.problems, *coordinator.problems, *compare_logs(site, coordinator).problems]
        if problems:
            return failed(f"the two logs have {len(problems)} problems: {problems[0]}", fix=AS_REAL)
        events = [record.event for record in site.records]
        if not {"update-sent", "request-refused"} <= set(events):
            return failed("the log does not say that an update was sent, and orders refused", fix=AS_REAL)
        return ok(f"{len(events)} records at the site agree with the coordinator's; nothing is kept of them")

    def stop(self) -> None:
        """End the worker, wherever the steps are."""
        if self._process is not None:
            self._process.stop()

    # --- what they need ---------------------------------------------------------------------------

    def _made(self) -> DummySite:
        assert self._dummy is not None
        return self._dummy

    def _is_ready(self, dummy: DummySite) -> bool:
        assert self._process is not None
        while not dummy.ready_file.exists():
            if not self._process.is_running or time.monotonic() > self._deadline:
                return False
            time.sleep(0.05)
        return True

    @property
    def _run(self) -> tuple[RunConfig, RehearsalGrid]:
        """Settings and network of the run; its folder is made the first time."""
        if self._made_run is None:
            from ..hidden_sum import roster_entry
            from .dummy_site import run_config, settings_of
            from .rehearsal import RehearsalGrid, StandIns, write_run_folder

            dummy = self._made()
            others = StandIns(settings_of(dummy.facts)["minimum-sites"] - 1, dummy)
            own = roster_entry(dummy.facts.config.site_name, dummy.identity.public_line)
            config = run_config(
                dummy.facts,
                roster=(own, *others.roster),
                run_folder=self._run_folder,
                audit=self._coordinator,
            )
            others.told_length(write_run_folder(config, dummy, others))
            grid = RehearsalGrid(dummy.socket, others, deadline=self._deadline)
            self._made_run = config, grid
        return self._made_run

    def _order(self) -> RoundRequest:
        """The first request of the run, as the coordinator would send it but for its log's head."""
        from ..coordinator.checkpoints import read_tensors
        from ..study import INITIAL_WEIGHTS

        config, _ = self._run
        weights, _ = read_tensors(self._run_folder / INITIAL_WEIGHTS)
        if not config.secure_aggregation:
            return RoundRequest.for_round(config, 1, weights)
        from ..hidden_sum import hidden_sum
        from ..secure_aggregation import ServerSession, check_test_vector

        agreed = hidden_sum(config, sum(array.size for array in weights.values()))
        session = ServerSession(agreed.roster, check_test_vector(agreed.plan))
        request = RoundRequest.for_round(config, 1, {}, SESSION)
        return replace(request, aggregation_record=session.request().to_bytes())

    def _signed_head(self) -> str:
        from ..coordinator.audit import open_audit_log

        log = open_audit_log(self._coordinator)
        return log.sign(log.append("dry-run")).to_text()

    def _approve(self, request: RoundRequest) -> None:
        """What `instahide node plan approve` does, in the stand-in's book."""
        from ..plan import Plan
        from ..site.plans import APPROVED, PlanBook
        from .dummy_site import BUNDLE

        PlanBook(self._made().state).decide(
            Plan.of(request, bundle_sha256=BUNDLE), APPROVED, by="the dry run"
        )


def _was_refused(reply: SiteReply, kind: str) -> bool:
    return reply.refusal is not None and reply.refusal.kind == kind


def _said(reply: SiteReply) -> str:
    return "it was served" if reply.refusal is None else f"{reply.refusal.kind}: {reply.refusal.reason}"[:200]


def _in_words(settings: dict[str, Any]) -> str:
    """The run that the policy lets through."""
    if settings.get("differential-privacy") == "example":
        protection = f"differential privacy, noise multiplier {settings['noise-multiplier']:g}"
    elif settings["encoding"] == "none":
        protection = "not encoded"
    else:
        protection = (
            f"encoded ({settings['encoding-mode']}, {settings['num-mixed']} mixed, "
            f"{settings['num-private']} of them private)"
        )
    hidden = ", secure aggregation" if settings["secure-aggregation"] else ""
    return f"{protection}{hidden}, {settings['minimum-sites']} sites"
