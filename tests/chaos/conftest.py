"""``chaos``: what a test tells the table that is printed at the end; ``--chaos-json FILE`` keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import fault_library
from .scoreboard import PROPERTY, Recorder, summary, table, write_json

if TYPE_CHECKING:
    from .real_federation import RealFederation


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-json", metavar="FILE", default=None, help="write the table of tests/chaos here")


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Recorder:
    """The recorder of this test."""
    return Recorder(request.node.user_properties)


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled fault library."""
    if not fault_library.is_available():
        pytest.skip("faults are injected with LD_PRELOAD, which needs Linux and a C compiler (cc)")
    return fault_library.build(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFederation]:
    """Three hospitals and a coordinator as real processes, for all tests that need them."""
    from .real_federation import real_federation  # Flower's import takes seconds

    with real_federation(tmp_path_factory.mktemp("chaos")) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    attempts = [
        value
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if not attempts:
        return
    rows = summary(attempts)
    terminalreporter.section("what was tried, and what survived")
    for line in table(rows):
        terminalreporter.write_line(line)
    if path := config.getoption("--chaos-json", default=None):
        write_json(rows, Path(path))
