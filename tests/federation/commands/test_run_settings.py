"""``KEY=VALUE`` words become values as TOML reads them."""

from __future__ import annotations

import pytest

from federation.commands.run_settings import parse_settings
from instahide.errors import InvalidInputError


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("a=3", 3),
        ("a=0.5", 0.5),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=mlp", "mlp"),
        ('a="5"', "5"),
        ('a=["x", "y"]', ["x", "y"]),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a=1\nb=2", "1\nb=2"),
    ],
)
def test_values_are_read_as_toml_where_they_are(pair: str, value: object) -> None:
    assert parse_settings([pair]) == {"a": value}


def test_the_last_of_two_equal_settings_wins() -> None:
    assert parse_settings(["a=1", "a=2"]) == {"a": 2}
    with pytest.raises(InvalidInputError):
        parse_settings(["a=1", "b"])
