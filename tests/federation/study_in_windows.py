"""A study of two hospitals on this machine, made and run with the commands of the README only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.coordinator.events import read_events
from federation.plan import Plan, read_plan
from federation.supervision import free_port

from .command_line import Window, instahide, window, write_digits, write_public

# Settings that make a round short: the digits are small, the machine has few cores.
QUICK = ("--set", "num-views=1", "--set", "local-epochs=1")


@dataclass
class StudyInWindows:
    """The folders and the windows: ``coordinator`` and one for each hospital, by name."""

    root: Path
    coordinator: Window
    hospitals: dict[str, Window] = field(default_factory=dict)

    @property
    def study(self) -> Path:
        return self.root / "study"

    def run_folder(self, name: str) -> Path:
        return self.study / "runs" / name

    def events(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        """The events of a run, all or only of these kinds."""
        found = read_events(self.run_folder(name) / "events.jsonl")
        return [event for event in found if not kinds or event["event"] in kinds]

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(
            instahide("coordinator", "status", self.study, "--format", "json")
        )
        return status

    def run(self, name: str, *settings: str) -> tuple[str, ...]:
        """The words that start a quick run, for ``instahide`` or for a window."""
        sets = [word for setting in settings for word in ("--set", setting)]
        return ("coordinator", "run", str(self.study), "--name", name, *QUICK, *sets)

    def approve(self, name: str, *settings: str) -> Plan:
        """The coordinator exports the plan of a run, and every hospital approves it beforehand."""
        sets = [word for setting in settings for word in ("--set", setting)]
        file = self.root / f"{name}.plan.json"
        instahide("coordinator", "plan", self.study, "--name", name, *QUICK, *sets, "--out", file)
        for hospital in self.hospitals:
            instahide("node", "plan", "approve", self.root / hospital, "--file", file)
        return read_plan(file)

    def wait_for_round(self, name: str, server_round: int, running: Window) -> None:
        """Wait until a round is done, in the run that ``running`` shows."""
        running.wait_for(f"round {server_round} done")
        assert self.events(name, "round-finished")[-1]["round"] >= server_round


def allow(policy: Path, *lines: str) -> None:
    """Change keys of a site's policy.toml, as its IT would in an editor."""
    text = policy.read_text()
    for line in lines:
        key = line.split(" = ")[0]
        text, count = re.subn(rf"(?m)^{key} = .*$", line, text)
        assert count == 1, key
    policy.write_text(text)


@contextmanager
def study_in_windows(
    root: Path, names: tuple[str, ...] = ("st-mary", "northside"), *, approving: bool = False
) -> Iterator[StudyInWindows]:
    """Set everything up as the README says; yields once every hospital is online.

    ``approving``: the hospitals serve approved plans only, as they do unless their policy says otherwise.
    """
    study, public = root / "study", write_public(root / "public.npz")
    port = free_port()
    instahide("coordinator", "init", study, "--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", port)
    with ExitStack() as windows:
        words = ("coordinator", "start", study, "--threads", "1")
        opened = StudyInWindows(root, windows.enter_context(window(root / "coordinator.log", *words)))
        for number, name in enumerate(names):
            data = write_digits(root / f"{name}.npz", 200 * number)
            words = ("node", "init", root / name, "--name", name, "--data", data, "--public", public)
            instahide(*words, "--threads", "1")
            asks_for = "true" if approving else "false"
            allow(root / name / "policy.toml", "minimum-cohort-size = 1", f"plan-approval = {asks_for}")
        opened.coordinator.wait_for("Ctrl-C stops")
        for name in names:
            request, answer = (root / name / f"{name}.{kind}.json" for kind in ("request", "join"))
            instahide("coordinator", "admit", study, request)
            instahide("node", "join", root / name, answer)
            words = ("node", "start", root / name)
            opened.hospitals[name] = windows.enter_context(window(root / f"{name}.log", *words))
        for hospital in opened.hospitals.values():
            hospital.wait_for("connected: this node serves the federation")
        yield opened
