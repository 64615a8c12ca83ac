"""A tiny hospital for tests: scikit-learn's digits, an MLP, and requests about them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.audit_log import AuditLog
from federation.config import RunConfig
from federation.identity import load_or_create_identity
from federation.messages import Arrays, RoundRequest
from federation.site.audit import AUDIT_FILE, SiteAudit
from federation.site.dataset import SiteData
from federation.site.weights import read_weights
from instahide.images import ImageSet
from instahide.models import build_model

UNASKED = "plan-approval = false  # these tests are about other rules\n"
CLASS_NAMES = [str(digit) for digit in range(10)]
RUN = {
    "model": "mlp",
    "class-names": CLASS_NAMES,
    "image-shape": [1, 8, 8],
    "num-server-rounds": 10,
    "batch-size": 32,
    "num-views": 2,
}


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(1797, 8, 8) images and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)
    images.setflags(write=False)
    return images, bunch.target.astype(np.int64)


def digit_images(first: int, last: int) -> ImageSet:
    images, labels = digits()
    return ImageSet(images[first:last], labels[first:last], CLASS_NAMES)


def site_data(num_training: int = 120, num_test: int = 60) -> SiteData:
    return SiteData(digit_images(0, num_training), digit_images(num_training, num_training + num_test))


def request(server_round: int = 1, kind: str = "train", **settings: Any) -> RoundRequest:
    """One round of a run on the digits; settings in snake_case."""
    given = {key.replace("_", "-"): value for key, value in settings.items()}
    return RoundRequest.for_round(RunConfig.from_mapping(RUN | given), server_round, {}, kind)


def initial_weights(model: str = "mlp", *, normalization: str = "group") -> Arrays:
    shape = (1, 8, 8)
    return read_weights(build_model(model, image_shape=shape, num_classes=10, normalization=normalization))


def site_audit(folder: Path) -> SiteAudit:
    """A site's audit log in ``folder``, under a key of its own there."""
    identity = load_or_create_identity(folder / "identity.key")
    return SiteAudit(AuditLog(folder / AUDIT_FILE, identity, role="site", name="north"))


def write_site(folder: Path, *, policy: str = "", worker: str = "") -> Path:
    """Data, policy.toml and worker.toml in ``folder``; returns the path of worker.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    np.savez(
        folder / "data.npz",
        x_train=images[:120],
        y_train=labels[:120],
        x_test=images[120:180],
        y_test=labels[120:180],
    )
    (folder / "policy.toml").write_text(policy)
    (folder / "worker.toml").write_text(
        'site-name = "north"\ndata = "data.npz"\npolicy = "policy.toml"\nsocket = "run/w.sock"\n'
        'state-folder = "state"\ndevice = "cpu"\nthreads = 1\n' + worker
    )
    return folder / "worker.toml"
