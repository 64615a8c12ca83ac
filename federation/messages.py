"""What the coordinator asks of a site and what a site answers: protocol version 2.

Two plain records, free of Flower and of torch, that the coordinator, the relay and the site
worker share. Weights are ordered mappings ``name -> float32 array`` under the model's
state-dict names; only floating-point tensors travel (integer buffers stay at home).

    request   = arrays + config                   (message types "train" and "evaluate")
    reply     = [arrays] + metrics + site         done
              | refusal + site                    the site will not, or could not

With secure aggregation a record of that protocol travels beside them, as bytes, in both directions;
weights and metrics do not come back then, and three more types of message ("query.session",
"query.confirm", "query.unmask") carry nothing but settings and that record.

``from_mapping`` refuses what does not belong (unknown keys, wrong types, over-long texts), at
either end: neither side trusts the other's sender. ``federation/PROTOCOL.md`` tells the story.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instahide.errors import InvalidInputError

from .audit_log import HEAD_PATTERN, SignedHead
from .config import RunConfig, TrainingSettings
from .setting_rules import setting, to_kebab

PROTOCOL_VERSION = 2
TRAIN, EVALUATE = "train", "evaluate"
# Of secure aggregation; named as Flower names them.
SESSION, CONFIRM, UNMASK = "query.session", "query.confirm", "query.unmask"
KINDS = (TRAIN, EVALUATE, SESSION, CONFIRM, UNMASK)
POLICY, APPROVAL, BUDGET, ERROR = "policy", "approval", "budget", "error"
REFUSAL_KINDS = (POLICY, APPROVAL, BUDGET, ERROR)  # approval: not now, but once the site has approved
INFERENCE_MODES = ("plain", "one-view", "ten-views")

Arrays = dict[str, NDArray[np.float32]]

# The whole set of numbers that may leave a site. Nothing else passes either end.
COUNT_METRICS = frozenset({"num-examples", "evaluate-num-examples"})
FLOAT_METRICS = frozenset(
    {"train-loss", "train-seconds", "worker-seconds", "epsilon-spent"}
    | {f"evaluate-{measure}-{mode}" for measure in ("accuracy", "loss") for mode in INFERENCE_MODES}
)
ALLOWED_METRICS = COUNT_METRICS | FLOAT_METRICS

MAX_ARRAYS = 10_000
MAX_TEXT = 1000
MAX_NAME = 100
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class RoundRequest(TrainingSettings):
    """One round's order to a site: the settings, the round, and the global weights beside them.

    ``to_mapping()`` holds the settings only (the "config" record); ``arrays`` and ``kind`` travel
    as their own record and as the message type.
    """

    protocol_version: int = setting(MISSING, int, "version of this protocol", minimum=1, maximum=1_000_000)
    server_round: int = setting(MISSING, int, "number of the round, from 1", minimum=1, maximum=100_000)
    audit_head: str = setting(
        "", str, "signed head of the coordinator's audit log", pattern=f"({HEAD_PATTERN})?"
    )
    kind: str = TRAIN
    arrays: Arrays = field(default_factory=dict, compare=False, repr=False)
    aggregation_record: bytes = field(default=b"", compare=False, repr=False)

    def _check_together(self) -> None:
        super()._check_together()
        if self.protocol_version != PROTOCOL_VERSION:
            raise InvalidInputError(
                f"the request speaks protocol version {self.protocol_version}, this side {PROTOCOL_VERSION}",
                hint="install the same release of instahide-fl at the coordinator and at every site",
            )
        if self.kind not in KINDS:
            raise InvalidInputError(
                f"unknown kind of request {self.kind!r:.50}", hint=f"one of {', '.join(KINDS)}"
            )
        if self.server_round > self.num_server_rounds:
            raise InvalidInputError(
                f"round {self.server_round} of a run of {self.num_server_rounds} rounds",
                hint="server-round must lie between 1 and num-server-rounds",
            )
        check_array_record(self.arrays)

    @classmethod
    def for_round(
        cls, config: RunConfig, server_round: int, arrays: Arrays, kind: str = TRAIN
    ) -> RoundRequest:
        """The order for ``server_round`` under a run's settings; coordinator-only keys stay behind."""
        values = config.to_mapping()
        shared = {key: values[key] for key in map(to_kebab, TrainingSettings.__dataclass_fields__)}
        shared |= {"protocol-version": PROTOCOL_VERSION, "server-round": server_round}
        return cls.from_mapping(shared, kind=kind, arrays=arrays)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a site did not do what was asked; ``kind`` is one of ``REFUSAL_KINDS``."""

    reason: str
    hint: str = ""
    kind: str = "error"

    def __post_init__(self) -> None:
        if self.kind not in REFUSAL_KINDS:
            raise InvalidInputError(
                f"unknown kind of refusal {self.kind!r:.50}", hint=f"one of {', '.join(REFUSAL_KINDS)}"
            )
        _check_text("reason", self.reason, MAX_TEXT)
        _check_text("hint", self.hint, MAX_TEXT)

    @classmethod
    def from_text(cls, reason: str, *, hint: str = "", kind: str = "error") -> Refusal:
        """A refusal from any text: cut to length, line breaks and control characters made spaces."""
        return cls(reason=one_line(reason, MAX_TEXT), hint=one_line(hint, MAX_TEXT), kind=kind)


@dataclass(frozen=True, kw_only=True)
class SiteReply:
    """A site's answer: either metrics (with arrays after training) or a refusal.

    With secure aggregation ``aggregation_record`` takes the place of metrics and arrays.

    ``audit_head`` is the signed head of the site's audit log, which by then holds this answer.
    """

    site_name: str
    metrics: dict[str, int | float] = field(default_factory=dict)
    refusal: Refusal | None = None
    audit_head: str = ""
    arrays: Arrays = field(default_factory=dict, compare=False, repr=False)
    aggregation_record: bytes = field(default=b"", compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_text("site name", self.site_name, MAX_NAME)
        check_metrics(self.metrics)
        if self.audit_head:
            SignedHead.from_text(self.audit_head)
        if self.refusal is not None and (self.arrays or self.metrics or self.aggregation_record):
            raise InvalidInputError(
                "a refusal came with metrics or weights", hint="a reply is one or the other"
            )
        if self.aggregation_record and (self.arrays or self.metrics):
            raise InvalidInputError(
                "weights or metrics came in the clear beside a masked report",
                hint="with secure aggregation they travel under the mask",
            )
        check_array_record(self.arrays)

    @classmethod
    def from_mapping(
        cls,
        records: Mapping[str, Mapping[str, Any]],
        arrays: Arrays | None = None,
        *,
        aggregation_record: bytes = b"",
    ) -> SiteReply:
        """Parse ``{"metrics": ..., "site": ...}`` or ``{"refusal": ..., "site": ...}``.

        Raises InvalidInputError for records, keys, types or lengths that do not belong.
        """
        unknown = sorted(set(records) - {"metrics", "site", "refusal"})
        if unknown:
            raise InvalidInputError(
                f"unknown record {unknown[0]!r:.100} in a reply", hint="metrics, site or refusal"
            )
        site = records.get("site", {})
        _check_keys("site", site, required={"name"}, optional={"audit-head"})
        refusal = None
        if "refusal" in records:
            _check_keys("refusal", records["refusal"], required={"reason"}, optional={"hint", "kind"})
            refusal = Refusal(**records["refusal"])
        metrics = dict(records.get("metrics", {}))
        head = site.get("audit-head", "")
        return cls(
            site_name=site["name"],
            metrics=metrics,
            refusal=refusal,
            audit_head=head,
            arrays=arrays or {},
            aggregation_record=aggregation_record,
        )

    def to_mapping(self) -> dict[str, dict[str, Any]]:
        """The reply's records without arrays and aggregation record: plain dicts of str, int and float."""
        site = {"name": self.site_name} | ({"audit-head": self.audit_head} if self.audit_head else {})
        records: dict[str, dict[str, Any]] = {"site": site}
        if self.refusal is None:
            return records | {"metrics": dict(self.metrics)}
        refusal = {"reason": self.refusal.reason, "hint": self.refusal.hint, "kind": self.refusal.kind}
        return records | {"refusal": refusal}


def one_line(text: str, longest: int = MAX_TEXT) -> str:
    """``text`` as one printable line of at most ``longest`` characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:longest])


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Only known names, whole counts from 0, finite numbers, accuracies in [0, 1], nothing negative.

    Raises InvalidInputError naming the first metric that does not belong.
    """
    for name, value in metrics.items():
        if name not in ALLOWED_METRICS:
            raise InvalidInputError(
                f"unknown metric {name!r:.100}", hint="only the protocol's metrics may travel"
            )
        if name in COUNT_METRICS:
            good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        else:
            good = isinstance(value, float) and math.isfinite(value) and value >= 0.0
            good = good and not ("accuracy" in name and value > 1.0)
        if not good:
            raise InvalidInputError(
                f"the metric {name} is {value!r:.100}", hint="a finite number in its range"
            )


def check_array_record(arrays: Mapping[str, Any]) -> None:
    """Names and dtypes only: float32 numpy arrays under state-dict names (values: see validation).

    Raises InvalidInputError naming the first array that does not belong.
    """
    if len(arrays) > MAX_ARRAYS:
        raise InvalidInputError(f"{len(arrays)} arrays in one message", hint=f"at most {MAX_ARRAYS}")
    for name, array in arrays.items():
        if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name!r:.100} is no name of an array", hint="use the model's state-dict names"
            )
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidInputError(
                f"the array {name} is {found!s:.50}, not a float32 array", hint="send float32 arrays"
            )


def _check_keys(
    record: str,
    found: Mapping[str, Any],
    *,
    required: AbstractSet[str],
    optional: AbstractSet[str] = frozenset(),
) -> None:
    missing, unknown = sorted(required - set(found)), sorted(map(str, set(found) - required - optional))
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"holds the unknown key {unknown[0]!r:.100}"
        raise InvalidInputError(
            f"the record {record!r} of a reply {what}", hint="install the same release everywhere"
        )


def _check_text(what: str, text: Any, longest: int) -> None:
    if not isinstance(text, str) or len(text) > longest or any(not sign.isprintable() for sign in text):
        raise InvalidInputError(
            f"the {what} in a reply is not printable text of up to {longest} characters",
            hint="one line of plain text",
        )
