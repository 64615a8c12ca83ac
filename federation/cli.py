"""The ``instahide`` command: one verb a job, errors that say what to do, true exit codes.

Verbs live in ``federation.commands``, one file each; here they are only put together and
run. Nothing heavy is imported until a verb runs, so ``instahide --help`` stays instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click
import typer

from instahide import __version__
from instahide.errors import InstaHideError

from .commands import coordinator, dataset, demo, encode, inspect, node, train

EPILOG = (
    "Exit codes: 0 done · 1 a run failed · 2 wrong input, nothing changed · 3 refused by a budget or "
    "policy · "
    "4 a file is corrupt or edited · 5 the federation failed · 130 interrupted. "
    "Any verb takes --debug to show the full traceback of an error."
)

app = typer.Typer(
    name="instahide",
    help=(
        "Encode images, train across hospitals, and measure what still leaks.\n\n"
        "InstaHide was broken in public (Carlini et al. 2020): treat encodings as a speed bump, not a "
        "lock, and read the leak figures that this toolkit prints beside every accuracy."
    ),
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("encode")(encode.encode)
app.command("inspect")(inspect.inspect)
app.command("train")(train.train)
app.add_typer(dataset.app, name="dataset")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(node.app, name="node")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"instahide {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
    ),
) -> None:
    """Options that stand before the verb."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("INSTAHIDE_DEBUG") == "1"
    sys.exit(run([word for word in words if word != "--debug"], debug=debug))


def run(words: Sequence[str], *, debug: bool = False) -> int:
    """Run one command line; returns the exit code instead of leaving. Errors go to stderr."""
    try:
        outcome: Any = app(args=list(words), prog_name="instahide", standalone_mode=False)
    except InstaHideError as error:
        if debug:
            raise
        return _complain(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "instahide"
        return _complain(error.format_message(), f"`{verb} --help` shows the options and an example", 2)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", "", 130)
    except BrokenPipeError:
        # The reader of our output (head, less) has left: nothing to report, nobody to report to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _complain(
            f"unexpected {type(error).__name__}: {error}",
            "this is a fault of ours; run again with --debug and report the traceback",
            1,
        )
    return outcome if isinstance(outcome, int) else 0


def _complain(message: str, hint: str, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
