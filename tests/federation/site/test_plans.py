"""The site's book of plans: what waits, what was decided, and that nothing else is served."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from federation.config import RunConfig
from federation.plan import Plan
from federation.site.plans import (
    APPROVED,
    MAX_PENDING,
    PENDING,
    REJECTED,
    AwaitingApprovalError,
    PlanBook,
)
from instahide.errors import IntegrityError, InvalidInputError, RefusedError


def plan(name: str = "trial", **settings: Any) -> Plan:
    config = RunConfig.from_mapping({"run-name": name, **settings})
    return Plan.of(config, bundle_sha256="ab" * 32)


@pytest.fixture
def book(tmp_path: Path) -> PlanBook:
    """Every look at its clock is a second later."""
    seconds = iter(range(10_000))
    begin = datetime(2026, 1, 2, tzinfo=UTC)
    return PlanBook(tmp_path, now=lambda: begin + timedelta(seconds=next(seconds)))


def test_an_unknown_plan_is_written_down_and_waits(book: PlanBook, tmp_path: Path) -> None:
    with pytest.raises(AwaitingApprovalError, match="waits for this site's approval") as caught:
        book.check(plan())
    assert plan().short in caught.value.message
    assert "instahide node plan" in caught.value.hint
    [entry] = book.entries()
    assert book.pending() == {plan().sha256}
    assert (entry.plan, entry.status, entry.by) == (plan(), PENDING, "")
    assert (tmp_path / "plans").stat().st_mode & 0o777 == 0o700
    with pytest.raises(AwaitingApprovalError):
        book.check(plan())
    assert len(book.entries()) == 1


def test_an_approved_plan_is_served_and_a_changed_one_waits(book: PlanBook) -> None:
    book.add(plan())
    book.decide(plan(), APPROVED, by="Dr. No")
    assert book.check(plan())
    with pytest.raises(AwaitingApprovalError):
        book.check(plan(**{"local-epochs": 2}))
    assert [entry.status for entry in book.entries()] == [PENDING, APPROVED]
    assert book.pending() == {book.entries()[0].plan.sha256}
    assert book.entries()[1].by == "Dr. No"


def test_a_rejected_plan_is_refused_at_once_and_an_approval_can_be_taken_back(book: PlanBook) -> None:
    book.add(plan())
    for decision in (APPROVED, REJECTED):
        book.decide(plan(), decision, by="somebody")
    with pytest.raises(RefusedError, match="rejected the plan") as caught:
        book.check(plan())
    assert not isinstance(caught.value, AwaitingApprovalError)
    book.decide(plan(), APPROVED, by="somebody")
    assert book.check(plan())


def test_ever_new_plans_fill_no_disk(book: PlanBook, tmp_path: Path) -> None:
    for number in range(MAX_PENDING + 30):
        with pytest.raises(AwaitingApprovalError) as caught:
            book.check(plan(f"run-{number}"))
    assert f"{MAX_PENDING} others wait" in caught.value.message
    assert len(list((tmp_path / "plans").iterdir())) == MAX_PENDING
    book.decide(plan("run-0"), REJECTED, by="somebody")
    with pytest.raises(AwaitingApprovalError, match="waits for this site's approval"):
        book.check(plan("one-more"))


def test_a_plan_is_found_by_the_first_digits_of_its_hash(book: PlanBook) -> None:
    book.add(plan("a"))
    book.add(plan("b"))
    assert book.find(plan("a").short).plan == plan("a")
    assert book.find(plan("b").sha256.upper()).plan == plan("b")
    for wrong in ("", "abc", "0" * 12, "../../etc/passwd"):
        with pytest.raises(InvalidInputError):
            book.find(wrong)
    book.decide(plan("a"), APPROVED, by="somebody")
    assert book.find("").plan == plan("b")


def test_the_plan_to_compare_with_is_the_one_approved_last(book: PlanBook) -> None:
    for name in ("a", "b", "c", "d"):
        book.add(plan(name))
    for name, decision in (("b", APPROVED), ("a", APPROVED), ("c", REJECTED)):
        book.decide(plan(name), decision, by="somebody")
    before = book.last_approved(other_than=plan("d"))
    assert before is not None
    assert before.plan == plan("a")
    before = book.last_approved(other_than=plan("a"))
    assert before is not None
    assert before.plan == plan("b")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sha256": "", "decision": "approved", "by": "", "at": ""}', "\x00"]
)
def test_a_damaged_decision_approves_nothing(book: PlanBook, tmp_path: Path, text: str) -> None:
    book.add(plan())
    (tmp_path / "plans" / f"{plan().sha256}.decision.json").write_text(text)
    with pytest.raises(IntegrityError):
        book.check(plan())


def test_an_approval_holds_for_the_plan_it_was_given_to(book: PlanBook, tmp_path: Path) -> None:
    """Neither a renamed decision nor an edited plan passes for another."""
    book.add(plan("a"))
    book.decide(plan("a"), APPROVED, by="somebody")
    book.add(plan("b"))
    folder = tmp_path / "plans"
    (folder / f"{plan('a').sha256}.decision.json").rename(folder / f"{plan('b').sha256}.decision.json")
    with pytest.raises(IntegrityError):
        book.check(plan("b"))
    (folder / f"{plan('b').sha256}.decision.json").unlink()
    path = folder / f"{plan('a').sha256}.json"
    table = json.loads(path.read_text())
    table["plan"]["settings"]["num-mixed"] = 1
    path.write_text(json.dumps(table))
    with pytest.raises(IntegrityError, match="does not have its hash"):
        book.find(plan("a").short)
