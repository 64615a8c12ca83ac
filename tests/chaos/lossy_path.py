"""A path of real IP packets, some of which are lost: a network interface of our own (TUN).

The kernel hands every packet for FAR to this process. A packet that is not lost comes back with its two
addresses exchanged, so a connection to FAR reaches whoever listens on NEAR of this machine, and sees FAR as
its peer. (Exchanging two addresses changes neither the sum of the IP header nor that of TCP.) Both directions
pass, and lose, alike; the kernel's TCP does the rest, as between two machines. Needs root for the interface,
which is gone with its file descriptor.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import threading
from types import TracebackType
from typing import Self

NEAR, FAR = "10.254.77.1", "10.254.77.2"
DEVICE = "/dev/net/tun"
SET_INTERFACE = 0x400454CA  # TUNSETIFF
IP_PACKETS_ONLY = 0x1001  # IFF_TUN | IFF_NO_PI
LARGEST = 65536


def can_be_made() -> bool:
    """Whether this process may make a network interface here."""
    try:
        with LossyPath(0.0):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class LossyPath:
    """NEAR and FAR are up while the context is open.

    Attributes:
        loss: share of packets lost, in each direction; may be changed at any time.
        passed, lost: packets so far.
    """

    def __init__(self, loss: float) -> None:
        self.loss, self.passed, self.lost = loss, 0, 0
        self._descriptor = os.open(DEVICE, os.O_RDWR)
        self._ended = threading.Event()
        self._worker = threading.Thread(target=self._pass_on, daemon=True)

    def __enter__(self) -> Self:
        try:
            name = struct.pack("16sH22x", b"lossy%d", IP_PACKETS_ONLY)
            name = fcntl.ioctl(self._descriptor, SET_INTERFACE, name)[:16].rstrip(b"\0").decode()
            for words in (("address", "add", f"{NEAR}/30", "dev", name), ("link", "set", name, "up")):
                subprocess.run(["ip", *words], check=True, capture_output=True)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._worker.start()
        return self

    def _pass_on(self) -> None:
        chance = random.Random()
        while not self._ended.is_set():
            if not select.select([self._descriptor], [], [], 0.1)[0]:
                continue
            packet = os.read(self._descriptor, LARGEST)
            if packet[0] >> 4 != 4:
                continue  # the kernel's own greetings over IPv6
            if chance.random() < self.loss:
                self.lost += 1
                continue
            self.passed += 1
            os.write(self._descriptor, packet[:12] + packet[16:20] + packet[12:16] + packet[20:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._worker.join()
        os.close(self._descriptor)
