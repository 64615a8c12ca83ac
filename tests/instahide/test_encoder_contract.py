"""Every encoder of the contract suite keeps every promise of the suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..contracts import CHECKS, ENCODERS, MakeEncoder


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
def test_the_encoder_keeps_its_promise(make: MakeEncoder, check: Callable[[MakeEncoder], None]) -> None:
    check(make)
