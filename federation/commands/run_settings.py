"""The settings of a run as a coordinator types them: ``--config FILE`` and ``--set KEY=VALUE``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from instahide.errors import InvalidInputError


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as a mapping; values are read as TOML where they are, else as text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InvalidInputError(
                f"--set {pair!r} is not KEY=VALUE", hint="for example --set learning-rate=0.1"
            )
        try:
            read = tomllib.loads(f"value = {text}")
        except tomllib.TOMLDecodeError:
            read = {}
        values[key] = read["value"] if set(read) == {"value"} else text
    return values


def not_ours(values: dict[str, Any]) -> dict[str, Any]:
    """``values``, unless they hold a setting that the verb itself decides."""
    for key in ("run-name", "run-directory", "audit-folder", "resume", "roster"):
        if key in values:
            raise InvalidInputError(
                f"{key} cannot be set", hint="it follows from the study, the verb and the run's name"
            )
    return values


def read_settings(path: Path | None) -> dict[str, Any]:
    """The settings in a TOML file; none without a file. Raises InvalidInputError if it cannot be read."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}", hint="check --config") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise InvalidInputError(f"{path} is not TOML: {error}", hint="write KEY = VALUE lines") from error
