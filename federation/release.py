"""How the coordinator's gateway tells nodes which release it runs."""

from __future__ import annotations

from instahide import __version__

RELEASE_HEADER = "instahide-release"
RELEASE = __version__
