"""What can be checked before anybody is telephoned: this machine, its files, the way to the coordinator.

A check looks at one thing, changes nothing, and says what it saw and, unless all is well, what to
do (``checks``). ``node`` and ``coordinator`` put the checks of the two sides together; the other
files hold the checks themselves, one subject a file. None needs the other side to be up.
"""

from __future__ import annotations

from .checks import Check, Outcome, Report, State, run_checks

__all__ = ["Check", "Outcome", "Report", "State", "run_checks"]
