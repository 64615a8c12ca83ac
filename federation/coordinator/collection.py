"""One round's asking and gathering: who is there, who owes an answer, who has given a good one.

A site is asked once a round and ends in one of these ways:

    replied    its update passed validation
    refused    it said no, with its reason
    rejected   its update came and did not pass
    failed     an error came back in its place
    missing    it went offline, started anew (which loses the request), or the deadline passed

A site whose keys are revoked meanwhile is asked no more, its answer is rejected when it comes, and
one that was taken in already is dropped before the round is counted.

Only the first counts towards the quorum. Nobody waits for a site that is known to be gone: the
list of online nodes is read every second. A site that missed a deadline still owes its answer
and is not asked again until it has given it (unused, reported as late) or is known to be gone;
asking a straggler anew each round would only lengthen its queue.

A site whose people have not yet approved the run's plan refuses for now: while the quorum needs
such sites, the round waits for them, at most ``start-deadline`` seconds, and asks them again. That
is no failed attempt.

When a round stays below its quorum it is tried again on the same weights. The good updates are
kept, since a site that trained again would expose its data a second time for nothing.

With ``fraction-train`` f below 1, max(minimum-sites, ⌈f · n⌉) of the n sites that are there train in a
round, a uniform sample drawn anew from the operating system's randomness; when the round is tried
again, others take the places of those that did not answer. The last model is measured by everybody.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instahide.errors import FederationError

from ..config import RunConfig
from ..messages import APPROVAL, TRAIN, Refusal, RoundRequest, SiteReply, one_line
from ..packing import arrays_sha256
from .events import Events
from .grid import Clock, GridReply, RoundGrid
from .sites import SiteBook
from .validation import RejectedUpdateError, Update, UpdateValidator

LOOK_INTERVAL = 1.0  # seconds between two readings of the list of online nodes
REVOKED_REASON = "its keys were revoked"
LONGEST_PAUSE = 1.0  # seconds between two looks for replies, however long the round


@dataclass(frozen=True, kw_only=True)
class Owed:
    """A message out: to whom, since when, for what; ``stamp`` tells a node that started anew."""

    node_id: int
    stamp: str
    asked_at: float
    request: RoundRequest


class Collector:
    """Asks the sites and gathers their answers; keeps what is owed across rounds."""

    def __init__(
        self,
        config: RunConfig,
        grid: RoundGrid,
        clock: Clock,
        *,
        book: SiteBook,
        validator: UpdateValidator,
        events: Events,
    ) -> None:
        self._config = config
        self._grid = grid
        self._clock = clock
        self._book = book
        self._validator = validator
        self._events = events
        self._owed: dict[str, Owed] = {}
        self._answered: set[str] = set()
        self._good: dict[int, Update] = {}
        self._drawn: set[int] = set()  # who trains in this round, where not everybody does
        self._lost: dict[int, str] = {}  # node id → why it did not count in this attempt
        self._undecided: set[int] = set()  # nodes whose site has not approved the plan yet
        self._told_undecided: set[int] = set()  # those whose refusal is in the events of this request
        self._request: RoundRequest | None = None
        self._looked_at = float("-inf")

    # --- the three things the rounds ask for ----------------------------------------------------

    def collect(self, request: RoundRequest, *, first: bool = False) -> list[Update]:
        """The valid updates of one training round: at least ``minimum-sites`` of them.

        Raises FederationError when ``max-failed-rounds`` further attempts did not suffice, naming
        every site and its reason.
        """
        self._begin(request)
        quorum = self._quorum
        attempts = 1 + self._config.max_failed_rounds
        for attempt in range(1, attempts + 1):
            self.wait_for_sites(settle=self._config.settle_time if first and attempt == 1 else 0.0)
            self._ask(request)
            self._gather(request, enough=quorum)
            self._wait_for_approval(request, quorum)
            self._drop_revoked()
            if len(self._good) >= quorum:
                return list(self._good.values())
            reason = self._shortfall(quorum)
            self._events.emit("round-failed", round=request.server_round, attempt=attempt, reason=reason)
            if attempt < attempts:
                self._clock.sleep(self._config.retry_pause)
        raise FederationError(
            f"round {request.server_round} failed after {attempts} attempts: {reason}",
            hint="see events.jsonl; mend the sites named there and resume the run",
        )

    def _wait_for_approval(self, request: RoundRequest, quorum: int) -> None:
        """Ask the undecided sites again, ever more rarely, while they could make the quorum."""
        began, told = self._clock.monotonic(), set[int]()
        while len(self._good) < quorum and self._undecided:
            waited = self._clock.monotonic() - began
            left = self._config.start_deadline - waited
            coming = sum(owed.request is request for owed in self._owed.values())
            if left <= 0 or len(self._good) + len(self._undecided) + coming < quorum:
                return
            if self._undecided != told:
                told = set(self._undecided)
                facts = {"sites": self._book.names(told), "seconds-left": round(left, 1)}
                self._events.emit("waiting-for-approval", round=request.server_round, **facts)
            longest = max(self._config.retry_pause, min(60.0, waited / 4))
            self._clock.sleep(min(left, max(longest, LOOK_INTERVAL)))
            self._ask(request)
            self._gather(request, enough=quorum)

    def measure(self, request: RoundRequest) -> list[Update]:
        """Evaluation replies of whoever is there and answers in time; perhaps none."""
        self._begin(request)
        self._ask(request)
        self._gather(request, enough=0)
        self._drop_revoked()
        return list(self._good.values())

    def wait_for_sites(self, *, settle: float = 0.0) -> None:
        """Return once enough sites can be asked (or have answered); then up to ``settle`` s for all.

        Raises FederationError, naming the absent, after ``start-deadline`` seconds.
        """
        began, enough_since, told = self._clock.monotonic(), None, None
        while True:
            here = self._present()
            now = self._clock.monotonic()
            if len(here) >= self._quorum:
                enough_since = now if enough_since is None else enough_since
                everyone = not self._book.open_to_all and here >= self._book.expected()
                if everyone or now - enough_since >= settle:
                    return
            elif now - began >= self._config.start_deadline:
                raise FederationError(
                    self._who_is_absent(here), hint="start the nodes named, or lower minimum-sites"
                )
            if here != told:
                self._events.emit(
                    "waiting-for-sites", present=self._book.names(here), absent=self._absent(here)
                )
                told = here
            self._clock.sleep(min(0.25, LOOK_INTERVAL))
            self._pump()

    @property
    def _quorum(self) -> int:
        """Fewest sites a round needs."""
        return self._config.minimum_sites

    # --- asking -----------------------------------------------------------------------------------

    def _begin(self, request: RoundRequest) -> None:
        self._request, self._good, self._lost = request, {}, {}
        self._drawn.clear()
        self._undecided.clear()
        self._told_undecided.clear()
        self._answered.clear()

    def _ask(self, request: RoundRequest) -> None:
        """Send the request to everyone online who has not answered it and owes nothing."""
        online = self._known_online()
        busy = {owed.node_id: owed for owed in self._owed.values()}
        orders = self._orders(request)
        for node_id, owed in busy.items():
            if owed.request is not request and node_id in orders and node_id not in self._good:
                self._lose(node_id, "site-missing", f"still at work on round {owed.request.server_round}")
        free = [node_id for node_id in sorted(online) if node_id not in busy and node_id not in self._good]
        wanted = [node_id for node_id in free if node_id in orders]
        for node_id in wanted:
            self._lost.pop(node_id, None)
            self._undecided.discard(node_id)
        messages = {node_id: orders[node_id] for node_id in wanted}
        sent = self._grid.push(messages, lifetime=self._lifetime) if wanted else {}
        now = self._clock.monotonic()
        for node_id in wanted:
            if node_id in sent:
                self._owed[sent[node_id]] = Owed(
                    node_id=node_id, stamp=online[node_id], asked_at=now, request=request
                )
            else:
                self._lose(node_id, "site-failed", "the request could not be handed to the network")

    def _orders(self, request: RoundRequest) -> Mapping[int, RoundRequest]:
        """Who may be asked, and with what: everybody, or those drawn for this round, with the same."""
        online = self._known_online()
        if request.kind != TRAIN or self._config.fraction_train == 1.0:
            return dict.fromkeys(online, request)
        busy = {owed.node_id for owed in self._owed.values() if owed.request is not request}
        return dict.fromkeys(self._sample(set(online) - busy), request)

    def _sample(self, here: set[int]) -> set[int]:
        """The round's sample of the sites ``here``; who is undecided or has answered keeps its place."""
        wanted = max(self._quorum, math.ceil(self._config.fraction_train * len(here)))
        failed = self._lost.keys() - self._undecided
        self._drawn = {node for node in self._drawn if node in here and node not in failed} | set(self._good)
        for pool in (
            here - self._drawn - failed,
            here & failed,
        ):  # who failed is asked again only for want of others
            missing = min(wanted - len(self._drawn), len(pool))
            if missing > 0:
                self._drawn |= set(secrets.SystemRandom().sample(sorted(pool), missing))
        return self._drawn

    @property
    def _lifetime(self) -> float:
        """Seconds after which a message counts as lost: a straggler gets twice the deadline."""
        return 2 * self._config.round_deadline + 60

    # --- gathering --------------------------------------------------------------------------------

    def _gather(self, request: RoundRequest, *, enough: int) -> None:
        """Wait for the answers to ``request``: until all are in, the quorum is lost, or time is up."""
        began = self._clock.monotonic()
        while True:
            self._pump()
            waiting = [owed for owed in self._owed.values() if owed.request is request]
            elapsed = self._clock.monotonic() - began
            # Who has not decided yet may still: its quick refusal must not end the wait for the others.
            if not waiting or len(self._good) + len(waiting) + len(self._undecided) < enough:
                return
            if elapsed >= self._config.round_deadline:
                for owed in waiting:
                    late = f"no answer within {self._config.round_deadline:g} s"
                    self._lose(owed.node_id, "site-missing", late)
                return
            # At most 5 % of a long round is spent in waiting for the next look; a look costs the SuperLink
            # fifteen milliseconds.
            self._clock.sleep(min(LONGEST_PAUSE, max(self._config.poll_interval, elapsed / 20)))

    def _pump(self) -> None:
        """Take in what has arrived, then give up on nodes that were already gone before that."""
        gone = self._gone()
        for reply in self._grid.pull(list(self._owed)) if self._owed else []:
            self._receive(reply)
        for message_id, reason in gone.items():
            owed = self._owed.pop(message_id, None)
            if owed is not None and owed.request is self._request:
                event = "site-rejected" if reason == REVOKED_REASON else "site-missing"
                self._lose(owed.node_id, event, reason)

    def _gone(self) -> dict[str, str]:
        """Messages whose node is offline, has started anew, or took too long: id → reason."""
        now = self._clock.monotonic()
        if not self._owed or now - self._looked_at < LOOK_INTERVAL:
            return {}
        self._looked_at = now
        online = self._grid.online_nodes()
        gone = {}
        for message_id, owed in self._owed.items():
            if self._book.is_revoked(owed.node_id):
                gone[message_id] = REVOKED_REASON
            elif owed.node_id not in online:
                gone[message_id] = "went offline"
            elif online[owed.node_id] != owed.stamp:
                gone[message_id] = "started anew, which loses the request"
            elif now - owed.asked_at > self._lifetime:
                gone[message_id] = "the request was lost"
        return gone

    def _receive(self, arrived: GridReply) -> None:
        owed = self._owed.get(arrived.message_id)
        if owed is None:
            reason = "a second answer" if arrived.message_id in self._answered else "nobody asked for it"
            self._events.emit("reply-ignored", site=self._book.name(arrived.source), reason=reason)
            return
        if arrived.reply is not None and arrived.source != owed.node_id:
            reason = f"it answers what {self._book.name(owed.node_id)} was asked"
            self._events.emit("reply-ignored", site=self._book.name(arrived.source), reason=reason)
            return
        del self._owed[arrived.message_id]
        self._answered.add(arrived.message_id)
        if owed.request is not self._request:
            self._emit_late(owed)
            return
        self._lost.pop(owed.node_id, None)
        if self._book.is_revoked(owed.node_id):
            self._lose(owed.node_id, "site-rejected", REVOKED_REASON)
        elif arrived.reply is None:
            self._lose(owed.node_id, "site-failed", one_line(arrived.error) or "an error without a text")
        elif not self._is_signed(owed.node_id, arrived.reply):
            reason = "its audit head is not signed by the key this site registered"
            self._lose(owed.node_id, "site-rejected", reason)
        elif arrived.reply.refusal is not None:
            self._take_refusal(owed.node_id, arrived.reply, arrived.reply.refusal)
        else:
            self._validate(owed, arrived)

    def _is_signed(self, node_id: int, reply: SiteReply) -> bool:
        """A refusal may come from the relay, when the worker is not there to sign; an update may not."""
        if reply.refusal is not None and not reply.audit_head:
            return True
        return self._book.signed(node_id, reply.audit_head)

    def _take_refusal(self, node_id: int, reply: SiteReply, refusal: Refusal) -> None:
        if refusal.kind == APPROVAL:
            self._undecided.add(node_id)
            if node_id in self._told_undecided:  # asked again while its people decide: no news
                self._lost[node_id] = refusal.reason
                return
            self._told_undecided.add(node_id)
        facts: dict[str, str] = {"hint": refusal.hint, "kind": refusal.kind} | head_of(reply)
        self._lose(node_id, "site-refused", refusal.reason, **facts)

    def _validate(self, owed: Owed, arrived: GridReply) -> None:
        assert arrived.reply is not None
        request, name = owed.request, self._book.name(owed.node_id)
        if not self._book.open_to_all and arrived.reply.site_name != name:
            self._events.emit("site-name-differs", site=name, claimed=one_line(arrived.reply.site_name, 100))
        try:
            update = self._validator.check(owed.node_id, arrived.reply, request.arrays, request.kind)
        except RejectedUpdateError as problem:
            self._lose(owed.node_id, "site-rejected", one_line(problem.message))
            return
        self._validator.remember_sizes(update)
        self._good[owed.node_id] = update
        if update.clipped:
            bound = self._config.max_update_norm
            self._events.emit(
                "update-clipped", round=request.server_round, site=name, norm=update.norm, bound=bound
            )
        seconds = self._clock.monotonic() - owed.asked_at
        facts: dict[str, Any] = {
            "kind": request.kind,
            "seconds": round(seconds, 3),
            "metrics": update.metrics,
        } | head_of(arrived.reply)
        if arrived.reply.arrays:
            facts["update-sha256"] = arrays_sha256(arrived.reply.arrays)  # as it came, not as clipped
        self._events.emit("site-replied", round=request.server_round, site=name, **facts)

    # --- bookkeeping ------------------------------------------------------------------------------

    def _drop_revoked(self) -> None:
        """Whose keys were revoked since its answer was taken in does not count."""
        for node_id in [node_id for node_id in self._good if self._book.is_revoked(node_id)]:
            del self._good[node_id]
            self._lose(node_id, "site-rejected", REVOKED_REASON)

    def _lose(self, node_id: int, event: str, reason: str, **fields: Any) -> None:
        assert self._request is not None
        self._lost[node_id] = reason
        site, server_round = self._book.name(node_id), self._request.server_round
        self._events.emit(event, round=server_round, site=site, reason=reason, **fields)

    def _emit_late(self, owed: Owed) -> None:
        seconds = round(self._clock.monotonic() - owed.asked_at, 3)
        late_round, site = owed.request.server_round, self._book.name(owed.node_id)
        self._events.emit("site-late", round=late_round, site=site, seconds=seconds)

    def _known_online(self) -> dict[int, str]:
        return {node: stamp for node, stamp in self._grid.online_nodes().items() if self._book.knows(node)}

    def _present(self) -> set[int]:
        """Sites that count towards a quorum: online and free, or asked already, or answered."""
        busy = {owed.node_id for owed in self._owed.values() if owed.request is not self._request}
        return (set(self._known_online()) - busy) | set(self._good)

    def _absent(self, here: set[int]) -> list[str]:
        return self._book.names(self._book.expected() - here)

    def _who_is_absent(self, here: set[int]) -> str:
        absent = ", ".join(self._absent(here)) or "others"
        revoked = self._book.names(set(self._book.sites) - self._book.expected())
        absent += f"; revoked: {', '.join(revoked)}" if revoked else ""
        return (
            f"{len(here)} of the {self._quorum} sites needed are there after "
            f"{self._config.start_deadline:g} s; absent: {absent}"
        )

    def _shortfall(self, quorum: int) -> str:
        reasons = {self._book.name(node_id): reason for node_id, reason in self._lost.items()}
        told = "; ".join(f"{name}: {reasons[name]}" for name in sorted(reasons)) or "no site was asked"
        return f"{len(self._good)} valid updates of the {quorum} needed ({told})"


def head_of(reply: SiteReply) -> dict[str, str]:
    return {"audit-head": reply.audit_head} if reply.audit_head else {}
