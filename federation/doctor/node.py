"""The checks of a hospital's node, in the order in which a person would mend things."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from instahide.errors import InstaHideError, InvalidInputError

from ..flower_processes.node import NodeSettings, load_settings
from ..node_folder import NodeFolder, worker_listens
from ..site.policy import load_policy
from ..site.worker_config import load_worker_config
from . import machine, network, registration
from .checks import Check, Outcome, failed, ok, skipped, warning
from .files import (
    is_identity_key,
    is_node_key_of,
    private_file,
    private_folder,
    read_certificate,
    validity,
)
from .network import Address, parse_address
from .packages import check_packages, check_versions

JOIN = "`instahide node join NODE NAME.join.json` with the coordinator's answer"
_READERS_LOG = "federation.site.dataset"
_LONGEST_SOCKET = 107  # bytes, of a Unix socket's name on Linux

T = TypeVar("T")


def node_checks(folder: NodeFolder, *, read_data: bool = True) -> list[Check]:
    """All checks of a node's folder; ``read_data=False`` leaves the images alone.

    Raises InvalidInputError if the folder holds nothing of a node.
    """
    if not any(path.exists() for path in (folder.key, folder.worker_config, folder.node_config)):
        folder.check()
    checks = [
        Check("installed versions", check_versions),
        Check("package names", check_packages),
        Check("node key", partial(_node_key, folder)),
        Check("identity key", partial(_identity_key, folder)),
        *([Check("new keys", partial(_waiting_keys, folder))] if folder.next_key.exists() else []),
        Check("state folder", lambda: private_folder(folder.state) if folder.state.exists() else _no_state()),
        Check("policy", partial(_policy, folder)),
        Check("disk", lambda: machine.check_disk(folder.path)),
        Check("memory", partial(_memory, folder)),
        Check("GPU", partial(_gpu, folder), late=_late("torch was still being asked for GPUs")),
        Check("time service", machine.check_time_service),
    ]
    if read_data:
        checks.append(
            Check("dataset", partial(_dataset, folder), late=_late("the images were still being read"))
        )
    checks.append(Check("site worker", partial(_worker, folder)))
    return checks + _connection_checks(folder)


def _connection_checks(folder: NodeFolder) -> list[Check]:
    steps: tuple[tuple[str, Callable[[Address], Outcome]], ...] = (
        ("coordinator's name", network.check_name),
        ("coordinator's port", network.check_port),
        ("TLS chain", network.check_chain),
        ("TLS host name", network.check_host_name),
        ("certificate shown", network.check_expiry),
        ("clock", network.check_clock),
        ("coordinator's answer", network.check_answer),
        ("key registered", lambda address: registration.check_registration(address, folder.key)),
        ("release", lambda address: registration.check_release(address, folder.key)),
    )
    try:
        settings = _settings(folder)
        address = parse_address(str(settings.coordinator), settings.authority)
    except (InstaHideError, OSError) as error:
        problem = failed(str(error).partition("\n")[0], fix=getattr(error, "hint", "") or JOIN)
        missing = skipped("it is not known where the coordinator is", fix="see `joined` above")
        return [Check("joined", lambda: problem), *(Check(name, lambda: missing) for name, _ in steps)]
    return [
        Check("joined", lambda: ok(f"the coordinator is {settings.coordinator}")),
        Check("authority", lambda: validity(read_certificate(settings.authority), renew=JOIN)),
        *(Check(name, partial(step, address), late=_unanswered(step)) for name, step in steps),
    ]


def _unanswered(step: Callable[[Address], Outcome]) -> Outcome:
    """A connection has a time limit of its own, a name server has none: it is what hangs."""
    if step is network.check_name:
        return failed(
            "no name server answered in time", fix="ask IT which name server this machine should use"
        )
    return skipped("not reached in time", fix="see the name and the port above")


def _settings(folder: NodeFolder) -> NodeSettings:
    if not folder.node_config.exists():
        raise InvalidInputError("this node has not joined a federation yet", hint=JOIN)
    settings = load_settings(folder.node_config)
    for path in (settings.authority, settings.private_key):
        if not path.exists():
            raise InvalidInputError(
                f"node.toml names {path}, which is not there", hint=f"was the folder moved? {JOIN}"
            )
    return settings


def _node_key(folder: NodeFolder) -> Outcome:
    restore = "restore it from a backup, or make a new node (`instahide node init`) and join again"
    return private_file(folder.key, restore=restore, is_good=is_node_key_of(folder.public_key))


def _identity_key(folder: NodeFolder) -> Outcome:
    restore = "restore it from a backup: the coordinator knows this site's audit log by it"
    return private_file(folder.identity_key, restore=restore, is_good=is_identity_key)


def _waiting_keys(folder: NodeFolder) -> Outcome:
    """Keys of `node rotate` that wait for the coordinator's answer."""
    restore = "delete it, and make it anew with `instahide node rotate NODE`"
    waiting = [(folder.next_key, is_node_key_of(folder.next_public_key))]
    if folder.next_identity_key.exists():
        waiting.append((folder.next_identity_key, is_identity_key))
    for path, is_good in waiting:
        outcome = private_file(path, restore=restore, is_good=is_good)
        if outcome.fix:
            return outcome
    return warning(
        f"{len(waiting)} wait for the coordinator's answer; the old ones are in use",
        fix="send NAME.request.json to the coordinator, then `instahide node join NODE NAME.join.json`",
    )


def _policy(folder: NodeFolder) -> Outcome:
    policy = load_policy(_policy_path(folder))
    approval = "serves approved plans only" if policy.plan_approval else "serves any plan within it"
    encoding = "encoded images only" if policy.encoding_required else "plain images allowed"
    return ok(f"read in full; {approval}; {encoding}")


def _memory(folder: NodeFolder) -> Outcome:
    policy = _if_readable(lambda: load_policy(_policy_path(folder)))
    return machine.check_memory(limit_gib=None if policy is None else policy.max_memory_gib)


def _gpu(folder: NodeFolder) -> Outcome:
    return machine.check_gpu(load_worker_config(folder.worker_config).device)


def _dataset(folder: NodeFolder) -> Outcome:
    """The site's own reader over the site's own settings; counts only, compared with the registered ones."""
    from ..site.dataset import load_site_data, registered_counts

    config = load_worker_config(folder.worker_config)
    with _warnings_counted() as warnings:
        data = load_site_data(config)
    counts = {
        "num-training-images": len(data.training),
        "num-test-images": len(data.test),
        "num-public-images": 0 if data.public is None else len(data.public),
    }
    seen = (
        f"{counts['num-training-images']:,} training, {counts['num-test-images']:,} test and "
        f"{counts['num-public-images']:,} public images, {len(data.class_names)} classes"
    )
    registered = registered_counts(config.path(config.state_folder))
    if registered is not None and registered != counts:
        return failed(
            f"{seen}; registered were {', '.join(f'{count:,}' for count in registered.values())}",
            fix="restore the images; if it is meant: `instahide node start NODE --accept-changed-data`",
        )
    if warnings:
        return warning(f"{seen}; {'; '.join(warnings)}", fix="`instahide dataset inspect DATA` lists them")
    return ok(seen)


class _warnings_counted(logging.Handler):  # noqa: N801 - used as a context
    """The readers' warnings (counts, never names) as a list, instead of on standard error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage().partition(";")[0])

    def __enter__(self) -> list[str]:
        logging.getLogger(_READERS_LOG).addHandler(self)
        return self.found

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_READERS_LOG).removeHandler(self)


def _worker(folder: NodeFolder) -> Outcome:
    if worker_listens(folder):
        return ok("the site worker is up")
    if len(os.fsencode(folder.socket)) > _LONGEST_SOCKET:
        return failed(
            f"the path of {folder.socket} is too long for a socket (over {_LONGEST_SOCKET} bytes)",
            fix="move the node's folder to a shorter path and join again",
        )
    return skipped("the site worker is not up", fix="instahide node start NODE")


def _policy_path(folder: NodeFolder) -> Path:
    config = _if_readable(lambda: load_worker_config(folder.worker_config))
    return folder.policy if config is None else config.path(config.policy)


def _if_readable(load: Callable[[], T]) -> T | None:
    """What is loaded, or None where another check says why it cannot be."""
    try:
        return load()
    except InstaHideError:
        return None


def _no_state() -> Outcome:
    return ok("not made yet: `instahide node start` makes it")


def _late(what: str) -> Outcome:
    return skipped(f"{what} when the time was up", fix="try again with a longer --wait, such as --wait 300")
