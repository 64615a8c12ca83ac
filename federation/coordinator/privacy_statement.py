"""What a model card says about differential privacy: unit, figures, and what is not covered."""

from __future__ import annotations

import math
from typing import Any

from ..config import RunConfig
from .client_privacy import ClientGuarantee

_CLIENT = """\
**One whole site** is protected, from whoever gets this model or that of any round. {figure}: the model
would have come out nearly as likely had one site, whichever, contributed no change at all. Every update was
clipped to {clip:g} (L2), and noise of {z:g} times that was added to each weight of their sum, in {releases}
releases. In the mean of {sites} sites the noise is {share:.3g} times as long as the longest update.
{trust} Not covered: which sites took part, their numbers of images, and the losses and accuracies in this
card and its tables."""

_TRUSTED = "The coordinator added the noise: it saw the updates and is trusted."
_SHARED = """\
The sites added the noise themselves, under secure aggregation: it also protects from the coordinator, if at
least {honest} of the sites in every sum keep the noise they added to themselves."""

_EXAMPLE = """\
**One training image** is protected (add or remove one), from whoever sees all the updates, the coordinator
included: every site trained with DP-SGD, noise multiplier {z:g}, gradients clipped to {clip:g}. Epsilon
is each site's own, for this run alone, at delta {delta:g}; other runs of the site add to it. Several images
of one person need a larger one. Not covered: test images and what was measured on them, the number
of images, and settings chosen after looking at earlier runs.

{table}"""


def privacy_statement(
    config: RunConfig, rows: list[dict[str, Any]], guarantee: ClientGuarantee | None
) -> str:
    """The text under "Differential privacy" in the card; empty for a run without.

    Args:
        rows: the table's rows of trained rounds.
        guarantee: of a run with client-level privacy.
    """
    if guarantee is not None:
        figure = f"Epsilon {guarantee.epsilon:.3g} at delta {guarantee.delta:g}"
        if not math.isfinite(guarantee.epsilon):
            figure = f"Epsilon above 30 at delta {guarantee.delta:g}, which promises nothing useful"
        sites = min((row["sites"] for row in rows), default=1)
        return _CLIENT.format(
            figure=figure,
            clip=guarantee.clip_norm,
            z=guarantee.noise_multiplier,
            releases=guarantee.num_releases,
            sites=sites,
            trust=_SHARED.format(honest=guarantee.fewest_honest_sites)
            if guarantee.fewest_honest_sites
            else _TRUSTED,
            share=guarantee.noise_multiplier * math.sqrt(guarantee.num_weights) / sites,
        )
    if config.differential_privacy != "example":
        return ""
    return _EXAMPLE.format(
        z=config.noise_multiplier, clip=config.max_grad_norm, delta=config.target_delta, table=_table(rows)
    )


def _table(rows: list[dict[str, Any]]) -> str:
    last: dict[str, float] = {}
    names: set[str] = set()
    for row in rows:
        for name, metrics in row["by-site"].items():
            names.add(name)
            if "epsilon-spent" in metrics:
                last[name] = metrics["epsilon-spent"]
    lines = ["| hospital | epsilon |", "|---|---|"]
    for name in sorted(names):
        shown = f"{last[name]:.3g}" if name in last else "not told (see `instahide node privacy` there)"
        lines.append(f"| {name.replace('|', '/')} | {shown} |")
    return "\n".join(lines)
