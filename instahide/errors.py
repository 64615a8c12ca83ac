"""Errors a person can act on: what is wrong with which value, and what to do about it.

Every error of the toolkit that a user can cause carries two sentences. The command line
prints them as ``error: ...`` and ``hint: ...`` and exits with ``exit_code``; a library user
gets an exception that is also the built-in one they would expect (``ValueError``, ``OSError``).

====  =======================================================================
code  meaning
====  =======================================================================
0     done
1     a run was started and failed
2     the input or an option is wrong; nothing was changed
3     refused: a budget, a policy or a safety rule forbids it
4     integrity: a file is corrupt, truncated, edited or not what it claims
5     the federation failed: a node, the coordinator or the network
130   interrupted (Ctrl-C)
====  =======================================================================
"""

from __future__ import annotations


class InstaHideError(Exception):
    """Base of all errors that are somebody's to mend; ``hint`` says how."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class InvalidInputError(InstaHideError, ValueError):
    """A value the caller gave is wrong; nothing was changed."""

    exit_code = 2


class RefusedError(InstaHideError):
    """A budget, a policy or a safety rule forbids what was asked."""

    exit_code = 3


class IntegrityError(InstaHideError):
    """A file is corrupt, truncated, edited, or not what its manifest says."""

    exit_code = 4


class FederationError(InstaHideError):
    """A node, the coordinator or the network between them failed."""

    exit_code = 5
