"""What the tests of ``deploy/`` share: where its files are, how they are read, whether a command exists."""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from federation.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FAULTS = "a tool that is not installed; `make check-deploy` installs it"


def tool(name: str) -> str:
    """The path of a checking tool, in this environment or on PATH; skips the test where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name}: {FAULTS}")
    return found


@cache
def _whole_command() -> click.Command:
    command: click.Command = typer.main.get_command(app)
    return command


def parses(words: list[str]) -> None:
    """Fail unless ``words`` (without "instahide") are a command with options it knows."""
    command = _whole_command()
    rest = list(words)
    while isinstance(command, click.Group):
        assert rest, f"{words}: no verb"
        assert rest[0] in command.commands, f"{words}: there is no verb {rest[0]}"
        command = command.commands[rest.pop(0)]
    command.make_context(" ".join(words), rest)


def read_compose(name: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """A compose file with its variables replaced, by their defaults where they are not given."""
    known = environment or {}

    def value(found: re.Match[str]) -> str:
        return known.get(found[1], found[2])

    text = re.sub(r"\$\{(\w+):-([^}]*)\}", value, (DEPLOY / name).read_text(encoding="utf-8"))
    assert "${" not in text, "a variable without a default"
    table: dict[str, Any] = yaml.safe_load(text)
    return {key: value for key, value in table.items() if not key.startswith("x-")}
