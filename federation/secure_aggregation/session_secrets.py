"""Where a session's secrets come from: the operating system, through :mod:`instahide.randomness`."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from instahide.errors import RefusedError
from instahide.randomness import Randomness


class SessionSecrets:
    """Fresh bytes for keys, self-mask seeds, share coefficients and salts. No pickle, nothing in a repr."""

    def __init__(self) -> None:
        self._randomness = Randomness()

    def take(self, count: int) -> bytes:
        """``count`` bytes nobody has seen, under a key-stream key of their own."""
        return self._randomness.stream("aggregation").read(count).tobytes()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: contents withheld>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be pickled or copied")


class TestOnlySecrets(SessionSecrets):
    """Bytes from a written-down tape, hence no secret at all: under pytest only, for known answers."""

    __test__ = False  # pytest must not collect it

    def __init__(self, tape: bytes) -> None:
        if "PYTEST_CURRENT_TEST" not in os.environ:
            raise RefusedError(
                "written-down secrets were asked for outside a test",
                hint="secrets come from the operating system; there is no tape to set",
            )
        super().__init__()
        self._tape = tape

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes of the tape."""
        if count > len(self._tape):
            raise RefusedError("the tape of test secrets has ended", hint="make it longer")
        taken, self._tape = self._tape[:count], self._tape[count:]
        return taken
