"""``instahide coordinator``: make a study, run, watch, resume; the hospitals are in ``coordinator_sites``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from .console import OutputFormat, describe_event, print_json
from .coordinator_sites import admit, revoke
from .doctor import coordinator_doctor
from .renew import CA_FILE, CERTIFICATE_FILE, KEY_FILE, renew
from .run_settings import not_ours, parse_settings, read_settings
from .start import coordinator_start
from .status import coordinator_status

STOP_SECONDS = 20.0  # Flower ends a stopped ServerApp at its next heartbeat, five seconds apart

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Run the coordinator of a study.\n\n"
        "    instahide coordinator init study/ --host fl.example.org\n"
        "    instahide coordinator start study/            (leave it running)\n"
        "    instahide coordinator admit study/ st-mary.request.json\n"
        "    instahide coordinator run study/ --name trial-1"
    ),
)

STUDY = typer.Argument(..., help="The study's folder.", show_default=False)
FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")


@app.command("init")
def init(
    study: Path = STUDY,
    host: list[str] = typer.Option(
        ..., "--host", help="Name or address the hospitals will use; repeat for several.", show_default=False
    ),
    port: int = typer.Option(9443, help="Port of the gateway, the only one hospitals reach."),
    listen: str = typer.Option("0.0.0.0", help="Address the gateway listens on."),  # noqa: S104
    certificate_file: Path | None = CERTIFICATE_FILE,
    key_file: Path | None = KEY_FILE,
    ca_file: Path | None = CA_FILE,
    output: OutputFormat = FORMAT,
) -> None:
    """Make a study folder: certificate authority, server certificates, secrets.

    The gateway's certificate is made by the study's own authority, or taken from
    yours: give --certificate-file, --key-file and --ca-file together.

    Example: instahide coordinator init study/ --host fl.example.org --host 10.0.0.5
    """
    from ..external_certificate import external_certificate, gateway_authority
    from ..identity import IDENTITY_FILE, load_identity
    from ..provisioning import certificate_expiry, certificate_fingerprint
    from ..study import coordinator_number, create_study

    external = external_certificate(certificate_file, key_file, ca_file)
    made = create_study(study, names=tuple(host), listen=listen, port=port, external=external)
    facts = {
        "study": str(made.path),
        "address": made.address,
        "authority-sha256": certificate_fingerprint(
            gateway_authority(made.path, made.path / "authority.crt")
        ),
        "identity": load_identity(made.path / IDENTITY_FILE).fingerprint,
        "safety-number": coordinator_number(made),
        "gateway-certificate-expires": certificate_expiry(made.path / "gateway.crt").date().isoformat(),
    }
    if output is OutputFormat.json:
        print_json(facts)
        return
    typer.echo(f"study made in {study}; hospitals will connect to {made.address}")
    typer.echo(f"safety number (read it out to the hospitals): {facts['safety-number']}")
    typer.echo(f"fingerprints: authority {facts['authority-sha256']}, identity key {facts['identity']}")
    typer.echo(f"the gateway's certificate ends on {facts['gateway-certificate-expires']}")
    typer.echo(f"next: instahide coordinator start {study}")


app.command("start")(coordinator_start)
app.command("admit")(admit)


@app.command("run")
def run(
    study: Path = STUDY,
    name: str = typer.Option(..., "--name", help="Name of the run; its folder is STUDY/runs/NAME."),
    config: Path | None = typer.Option(None, help="TOML file with the run's settings."),
    settings: list[str] = typer.Option(
        [], "--set", help="One setting as KEY=VALUE; repeat. `coordinator settings` lists them all."
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Start a run and follow it to its end; the exit code is the run's. Ctrl-C stops the run.

    Example: instahide coordinator run study/ --name trial-1 --set model=resnet18
    """
    from ..study import load_study, prepare_run

    made = load_study(study)
    values = not_ours({**read_settings(config), **parse_settings(settings)}) | {"run-name": name}
    with _control(made.path) as control:
        run_config = prepare_run(made, values)
        _submit_and_follow(control, made, run_config, output)


@app.command("plan")
def plan(
    study: Path = STUDY,
    name: str = typer.Option(..., "--name", help="Name of the run; one that exists would be resumed."),
    config: Path | None = typer.Option(None, help="TOML file with the run's settings."),
    settings: list[str] = typer.Option(
        [], "--set", help="One setting as KEY=VALUE; repeat. `coordinator settings` lists them all."
    ),
    out: Path | None = typer.Option(None, help="Where to write the plan (default: NAME.plan.json here)."),
    output: OutputFormat = FORMAT,
) -> None:
    """Write the plan of a run for the sites to approve beforehand; nothing is started.

    Give the settings that `coordinator run` (or, for a run that exists, `coordinator resume`) will be
    given: the plan is the same.

    Example: instahide coordinator plan study/ --name trial-1 --set model=resnet18
    """
    from ..config import RunConfig
    from ..flower_processes.bundle import build_bundle
    from ..plan import Plan, write_plan
    from ..study import load_run, load_study, run_config

    made = load_study(study)
    values = not_ours({**read_settings(config), **parse_settings(settings)}) | {"run-name": name}
    if name in made.run_names():
        planned = RunConfig.from_mapping(load_run(made, name).to_mapping() | values)
    else:
        planned = run_config(made, values)
    target = out or Path(f"{name}.plan.json")
    made_plan = Plan.of(planned, bundle_sha256=build_bundle().sha256)
    write_plan(made_plan, target)
    if output is OutputFormat.json:
        print_json({"sha256": made_plan.sha256, "run": name, "file": str(target)})
        return
    typer.echo(f"plan {made_plan.short} of run {name} is in {target}; send it to the sites")
    typer.echo(f"there: instahide node plan approve NODE --file {target.name}")


@app.command("resume")
def resume(
    study: Path = STUDY,
    name: str = typer.Argument(..., help="Name of the run.", show_default=False),
    settings: list[str] = typer.Option(
        [], "--set", help="KEY=VALUE for settings that may change on resume (rounds, deadlines)."
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Continue a run after its last checkpoint, with the true round number.

    Example: instahide coordinator resume study/ trial-1 --set num-server-rounds=20
    """
    from ..config import RunConfig
    from ..run_sites import carry_over
    from ..study import load_run, load_study

    made = load_study(study)
    values = load_run(made, name).to_mapping() | not_ours(parse_settings(settings)) | {"resume": True}
    for moved in carry_over(made, name):
        typer.echo(f"{moved} has another node key since the run began", err=True)
    with _control(made.path) as control:
        _submit_and_follow(control, made, RunConfig.from_mapping(values), output)


app.command("status")(coordinator_status)


@app.command("settings")
def settings_table(output: OutputFormat = FORMAT) -> None:
    """List every setting of a run: default, allowed values, meaning.

    Example: instahide coordinator settings --format json
    """
    from ..config import describe_settings

    rows = list(describe_settings())
    if output is OutputFormat.json:
        keys = ("setting", "default", "allowed", "meaning")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "default", "allowed", "meaning")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


app.command("revoke")(revoke)
app.command("doctor")(coordinator_doctor)
app.command("renew")(renew)


def _control(study: Path) -> Any:
    """The control interface of the study's coordinator; raises InstaHideError if it is not up."""
    from ..flower_processes.superlink import CoordinatorFolder, find_superlink

    folder = CoordinatorFolder(study)
    address = find_superlink(folder)
    from ..flower_processes.control import ControlClient  # seconds to import, and of no use before

    return ControlClient(address, authority=folder.authority.certificate)


def _wait_for_server_app(folder: Path) -> None:
    """Let a stopped run write its last event and free its folder, so that it can be resumed at once."""
    from ..study import run_is_served

    deadline = time.monotonic() + STOP_SECONDS
    while run_is_served(folder) and time.monotonic() < deadline:
        time.sleep(0.1)


def _submit_and_follow(control: Any, study: Any, config: Any, output: OutputFormat) -> None:
    from ..expiry import study_warnings
    from ..flower_processes.bundle import build_bundle
    from ..following import EventTail, follow_run, raise_unless_completed
    from ..plan import Plan
    from ..study import record_submission

    for line in study_warnings(study):
        typer.echo(line, err=True)
    folder = Path(config.run_directory)
    tail = EventTail(folder / "events.jsonl", from_start=not config.resume)
    bundle = build_bundle()
    plan = Plan.of(config, bundle_sha256=bundle.sha256)
    record_submission(study, config, plan)
    if output is OutputFormat.text:
        typer.echo(f"plan {plan.short}: sites serve it once they have approved it")
    run_id = control.submit_run(bundle, config.to_run_config())
    seen: list[dict[str, Any]] = []

    def show(event: dict[str, Any]) -> None:
        seen.append(event)
        words = describe_event(event)
        if words and output is OutputFormat.text:
            typer.echo(words)

    try:
        final = follow_run(control, run_id, tail, show)
    except KeyboardInterrupt:
        control.stop_run(run_id)
        _wait_for_server_app(folder)
        typer.echo(f"stopped; go on with: instahide coordinator resume {study.path} {folder.name}", err=True)
        raise
    raise_unless_completed(final, seen)
    last = [event for event in seen if event["event"] == "evaluation-finished"]
    result = {"run": config.run_name, "folder": str(folder), "metrics": last[-1]["metrics"] if last else {}}
    if output is OutputFormat.json:
        print_json(result)
    else:
        typer.echo(f"done: model, card, metrics and events are in {folder}")
