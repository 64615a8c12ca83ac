"""A person's decision about a plan: into the site's audit log first, then into its book of plans.

In this order, because a decision that left no trace is worse than a trace of one that has no
effect yet: the command can be given again.
"""

from __future__ import annotations

from .messages import one_line
from .node_folder import NodeFolder
from .plan import Plan
from .site.audit import open_site_log
from .site.plans import APPROVED, PlanBook, PlanEntry
from .site.worker_config import load_worker_config


def decide(folder: NodeFolder, book: PlanBook, plan: Plan, decision: str, *, by: str) -> PlanEntry:
    """Approve or reject ``plan`` at this node; the new entry of the book.

    Raises InstaHideError if the audit log or the book cannot be written.
    """
    log = open_site_log(load_worker_config(folder.worker_config))
    book.add(plan)
    event = "plan-approved" if decision == APPROVED else "plan-rejected"
    log.append(event, plan_sha256=plan.sha256, run=plan.run_name, by=one_line(by, 100))
    return book.decide(plan, decision, by=one_line(by, 100))


def approve(folder: NodeFolder, plan: Plan, *, by: str) -> PlanEntry:
    """Approve a plan that was handed over beforehand."""
    return decide(folder, PlanBook(folder.state), plan, APPROVED, by=by)
