"""What the site writes into its audit log about requests, and the heads it exchanges for them.

    started             release, hash of the policy, whether plans need approval
    policy-changed      hash of the new policy, or that it cannot be read
    request-accepted    run, round, kind, plan, the coordinator's signed head
    update-sent         norm, bytes and SHA-256 of the update; exposures in total
    measurement-sent    an evaluation's figures went out, without weights
    session-opened      secure aggregation: a session key was signed
    survivors-confirmed secure aggregation: whose updates are in a sum was signed
    shares-given        secure aggregation: the coordinator may open the sum of a round
    request-refused     kind of refusal and, for the site's own rules, the reason
    request-abandoned   the relay left, or the worker stopped
    plan-pending        a plan nobody here has seen yet
    stopped

Commands add ``plan-approved`` and ``plan-rejected`` with who decided. No record holds a subject,
a file name, a path, a weight or a count of a single image. A record is on the disk before the
reply leaves; where it cannot be written, no reply does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instahide import __version__
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError, RefusedError

from ..audit_log import AuditLog, Record, SignedHead
from ..identity import IDENTITY_FILE, Identity, identity_fingerprint, load_or_create_identity
from ..messages import ERROR, EVALUATE, MAX_TEXT, Arrays, Refusal, RoundRequest, SiteReply, one_line
from ..packing import arrays_sha256
from ..plan import Plan
from .worker_config import WorkerConfig

if TYPE_CHECKING:
    from instahide.exposure import ExposureCounts

AUDIT_FILE = "audit.jsonl"


class AuditFailedError(InstaHideError):
    """A record could not be written; what it was about does not happen."""


class SiteAudit:
    """A site's audit log and the coordinator's key it checks heads with.

    Args:
        log: the site's log.
        coordinator_key: file with the coordinator's public identity key; it may come later, with
            the join answer. Once it is there, a request without a head signed by it is refused.
        scrub: takes paths out of a text.
    """

    def __init__(
        self, log: AuditLog, *, coordinator_key: Path | None = None, scrub: Callable[[str], str] = str
    ) -> None:
        self._log, self._coordinator_key, self._scrub = log, coordinator_key, scrub
        self._policy_sha256: str | None = None

    def started(self, policy_path: Path) -> None:
        """The worker begins to serve."""
        self._policy_sha256 = _file_sha256(policy_path)
        self._append("started", release=__version__, policy_sha256=self._policy_sha256)

    def stopped(self) -> None:
        """The worker was told to end."""
        self._append("stopped")

    def policy_read(self, path: Path) -> None:
        """The policy was read for a request; recorded if it is not what it was before."""
        digest = _file_sha256(path)
        if digest != self._policy_sha256:
            self._append("policy-changed", policy_sha256=digest)
            self._policy_sha256 = digest

    def check_coordinator(self, request: RoundRequest) -> None:
        """Raise RefusedError unless the request brings a head signed by the coordinator joined."""
        if self._coordinator_key is None or not self._coordinator_key.exists():
            return
        key = self._coordinator_key.read_text(encoding="ascii").strip()
        if not request.audit_head or not SignedHead.from_text(request.audit_head).is_by(key):
            raise RefusedError(
                "the request brings no audit head signed by the coordinator this site joined",
                hint=f"it has the key {identity_fingerprint(key)}; join again if its key is a new one",
            )

    def plan_pending(self, plan: Plan) -> None:
        """A plan was seen for the first time."""
        self._append("plan-pending", plan_sha256=plan.sha256, run=plan.run_name)

    def accepted(self, request: RoundRequest, plan: Plan, *, approved: bool) -> None:
        """All rules allow the request; work on it begins."""
        head = {"audit_head": request.audit_head} if request.audit_head else {}
        self._append(
            "request-accepted",
            **_naming(request.kind, request.run_name, request.server_round),
            plan_sha256=plan.sha256,
            plan_approved=approved,
            **head,
        )

    def aggregated(self, request: RoundRequest, event: str) -> SignedHead:
        """A message of secure aggregation without weights is about to leave."""
        return self._log.sign(
            self._append(event, **_naming(request.kind, request.run_name, request.server_round))
        )

    def sent(
        self, request: RoundRequest, reply: SiteReply, exposures: ExposureCounts, *, update: Arrays
    ) -> SignedHead:
        """The reply is about to leave; the head that goes with it. ``update``: the weights, masked or not."""
        about = _naming(request.kind, request.run_name, request.server_round)
        if request.kind == EVALUATE:
            return self._log.sign(self._append("measurement-sent", **about))
        masked = reply.aggregation_record
        record = self._append(
            "update-sent",
            **about,
            masked=bool(masked),
            norm=update_norm(update, request.arrays),
            bytes=len(masked) or sum(array.nbytes for array in reply.arrays.values()),
            update_sha256=hashlib.sha256(masked).hexdigest() if masked else arrays_sha256(reply.arrays),
            exposures_own=int(exposures.own.sum()),
            exposures_partner=int(exposures.partner.sum()),
            exposures_largest=int(exposures.own.max(initial=0)),
        )
        return self._log.sign(record)

    def _append(self, event: str, **fields: Any) -> Record:
        try:
            return self._log.append(event, **fields)
        except (OSError, IntegrityError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise AuditFailedError(
                "the site's audit log cannot be written, so nothing leaves the site",
                hint=f"at the site: {one_line(reason)}; `instahide log verify` tells more",
            ) from error

    def refused(self, kind: str, settings: Mapping[str, Any], refusal: Refusal) -> SignedHead:
        """A refusal is about to leave. Reasons of kind "error" stay out: libraries quote file names."""
        reason = {}
        if refusal.kind != ERROR:
            reason = {"reason": one_line(self._scrub(refusal.reason), MAX_TEXT)}
        record = self._append("request-refused", **_asked(kind, settings), refusal=refusal.kind, **reason)
        return self._log.sign(record)

    def abandoned(self, kind: str, settings: Mapping[str, Any]) -> None:
        """Nobody waits for the reply any more."""
        self._append("request-abandoned", **_asked(kind, settings))


def site_identity(config: WorkerConfig) -> Identity:
    """The identity key that ``worker.toml`` names, else the state folder's own; made the first time."""
    own = config.path(config.state_folder) / IDENTITY_FILE
    return load_or_create_identity(config.path(config.identity_key) if config.identity_key else own)


def open_site_log(config: WorkerConfig) -> AuditLog:
    """The audit log of the site of ``worker.toml``, begun under its identity key the first time.

    Raises:
        InstaHideError: the log's end or the key is damaged, or the log was begun under another key.
    """
    state = config.path(config.state_folder)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return AuditLog(state / AUDIT_FILE, site_identity(config), role="site", name=config.site_name)
    except OSError as error:
        raise InvalidInputError(
            f"the audit log cannot be written: {error.strerror}", hint="check the state folder's disk"
        ) from error


def update_norm(update: Arrays, received: Arrays) -> float:
    """L2 distance of the weights that leave from those that came, over all arrays, in float64."""
    squares = (
        float(np.sum(np.square(array.astype(np.float64) - received[name].astype(np.float64))))
        for name, array in update.items()
    )
    return float(np.sqrt(sum(squares)))


def _naming(kind: str, run: str, server_round: int) -> dict[str, Any]:
    return {"kind": kind, "run": run, "round": server_round}


def _asked(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a request calls itself, bounded: it may be nonsense."""
    server_round = settings.get("server-round")
    return _naming(
        one_line(str(kind), 20),
        one_line(str(settings.get("run-name", "")), 64),
        server_round if type(server_round) is int and 0 < server_round < 2**31 else 0,
    )


def _file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"
