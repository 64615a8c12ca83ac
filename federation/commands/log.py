"""``instahide log``: read an audit log, and check that nobody changed or shortened it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from instahide.errors import IntegrityError, InvalidInputError

from .console import OutputFormat, print_json

if TYPE_CHECKING:
    from ..audit_verification import ReadLog

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Read and check audit logs. A site's is state/audit.jsonl of its node's folder, the coordinator's "
        "is audit.jsonl of its study.\n\n"
        "    instahide log show st-mary/state/audit.jsonl\n"
        "    instahide log verify st-mary/state/audit.jsonl --against audit-of-the-coordinator.jsonl"
    ),
)

FILE = typer.Argument(..., help="The audit log.", show_default=False)
FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")


@app.command("verify")
def verify(
    file: Path = FILE,
    against: Path | None = typer.Option(
        None, help="The other side's log, which holds signed heads of this one.", show_default=False
    ),
    public_key: list[Path] = typer.Option(
        [],
        "--public-key",
        help="File with the identity key one of the logs must be of; repeat.",
        show_default=False,
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Check every line's hash, order and time; against the other side's log, also for a missing tail.

    Exit code 4 if anything is wrong. Without --public-key the logs say themselves
    whose they are.

    Example: instahide log verify st-mary/state/audit.jsonl --against study/audit.jsonl
    """
    from ..audit_verification import compare_logs, read_log

    logs = [read_log(path) for path in (file, against) if path is not None]
    problems = [f"{log.path.name}: {problem}" for log in logs for problem in log.problems]
    if public_key:
        owners = {log.public_key for log in logs}
        problems += [
            f"no log given is of the key in {path}" for path in public_key if _public_key(path) not in owners
        ]
    heads, elsewhere = None, 0
    if against is not None:
        comparison = compare_logs(logs[0], logs[1])
        heads, problems = comparison.heads, problems + list(comparison.problems)
        elsewhere = comparison.elsewhere
    facts = [_facts(log) for log in logs]
    if output is OutputFormat.json:
        print_json(
            {"logs": facts, "heads-compared": heads, "heads-of-other-logs": elsewhere, "problems": problems}
        )
    else:
        for fact in facts:
            typer.echo(_sentence(fact))
        if heads is not None:
            typer.echo(f"{heads} signed heads looked up in the other log")
        if elsewhere:
            typer.echo(
                f"{elsewhere} more are about logs of the site under other identity keys: compare those"
            )
        for problem in problems:
            typer.echo(f"wrong: {problem}")
    if problems:
        raise IntegrityError(
            f"{len(problems)} things are wrong with the audit log"
            if len(problems) > 1
            else "one thing is wrong with the audit log",
            hint="keep the files as they are, and compare with a backup and with the other side",
        )
    if output is OutputFormat.text:
        typer.echo("whole: every record follows on the one before it")


@app.command("show")
def show(
    file: Path = FILE,
    last: int = typer.Option(0, min=0, help="Only this many records, the latest (0: all)."),
    output: OutputFormat = FORMAT,
) -> None:
    """Show an audit log as a table. It is not checked: `log verify` does that.

    Example: instahide log show st-mary/state/audit.jsonl --last 20
    """
    from ..audit_verification import read_log

    records = read_log(file).records[-last:]
    if output is OutputFormat.json:
        print_json(
            [
                {"sequence": r.sequence, "time": r.time, "event": r.event, "fields": dict(r.fields)}
                for r in records
            ]
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("no.", "time (UTC)", "event", "fields")
    for record in records:
        words = ", ".join(f"{key} {_short(value)}" for key, value in record.fields.items())
        table.add_row(str(record.sequence), record.time[:19], Text(record.event), Text(words))
    Console().print(table)


def _short(value: Any) -> str:
    """A value in a table: long hashes, keys and heads by their first digits."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    parts = text.split(":")
    if len(parts) == 4 and len(text) > 200:  # a signed head
        return f"record {parts[1]} ({parts[2][:12]}…) of log {parts[0][:12]}…"
    return f"{text[:12]}…" if len(text) >= 64 and " " not in text else text


def _public_key(path: Path) -> str:
    from ..identity import load_public_identity, public_line

    try:
        return public_line(load_public_identity(path.read_text(encoding="ascii")))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read", hint="give a file with a public key") from error


def _facts(log: ReadLog) -> dict[str, Any]:
    from ..identity import identity_fingerprint

    last = log.records[-1] if log.records else None
    try:
        fingerprint = identity_fingerprint(log.public_key)
    except InvalidInputError:
        fingerprint = ""
    return {
        "file": str(log.path),
        "role": log.owner.get("role", ""),
        "name": log.owner.get("name", ""),
        "identity-key": fingerprint,
        "log": log.log_id,
        "records": len(log.records),
        "torn-lines": log.torn_lines,
        "first": log.records[0].time if log.records else "",
        "last": last.time if last else "",
        "head": last.hash if last else "",
    }


def _sentence(log: dict[str, Any]) -> str:
    torn = f", {log['torn-lines']} lines torn by a crash and owned up to" if log["torn-lines"] else ""
    return (
        f"{log['role'] or 'unknown'} {log['name']} ({log['identity-key'] or 'no key'}): {log['records']} "
        f"records from {log['first'][:19]} to {log['last'][:19]}{torn}; head {log['head'][:12]}"
    )
