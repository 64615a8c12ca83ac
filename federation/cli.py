"""The ``instahide`` command: one verb a job, errors that say what to do, true exit codes.

Verbs live in ``federation.commands``, one file each; here they are only put together and
run. Nothing heavy is imported until a verb runs, so ``instahide --help`` stays instant.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click
import typer
from click.exceptions import NoArgsIsHelpError

from instahide import __version__
from instahide.errors import InstaHideError

from .commands import (
    attack,
    coordinator,
    dataset,
    demo,
    encode,
    evaluate_kernel,
    explain,
    export,
    inspect,
    log,
    node,
    simulate,
    theory,
    train,
)

EPILOG = (
    "Exit codes: 0 done · 1 a run failed · 2 wrong input, nothing changed · 3 refused by a budget or "
    "policy · "
    "4 a file is corrupt or edited · 5 the federation failed · 130 interrupted. "
    "`instahide explain exit-3` says more about one, `instahide explain` what is protected from whom. "
    "Any verb takes --debug to show the full traceback of an error."
)

INTERRUPTED = 130

app = typer.Typer(
    name="instahide",
    help=(
        "Encode images, train across hospitals, and measure what still leaks.\n\n"
        "InstaHide was broken in public (Carlini et al. 2020): treat encodings as a speed bump, not a "
        "lock, and read the leak figure that `instahide demo` prints beside its accuracies."
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
app.command("evaluate-kernel")(evaluate_kernel.evaluate_kernel)
app.command("export")(export.export)
app.command("simulate")(simulate.simulate)
app.command("explain")(explain.explain)
app.add_typer(attack.app, name="attack")
app.add_typer(dataset.app, name="dataset")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(node.app, name="node")
app.add_typer(log.app, name="log")
app.add_typer(theory.app, name="theory")


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
    sys.stdout = _stdout_that_outlives_its_reader()
    debug = "--debug" in words or os.environ.get("INSTAHIDE_DEBUG") == "1"
    code = run([word for word in words if word != "--debug"], debug=debug)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _complain(f"the output cannot be written: {error.strerror}", "is the disk full?", 1)
        sys.stdout = None  # or Python tries again, and fails, while it leaves
    sys.exit(code)


def run(words: Sequence[str], *, debug: bool = False) -> int:
    """Run one command line; returns the exit code instead of leaving. Errors go to stderr."""
    try:
        outcome: Any = app(args=list(words), prog_name="instahide", standalone_mode=False)
    except InstaHideError as error:
        _show_traceback(debug)
        return _complain(error.message, error.hint, error.exit_code)
    except NoArgsIsHelpError as error:
        verb = error.ctx.command_path if error.ctx else "instahide"
        return _complain("a verb is missing", f"`{verb} VERB --help` shows what a verb does", 2)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "instahide"
        return _complain(error.format_message(), f"`{verb} --help` shows the options and an example", 2)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", "", INTERRUPTED)
    except OSError as error:
        _show_traceback(debug)
        where = f": {error.filename}" if error.filename else ""
        return _complain(
            f"{error.strerror or error}{where}", "check the path, its permissions and the free space", 1
        )
    except Exception as error:
        _show_traceback(debug)
        return _complain(
            f"unexpected {type(error).__name__}: {error}",
            "this is a fault of ours; run again with --debug and report the traceback",
            1,
        )
    if outcome == INTERRUPTED:  # typer turns Ctrl-C into this number, in silence
        return _complain("interrupted", "", INTERRUPTED)
    return outcome if isinstance(outcome, int) else 0


class _PatientFile(io.FileIO):
    """A file that swallows what nobody reads any more, as in ``instahide inspect ... | head -1``."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            # The job goes on to its end and to its own exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _stdout_that_outlives_its_reader() -> io.TextIOWrapper:
    file = io.BufferedWriter(_PatientFile(sys.stdout.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        file, encoding=sys.stdout.encoding, errors=sys.stdout.errors, line_buffering=sys.stdout.isatty()
    )


def _show_traceback(wanted: bool) -> None:
    if wanted:
        traceback.print_exc()


def _complain(message: str, hint: str, code: int) -> int:
    with suppress(OSError):
        sys.stdout.flush()  # so that words come in their order
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
