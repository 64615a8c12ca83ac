"""Flower's command line library warns when it is first imported; that is not ours to mend.

Encoders draw fresh secrets in every run and nothing can seed them, so a statistical test now and then fails
by chance. It is repeated then: what fails three times in a row is a fault.
"""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import typer  # noqa: F401

STATISTICAL_TRIES = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("statistical"):
            item.add_marker(pytest.mark.flaky(reruns=STATISTICAL_TRIES - 1))
