"""The site worker: the long-lived process that owns a hospital's images.

::

    python -m federation.site.worker --config worker.toml

It loads the data once, keeps the encoder, the exposure ledger, the model and the device, and
answers the relay over a Unix socket (``worker.toml`` says where, ``policy.toml`` what it may
be asked). When it is ready it prints one line of JSON on standard output,
``{"event": "ready", ...}``, and writes the same to ``ready-file`` if one is named. SIGTERM and
SIGINT end it within five seconds, work or no work, with exit code 0 and no socket left behind.

======  ===============================================
code    meaning
======  ===============================================
0       told to stop
2..4    could not start; see :mod:`instahide.errors`
======  ===============================================
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instahide.atomic import atomic_write_text
from instahide.encoder import Encoder, FewPixelsWarning
from instahide.encoder_config import EncoderConfig
from instahide.errors import InstaHideError, InvalidInputError, RefusedError
from instahide.exposure import ExposureLedger
from instahide.images import ImageSet
from instahide.models import build_model
from instahide.training import train
from instahide.training_config import TrainingConfig

from ..frames import BUNDLE_KEY, Frame
from ..messages import SiteReply
from ..privacy_ledger import LEDGER_NAME as PRIVACY_LEDGER_NAME
from ..privacy_ledger import PrivacyLedger
from .audit import AuditFailedError, SiteAudit, open_site_log, site_identity
from .dataset import SiteData, load_site_data, register
from .listener import Listener
from .log import path_scrubber, set_up_logging
from .masked_rounds import MaskedRounds
from .plans import PlanBook
from .policy import load_policy
from .privacy_budget import SitePrivacy
from .round_task import SiteTasks
from .run_history import RunHistory
from .service import Service, ServiceLimits
from .worker_config import WorkerConfig, load_worker_config

logger = logging.getLogger(__name__)

LEDGER_NAME = "exposure.sqlite3"
ENCODINGS_NAME = "encodings"


@dataclass(frozen=True)
class Site:
    """An opened site: its data, its ledger and what answers requests over them."""

    config: WorkerConfig
    data: SiteData
    ledger: ExposureLedger
    tasks: SiteTasks
    audit: SiteAudit


def open_site(config: WorkerConfig, *, accept_changed_data: bool = False) -> Site:
    """Load and register the data, open the ledger and the history.

    Raises:
        InstaHideError: unreadable data, a damaged state file, or data that changed unasked.
    """
    state = _state_folder(config)
    data = load_site_data(config)
    ledger = ExposureLedger(state / LEDGER_NAME)
    register(data, ledger, state, accept_changes=accept_changed_data)
    data = _without_copies(data, ledger)
    audit = SiteAudit(
        open_site_log(config),
        coordinator_key=config.path(config.coordinator_key) if config.coordinator_key else None,
        scrub=path_scrubber(_paths(config)),
    )
    tasks = SiteTasks(
        config.site_name,
        data,
        ledger=ledger,
        history=RunHistory(state),
        plans=PlanBook(state),
        audit=audit,
        masked_rounds=MaskedRounds(config.site_name, lambda: site_identity(config).private_key),
        privacy=SitePrivacy(PrivacyLedger(state / PRIVACY_LEDGER_NAME)),
        policy_path=config.path(config.policy),
        encodings_folder=state / ENCODINGS_NAME,
        device=config.device,
        threads=config.threads,
    )
    return Site(config, data, ledger, tasks, audit)


def _without_copies(data: SiteData, ledger: ExposureLedger) -> SiteData:
    """An image that is there twice would be encoded twice an epoch: its copies are left out."""
    training = ledger.without_copies(data.training)
    if left_out := len(data.training) - len(training):
        logger.warning("%d exact copies of training images are left out", left_out)
    return replace(data, training=training)


def run_worker(config: WorkerConfig, *, accept_changed_data: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    scrub = path_scrubber(_paths(config))
    torch.set_num_threads(config.threads)
    limits = ServiceLimits(
        max_payload_bytes=config.max_payload_bytes, busy_wait_seconds=config.busy_wait_seconds
    )
    _state_folder(config)
    ready_file = config.path(config.ready_file) if config.ready_file else None
    # The door first: a second worker is refused before it reads a single image, and a relay that
    # knocks while the data are loaded is served as soon as they are.
    with Listener(
        config.path(config.socket), allowed_uids=config.uids, group=config.socket_group
    ) as listener:
        _remove(ready_file)  # an earlier worker's
        site = open_site(config, accept_changed_data=accept_changed_data)
        _warn_early(site)
        _warm_up(config)
        service = Service(listener, config.site_name, _answering(site.tasks), limits, scrub=scrub)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        site.audit.started(config.path(config.policy))
        _say_ready(site)
        ended = service.serve()
        with suppress(AuditFailedError):
            site.audit.stopped()
        _remove(ready_file)
    logger.info("stopped")
    if not ended:
        # A step still runs on its thread, which Python would wait for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _state_folder(config: WorkerConfig) -> Path:
    folder = config.path(config.state_folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _remove(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)


def _answering(tasks: SiteTasks) -> Callable[[Frame, Callable[[], bool]], SiteReply]:
    def answer(frame: Frame, should_stop: Callable[[], bool]) -> SiteReply:
        if set(frame.fields) != {"config", BUNDLE_KEY}:
            raise InvalidInputError(
                "the request is not config and bundle-sha256", hint="relay and worker need one release"
            )
        settings, bundle = frame.fields["config"], frame.fields[BUNDLE_KEY]
        if not isinstance(settings, Mapping) or not isinstance(bundle, str):
            raise InvalidInputError("the request's fields have wrong types", hint="send text and a mapping")
        return tasks.answer(
            frame.kind,
            settings,
            dict(frame.arrays),
            aggregation_record=frame.octets,
            bundle_sha256=bundle,
            should_stop=should_stop,
        )

    return answer


def _say_ready(site: Site) -> None:
    config, data = site.config, site.data
    message: dict[str, Any] = {
        "event": "ready",
        "site": config.site_name,
        "pid": os.getpid(),
        "num-training-images": len(data.training),
        "num-test-images": len(data.test),
        "num-classes": len(data.class_names),
        "image-shape": list(data.training.image_shape),
        "device": config.device,
    }
    if config.ready_file:
        atomic_write_text(config.path(config.ready_file), json.dumps(message) + "\n", mode=0o600)
    print(json.dumps(message), flush=True)
    logger.info("ready: %d training images, %d test images", len(data.training), len(data.test))


def _warn_early(site: Site) -> None:
    """Say at the start what would otherwise be said at the first request."""
    try:
        if not load_policy(site.config.path(site.config.policy)).plan_approval:
            logger.warning("plan-approval is false: runs are served without anyone's approval")
    except RefusedError as error:
        logger.warning("%s", error.message)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewPixelsWarning)
            Encoder(EncoderConfig(num_mixed=1, num_private=1), private=site.data.training)
        for warning in caught:
            logger.warning("%s", warning.message)
    except (InvalidInputError, RefusedError) as error:
        logger.warning("these images cannot be encoded: %s", error.message)


def _warm_up(config: WorkerConfig) -> None:
    """One throw-away training step: what torch loads at its first one takes seconds."""
    images = ImageSet(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]))
    model = build_model("mlp", image_shape=(1, 2, 2), num_classes=2)
    train(model, images, TrainingConfig(epochs=1, device=config.device, num_threads=config.threads))


def _paths(config: WorkerConfig) -> dict[str, Path]:
    keys = ["data", "test_data", "public_data", "policy", "socket", "state_folder", "ready_file"]
    keys += ["identity_key", "coordinator_key"]
    written = {key.replace("_", "-"): getattr(config, key) for key in keys}
    return {key: config.path(text) for key, text in written.items() if text} | {"folder": config.folder}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the worker; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m federation.site.worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="worker.toml")
    parser.add_argument(
        "--accept-changed-data", action="store_true", help="register the data anew where they changed"
    )
    parser.add_argument("--debug", action="store_true", help="log details, which may name files")
    options = parser.parse_args(arguments)
    scrub: Callable[[str], str] = str
    try:
        config = load_worker_config(options.config)
        if not options.debug:
            scrub = path_scrubber(_paths(config))
        set_up_logging(scrub, level=logging.DEBUG if options.debug else logging.INFO)
        return run_worker(config, accept_changed_data=options.accept_changed_data)
    except InstaHideError as error:
        print(f"error: {scrub(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"hint: {scrub(error.hint)}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
