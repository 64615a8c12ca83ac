"""What the verbs of the theory back end share: pictures that are whole or absent, and errors in our form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from ..console import OutputFormat, print_json


@contextmanager
def mistakes_in_our_form(hint: str) -> Iterator[None]:
    """A ValueError of the theory modules as the two lines every verb ends with.

    Their messages hold the hint in a line of its own, or none; then it is ``hint``.
    """
    from instahide.errors import InvalidInputError

    try:
        yield
    except ValueError as error:
        message, _, own = str(error).partition("\nhint: ")
        raise InvalidInputError(message, hint=own.split("\n")[0] or hint) from error


def check_picture(out: Path | None) -> None:
    """Before anything is computed: is there a folder for the picture, and something to draw it with?

    Raises InvalidInputError where there is not.
    """
    from instahide.errors import InvalidInputError

    if out is None:
        return
    if find_spec("matplotlib") is None:
        raise InvalidInputError(
            "a picture needs matplotlib, which is not installed", hint='pip install "instahide-fl[plots]"'
        )
    if not out.parent.is_dir() or out.is_dir():
        raise InvalidInputError(f"{out} cannot be a picture", hint="--out is a file in a folder that exists")


def finish(
    format: OutputFormat,
    lines: list[str],
    values: Any,
    *,
    out: Path | None,
    draw: Callable[[Path], None] | None,
) -> None:
    """Draw where asked to, then print."""
    from instahide.atomic import atomic_path

    if out is not None and draw is not None:
        with atomic_path(out) as temporary:
            draw(temporary)
    if format is OutputFormat.json:
        print_json({"result": values, "picture": None if out is None or draw is None else str(out)})
        return
    for line in lines:
        typer.echo(line)
    if out is not None and draw is not None:
        typer.echo(f"picture: {out}")
