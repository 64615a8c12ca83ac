"""A trained sign network on disk: weights only, as safetensors, so that it is trained once for a law."""

from __future__ import annotations

from pathlib import Path

from ...errors import IntegrityError
from .sign_recovery import SignNetwork


def save_sign_network(network: SignNetwork, path: Path) -> None:
    """Write the weights; the file runs no code when read."""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, str(path), metadata={"channels": str(network.channels)})


def load_sign_network(path: Path) -> SignNetwork:
    """Read what :func:`save_sign_network` wrote.

    Raises:
        IntegrityError: not such a file.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as stored:
            channels = int(stored.metadata()["channels"])
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        network = SignNetwork(channels)
        network.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IntegrityError(
            f"{path} is not a sign network: {error}", hint="train one and save it with save_sign_network"
        ) from error
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval()
    return network
