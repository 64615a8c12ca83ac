"""What is protected from whom, and what is not: one source for the command line and the documents.

``explanations.toml`` holds threats (who wants what), defences (what can be switched on) and cells (what one
is worth against the other, with a measured figure and the page it stands on); ``exit_codes.toml`` holds the
exit codes with error lines as the program prints them. TOML and not Markdown, because each cell is read three
ways: by who attacks, by what defends, and by programs. ``explanation_text`` turns an :class:`Explanation`
into text, Markdown or JSON; the pages of ``deploy/guides`` quote the Markdown, and a test compares.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from instahide.errors import InvalidInputError

HERE = Path(__file__).parent
OVERVIEW, DEFENCES, EXIT_CODES = "overview", "defences", "exit-codes"
COORDINATOR = "coordinator"  # both kinds of it
SEVERAL = {COORDINATOR: ("curious-coordinator", "malicious-coordinator")}


@dataclass(frozen=True)
class Threat:
    """Somebody who wants to learn or to do something; ``does`` and ``fails`` sum up all defences."""

    name: str
    title: str
    short: str
    wants: str
    does: str
    fails: str


@dataclass(frozen=True)
class Defence:
    """Something to switch on: what it is, and how."""

    name: str
    title: str
    what: str
    switch: str


@dataclass(frozen=True)
class Cell:
    """What a defence is worth against a threat.

    Every number in ``measured`` stands in the page ``page``; ``command`` measures it on one's own settings.
    """

    threat: Threat
    defence: Defence
    does: str
    fails: str
    measured: tuple[str, ...]
    page: str
    command: str
    settings: str


@dataclass(frozen=True)
class Example:
    """A command and the two lines it prints; ``*`` stands for what differs each time."""

    command: str
    error: str
    hint: str


@dataclass(frozen=True)
class ExitCode:
    """An exit code: what it means, which verbs leave with it, what to do."""

    code: int
    title: str
    meaning: str
    verbs: str
    todo: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Explanation:
    """What one topic shows: any of these may be empty."""

    topic: str
    threats: tuple[Threat, ...] = ()
    defences: tuple[Defence, ...] = ()
    cells: tuple[Cell, ...] = ()
    exit_codes: tuple[ExitCode, ...] = ()


@cache
def threats() -> dict[str, Threat]:
    """All threats by name, in the source's order."""
    return {name: Threat(name, **entry) for name, entry in _read("explanations.toml")["threats"].items()}


@cache
def defences() -> dict[str, Defence]:
    """All defences by name, in the source's order."""
    return {name: Defence(name, **entry) for name, entry in _read("explanations.toml")["defences"].items()}


@cache
def cells() -> tuple[Cell, ...]:
    """All cells, in the source's order."""
    found = []
    for entry in _read("explanations.toml")["cells"]:
        entry = entry | {"measured": tuple(entry["measured"])}
        threat, defence = threats()[entry.pop("threat")], defences()[entry.pop("defence")]
        found.append(Cell(threat, defence, **entry))
    return tuple(found)


@cache
def exit_codes() -> tuple[ExitCode, ...]:
    """All exit codes in rising order."""
    found = []
    for entry in _read("exit_codes.toml")["codes"]:
        examples = tuple(Example(**example) for example in entry.get("examples", []))
        found.append(ExitCode(**(entry | {"todo": tuple(entry["todo"]), "examples": examples})))
    return tuple(found)


def topics() -> dict[str, str]:
    """Every topic that can be asked for, with its title."""
    found = {OVERVIEW: "who could learn what, in one table"}
    found |= {DEFENCES: "what can be switched on, and what it is"}
    found |= {name: defence.title for name, defence in defences().items()}
    found |= {COORDINATOR: "A coordinator, honest or not"}
    found |= {name: threat.title for name, threat in threats().items()}
    found |= {EXIT_CODES: "All exit codes"}
    return found | {f"exit-{code.code}": f"Exit code {code.code}: {code.title}" for code in exit_codes()}


def explain(topic: str) -> Explanation:
    """What is known about ``topic``; raises InvalidInputError for one that does not exist."""
    if topic == OVERVIEW:
        return Explanation(topic, threats=tuple(threats().values()))
    if topic == DEFENCES:
        return Explanation(topic, defences=tuple(defences().values()))
    if topic == EXIT_CODES:
        return Explanation(topic, exit_codes=exit_codes())
    for code in exit_codes():
        if topic == f"exit-{code.code}":
            return Explanation(topic, exit_codes=(code,))
    if topic in defences():
        about = tuple(cell for cell in cells() if cell.defence.name == topic)
        return Explanation(topic, defences=(defences()[topic],), cells=about)
    names = SEVERAL.get(topic, (topic,))
    wanted = tuple(threat for threat in threats().values() if threat.name in names)
    if not wanted:
        near = difflib.get_close_matches(topic, topics(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InvalidInputError(
            f"there is no topic {topic!r}", hint=f"{hint}`instahide explain` lists them all"
        )
    return Explanation(
        topic, threats=wanted, cells=tuple(cell for cell in cells() if cell.threat.name in names)
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))
