"""The run folder of a simulated run: what ``coordinator run`` puts there, for hospitals that never joined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instahide.atomic import atomic_write_text

from ..config import RunConfig
from ..hidden_sum import hidden_sum, roster_entry
from ..study import bound_on_sizes, write_initial_weights


def prepare_folder(
    config: RunConfig,
    folder: Path,
    names: Mapping[int, str],
    identity_lines: Mapping[int, str],
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    *,
    num_examples: Mapping[int, int],
) -> RunConfig:
    """Initial weights and ``sites.json`` (names, identity keys, sizes) in ``folder``; the complete settings.

    With secure aggregation the roster is everybody, and max-site-examples follows from the sizes as in a real
    study unless it was set to something else than its default.

    Raises InvalidInputError for settings that do not fit so many hospitals, or an unknown model.
    """
    settings: dict[str, Any] = config.to_mapping() | {
        "class-names": list(class_names),
        "image-shape": list(image_shape),
        "run-directory": str(folder.resolve()),
    }
    if config.secure_aggregation:
        settings["roster"] = [roster_entry(names[number], identity_lines[number]) for number in names]
        if config.max_site_examples == RunConfig.max_site_examples:
            settings["max-site-examples"] = bound_on_sizes(max(num_examples.values()))
    complete = RunConfig.from_mapping(settings)
    if complete.secure_aggregation:
        hidden_sum(complete, 1)  # thresholds and bits, before any work
    folder.mkdir(parents=True)
    write_initial_weights(complete, folder / "initial.safetensors")
    table = {
        str(number): {
            "name": name,
            "identity-key": identity_lines[number],
            "num-examples": num_examples[number],
        }
        for number, name in names.items()
    }
    atomic_write_text(folder / "sites.json", json.dumps(table) + "\n")
    return complete
