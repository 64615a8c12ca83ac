"""A hospital with the strict policy that serves approved plans only, and a coordinator's words to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from federation.config import RunConfig
from federation.hidden_sum import roster_entry
from federation.identity import Identity
from federation.messages import SESSION, TRAIN, UNMASK, Arrays, RoundRequest, SiteReply
from federation.plan import Plan
from federation.privacy_ledger import PrivacyLedger
from federation.site.dataset import SiteData
from federation.site.masked_rounds import MaskedRounds
from federation.site.plans import APPROVED, PlanBook
from federation.site.privacy_budget import SitePrivacy
from federation.site.round_task import SiteTasks
from federation.site.run_history import RunHistory
from federation.site.weights import read_weights
from instahide.attacks.replica import make_replica
from instahide.attacks.update_inversion import (
    Defence,
    LocalTraining,
    UpdateView,
    build_network,
    set_traps,
)
from instahide.encoder_config import EncoderConfig
from instahide.exposure import ExposureLedger
from instahide.mixing import to_unit_range
from instahide.training_config import TrainingConfig

from .site.site_examples import RUN, digit_images, initial_weights, site_audit

SHAPE = (1, 8, 8)
BUNDLE = "ab" * 32
WEIGHTS = initial_weights()
OPEN = "encoding-required = false\n"
PLAIN = {"encoding": "none", "evaluate": False}


class Hospital:
    """The site's real tasks; ``policy`` is added to an otherwise empty ``policy.toml``."""

    def __init__(
        self, folder: Path, policy: str = "", *, name: str = "north", first: int = 0, count: int = 60
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "policy.toml").write_text(policy)
        self.folder, self.name = folder, name
        self.identity = Identity(Ed25519PrivateKey.generate())
        self.data = SiteData(digit_images(first, first + count), digit_images(1700, 1720))
        self.plans = PlanBook(folder)
        self.tasks = SiteTasks(
            name,
            self.data,
            ledger=ExposureLedger(folder / "ledger.sqlite3"),
            history=RunHistory(folder),
            plans=self.plans,
            audit=site_audit(folder),
            masked_rounds=MaskedRounds(name, lambda: self.identity.private_key),
            privacy=SitePrivacy(PrivacyLedger(folder / "privacy.sqlite3")),
            policy_path=folder / "policy.toml",
            encodings_folder=folder / "encodings",
            device="cpu",
            threads=1,
        )

    @property
    def roster_entry(self) -> str:
        return roster_entry(self.name, self.identity.public_line)

    @property
    def images(self) -> torch.Tensor:
        """(n, 1, 8, 8) as the site trains on them without encoding."""
        return to_unit_range(self.data.training.images.copy())

    def approve(self, *, bundle: str = BUNDLE, **settings: Any) -> None:
        """A person at the site reads the plan and agrees."""
        plan = Plan.of(config(**settings), bundle_sha256=bundle)
        self.plans.add(plan)
        self.plans.decide(plan, APPROVED, by="privacy officer")

    def ask(
        self,
        server_round: int = 1,
        kind: str = TRAIN,
        arrays: Arrays | None = None,
        *,
        record: bytes = b"",
        bundle: str = BUNDLE,
        raw: dict[str, Any] | None = None,
        **settings: Any,
    ) -> SiteReply:
        """The coordinator's request; ``raw`` are settings it writes past its own checks."""
        mapping = RoundRequest.for_round(config(**settings), server_round, {}, kind).to_mapping()
        sent = {} if kind in (SESSION, UNMASK) else WEIGHTS if arrays is None else arrays
        return self.tasks.answer(
            kind, mapping | (raw or {}), sent, aggregation_record=record, bundle_sha256=bundle
        )


def config(**settings: Any) -> RunConfig:
    given = {key.replace("_", "-"): value for key, value in settings.items()}
    return RunConfig.from_mapping(RUN | given)


def refusal(reply: SiteReply) -> tuple[str, str]:
    """(kind, reason), and nothing else came."""
    assert reply.refusal is not None, "it was served"
    assert not reply.arrays
    assert not reply.metrics
    assert not reply.aggregation_record
    return reply.refusal.kind, reply.refusal.reason


def crafted_weights(num_images: int, kind: str = "units", *, encoded: bool = False) -> Arrays:
    """Trap weights in the run's model, from digits (or encodings of them) that no hospital here has."""
    model = build_network("mlp", image_shape=SHAPE, num_classes=10)
    others = digit_images(1000, 1600)
    stand_ins = to_unit_range(others.images.copy())
    if encoded:
        law = EncoderConfig(num_mixed=4)
        stand_ins = make_replica(others, public=None, config=law, releases=1).encoded.images
    return read_weights(set_traps(model, stand_ins, num_images=num_images, kind=kind))


def what_the_coordinator_reads(
    sent: Arrays, received: Arrays, num_images: int, *, num_sites: int = 1, **settings: Any
) -> UpdateView:
    """The view of the weights that came back, under the plan the coordinator wrote itself."""
    run = config(**settings)
    model = build_network("mlp", image_shape=SHAPE, num_classes=10)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in sent.items()})
    change = {name: torch.from_numpy(received[name].astype(np.float64) - sent[name]) for name in sent}
    plan = LocalTraining(
        num_images=num_images,
        batch_size=run.batch_size,
        epochs=run.local_epochs,
        learning_rate=run.learning_rate,
        momentum=run.momentum,
        weight_decay=run.weight_decay,
        max_gradient_norm=TrainingConfig().max_gradient_norm,
    )
    return UpdateView(model, change, "update", plan, SHAPE, 10, defence=Defence(num_sites=num_sites))


def came_out(found: torch.Tensor, truth: torch.Tensor, error: float = 1e-4) -> NDArray[np.bool_]:
    """(n,) which true images are among those found: mean square error below ``error`` on [-1, 1]."""
    if not len(found):
        return np.zeros(len(truth), dtype=bool)
    distance = (truth.double()[:, None] - found.double()[None]).square().flatten(2).mean(-1)
    return np.asarray((distance < error).any(1).numpy())
