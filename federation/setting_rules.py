"""What a setting may be, written where the setting is declared: the fields of every settings class.

    learning_rate: float = setting(0.05, float, "step size at the sites", minimum=1e-8, maximum=100.0)

One rule serves the check, the error, ``--help`` and the documentation. A run's settings
(``config.py``), a site's ``policy.toml`` and ``worker.toml`` and the join files are held to rules.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

from instahide.errors import InvalidInputError

type_name = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a setting may be. ``kind`` is int, float, bool, str, or a tuple of str or of int."""

    kind: type | tuple[type]
    meaning: str
    minimum: float | None = None
    maximum: float | None = None
    below: float | None = None  # an upper end that is itself excluded
    choices: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def allowed(self) -> str:
        """The allowed values in words, for help texts and errors."""
        if self.choices:
            return ", ".join(self.choices)
        if isinstance(self.kind, tuple):
            return f"a list ({'text' if self.kind == (str,) else 'whole numbers'})"
        words = type_name[self.kind]
        if self.minimum is not None:
            words += f" from {self.minimum:g}"
        if self.maximum is not None:
            words += f" to {self.maximum:g}"
        if self.below is not None:
            words += f" to below {self.below:g}"
        return words


def setting(default: Any, kind: type | tuple[type], meaning: str, **limits: Any) -> Any:
    """A dataclass field that knows its rule; ``default=MISSING`` makes the key required."""
    rule = Rule(kind=kind, meaning=meaning, **limits)
    return field(default=default, metadata={"rule": rule}) if default is not MISSING else _required(rule)


def _required(rule: Rule) -> Any:
    return field(metadata={"rule": rule})


def to_kebab(name: str) -> str:
    """``learning_rate`` → ``learning-rate``."""
    return name.replace("_", "-")


def rule_of(item: Field[Any]) -> Rule:
    """The rule behind a dataclass field made by :func:`setting`."""
    rule: Rule = item.metadata["rule"]
    return rule


def check_value(key: str, rule: Rule, value: Any) -> Any:
    """``value`` in the rule's type, or InvalidInputError naming the key, the value and the range."""
    if isinstance(rule.kind, tuple):
        return _checked_list(key, rule.kind[0], value)
    if rule.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong_type = not isinstance(value, rule.kind) or (rule.kind is int and isinstance(value, bool))
    if wrong_type or not _within(rule, value):
        raise InvalidInputError(
            f"{key} is {value!r:.100}", hint=f"{key} takes {rule.allowed}: {rule.meaning}"
        )
    return value


def _within(rule: Rule, value: Any) -> bool:
    if isinstance(value, str):
        named = not rule.choices or value in rule.choices
        return named and (not rule.pattern or re.fullmatch(rule.pattern, value) is not None)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    too_low = rule.minimum is not None and value < rule.minimum
    too_high = rule.maximum is not None and value > rule.maximum
    return not (too_low or too_high or (rule.below is not None and value >= rule.below))


def _checked_list(key: str, kind: type, value: Any) -> tuple[Any, ...]:
    """A list, or its JSON text, as a tuple of ``kind``; at most 10,000 entries."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            value = None
    right = isinstance(value, list | tuple) and len(value) <= 10_000
    if not right or any(not isinstance(entry, kind) or isinstance(entry, bool) for entry in value):
        raise InvalidInputError(
            f"{key} is not a list of {'names' if kind is str else 'whole numbers'}",
            hint='write it as JSON, for example ["benign", "malignant"]'
            if kind is str
            else "for example [3, 32, 32]",
        )
    return tuple(value)
