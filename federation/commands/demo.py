"""``instahide demo``: the whole product on one machine, in about a minute."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from instahide.errors import RefusedError

from .console import OutputFormat, print_json


def demo(
    data: Path | None = typer.Option(
        None,
        help="Labelled images to use instead of scikit-learn's digits: a folder or a file.",
        show_default=False,
    ),
    out: Path | None = typer.Option(
        None, help="Output folder (default: demo-DATE-TIME here).", show_default=False
    ),
    rounds: int = typer.Option(6, min=3, max=100, help="Rounds of each federated run."),
    concentration: float = typer.Option(
        0.5, min=0.05, max=1000.0, help="How even the hospitals' classes are: 0.1 very uneven, 100 even."
    ),
    output: OutputFormat = typer.Option(
        OutputFormat.text, "--format", help="text for people, json for programs."
    ),
) -> None:
    """Three hospitals and a coordinator as real processes on this machine, ending with a leak figure.

    TLS and node keys as in earnest. Trains each hospital alone, all together, and all together on
    encodings; kills one hospital in the middle; tests whether an outsider can tell which images
    were encoded; writes index.html.

    Example: instahide demo --data pneumoniamnist.npz --rounds 5
    """
    folder = (out or Path(time.strftime("demo-%Y%m%d-%H%M%S"))).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise RefusedError(f"{folder} is not empty", hint="choose another --out, or delete it")
    began = time.monotonic()

    def say(text: str) -> None:
        if output is OutputFormat.text:
            typer.echo(f"[{time.monotonic() - began:5.1f} s] {text}")

    say("InstaHide FL demonstration; the encoding it shows is broken, and it measures how badly")
    from ..demo.settings import DemoSettings

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = DemoSettings(out=folder, data=data, num_server_rounds=rounds, concentration=concentration)
    from ..demo.story import run_demo

    results = run_demo(settings, say)
    if output is OutputFormat.json:
        print_json({**results, "folder": str(folder)})
        return
    _print_summary(results, settings.num_mixed)
    say(f"everything is in {folder}: open {folder / 'index.html'}")


def _print_summary(results: dict[str, object], num_mixed: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("trained", "plain query", "one encoded view", "ten encoded views", title="accuracy")
    rows: dict[str, dict[str, float | None]] = {f"{k} alone": v for k, v in results["alone"].items()}  # type: ignore[attr-defined]
    rows["federated, plain images"] = results["federated-plain"]["final"]  # type: ignore[index]
    rows["federated, encodings"] = results["federated-encoded"]["final"]  # type: ignore[index]
    for name, modes in rows.items():
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in modes.values()))
    Console().print(table)
    attack = results["membership"][f"k={num_mixed}"]  # type: ignore[index]
    low, high = attack["intervals"]["auc"]
    typer.echo(
        f"leak: from one encoding an outsider tells members from others with AUC "
        f"{attack['metrics']['auc']:.2f} "
        f"({low:.2f} to {high:.2f}; 0.5 is guessing)"
    )
