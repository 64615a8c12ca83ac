"""How a site says no: its own errors, which kind of refusal each is, and how little they tell.

policy     a rule of this site        approval   not until somebody here has approved the plan
budget     what may be spent is spent  error      something failed; the site's log says what
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from instahide.errors import InstaHideError, RefusedError
from instahide.training import DivergedError

from ..messages import APPROVAL, BUDGET, ERROR, POLICY, Refusal, SiteReply
from .plans import AwaitingApprovalError

logger = logging.getLogger(__name__)


class BudgetError(RefusedError):
    """The exposure budget of the site's policy is spent."""


class SiteFaultError(InstaHideError):
    """Something at the site failed; the coordinator is told that, and the site's log what."""


class CancelledTaskError(InstaHideError):
    """The relay left, or the worker is stopping: the work was abandoned."""


def refusal(site_name: str, reason: str, hint: str, kind: str) -> SiteReply:
    """A refusal in one line of printable text each."""
    return SiteReply(site_name=site_name, refusal=Refusal.from_text(reason, hint=hint, kind=kind))


def kind_of_refusal(error: InstaHideError) -> str:
    """The kind under which ``error`` is told to the coordinator."""
    if isinstance(error, AwaitingApprovalError):
        return APPROVAL
    if isinstance(error, BudgetError):
        return BUDGET
    return POLICY if isinstance(error, RefusedError) else ERROR


@contextmanager
def faults_told_at_home(doing: str) -> Iterator[None]:
    """Turn an error about the site's own images or files into one that says nothing about them."""
    try:
        yield
    except (RefusedError, CancelledTaskError, DivergedError):
        raise
    except InstaHideError as error:
        logger.warning("%s failed: %s", doing, error.message)
        raise SiteFaultError(
            f"{doing} failed at the site ({type(error).__name__})", hint="the site's log says why"
        ) from error
