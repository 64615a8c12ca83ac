"""What `instahide explain` says: figures that stand in their pages, commands that exist, pages that agree."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from federation import cli
from federation.explanation_text import as_markdown, as_text
from federation.explanations import Cell, cells, defences, exit_codes, explain, threats, topics
from federation.site.policy import Policy
from tests.explanation_pages import QUOTE, ROOT, pages, quoted_anew

NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
GUIDES = ROOT / "deploy/guides"


def name_of(cell: Cell) -> str:
    return f"{cell.threat.name} and {cell.defence.name}"


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text.replace("×", " × ")))


def stands_in(figure: str, page: str) -> bool:
    """Whether one paragraph or one table of ``page`` holds every number of ``figure``."""
    blocks = re.split(r"\n\s*\n", page)
    return any(numbers(figure) <= numbers(block) for block in blocks)


@pytest.mark.parametrize("cell", cells(), ids=name_of)
def test_every_figure_stands_in_the_page_it_is_quoted_from(cell: Cell) -> None:
    page = (ROOT / cell.page).read_text(encoding="utf-8")
    assert cell.measured, "a cell without a figure"
    for figure in cell.measured:
        assert numbers(figure), f"{figure}: no number"
        assert stands_in(figure, page), f"{cell.page} has no paragraph with all of {numbers(figure)}"


def test_a_figure_that_is_not_in_its_page_would_be_found() -> None:
    page = "AUC 0.77 on 8×8\n\nand 0.83 elsewhere, of 1,400"
    assert stands_in("AUC 0.77 on digits of 8×8", page)
    assert not stands_in("AUC 0.77 and 0.83", page), "two paragraphs are not one"
    assert not stands_in("0.7", page)
    assert not stands_in("400", page)


@pytest.mark.parametrize("cell", cells(), ids=name_of)
def test_every_command_of_a_cell_is_one_the_program_takes(cell: Cell) -> None:
    words = shlex.split(cell.command)[1:]
    command: click.Command = typer.main.get_command(cli.app)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(cell.command, words)


def test_every_threat_has_a_defence_and_every_defence_a_threat() -> None:
    assert {cell.threat.name for cell in cells()} == set(threats())
    assert {cell.defence.name for cell in cells()} == set(defences())
    assert len({name_of(cell) for cell in cells()}) == len(cells())


def test_keys_of_the_policy_that_are_named_exist() -> None:
    words = {
        word for cell in cells() for word in re.findall(r"`((?:max|minimum|dp|check)-[a-z-]+)", cell.settings)
    }
    from federation.config import RunConfig, TrainingSettings

    known = {
        name.replace("_", "-")
        for kind in (Policy, RunConfig, TrainingSettings)
        for name in kind.__dataclass_fields__
    }
    assert words, "none is named"
    assert words <= known


def test_encodings_are_never_given_an_epsilon_and_nothing_is_called_encrypted() -> None:
    for cell in cells():
        text = " ".join((cell.does, cell.fails, *cell.measured))
        if cell.defence.name == "instahide":
            assert not re.search(r"epsilon\D{0,20}\d|ε", text), text
        assert "encrypt" not in text.lower()
    assert "not encryption" in defences()["instahide"].what
    everything = " ".join(as_markdown(explain(topic)) for topic in topics())
    assert set(re.findall(r"(\w+ )encrypt\w*", everything)) == {"not "}


@pytest.mark.parametrize("topic", topics())
def test_text_and_markdown_say_the_same_and_fit_the_terminal(topic: str) -> None:
    found = explain(topic)
    text = as_text(found, 80)
    shown = " ".join(text.split())
    for cell in found.cells:
        for part in (cell.does, cell.fails, *cell.measured, cell.command, cell.settings):
            assert " ".join(part.split()) in shown, part
            assert part in as_markdown(found)
    folded = [line for line in text.splitlines() if not re.match(r"\s+(\$|error:|hint:|instahide) ?", line)]
    assert max(map(len, folded)) <= 80


def test_explain_prints_all_topics_and_each_has_something_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain"]) == 0
    shown = capsys.readouterr().out
    assert [topic for topic in topics() if f"  {topic} " not in shown] == []
    assert [topic for topic in topics() if not as_text(explain(topic)).strip()] == []
    assert cli.run(["explain", "exit-3", "--format", "markdown"]) == 0
    assert capsys.readouterr().out == as_markdown(explain("exit-3")) + "\n"


def test_json_holds_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "coordinator", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {cell["threat"] for cell in facts["cells"]} == {"curious-coordinator", "malicious-coordinator"}
    assert all(cell["measured"] and cell["page"].endswith(".md") for cell in facts["cells"])


def test_an_unknown_topic_is_wrong_input_and_near_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "secure-agregation"]) == 2
    assert "did you mean secure-aggregation" in capsys.readouterr().err


def test_pages_say_what_the_source_says() -> None:
    different = [page for page in pages() if quoted_anew(text := page.read_text(encoding="utf-8")) != text]
    assert different == [], "write them anew: python -m tests.explanation_pages"


def test_every_defence_and_every_exit_code_has_its_page() -> None:
    def quoted(page: Path) -> set[str]:
        return {match["topic"] for match in QUOTE.finditer(page.read_text(encoding="utf-8"))}

    assert quoted(GUIDES / "what-is-protected.md") == {"overview", *defences()}
    assert quoted(GUIDES / "exit-codes/README.md") == {"exit-codes"}
    for code in exit_codes():
        assert quoted(GUIDES / f"exit-codes/exit-{code.code}.md") == {f"exit-{code.code}"}


def test_a_page_that_was_edited_by_hand_would_be_found() -> None:
    text = "<!-- explain: exit-3 -->\nmine\n<!-- end of explain -->"
    assert "refused" in quoted_anew(text)
    assert "mine" not in quoted_anew(text)
    assert quoted_anew(quoted_anew(text)) == quoted_anew(text)
