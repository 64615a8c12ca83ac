"""What one request may take of the machine, and that it stops there in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.site.limits import GIB, LimitError, RequestLimits

from .test_round_task import Site, request, why


def limits(should_stop: bool = False, *, seconds: float = 0.0, memory: int = 0) -> RequestLimits:
    """Limits of 10 s and 2 GiB, asked when this much is used."""
    times = iter([100.0] + [100.0 + seconds] * 10)
    return RequestLimits(
        lambda: should_stop,
        max_seconds=10.0,
        max_memory_gib=2.0,
        memory=lambda: memory,
        clock=lambda: next(times),
    )


def test_within_its_limits_a_request_goes_on() -> None:
    within = limits(seconds=10.0, memory=2 * GIB)
    assert not within()
    within.check()


@pytest.mark.parametrize(
    ("beyond", "said"),
    [({"seconds": 10.1}, "longer than the 10 s"), ({"memory": 2 * GIB + 1}, "more than the 2 GiB")],
)
def test_beyond_a_limit_it_stops_and_says_which(beyond: dict[str, float], said: str) -> None:
    stopped = limits(**beyond)  # type: ignore[arg-type]
    assert stopped()
    with pytest.raises(LimitError, match=said):
        stopped.check()


def test_a_relay_that_left_stops_it_and_is_no_limit() -> None:
    abandoned = limits(should_stop=True)
    assert abandoned()
    abandoned.check()


def test_the_memory_looked_at_is_this_processs_own() -> None:
    assert not RequestLimits(lambda: False, max_seconds=100.0, max_memory_gib=1000.0)()
    assert RequestLimits(lambda: False, max_seconds=100.0, max_memory_gib=1e-3)()


def test_training_that_takes_too_long_is_stopped_and_refused_by_policy(tmp_path: Path) -> None:
    site = Site(tmp_path, "max-seconds = 1\n")
    kind, reason = why(site.ask(local_epochs=1000, evaluate=False))
    assert kind == "policy"
    assert reason == "the request took longer than the 1 s this site gives to one"
    assert site.tasks._history.facts(request(), num_examples=1).rounds_served == 1
    (tmp_path / "policy.toml").write_text("plan-approval = false\n")
    assert site.ask(2, evaluate=False).refusal is None


def test_a_worker_that_is_too_large_already_begins_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, "max-memory-gib = 0.25\n")  # torch alone takes more
    (tmp_path / "policy.toml").write_text("plan-approval = false\nmax-memory-gib = 0.25\n")
    import resource

    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 <= GIB // 4:
        pytest.skip("this Python is smaller than the smallest limit")
    kind, reason = why(site.ask())
    assert kind == "policy"
    assert "0.25 GiB" in reason
    assert site.uses() == ({0}, {0})
