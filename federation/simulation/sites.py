"""Simulated hospitals: each one's folder, policy, ledgers, audit log and training; opened when it is asked.

What answers a request is the site worker's own :class:`~federation.site.round_task.SiteTasks` over a state
folder of its own. Missing are the worker's process, its socket and the relay. A hospital that is not at work
is a folder of some kilobytes: at most ``most_open`` are held open, and all of one process train in one model
object, into which the weights of a request are loaded before every use. What must outlast a message in
memory, the session keys of secure aggregation, is kept for every hospital.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from instahide.exposure import ExposureLedger
from instahide.models import ImageClassifier, ModelSpec

from ..audit_log import AuditLog
from ..identity import IDENTITY_FILE, load_or_create_identity
from ..messages import Arrays, SiteReply
from ..privacy_ledger import LEDGER_NAME as PRIVACY_LEDGER_NAME
from ..privacy_ledger import PrivacyLedger
from ..site.audit import AUDIT_FILE, SiteAudit
from ..site.dataset import SiteData
from ..site.masked_rounds import MaskedRounds
from ..site.plans import PlanBook
from ..site.privacy_budget import SitePrivacy
from ..site.round_task import SiteTasks
from ..site.run_history import RunHistory

POLICY_FILE: Final = "policy.toml"
EXPOSURE_LEDGER: Final = "ledger.sqlite3"
MOST_OPEN: Final = 32
STUDY_POLICY: Final = """\
# A policy for studies on public data: nothing here protects anybody.
encoding-required = false
allowed-encoding-modes = ["hardened", "compat", "mixup"]
plan-approval = false
minimum-examples = 1
minimum-num-mixed = 1
minimum-num-private = 1
max-rounds = 100000
max-runs = 100000
max-repeated-rounds = 100000
max-update-exposures = 100000
"""


class SimulatedSites:
    """The hospitals that one process plays, by number.

    Args:
        folder: one folder a hospital is made in it, ``site-NUMBER``.
        names: number → name, of every hospital of the run.
        data: a hospital's images by its number; asked again whenever it is opened.
        policy: text of ``policy.toml``, the same at each.
        threads: processor threads of a training.
        most_open: hospitals whose images and ledgers are in memory at one time.
    """

    def __init__(
        self,
        folder: Path,
        names: Mapping[int, str],
        data: Callable[[int], SiteData],
        *,
        policy: str = STUDY_POLICY,
        threads: int = 1,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._folder, self._names, self._data = folder, names, data
        self._policy, self._threads, self._most_open = policy, threads, most_open
        self._open: OrderedDict[int, SiteTasks] = OrderedDict()
        self._masked: dict[int, MaskedRounds] = {}
        self._models: dict[ModelSpec, ImageClassifier] = {}

    def identity_line(self, number: int) -> str:
        """The public identity key of a hospital, made when it is first asked for."""
        return load_or_create_identity(self._home(number) / IDENTITY_FILE).public_line

    def answer(
        self, number: int, kind: str, settings: Mapping[str, Any], arrays: Arrays, record: bytes = b""
    ) -> SiteReply:
        """The signed reply of hospital ``number``; a refusal is a reply too."""
        return self._tasks(number).answer(kind, settings, arrays, aggregation_record=record)

    def _tasks(self, number: int) -> SiteTasks:
        tasks = self._open.pop(number, None) or self._opened(number)
        self._open[number] = tasks
        while len(self._open) > self._most_open:
            self._open.popitem(last=False)
        return tasks

    def _opened(self, number: int) -> SiteTasks:
        home, name = self._home(number), self._names[number]
        identity = load_or_create_identity(home / IDENTITY_FILE)
        if number not in self._masked:
            self._masked[number] = MaskedRounds(name, lambda: identity.private_key)
        return SiteTasks(
            name,
            self._data(number),
            ledger=ExposureLedger(home / EXPOSURE_LEDGER),
            history=RunHistory(home),
            privacy=SitePrivacy(PrivacyLedger(home / PRIVACY_LEDGER_NAME)),
            plans=PlanBook(home),
            audit=SiteAudit(AuditLog(home / AUDIT_FILE, identity, role="site", name=name)),
            masked_rounds=self._masked[number],
            policy_path=home / POLICY_FILE,
            encodings_folder=home / "encodings",
            device="cpu",
            threads=self._threads,
            models=self._models,
        )

    def _home(self, number: int) -> Path:
        home = self._folder / f"site-{number}"
        if not home.exists():
            home.mkdir(parents=True)
            (home / POLICY_FILE).write_text(self._policy, encoding="utf-8")
        return home


@contextmanager
def quiet_sites() -> Iterator[None]:
    """Without the sites' log lines, one or more a request: their refusals are in the run's events."""
    logger = logging.getLogger("federation.site")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
