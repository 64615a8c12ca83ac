"""A statistical test that is repeated draws its secrets anew, also those a module keeps for several tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def fresh_secrets_when_repeated(request: pytest.FixtureRequest) -> None:
    """Empties the module's ``lru_cache`` functions before a second and third try."""
    if getattr(request.node, "execution_count", 1) > 1:
        for value in vars(request.module).values():
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()
