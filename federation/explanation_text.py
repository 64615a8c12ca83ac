"""An explanation as text for a terminal, as Markdown for a page, or as facts for programs.

The three say the same: text is the Markdown with its tables laid out as paragraphs and its lines folded.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from .explanations import DEFENCES, EXIT_CODES, OVERVIEW, Cell, ExitCode, Explanation, Threat, topics

NEVER = (
    "InstaHide is broken: encodings are a transformation, not encryption, and carry no privacy budget. "
    "Only differential privacy has a proof. A measured figure is a lower bound: better attacks reach more."
)
OWN_SETTINGS = "on your own settings"
NO_LINES = "It prints no error line."


def as_markdown(explanation: Explanation) -> str:
    """The explanation for a document, without a heading of the first order; ends without a line break."""
    if explanation.topic == OVERVIEW:
        return _overview(explanation.threats)
    if explanation.topic == DEFENCES:
        return "\n".join(f"- **{entry.title}.** {entry.what}" for entry in explanation.defences)
    if explanation.topic == EXIT_CODES:
        return _codes(explanation.exit_codes)
    if explanation.exit_codes:
        return _code(explanation.exit_codes[0])
    parts = [
        f"**{entry.title}.** {entry.what}\n\n*Switch:* {entry.switch}." for entry in explanation.defences
    ]
    by_defence = bool(explanation.defences)
    for threat in explanation.threats:
        parts.append(_threat(threat))
        parts += [_cell(cell, cell.defence.title) for cell in explanation.cells if cell.threat == threat]
    if by_defence:
        parts += [
            _cell(cell, f"Against: {cell.threat.title[0].lower()}{cell.threat.title[1:]}")
            for cell in explanation.cells
        ]
    return "\n\n".join(parts)


def as_text(explanation: Explanation, width: int = 100) -> str:
    """The explanation for a terminal, lines folded at ``width`` characters."""
    if explanation.topic == OVERVIEW:
        lines = [_fold(NEVER, width), ""]
        for threat in explanation.threats:
            lines += [threat.title, _point("does", threat.does, width), _point("NOT", threat.fails, width)]
            lines += [f"      more: instahide explain {threat.name}", ""]
        lines += ["Topics of `instahide explain TOPIC`:"]
        lines += [_point(f"{name:<23}", title, width) for name, title in topics().items()]
        return "\n".join(lines)
    if explanation.topic == EXIT_CODES:
        lines = [f"{code.code:>4}  {code.title}" for code in explanation.exit_codes]
        return "\n".join([*lines, "", "Each has a page: instahide explain exit-3"])
    plain = as_markdown(explanation).replace("**", "").replace("*Switch:*", "Switch:")
    return "\n".join(_fold_line(line, width) for line in plain.splitlines() if not line.startswith("```"))


def as_facts(explanation: Explanation) -> dict[str, Any]:
    """The explanation as JSON can hold it; the overview lists all topics as well."""
    facts = asdict(explanation)
    for cell in facts["cells"]:
        cell |= {"threat": cell["threat"]["name"], "defence": cell["defence"]["name"]}
    return facts | ({"topics": topics()} if explanation.topic == OVERVIEW else {})


def _overview(wanted: tuple[Threat, ...]) -> str:
    rows = [
        f"| {threat.short} | {threat.does} | {threat.fails} | `instahide explain {threat.name}` |"
        for threat in wanted
    ]
    head = "| who | what this toolkit does | what does **not** hold | more |\n|---|---|---|---|"
    return f"{NEVER}\n\n" + "\n".join([head, *rows])


def _threat(threat: Threat) -> str:
    return (
        f"**{threat.title}** wants {threat.wants}.\n\n- done: {threat.does}\n- does not hold: {threat.fails}"
    )


def _cell(cell: Cell, title: str) -> str:
    points = [
        f"holds: {cell.does}",
        f"does NOT hold: {cell.fails}",
        *(f"measured: {figure} (`{cell.page}`)" for figure in cell.measured),
        f"{OWN_SETTINGS}: `{cell.command}`",
        f"what changes it: {cell.settings}",
    ]
    return f"**{title}**\n\n" + "\n".join(f"- {point}" for point in points)


def _codes(codes: tuple[ExitCode, ...]) -> str:
    rows = [f"| {code.code} | [{code.title}](exit-{code.code}.md) | {code.meaning} |" for code in codes]
    return "\n".join(["| code | | meaning |", "|---|---|---|", *rows])


def _code(code: ExitCode) -> str:
    parts = [f"**Exit code {code.code}: {code.title}.** {code.meaning}", f"**Which verbs.** {code.verbs}"]
    examples = "\n\n".join(
        f"$ {example.command}\nerror: {_shown(example.error)}\nhint: {_shown(example.hint)}"
        for example in code.examples
    )
    parts.append(
        f"**What it looks like.**\n\n```text\n{examples}\n```"
        if examples
        else f"**What it looks like.** {NO_LINES}"
    )
    parts.append("**What to do.**\n\n" + "\n".join(f"- {line}" for line in code.todo))
    return "\n\n".join(parts)


def _shown(line: str) -> str:
    return line.replace("*", "...")


def _fold(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _fold_line(line: str, width: int) -> str:
    if line.startswith(("$ ", "error: ", "hint: ")):
        return f"    {line}"  # as the program prints it: not folded
    if line.startswith(f"- {OWN_SETTINGS}"):
        return f"  - {OWN_SETTINGS}:\n      {line.split('`')[1]}"  # to be copied in one piece
    indent = "      " if line.startswith("- ") else ""
    return textwrap.fill(
        f"  {line}" if indent else line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _point(label: str, text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=f"  {label:<5}",
        subsequent_indent=" " * (2 + max(5, len(label))),
        break_on_hyphens=False,
    )
