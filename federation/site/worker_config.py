"""``worker.toml``: where the site's data, rules and state are, and who may knock.

Relative paths are relative to the file's folder. No key in it has an effect on what a
coordinator may ask; that is the policy's.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass
from pathlib import Path

from ..config import RUN_NAME_PATTERN
from ..frames import DEFAULT_MAX_PAYLOAD_BYTES
from ..setting_rules import setting
from .settings import commented, parse, read_toml

_REQUIRED = "site-name, data, policy, socket and state-folder are needed; the rest has defaults."


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """The keys of ``worker.toml``, paths as written there (see :meth:`path`); ``folder`` is the file's."""

    site_name: str = setting(
        MISSING, str, "name of the hospital in replies and logs", pattern=RUN_NAME_PATTERN
    )
    data: str = setting(
        MISSING,
        str,
        "training images: a folder or file that `instahide dataset inspect` can read",
        pattern=".+",
    )
    test_data: str = setting("", str, "test images; empty: data's own test split, else a part held out")
    public_data: str = setting("", str, "public images to mix with; empty: private images only")
    policy: str = setting(MISSING, str, "the site's policy.toml", pattern=".+")
    socket: str = setting(
        MISSING, str, "Unix socket to listen on, in a folder of its own (mode 0700)", pattern=".+"
    )
    state_folder: str = setting(
        MISSING, str, "folder for the exposure ledger, the registration and the run history", pattern=".+"
    )
    identity_key: str = setting(
        "", str, "this site's identity key, which signs its audit log; empty: one in the state folder"
    )
    coordinator_key: str = setting(
        "", str, "the coordinator's public identity key, once joined; empty: any coordinator's head is taken"
    )
    ready_file: str = setting("", str, "file written once the worker is ready; empty: none")
    class_names: tuple[str, ...] | None = setting(
        None, (str,), "the federation's class names in order, where this site's data lacks some of them"
    )
    image_size: int | None = setting(
        None,
        int,
        "side in pixels that all images are brought to; left out, as they are",
        minimum=1,
        maximum=8192,
    )
    image_channels: int | None = setting(
        None, int, "1 (grey) or 3 (colour) channels; left out, as they are", minimum=1, maximum=3
    )
    test_fraction: float = setting(
        0.2, float, "share held out for tests where there are no test images", minimum=0.0, below=1.0
    )
    device: str = setting("auto", str, "auto, cpu, cuda, cuda:1, ...")
    threads: int = setting(2, int, "processor threads for training", minimum=1, maximum=1024)
    allowed_uids: tuple[int, ...] | None = setting(
        None, (int,), "user ids that may connect; left out, only the worker's own", minimum=0
    )
    socket_group: int | None = setting(
        None, int, "group id that may reach the socket, for a relay under another user", minimum=0
    )
    max_payload_bytes: int = setting(
        DEFAULT_MAX_PAYLOAD_BYTES, int, "largest model accepted from the relay, in bytes", minimum=1
    )
    busy_wait_seconds: float = setting(
        5.0,
        float,
        "seconds a second request waits before it is told the site is busy",
        minimum=0.0,
        maximum=3600.0,
    )
    folder: Path = Path()

    def path(self, written: str) -> Path:
        """``written`` as an absolute path, relative to the folder of ``worker.toml``."""
        return Path(os.path.abspath(self.folder / Path(written).expanduser()))  # noqa: PTH100 (keep symlinks)

    @property
    def uids(self) -> tuple[int, ...]:
        """The users who may connect."""
        return (os.getuid(),) if self.allowed_uids is None else self.allowed_uids


def load_worker_config(path: Path) -> WorkerConfig:
    """The worker's configuration.

    Raises:
        InvalidInputError: unreadable, an unknown key, a wrong value, or a needed key left out.
    """
    table = read_toml(path, "worker configuration")
    return parse(WorkerConfig, table, "worker configuration", folder=path.resolve().parent)


def default_worker_text() -> str:
    """A commented ``worker.toml`` to fill in."""
    return commented(WorkerConfig, f"A hospital's site worker. {_REQUIRED}")
