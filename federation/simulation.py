"""A federation in one process: the coordinator's rounds and the sites' tasks, with no network between them.

For studies that repeat many small runs. Everything that decides a result is the product's own: the rounds,
the checks of every update and the aggregation rule on one side (``coordinator.rounds``), policy, ledgers,
training and audit log on the other (``site.round_task``). What is missing is Flower, sockets, processes and
whatever goes wrong between them; ``federation/PROTOCOL.md`` and the tests of real runs are about those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file

from instahide.errors import InvalidInputError
from instahide.exposure import ExposureLedger
from instahide.models import ImageClassifier, ModelSpec, build_from_spec

from .audit_log import AuditLog
from .config import RunConfig
from .coordinator import rounds
from .coordinator.grid import GridReply
from .identity import load_or_create_identity
from .messages import RoundRequest
from .privacy_ledger import PrivacyLedger
from .site.audit import AUDIT_FILE, SiteAudit
from .site.dataset import SiteData
from .site.masked_rounds import MaskedRounds
from .site.plans import PlanBook
from .site.privacy_budget import SitePrivacy
from .site.round_task import SiteTasks
from .site.run_history import RunHistory
from .site.weights import load_weights, read_weights

STUDY_POLICY = """\
# A policy for studies on public data: nothing here protects anybody.
encoding-required = false
plan-approval = false
minimum-examples = 1
minimum-num-mixed = 1
minimum-num-private = 1
max-rounds = 100000
"""


def simulate(
    config: RunConfig, sites: Mapping[str, SiteData], folder: Path, *, threads: int = 1
) -> ImageClassifier:
    """Carry out the run of ``config`` over ``sites`` (name → data) in ``folder``; the last global model.

    Class names and image shape are those of the sites; ``config`` need not name them.

    Raises:
        InvalidInputError: no sites, sites that differ in classes or shape, or secure aggregation.
        FederationError: as ``rounds.run`` says, such as a round that too few sites answered.
    """
    shapes = {(data.class_names, data.training.image_shape) for data in sites.values()}
    if len(shapes) != 1:
        raise InvalidInputError(
            f"{len(sites)} sites with {len(shapes)} kinds of data",
            hint="give sites of the same classes and shape",
        )
    if config.secure_aggregation:
        raise InvalidInputError(
            "in one process there is nobody to hide updates from", hint="set secure-aggregation to false"
        )
    ((class_names, shape),) = shapes
    run_folder = folder / "coordinator"
    run_folder.mkdir(parents=True)
    settings = config.to_mapping() | {
        "class-names": list(class_names),
        "image-shape": list(shape),
        "run-directory": str(run_folder.resolve()),
    }
    config = RunConfig.from_mapping(settings)
    model = build_from_spec(
        ModelSpec(config.model, shape, len(class_names), config.absolute_input), config.initialization_seed
    )
    save_file(read_weights(model), run_folder / "initial.safetensors")
    numbered = dict(enumerate(sites, start=1))
    (run_folder / "sites.json").write_text(json.dumps({str(node): name for node, name in numbered.items()}))
    tasks = {
        node: _tasks(name, sites[name], folder / f"site-{node}", threads) for node, name in numbered.items()
    }
    result = rounds.run(config, _Grid(tasks), clock=_Clock())
    load_weights(model, result.weights)
    return model.eval()


def _tasks(name: str, data: SiteData, folder: Path, threads: int) -> SiteTasks:
    folder.mkdir()
    (folder / "policy.toml").write_text(STUDY_POLICY)
    identity = load_or_create_identity(folder / "identity.key")
    return SiteTasks(
        name,
        data,
        ledger=ExposureLedger(folder / "ledger.sqlite3"),
        history=RunHistory(folder),
        privacy=SitePrivacy(PrivacyLedger(folder / "privacy.sqlite3")),
        plans=PlanBook(folder),
        audit=SiteAudit(AuditLog(folder / AUDIT_FILE, identity, role="site", name=name)),
        masked_rounds=MaskedRounds(name, Ed25519PrivateKey.generate),
        policy_path=folder / "policy.toml",
        encodings_folder=folder / "encodings",
        device="cpu",
        threads=threads,
    )


class _Grid:
    """All sites are there, and answer when they are asked."""

    def __init__(self, tasks: Mapping[int, SiteTasks]) -> None:
        self._tasks = tasks
        self._answers: dict[str, GridReply] = {}
        self._sent = 0

    def online_nodes(self) -> dict[int, str]:
        return dict.fromkeys(self._tasks, "here")

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        ids = {}
        for node, request in requests.items():
            self._sent += 1
            ids[node] = f"message-{self._sent}"
            reply = self._tasks[node].answer(request.kind, request.to_mapping(), request.arrays)
            self._answers[ids[node]] = GridReply(message_id=ids[node], source=node, reply=reply)
        return ids

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        return [self._answers.pop(key) for key in message_ids if key in self._answers]


class _Clock:
    """Time that passes only when somebody waits, and then at once."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
