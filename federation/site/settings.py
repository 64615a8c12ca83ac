"""Reading the hospital's own TOML files: every key known, every value in range, or a refusal.

``policy.toml`` and ``worker.toml`` are flat tables with kebab-case keys. Their dataclasses
declare each key with :func:`federation.config.setting`, the same way the run configuration
does; :func:`parse` turns a table into the dataclass, :func:`write_commented` turns the
dataclass's defaults into a file that explains itself.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from instahide.errors import InvalidInputError

from ..setting_rules import Rule, rule_of, to_kebab

Settings = TypeVar("Settings")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table in a TOML file; raises InvalidInputError saying what is wrong with ``what``."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InvalidInputError(
            f"the {what} cannot be read: {error.strerror}", hint=f"put a {what} in place"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the {what} is not TOML: {error}", hint="mend that line") from error


def parse(settings: type[Settings], table: Mapping[str, Any], what: str, **beside: Any) -> Settings:
    """``settings`` from a kebab-case table; ``beside`` are fields that are no keys of the file.

    Raises:
        InvalidInputError: an unknown or missing key, a wrong type, a value out of range.
    """
    known = {to_kebab(item.name): item for item in _keys(settings)}
    for key in table:
        if key not in known:
            raise InvalidInputError(
                f"unknown key {key!r:.80} in the {what}", hint=_suggestion(str(key), list(known))
            )
    missing = [key for key, item in known.items() if item.default is MISSING and key not in table]
    if missing:
        meaning = rule_of(known[missing[0]]).meaning
        raise InvalidInputError(f"the {what} lacks {missing[0]!r}", hint=f"{missing[0]}: {meaning}")
    values = {known[key].name: _checked(key, rule_of(known[key]), value) for key, value in table.items()}
    return settings(**values, **beside)


def commented(settings: type[Any], introduction: str) -> str:
    """A TOML text with every key of ``settings`` at its default, and above it what it means."""
    lines = [f"# {line}".rstrip() for line in introduction.strip().splitlines()]
    for item in _keys(settings):
        lines += ["", f"# {rule_of(item).meaning}", _toml_line(item)]
    return "\n".join(lines) + "\n"


def _keys(settings: type[Any]) -> list[Field[Any]]:
    return [item for item in fields(settings) if "rule" in item.metadata]


def _toml_line(item: Field[Any]) -> str:
    key = to_kebab(item.name)
    if item.default is None or item.default is MISSING:
        kind = rule_of(item).kind
        return f"# {key} = {'[]' if isinstance(kind, tuple) else json.dumps(kind())}"
    value = list(item.default) if isinstance(item.default, tuple) else item.default
    return f"{key} = {json.dumps(value)}"  # for these types JSON is TOML


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _checked(key: str, rule: Rule, value: Any) -> Any:
    if isinstance(rule.kind, tuple):
        if not isinstance(value, list):
            raise _wrong(key, rule, value)
        return tuple(_checked_one(key, rule, rule.kind[0], entry) for entry in value)
    return _checked_one(key, rule, rule.kind, value)


def _checked_one(key: str, rule: Rule, kind: type, value: Any) -> Any:
    given = type(value)
    if kind is float and given is int:
        value, given = float(value), float
    if given is not kind:  # isinstance would let a truth value pass for a number
        raise _wrong(key, rule, value)
    if isinstance(value, str):
        good = (not rule.choices or value in rule.choices) and (
            not rule.pattern or re.fullmatch(rule.pattern, value) is not None
        )
    else:
        good = math.isfinite(value)
        good = good and (rule.minimum is None or value >= rule.minimum)
        good = good and (rule.maximum is None or value <= rule.maximum)
        good = good and (rule.below is None or value < rule.below)
    if not good:
        raise _wrong(key, rule, value)
    return value


def _wrong(key: str, rule: Rule, value: Any) -> InvalidInputError:
    return InvalidInputError(f"{key} is {value!r:.80}", hint=f"{key} takes {rule.allowed}: {rule.meaning}")
