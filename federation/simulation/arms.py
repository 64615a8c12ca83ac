"""The arms of a study: several ways to run one federation, compared on the same hospitals.

NAME:KEY=VALUE,KEY=VALUE        an arm with the run settings it differs in
KEY=VALUE,VALUE,...             every arm with each of these values: arms times values
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from instahide.errors import InvalidInputError

from ..config import RUN_NAME_PATTERN, RunConfig
from ..secure_aggregation.parameters import MAX_SITES

BASE: Final[Mapping[str, Any]] = {
    "num-server-rounds": 5,
    "batch-size": 32,
    "encoding": "none",
    "evaluate": False,  # the study measures each global model itself, on the whole test part
    "settle-time": 0.0,
    "retry-pause": 0.0,
    "max-failed-rounds": 3,
    "keep-checkpoints": 1,
}
"""Where a study differs from the defaults of a real run."""
OURS: Final = ("run-name", "run-directory", "audit-folder", "resume", "roster", "class-names", "image-shape")
MOST_ARMS: Final = 64


@dataclass(frozen=True)
class Arm:
    """One way to run: a name and the complete settings."""

    name: str
    config: RunConfig
    changed: Mapping[str, Any]


def build_arms(
    settings: Mapping[str, Any],
    arms: Sequence[str],
    varied: Sequence[str],
    named: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    num_hospitals: int,
) -> list[Arm]:
    """The arms of a study; one called "run" where none is given.

    Args:
        settings: for every arm.
        arms: ``NAME:KEY=VALUE,...``.
        varied: ``KEY=VALUE,VALUE``.
        named: arms with settings, from a file.
        num_hospitals: how many there are.

    Raises InvalidInputError for settings a study decides itself, unknown ones, or two arms of one name.
    """
    differing: list[tuple[str, dict[str, Any]]] = [(name, dict(own)) for name, own in (named or {}).items()]
    differing += [_arm(text) for text in arms]
    differing = differing or [("", {})]
    for text in varied:
        key, values = _varied(text)
        differing = [
            ("-".join(filter(None, (name, _in_name(key, value)))), {**own, key: value})
            for name, own in differing
            for value in values
        ]
    if len(differing) > MOST_ARMS:
        raise InvalidInputError(f"{len(differing)} arms in one study", hint=f"at most {MOST_ARMS}")
    names = [name or "run" for name, _ in differing]
    if len(set(names)) != len(names):
        raise InvalidInputError("two arms have one name", hint="give every --arm a name of its own")
    return [
        _built(name, {**settings, **own}, own, num_hospitals)
        for name, (_, own) in zip(names, differing, strict=True)
    ]


def _built(name: str, settings: dict[str, Any], own: Mapping[str, Any], num_hospitals: int) -> Arm:
    if not re.fullmatch(RUN_NAME_PATTERN, name):
        raise InvalidInputError(
            f"{name!r:.80} is no name of an arm", hint="letters, digits, '.', '_' and '-', up to 64"
        )
    for key in OURS:
        if key in settings:
            raise InvalidInputError(f"{key} cannot be set in a study", hint="it follows from data and arms")
    try:
        config = RunConfig.from_mapping({**BASE, **settings, "run-name": name})
    except InvalidInputError as error:
        raise InvalidInputError(f"arm {name}: {error.message}", hint=error.hint) from error
    if config.secure_aggregation and num_hospitals > MAX_SITES:
        raise InvalidInputError(
            f"arm {name}: {num_hospitals} hospitals, and one hidden sum takes 2 to {MAX_SITES}",
            hint="use fewer --hospitals or no secure-aggregation; federation/SCALE.md tells of larger sums",
        )
    if config.minimum_sites > num_hospitals:
        raise InvalidInputError(
            f"arm {name}: minimum-sites is {config.minimum_sites} of {num_hospitals} hospitals",
            hint="lower minimum-sites, or use more --hospitals",
        )
    return Arm(name, config, own)


def _arm(text: str) -> tuple[str, dict[str, Any]]:
    name, colon, pairs = text.partition(":")
    if not colon or not name:
        raise InvalidInputError(
            f"--arm {text!r:.100} is not NAME:KEY=VALUE,...", hint="for example --arm plain:encoding=none"
        )
    return name, dict(_pair(pair) for pair in pairs.split(",") if pair)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInputError(f"{text!r:.100} is not KEY=VALUE", hint="for example encoding=none")
    return key.strip(), _value(value.strip())


def _varied(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise InvalidInputError(
            f"--vary {text!r:.100} is not KEY=VALUE,VALUE", hint="for example --vary strategy=fedavg,median"
        )
    return key.strip(), [_value(value.strip()) for value in values.split(",")]


def _value(text: str) -> Any:
    """As TOML reads it, else the text itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if set(read) == {"value"} else text


def _in_name(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    return value if isinstance(value, str) else f"{key}-{value}"
