"""A round with secure aggregation: masked reports in, one sum out, nobody's own update in between.

    session   query.session to everyone online      → adverts                 when the cohort changed
    report    train (or evaluate) to the cohort     → masked vectors, added as they arrive
    confirm   query.confirm to those who reported   → signatures on who they are  with confirm-survivors
    unmask    query.unmask to the same              → shares that open the sum, and only it

Asking, waiting and losing sites are those of :class:`.collection.Collector`, a message cycle at a time;
what the messages mean is ``federation/secure_aggregation``. The mean of the round comes out as one
:class:`.validation.Update` with the names of its members. A cycle that ends with too few sites ends
the attempt and opens nothing; the next one begins with a new session, on the same weights.

Single updates cannot be validated here: the sites clip their own, and a wrong one cannot be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from instahide.errors import FederationError, InstaHideError, InvalidInputError

from ..hidden_sum import EQUAL_WEIGHT, HiddenSum, hidden_sum, moved_by
from ..messages import CONFIRM, SESSION, TRAIN, UNMASK, RoundRequest, one_line
from ..secure_aggregation import (
    Advert,
    AggregateSum,
    Confirmation,
    DecodedMean,
    Report,
    ServerSession,
    UnmaskAnswer,
    check_test_vector,
    decode_sum,
)
from .collection import Collector, Owed, head_of
from .grid import GridReply
from .validation import Update

ALL_SITES = "all sites"
TakeRecord = Callable[[int, bytes], None]


class MaskedCollector(Collector):
    """Collects sums of updates; the same three methods as :class:`.collection.Collector`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._agreed: HiddenSum | None = None
        self._session: ServerSession | None = None
        self._stamps: dict[int, str] = {}  # of the session's nodes, when it began
        self._masking_round = 0  # of the session; every attempt is masked anew and gets a number of its own
        self._orders_of: Mapping[int, RoundRequest] = {}

    def collect(self, request: RoundRequest, *, first: bool = False) -> list[Update]:
        """The mean update of one training round, over at least the roster's minimum of sites."""
        self._agree(request)
        attempts = 1 + self._config.max_failed_rounds
        for attempt in range(1, attempts + 1):
            self._begin(request)
            self._orders_of = {}
            self.wait_for_sites(settle=self._config.settle_time if first and attempt == 1 else 0.0)
            try:
                return [self._mean_update(request)]
            except InstaHideError as problem:
                self._session, reason = None, one_line(problem.message)
            self._events.emit("round-failed", round=request.server_round, attempt=attempt, reason=reason)
            if attempt < attempts:
                self._clock.sleep(self._config.retry_pause)
        raise FederationError(
            f"round {request.server_round} failed after {attempts} attempts: {reason}",
            hint="see events.jsonl; mend the sites named there and resume the run",
        )

    def measure(self, request: RoundRequest) -> list[Update]:
        """What the sites measured together; nothing if too few of them answer."""
        self._agree(request)
        try:
            return [self._mean_update(request)]
        except InstaHideError as problem:
            self._session, reason = None, one_line(problem.message)
            self._events.emit("round-failed", round=request.server_round, attempt=1, reason=reason)
            return []

    # --- one attempt ------------------------------------------------------------------------------

    def _mean_update(self, request: RoundRequest) -> Update:
        session = self._session_for(request)
        self._reports(session, request)
        total = self._unmasked(session, request)
        roster, plan = self._hidden_sum.roster, self._hidden_sum.plan
        facts: dict[str, Any] = {"kind": request.kind, "sites": list(total.survivors)}
        facts["missing"] = [name for name in roster.names if name not in total.survivors]
        if total.disputes:
            facts["disputes"] = [f"{each.dealer} and {each.answerer}" for each in total.disputes]
        self._events.emit("sum-opened", round=request.server_round, **facts)
        decoded = decode_sum(plan, total.vector, total.channels, num_survivors=len(total.survivors))
        return _as_update(request, decoded, total)

    def _session_for(self, request: RoundRequest) -> ServerSession:
        """The session under way if it has every site that is there and free; else a new one."""
        busy = {owed.node_id for owed in self._owed.values()}
        online = {node: stamp for node, stamp in self._known_online().items() if node not in busy}
        if self._session is not None and all(
            self._stamps.get(node) == stamp for node, stamp in online.items()
        ):
            return self._session
        agreed = self._hidden_sum
        session = ServerSession(agreed.roster, check_test_vector(agreed.plan))
        order = replace(request, kind=SESSION, arrays={}, aggregation_record=session.request().to_bytes())

        def take(node_id: int, record: bytes) -> None:
            advert = Advert.from_bytes(record)
            self._check_name(node_id, advert.site)
            session.add_advert(advert)

        self._exchange(order, dict.fromkeys(online, order), take, approval=True)
        self._session, self._masking_round = session, 0
        self._stamps = {node: online[node] for node in self._good}
        digest = agreed.roster.digest.hex()
        self._events.emit(
            "session-opened",
            round=request.server_round,
            sites=list(session.cohort),
            **{"roster-sha256": digest},
        )
        return session

    def _reports(self, session: ServerSession, request: RoundRequest) -> None:
        busy = {owed.node_id for owed in self._owed.values()}
        present = [node for node in self._known_online() if node in self._stamps and node not in busy]
        self._masking_round += 1
        asked = session.start_round(self._masking_round, participants=self._book.names(present))
        order = replace(request, aggregation_record=asked.to_bytes())

        def take(node_id: int, record: bytes) -> None:
            report = Report.from_bytes(record)
            self._check_name(node_id, report.site)
            session.add_report(report)

        self._exchange(order, dict.fromkeys(present, order), take)
        if len(self._good) < len(present):
            self._stamps = {
                node: self._stamps[node] for node in self._good
            }  # whoever is back needs a session

    def _unmasked(self, session: ServerSession, request: RoundRequest) -> AggregateSum:
        by_name = {self._book.name(node): node for node in self._good}
        self._refuse_revoked(by_name.values())
        session.close_reports()
        if self._config.confirm_survivors:
            self._confirmed(session, request)
        batch = replace(request, kind=UNMASK, arrays={})
        orders = {
            by_name[name]: replace(batch, aggregation_record=message.to_bytes())
            for name, message in session.unmask_requests().items()
        }

        def take(node_id: int, record: bytes) -> None:
            answer = UnmaskAnswer.from_bytes(record)
            self._check_name(node_id, answer.site)
            session.add_answer(answer)

        self._exchange(batch, orders, take, enough=self._threshold)
        self._refuse_revoked(by_name.values())
        return session.finish()

    def _refuse_revoked(self, reporters: Iterable[int]) -> None:
        """A report cannot be taken out of a sum again: rather open nothing, and begin without that site."""
        revoked = [node for node in reporters if self._book.is_revoked(node)]
        if revoked:
            names = ", ".join(self._book.names(revoked))
            raise FederationError(
                f"the keys of {names} were revoked while its report was in the sum",
                hint="nothing was opened; the round is tried again without it",
            )

    def _confirmed(self, session: ServerSession, request: RoundRequest) -> None:
        order = replace(
            request, kind=CONFIRM, arrays={}, aggregation_record=session.confirm_request().to_bytes()
        )

        def take(node_id: int, record: bytes) -> None:
            confirmation = Confirmation.from_bytes(record)
            self._check_name(node_id, confirmation.site)
            session.add_confirmation(confirmation)

        self._exchange(order, dict.fromkeys(self._good, order), take, enough=self._threshold)

    # --- one message cycle ------------------------------------------------------------------------

    def _exchange(
        self,
        batch: RoundRequest,
        orders: Mapping[int, RoundRequest],
        take: TakeRecord,
        *,
        enough: int | None = None,
        approval: bool = False,
    ) -> None:
        """Send ``orders`` and hand each record that comes back to ``take``, which raises for a wrong one.

        Raises FederationError if fewer than ``enough`` (the quorum) are taken.
        """
        quorum = self._quorum if enough is None else enough
        self._begin(batch)
        self._orders_of, self._take_record = orders, take
        self._ask(batch)
        self._gather(batch, enough=quorum)
        if approval:
            self._wait_for_approval(batch, quorum)
        if len(self._good) < quorum:
            raise FederationError(self._shortfall(quorum), hint="nothing was opened; try again")

    def _orders(self, request: RoundRequest) -> Mapping[int, RoundRequest]:
        return self._orders_of

    def _validate(self, owed: Owed, arrived: GridReply) -> None:
        """Here: the reply is a record of the protocol, and the protocol takes it."""
        reply, request = arrived.reply, owed.request
        assert reply is not None
        try:
            if reply.arrays or reply.metrics or not reply.aggregation_record:
                raise InvalidInputError("weights or figures came in the clear, or nothing did", hint="")
            self._take_record(owed.node_id, reply.aggregation_record)
        except InstaHideError as problem:
            self._lose(owed.node_id, "site-rejected", one_line(problem.message))
            return
        name = self._book.name(owed.node_id)
        self._good[owed.node_id] = Update(
            node_id=owed.node_id, site_name=name, arrays={}, num_examples=0, metrics={}
        )
        seconds = round(self._clock.monotonic() - owed.asked_at, 3)
        facts = {"kind": request.kind, "seconds": seconds, "metrics": {}} | head_of(reply)
        self._events.emit("site-replied", round=request.server_round, site=name, **facts)

    # --- bookkeeping ------------------------------------------------------------------------------

    def _agree(self, request: RoundRequest) -> None:
        """Roster and plan of the run, the first time; the registered sites must be those of the roster."""
        if self._agreed is not None:
            return
        length = sum(array.size for array in request.arrays.values())
        self._agreed = hidden_sum(self._config, length)
        registered = set(self._book.names(self._book.sites))
        if registered != set(self._agreed.roster.names):
            raise InvalidInputError(
                "the roster and the run's registered sites are not the same",
                hint="start the run with `instahide coordinator run`, which fills in the roster",
            )

    @property
    def _hidden_sum(self) -> HiddenSum:
        assert self._agreed is not None
        return self._agreed

    @property
    def _quorum(self) -> int:
        return self._hidden_sum.roster.parameters.minimum_sites

    @property
    def _threshold(self) -> int:
        return self._hidden_sum.roster.parameters.threshold

    def _check_name(self, node_id: int, claimed: str) -> None:
        if claimed != self._book.name(node_id):
            raise InvalidInputError(
                f"it calls itself {claimed!r:.100}", hint="a site reports under its registered name"
            )


def _as_update(request: RoundRequest, decoded: DecodedMean, total: AggregateSum) -> Update:
    """The mean over the survivors as one update from all of them."""
    trained = request.kind == TRAIN
    metrics: dict[str, int | float] = {
        name: count for name, count in decoded.counts.items() if name != EQUAL_WEIGHT
    }
    for name, value in decoded.means.items():
        metrics[name] = min(value, 1.0) if "accuracy" in name else value
    if not trained:
        metrics = {name: value for name, value in metrics.items() if name.startswith("evaluate-")}
    return Update(
        node_id=0,
        site_name=ALL_SITES,
        arrays=moved_by(request.arrays, decoded.mean) if trained else {},
        num_examples=decoded.counts["num-examples"],
        metrics=metrics,
        norm=float(np.linalg.norm(decoded.mean)) if trained else 0.0,
        members=total.survivors,
    )
