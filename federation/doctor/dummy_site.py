"""A stand-in for the site's own folder: made-up images of its shape, its policy, keys of an hour.

The dry run must touch nothing of the site's. So the worker it starts has a folder of its own, in
the system's folder for temporary files and gone afterwards: ledgers, plans, audit log, identity and
socket are there. Of the site it takes what cannot be charged or written: the policy (read where it
is), the classes, the image shape, the device and the number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instahide.atomic import atomic_write_text
from instahide.errors import InvalidInputError

from ..config import RunConfig
from ..identity import Identity, create_identity
from ..joining import read_request
from ..node_folder import NodeFolder
from ..site.dataset import CARD_NAME
from ..site.policy import Policy, load_policy
from ..site.worker_config import WorkerConfig, load_worker_config

RUN_NAME = "dry-run"
FEWEST_IMAGES, TEST_IMAGES = 64, 16
SMALLEST_SIDE = 8  # of a picture for the convolutional network
MOST_NOISE = 50.0
MOST_BYTES = 1 << 29
BUNDLE = "0" * 64  # of no app: the plan of a dry run is no plan of a run


@dataclass(frozen=True)
class SiteFacts:
    """What a dry run takes from the site: settings, policy, classes, image shape (C, H, W)."""

    config: WorkerConfig
    policy: Policy
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def num_images(self) -> int:
        """Training images to make up: as many as the policy asks for, and enough to mix."""
        return max(FEWEST_IMAGES, self.policy.minimum_examples)

    @property
    def is_table(self) -> bool:
        """Rows of a table in the form of an image (``ImageSet.is_table``)."""
        return self.image_shape[:2] == (1, 2)


def facts_of(folder: NodeFolder) -> SiteFacts:
    """Read them from the folder's files; no image is opened.

    Raises InvalidInputError where no file says the image shape, or where so many images would have to
    be made up that it is no short test any more; RefusedError for a policy that refuses everything.
    """
    config = load_worker_config(folder.worker_config)
    policy = load_policy(config.path(config.policy))
    class_names, shape = _registered(config) or _asked_with(folder, config)
    facts = SiteFacts(config, policy, class_names, shape)
    if (needed := facts.num_images * int(np.prod(shape))) > MOST_BYTES:
        raise InvalidInputError(
            f"the policy's minimum-examples asks for {facts.num_images:,} images, {needed / 2**30:.1f} GiB",
            hint="a dry run is for a quick look; with such a policy, try a run of one round instead",
        )
    return facts


def _registered(config: WorkerConfig) -> tuple[tuple[str, ...], tuple[int, int, int]] | None:
    """From the card that the worker wrote at its first start."""
    try:
        card = json.loads((config.path(config.state_folder) / CARD_NAME).read_text(encoding="utf-8"))
        channels, height, width = map(int, card["image-shape"])
        return tuple(map(str, card["class-names"])), (channels, height, width)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _asked_with(folder: NodeFolder, config: WorkerConfig) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    path = folder.path / f"{config.site_name}.request.json"
    if not path.exists():
        raise InvalidInputError(
            "no file says which shape this site's images have", hint="`instahide node request NODE` writes it"
        )
    request = read_request(path)
    channels, height, width = request.image_shape
    return request.class_names, (channels, height, width)


def settings_of(facts: SiteFacts) -> dict[str, Any]:
    """Settings of a run of one round that this policy lets through, if it lets any through."""
    policy = facts.policy
    sites = max(3 if policy.secure_aggregation_required else 2, policy.minimum_cohort_size)
    settings: dict[str, Any] = {
        "run-name": RUN_NAME,
        "model": "mlp" if min(facts.image_shape[1:]) < SMALLEST_SIDE else "small-cnn",
        "class-names": list(facts.class_names),
        "image-shape": list(facts.image_shape),
        "num-server-rounds": 1,
        "batch-size": 16,
        "num-views": 1,
        "minimum-sites": sites,
        "max-failed-rounds": 0,
        "settle-time": 0.0,
        "start-deadline": 5.0,
        "secure-aggregation": policy.secure_aggregation_required,
    }
    return settings | _protection(facts)


def _protection(facts: SiteFacts) -> dict[str, Any]:
    policy = facts.policy
    if policy.dp_required:
        # Enough noise that one round is within any budget worth having, and not too much for its grid.
        needed = 4.0 / policy.max_epsilon if policy.max_epsilon else 0.0
        return {
            "encoding": "none",
            "differential-privacy": "example",
            "noise-multiplier": max(8.0, min(needed, MOST_NOISE), policy.minimum_noise_multiplier),
            "target-delta": min(policy.max_delta, 0.1 / facts.num_images),
        }
    if facts.is_table:
        return {"encoding": "none"}
    allowed = policy.allowed_encoding_modes
    private = max(2, policy.minimum_num_private)
    return {
        "encoding": "instahide" if allowed else "none",
        "encoding-mode": allowed[0] if allowed else "hardened",
        "num-mixed": max(4, policy.minimum_num_mixed, private),
        "num-private": private,
    }


@dataclass(frozen=True)
class DummySite:
    """The stand-in's files. ``coordinator`` is the key of the coordinator it has joined, so to speak."""

    folder: Path
    facts: SiteFacts
    identity: Identity
    coordinator: Identity

    @property
    def worker_config(self) -> Path:
        return self.folder / "worker.toml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        return self.folder / "relay" / "worker.sock"

    @property
    def ready_file(self) -> Path:
        return self.folder / "ready.json"

    def ready(self) -> Mapping[str, Any]:
        """What the worker said when it was ready."""
        table: dict[str, Any] = json.loads(self.ready_file.read_text(encoding="utf-8"))
        return table


def make_dummy_site(facts: SiteFacts, folder: Path, coordinator: Path) -> DummySite:
    """Write images, keys and ``worker.toml`` into ``folder``; the coordinator's key to ``coordinator``."""
    folder.mkdir(mode=0o700, parents=True)
    site = DummySite(folder, facts, create_identity(folder / "identity.key"), create_identity(coordinator))
    (folder / "coordinator.pub").write_text(site.coordinator.public_line + "\n")
    _write_images(folder / "images.npz", facts, facts.num_images, TEST_IMAGES)
    config = facts.config
    settings: dict[str, Any] = {
        "site-name": config.site_name,
        "data": "images.npz",
        "policy": str(config.path(config.policy)),
        "socket": str(site.socket),
        "state-folder": "state",
        "identity-key": "identity.key",
        "coordinator-key": "coordinator.pub",
        "ready-file": "ready.json",
        "class-names": list(facts.class_names),
        "device": config.device,
        "threads": config.threads,
    }
    if config.public_data:
        _write_images(folder / "public.npz", facts, FEWEST_IMAGES, 0)
        settings["public-data"] = "public.npz"
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    atomic_write_text(site.worker_config, "\n".join(lines) + "\n", mode=0o600)
    return site


def _write_images(path: Path, facts: SiteFacts, training: int, test: int) -> None:
    """Noise in every class, as names: the reader turns them into the site's numbers."""
    channels, height, width = facts.image_shape
    shape = (height, width) if channels == 1 else (height, width, channels)
    generator = np.random.default_rng(0)  # noise for show: nothing secret
    names = np.array(facts.class_names)

    def part(count: int) -> tuple[Any, Any]:
        pixels = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        return pixels, names[np.arange(count) % len(names)]

    arrays = dict(zip(("x_train", "y_train"), part(training), strict=True))
    if test:
        arrays |= dict(zip(("x_test", "y_test"), part(test), strict=True))
    np.savez(path, **arrays)


def run_config(facts: SiteFacts, *, roster: tuple[str, ...], run_folder: Path, audit: Path) -> RunConfig:
    """The coordinator's whole configuration of the dry run. Raises InvalidInputError."""
    settings = settings_of(facts) | {"run-directory": str(run_folder), "audit-folder": str(audit)}
    if facts.policy.secure_aggregation_required:
        settings |= {"roster": list(roster), "max-site-examples": facts.num_images}
    return RunConfig.from_mapping(settings)
