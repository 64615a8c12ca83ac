"""Many hospitals on one machine: the product's own rounds and sites with no network between them."""

from __future__ import annotations

from .one_process import simulate
from .sites import STUDY_POLICY

__all__ = ["STUDY_POLICY", "simulate"]
