"""Trained networks on disk: one safetensors file, with what is needed to build them again as metadata."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from ...errors import IntegrityError
from .pair_network import PairNetwork, PairNetworkSettings, build_network
from .pipeline import Networks, PipelineSettings

KINDS = ("pairs", "groups")


def save_networks(
    networks: Networks, settings: PipelineSettings, path: Path, *, shape: tuple[int, int, int]
) -> None:
    """Write both networks for images of ``shape`` (C, H, W)."""
    from safetensors.torch import save_file

    tensors, metadata = {}, {"shape": " ".join(map(str, shape))}
    for kind in KINDS:
        chosen: PairNetworkSettings = getattr(settings, kind)
        network: PairNetwork = getattr(networks, kind)
        for name, value in network.state_dict().items():
            tensors[f"{kind}.{name}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in ("architecture", "depth", "width", "num_prototypes"):
            metadata[f"{kind}.{name}"] = str(asdict(chosen)[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def load_networks(path: Path) -> Networks:
    """Read what :func:`save_networks` wrote; IntegrityError if it is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            built = {}
            C, H, W = (int(size) for size in metadata["shape"].split())
            shape = (C, H, W)
            for kind in KINDS:
                settings = PairNetworkSettings(
                    architecture=metadata[f"{kind}.architecture"],
                    depth=int(metadata[f"{kind}.depth"]),
                    width=int(metadata[f"{kind}.width"]),
                    num_prototypes=int(metadata[f"{kind}.num_prototypes"]),
                )
                network = build_network(settings, shape)
                start = f"{kind}."
                network.load_state_dict(
                    {key[len(start) :]: file.get_tensor(key) for key in file.keys() if key.startswith(start)}  # noqa: SIM118
                )
                built[kind] = network.eval()
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise IntegrityError(
            f"{path.name} holds no pair networks", hint="let the attack train them anew"
        ) from error
    return Networks(built["pairs"], built["groups"])
