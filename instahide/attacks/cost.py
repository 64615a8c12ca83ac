"""What an attack costs: processor seconds, wall seconds, memory.

with Cost() as cost:
    ...
cost.cpu_seconds, cost.wall_seconds, cost.peak_bytes
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

SAMPLE_SECONDS = 0.05


class Cost:
    """Measures the block it surrounds.

    ``cpu_seconds`` counts all threads of this process. ``peak_bytes`` is the largest resident memory
    seen while the block ran, less what was resident before: sampled every 50 ms, so a shorter spike
    is missed. (The kernel's own high-water mark cannot be set back and would count earlier work.)
    """

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.peak_bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> Cost:
        import psutil

        self._process = psutil.Process()
        self._resident = self._process.memory_info().rss
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._started = (time.process_time(), time.perf_counter())
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cpu_seconds = time.process_time() - self._started[0]
        self.wall_seconds = time.perf_counter() - self._started[1]
        self._done.set()
        self._sampler.join()

    def figures(self) -> dict[str, Any]:
        """The three figures by their names in :class:`instahide.attacks.view.AttackResult`."""
        return {
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "peak_bytes": self.peak_bytes,
        }

    def _sample(self) -> None:
        while True:
            used = self._process.memory_info().rss - self._resident
            self.peak_bytes = max(self.peak_bytes, used)
            if self._done.wait(SAMPLE_SECONDS):
                return
