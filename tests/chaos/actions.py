"""What is done to the product in a sweep, by name."""

from __future__ import annotations

from collections.abc import Callable

from .action import Action
from .disk_actions import EncodeToDisk, ExportToDisk, PlanDecisions, PrivacyCharges, TrainToDisk
from .key_actions import ExchangeOfKeys
from .masked_actions import ConfirmedRun, MaskedRun, MaskedSite
from .run_actions import CoordinatorRun, SiteRound
from .setup_actions import NewNode, NewStudy, StudyWithRun

ACTIONS: dict[str, Callable[[], Action]] = {
    "coordinator-run": CoordinatorRun,
    "site-round": SiteRound,
    "masked-run": MaskedRun,
    "confirmed-run": ConfirmedRun,
    "masked-site": MaskedSite,
    "new-study": NewStudy,
    "study-with-run": StudyWithRun,
    "new-node": NewNode,
    "keys-exchanged": ExchangeOfKeys,
    "encode": EncodeToDisk,
    "train": TrainToDisk,
    "export": ExportToDisk,
    "privacy-charges": PrivacyCharges,
    "plan-decisions": PlanDecisions,
}
