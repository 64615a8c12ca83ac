"""``instahide coordinator admit`` and ``revoke``: which hospitals are in the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from instahide.errors import FederationError, InvalidInputError, RefusedError

from .console import OutputFormat, print_json

STUDY = typer.Argument(..., help="The study's folder.", show_default=False)
FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")


def admit(
    study: Path = STUDY,
    request: Path = typer.Argument(..., help="The hospital's NAME.request.json.", show_default=False),
    out: Path | None = typer.Option(
        None, help="Where to write NAME.join.json (default: beside the request)."
    ),
    number: str = typer.Option(
        "",
        "--safety-number",
        help="The hospital's safety number as you heard it by telephone; refused if it is another.",
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Admit a hospital: register its node key, answer with NAME.join.json. The coordinator must be up.

    Both sides read a safety number to each other by telephone: the hospital the
    one that `node init` showed, you the one of the coordinator. The other screen
    must show the same thirty digits. Also for a request that was made anew,
    with other counts (`node request`) or other keys (`node rotate`).

    Example: instahide coordinator admit study/ st-mary.request.json
    """
    from .. import study as studies
    from ..joining import read_request, write_answer
    from ..revocation import take_off
    from ..safety_numbers import check_safety_number

    settings = studies.load_study(study)
    asked = read_request(request)
    if number:
        check_safety_number(number, asked.safety_number, whose=asked.name)
    studies.check_admissible(settings, asked)
    known = {site.fingerprint for site in settings.sites()}
    with control_of(settings.path) as control:
        node_id = control.register_node(asked.public_key.encode(), name=asked.name)
        answer = studies.admit(settings, asked, node_id)
        take_off(settings.path, control)
    target = out or request.with_name(f"{asked.name}.join.json")
    write_answer(answer, target, identity=studies.coordinator_identity(settings))
    vouched = bool(known & {asked.fingerprint, *asked.replaced})
    if output is OutputFormat.json:
        print_json(
            {
                "name": asked.name,
                "node-id": node_id,
                "fingerprint": asked.fingerprint,
                "identity": asked.identity,
                "safety-number": asked.safety_number,
                "coordinator-safety-number": answer.safety_number,
                "signed-by-known-keys": vouched,
                "replaced-keys": list(asked.replaced),
                "answer": str(target),
            }
        )
        return
    typer.echo(f"{asked.name} admitted: {asked.num_examples:,} images, {len(asked.class_names)} classes")
    if vouched:
        typer.echo("the request is signed by the keys admitted before: there is nothing to compare")
    else:
        typer.echo(f"safety number they read out, of {asked.name}: {asked.safety_number}")
        typer.echo(f"safety number you read out, the coordinator's: {answer.safety_number}")
        typer.echo(f"if theirs is another: instahide coordinator revoke {study} {asked.name}")
    if asked.replaced:
        typer.echo(f"the keys it had are refused from now on; {asked.name} is out until it has joined again")
    typer.echo(f"fingerprints: node key {asked.fingerprint}, identity key {asked.identity}")
    typer.echo(f"send back {target}")


def revoke(
    study: Path = STUDY,
    name: str = typer.Argument(..., help="The hospital's name.", show_default=False),
    reason: str = typer.Option("", help="One line for the audit log."),
    output: OutputFormat = FORMAT,
) -> None:
    """Refuse a hospital's keys from now on: connections, rounds under way, new runs, new requests.

    The coordinator may be up or down; if it is down, the key is taken off the
    SuperLink at the next start, before any hospital can connect. It cannot be
    taken back: the hospital comes back with new keys (`node rotate NODE
    --new-identity`, then `admit`). Updates of finished rounds stay in the model.

    Example: instahide coordinator revoke study/ st-mary --reason "laptop stolen"
    """
    from ..revocation import revoke as refuse_keys
    from ..revocation import take_off
    from ..study import load_study

    made = load_study(study)
    entry, is_new = refuse_keys(made, name, reason=reason)
    why_later = ""
    try:
        with control_of(made.path) as control:
            take_off(made.path, control)
    except (InvalidInputError, FederationError, RefusedError) as error:
        why_later = error.message
    if output is OutputFormat.json:
        print_json(
            {
                "name": name,
                "revoked": entry.time,
                "is-new": is_new,
                "fingerprint": entry.node_key,
                "identity": entry.identity_key,
                "taken-off-superlink": not why_later,
                "reason-not-taken-off": why_later,
            }
        )
        return
    typer.echo(f"{name} is revoked" if is_new else f"{name} was revoked on {entry.time[:10]} already")
    typer.echo(f"refused keys: node {entry.node_key}, identity {entry.identity_key}")
    if why_later:
        typer.echo(f"the SuperLink could not be told: {why_later}")
        typer.echo("it is told at the next `instahide coordinator start`, before any hospital can connect")
    else:
        typer.echo("the SuperLink has taken the key off; runs under way ask this hospital no more")


def control_of(study: Path) -> Any:
    """The control interface of this folder's running SuperLink (``coordinator`` has the function)."""
    from . import coordinator

    return coordinator._control(study)
