"""A node's log says which calls were refused, and nothing of those that went well."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest

from federation.flower_processes.http_log import keep_refused_calls
from federation.flower_processes.node import explain_node_exit


@pytest.fixture(autouse=True)
def _httpx_as_before() -> Iterator[None]:
    logger = logging.getLogger("httpx")
    level, filters = logger.level, list(logger.filters)
    yield
    logger.setLevel(level)
    logger.filters[:] = filters


def lines(status: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of one call that is answered with ``status``."""
    keep_refused_calls()
    answering = httpx.MockTransport(lambda request: httpx.Response(status))
    with caplog.at_level(logging.INFO), httpx.Client(transport=answering) as client:
        client.get("https://coordinator.example/heartbeat")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("status", [200, 204])
def test_a_call_that_went_well_is_not_logged(status: int, caplog: pytest.LogCaptureFixture) -> None:
    assert lines(status, caplog) == []


def test_a_refused_call_is_logged_and_explains_the_nodes_end(caplog: pytest.LogCaptureFixture) -> None:
    [line] = lines(401, caplog)
    reason = explain_node_exit(0, line + "\nSuperNode terminated gracefully.")
    assert reason is not None
    assert "compare the clocks" in reason
