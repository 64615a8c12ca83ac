"""The model card: what the model is, what it was trained on, and what nothing here protects."""

from __future__ import annotations

from typing import Any

from ..config import RunConfig
from .client_privacy import ClientGuarantee
from .outputs import MetricsTable
from .privacy_statement import privacy_statement

_LIMITS_OF_ENCODING = """\
The sites trained on InstaHide encodings (Huang, Song, Li, Arora, ICML 2020). InstaHide is **not
encryption and is broken**: Carlini et al. (2020) recovered the private images from released
encodings. It hides images from a casual look and gives **no privacy guarantee in numbers**: no
differential-privacy parameter can be stated for it, and none is stated here."""

_LIMITS_OF_PLAIN = """\
The sites trained on their images as they are, without encoding. Nothing here gives a privacy
guarantee in numbers, and none is stated."""

_LIMITS_BESIDE_PRIVACY = """\
The sites trained on their images as they are, without encoding. What is promised in numbers is under
"Differential privacy", and nothing beyond it."""

_LIMITS_OF_UPDATES = """\
The coordinator saw every site's update in the clear in every round. Images, or encodings of
them, can be reconstructed from updates, and membership of a patient's image in the training data
can be inferred from the model itself. Treat this file as you would treat data derived from
patients. Before clinical use the model needs validation that this run does not provide."""


_LIMITS_OF_SUMS = """\
The coordinator saw sums over sites and no single update. A sum shows less of each site, the less the more
sites are in it; membership of a patient's image in the training data can still be inferred from the
model itself. Treat this file as you would treat data derived from patients. Before clinical use the
model needs validation that this run does not provide."""


def write_model_card(
    config: RunConfig, table: MetricsTable, server_round: int, guarantee: ClientGuarantee | None = None
) -> str:
    """The card as Markdown; ``guarantee`` is that of a run with client-level differential privacy."""
    rows = [row for row in table.rounds if "sites" in row]
    last: dict[str, Any] = next((row for row in reversed(table.rounds) if "evaluate-num-examples" in row), {})
    sections = [
        f"# {config.run_name}\n\nModel `{config.model}` after {server_round} rounds of federated training.",
        "## Trained on\n\n" + _sites_table(rows),
        "## Measured on the sites' test images\n\n" + _accuracies(last),
        "## Settings\n\n" + _settings(config),
    ]
    statement = privacy_statement(config, rows, guarantee)
    limits = _LIMITS_OF_PLAIN if config.encoding == "none" else _LIMITS_OF_ENCODING
    beside = _LIMITS_OF_SUMS if config.secure_aggregation else _LIMITS_OF_UPDATES
    if statement:
        sections.append("## Differential privacy\n\n" + statement)
        limits = _LIMITS_BESIDE_PRIVACY if config.encoding == "none" else limits
    sections.append("## Limits\n\n" + limits + "\n\n" + beside)
    return "\n\n".join(sections) + "\n"


def _sites_table(rows: list[dict[str, Any]]) -> str:
    """A line a hospital: the examples it claimed and the rounds it contributed to."""
    contributions: dict[str, list[int]] = {}
    for row in rows:
        for name, metrics in row["by-site"].items():
            if "num-examples" in metrics:
                contributions.setdefault(name, []).append(metrics["num-examples"])
    lines = ["| hospital | training images | rounds |", "|---|---|---|"]
    for name, counts in sorted(contributions.items()):
        lines.append(f"| {name.replace('|', '/')} | {max(counts)} | {len(counts)} of {len(rows)} |")
    return "\n".join(lines)


def _accuracies(row: dict[str, Any]) -> str:
    if not row:
        return "Not measured."
    text = (
        f"Model after round {row['round']}, {row['evaluate-num-examples']} images at "
        f"{row['evaluate-sites']} hospitals, weighted by images.\n\n"
        "| inference | accuracy | loss |\n|---|---|---|"
    )
    for mode, words in _MODES.items():
        if f"evaluate-accuracy-{mode}" in row:
            loss = row.get(f"evaluate-loss-{mode}")
            shown = "" if loss is None else f"{loss:.4f}"
            text += f"\n| {words} | {row[f'evaluate-accuracy-{mode}']:.4f} | {shown} |"
    return text


_MODES = {
    "plain": "plain query",
    "one-view": "one encoded view",
    "ten-views": "average over several encoded views (num-views)",
}


def _settings(config: RunConfig) -> str:
    hidden = {"run-directory", "audit-folder", "resume"}
    if config.differential_privacy == "none":
        hidden |= {"noise-multiplier", "max-grad-norm", "target-delta", "target-epsilon"}  # nothing has one
    shown = {key: value for key, value in config.to_mapping().items() if key not in hidden}
    return "| setting | value |\n|---|---|\n" + "\n".join(
        f"| {key} | {value} |" for key, value in shown.items()
    )
