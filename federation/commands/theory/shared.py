"""What the verbs of the theory back end share: pictures and pages, whole or absent; errors in our form.

``--out NAME.png`` is the picture alone; ``--out NAME.html`` is a page that holds it, what was printed, and
what the verb's help says is being measured, so that it can be read without the command beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
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
            if _is_page(out):
                temporary.write_text(_page(lines, draw), encoding="utf-8")
            else:
                draw(temporary)
    if format is OutputFormat.json:
        print_json({"result": values, "picture": None if out is None or draw is None else str(out)})
        return
    for line in lines:
        typer.echo(line)
    if out is not None and draw is not None:
        typer.echo(f"{'page' if _is_page(out) else 'picture'}: {out}")


def _is_page(out: Path) -> bool:
    return out.suffix.lower() in {".html", ".htm"}


def _page(lines: list[str], draw: Callable[[Path], None]) -> str:
    """The running verb's name and help, its picture, and its lines as printed."""
    from importlib.metadata import version

    from instahide import html_page

    context = click.get_current_context()
    about = (context.command.help or "").split("Exit codes:")[0].strip().split("\n\n")
    with tempfile.TemporaryDirectory(prefix="instahide-picture-") as folder:
        draw(Path(folder) / "picture.png")
        picture = (Path(folder) / "picture.png").read_bytes()
    return html_page.page(
        context.command_path,
        *(html_page.paragraph(" ".join(part.split())) for part in about),
        html_page.drawing(picture, "Drawn from the numbers below."),
        html_page.heading("Measured in this run"),
        html_page.printed(lines),
        html_page.paragraph(
            "Published figures, and ours beside them: `theory_modules/README.md`. "
            f"Made by InstaHide FL {version('instahide-fl')}.",
            kind="soft",
        ),
    )
