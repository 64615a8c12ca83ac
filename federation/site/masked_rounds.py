"""The site's part in secure aggregation: one session at a time, and what may be asked of it.

    query.session   a fresh key, signed by the site's identity key
    train           the change of the weights, clipped, weighted, rounded and masked
    evaluate        the same with a change of zero: figures on test images travel under the mask, too
    query.confirm   a signature on whose updates are in the sum, where the run asks for it
    query.unmask    shares for the sites whose reports arrived; once a round

The roster is the one in the run's settings, hence in the plan this hospital approved. The protocol counts
the reports of a session; how often one round of the run may be asked for again is the policy's to say
(``max-repeated-rounds``), because two sums of one round tell more than one. The protocol
itself is ``federation/secure_aggregation``; the session's key is in this process's memory only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from instahide.errors import RefusedError

from ..hidden_sum import EQUAL_WEIGHT, HiddenSum, hidden_sum
from ..messages import RoundRequest
from ..secure_aggregation import (
    ConfirmRequest,
    ReportRequest,
    SessionRequest,
    SiteIdentity,
    SiteSession,
    UnmaskRequest,
    check_test_vector,
    encode_update,
)
from ..secure_aggregation.distributed_noise import encode_private_update
from .policy import Policy

logger = logging.getLogger(__name__)


class MaskedRounds:
    """The session this site is in, if any.

    Args:
        site_name: as in the roster.
        signing_key: the site's identity key; asked for when a session begins.
    """

    def __init__(self, site_name: str, signing_key: Callable[[], Ed25519PrivateKey]) -> None:
        self._site_name, self._signing_key = site_name, signing_key
        self._session: SiteSession | None = None
        self._agreed: HiddenSum | None = None

    def open_session(self, request: RoundRequest, vector_length: int, policy: Policy) -> bytes:
        """Begin a session, in place of any other; the advert.

        Raises:
            IntegrityError: roster or test vector are not the coordinator's.
            InvalidInputError: this site is not in the roster under this key.
            RefusedError: the policy keeps a figure home that is summed in this run.
        """
        self._session = None
        agreed = hidden_sum(request, vector_length)
        withheld = sorted(set(agreed.metrics) - set(policy.allowed_metrics))
        if withheld:
            raise RefusedError(
                f"this run sums {withheld[0]} over the sites, and this site's policy keeps it home",
                hint="each site of a sum gives each figure: put it in allowed-metrics, or set evaluate false",
            )
        asked = SessionRequest.from_bytes(request.aggregation_record)
        check_test_vector(agreed.plan, asked.test_vector_sha256)
        identity = SiteIdentity(self._site_name, self._signing_key())
        session = SiteSession(agreed.roster, identity, asked)
        advert = session.advert().to_bytes()
        self._session, self._agreed = session, agreed
        logger.info(
            "secure aggregation over %d sites, roster %s",
            len(agreed.roster.names),
            agreed.roster.digest.hex(),
        )
        return advert

    def check(self, request: RoundRequest) -> None:
        """Raise, before any work, unless this site may send a masked report for ``request``."""
        session, _ = self._opened(request)
        session.accept(ReportRequest.from_bytes(request.aggregation_record))

    def report(
        self, request: RoundRequest, change: NDArray[np.float32] | None, metrics: Mapping[str, int | float]
    ) -> bytes:
        """The masked report on a ``change`` (d,) of the weights; ``None`` for an evaluation: zeros."""
        session, agreed = self._opened(request)
        plan = agreed.plan
        vector = np.zeros(plan.vector_length, np.float32) if change is None else change
        values: dict[str, Any] = {name: metrics[name] for name in agreed.metrics if name in metrics}
        for name in agreed.metrics:
            values.setdefault(name, 0 if name in plan.counts else 0.0)
        if agreed.noise is not None:
            values[EQUAL_WEIGHT] = plan.max_examples
        if agreed.noise is not None and change is not None:
            encoded = encode_private_update(plan, agreed.noise, vector, values)
        else:
            encoded = encode_update(plan, vector, values)
        if encoded.clipped_entries or (plan.norm_bound and encoded.norm > plan.norm_bound):
            logger.info("the update was clipped: norm %.4g", encoded.norm)
        asked = ReportRequest.from_bytes(request.aggregation_record)
        return bytes(session.report(asked, encoded.vector, encoded.channels).to_bytes())

    def confirm(self, request: RoundRequest) -> bytes:
        """This site's signature on the survivors of the round it last reported in."""
        session, _ = self._opened(request)
        return bytes(session.confirm(ConfirmRequest.from_bytes(request.aggregation_record)).to_bytes())

    def unmask(self, request: RoundRequest) -> bytes:
        """This site's shares for the round it last reported in."""
        session, _ = self._opened(request)
        return bytes(session.unmask(UnmaskRequest.from_bytes(request.aggregation_record)).to_bytes())

    def _opened(self, request: RoundRequest) -> tuple[SiteSession, HiddenSum]:
        if self._session is None or self._agreed is None or self._agreed.roster.run_name != request.run_name:
            raise RefusedError(
                "this site is in no session of this run's secure aggregation",
                hint="its worker was started anew; the coordinator begins another session",
            )
        return self._session, self._agreed
