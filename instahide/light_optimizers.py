"""torch's optimisers without torch's compiler.

The first ``optimizer.step()`` of a process imports ``torch._dynamo`` with all of sympy and the
inductor behind it, so that wrapped methods could tell a compiler to stay away: four seconds of
processor time that a hospital's worker, the demonstration and every short training run would
spend on a compiler nobody calls. The methods inside the wrappers are the same, so calling those
gives the same numbers.

Nothing here changes what torch does when its compiler is in use: :func:`spare_the_compiler` is
asked for once per process by the training loop, and does nothing on a torch whose wrappers look
different.
"""

from __future__ import annotations

import inspect

import torch

_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
_CACHE = "__dynamo_disable"  # where torch's own wrapper keeps what it calls after its first call


def spare_the_compiler() -> None:
    """Let the optimisers' bookkeeping methods run without importing ``torch._dynamo``."""
    for name in _METHODS:
        wrapper = getattr(torch.optim.Optimizer, name)
        inner = getattr(wrapper, "__wrapped__", None)
        if inner is not None and "disable_fn" in wrapper.__code__.co_varnames and not hasattr(inner, _CACHE):
            setattr(inner, _CACHE, inner)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()`` on the gradients that are there: same update, no compiler, no step hooks."""
    step = inspect.unwrap(type(optimizer).step)
    with torch.no_grad():
        step(optimizer)
