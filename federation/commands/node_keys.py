"""``instahide node init``, ``join``, ``request`` and ``rotate``: a hospital's keys and how it comes in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .console import OutputFormat, print_json

if TYPE_CHECKING:
    from ..joining import JoinRequest

NODE = typer.Argument(..., help="The node's folder.", show_default=False)
FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")


def init(
    node: Path = NODE,
    name: str = typer.Option(..., help="Short name of the hospital, as others will see it."),
    data: Path = typer.Option(..., help="Training images: a folder or file `dataset inspect` can read."),
    test: Path | None = typer.Option(
        None, help="Test images (default: the file's own test split, or a held-out part)."
    ),
    public: Path | None = typer.Option(
        None, help="Public images to mix with (default: private images only)."
    ),
    class_names: list[str] = typer.Option(
        [], "--class", help="The study's class names in order, where these images lack some; repeat."
    ),
    threads: int = typer.Option(2, min=1, help="Processor threads for training."),
    output: OutputFormat = FORMAT,
) -> None:
    """Make the node's key, policy and settings, and the request file for the coordinator.

    The private key is made here and stays here. Read policy.toml before you
    join: it decides what a coordinator may ask of this site.

    Example: instahide node init st-mary/ --name st-mary --data scans/
    """
    from ..node_folder import create_node

    folder, request, path = create_node(
        node,
        name=name,
        data=data,
        test_data=test,
        public_data=public,
        class_names=class_names,
        threads=threads,
    )
    if output is OutputFormat.json:
        print_json(_facts(folder.path, request, path))
        return
    _show_request(request, path)
    typer.echo(f"read and edit {folder.policy}; then wait for {name}.join.json")


def join(
    node: Path = NODE,
    answer: Path = typer.Argument(..., help="NAME.join.json from the coordinator.", show_default=False),
    number: str = typer.Option(
        "",
        "--safety-number",
        help="The coordinator's safety number as you heard it by telephone; refused if it is another.",
    ),
    another_coordinator: bool = typer.Option(
        False, "--another-coordinator", help="Join although another coordinator was joined before."
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Take in the coordinator's answer: where it is and which certificate authority to trust.

    The first time, have the coordinator read out its safety number by telephone,
    and read yours: both screens must show the same thirty digits. A later join
    file must be signed by the coordinator joined before. After `node rotate` the
    new keys are in use from now on; start the node again.

    Example: instahide node join st-mary/ st-mary.join.json
    """
    from ..expiry import node_warnings
    from ..identity import identity_fingerprint, load_identity
    from ..joining import read_answer
    from ..node_folder import NodeFolder
    from ..node_folder import join as take_in
    from ..provisioning import certificate_fingerprint
    from ..safety_numbers import check_safety_number, site_safety_number

    folder = NodeFolder(node.resolve())
    got = read_answer(answer)
    if number:
        check_safety_number(number, got.safety_number, whose="the coordinator")
    known = folder.coordinator_key.exists() and not another_coordinator
    settings = take_in(folder, got, another_coordinator=another_coordinator)
    own = site_safety_number(
        folder.public_key.read_text(encoding="ascii"), load_identity(folder.identity_key).public_line
    )
    facts = {
        "coordinator": settings.coordinator,
        "authority-sha256": certificate_fingerprint(folder.authority),
        "coordinator-identity": identity_fingerprint(got.identity_key),
        "coordinator-safety-number": got.safety_number,
        "safety-number": own,
        "signed-by-known-coordinator": known,
    }
    if output is OutputFormat.json:
        print_json(facts)
        return
    typer.echo(f"joined: the coordinator is {settings.coordinator}")
    if known:
        typer.echo("the join file is signed by the coordinator joined before: there is nothing to compare")
    else:
        typer.echo(f"safety number they read out, the coordinator's: {got.safety_number}")
        typer.echo(f"safety number you read out, this hospital's:    {own}")
        typer.echo("if theirs is another, do not start: the join file is not from whom you spoke to")
    typer.echo(
        f"fingerprints: authority {facts['authority-sha256']}, identity key {facts['coordinator-identity']}"
    )
    for line in node_warnings(folder):
        typer.echo(line)
    typer.echo(f"next: instahide node start {node}, and instahide node plan list {node} for each run")


def request(node: Path = NODE, output: OutputFormat = FORMAT) -> None:
    """Write the request file anew, for the images as they are now; the keys stay.

    For a hospital whose images grew or shrank, or whose request file is lost.
    The coordinator admits it as before and sends a new join file; there is
    nothing to compare by telephone, since the same keys have signed it.

    Example: instahide node request st-mary/
    """
    from ..node_folder import NodeFolder
    from ..node_request import request_again

    folder = NodeFolder(node.resolve())
    made, path = request_again(folder)
    if output is OutputFormat.json:
        print_json(_facts(folder.path, made, path))
        return
    _show_request(made, path)
    typer.echo(
        "where the images are others than at the last start: instahide node start NODE --accept-changed-data"
    )


def rotate(
    node: Path = NODE,
    new_identity: bool = typer.Option(
        False,
        "--new-identity",
        help="A new identity key as well; the audit log so far is put aside, whole, and a new one begins.",
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Make a new node key, and a request for it that the old key signs, too.

    The old key stays in use until `node join` has taken in the coordinator's
    answer. From the coordinator's `admit` on it is refused, so join soon and start
    the node again; between two runs is best. What this site has spent of its
    budgets is kept. After a revocation use --new-identity: it refuses both keys.

    Example: instahide node rotate st-mary/
    """
    from ..node_folder import NodeFolder
    from ..node_rotation import rotate as make_keys

    folder = NodeFolder(node.resolve())
    made, path = make_keys(folder, new_identity=new_identity)
    if output is OutputFormat.json:
        print_json(_facts(folder.path, made, path) | {"replaced-keys": list(made.replaced)})
        return
    _show_request(made, path)
    typer.echo(
        f"the new keys are used once the answer is in: instahide node join {node} {made.name}.join.json"
    )


def _facts(folder: Path, request: JoinRequest, path: Path) -> dict[str, object]:
    return {
        "node": str(folder),
        "request": str(path),
        "fingerprint": request.fingerprint,
        "identity": request.identity,
        "safety-number": request.safety_number,
        "num-examples": request.num_examples,
        "evaluate-num-examples": request.evaluate_num_examples,
    }


def _show_request(request: JoinRequest, path: Path) -> None:
    counts = f"{request.num_examples:,} training and {request.evaluate_num_examples:,} test images"
    typer.echo(f"{request.name}: {counts}")
    typer.echo(f"safety number (read it out to the coordinator): {request.safety_number}")
    typer.echo(f"fingerprints: node key {request.fingerprint}, identity key {request.identity}")
    typer.echo(f"send {path} to the coordinator")
