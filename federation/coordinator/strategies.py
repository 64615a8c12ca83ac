"""From the name of a strategy to the rule that combines updates."""

from __future__ import annotations

from ..config import RunConfig
from .aggregation import Aggregator, Combine, FedAdam, coordinate_median, trimmed_mean, weighted_mean
from .krum import Krum


def build_aggregator(config: RunConfig) -> Aggregator:
    """The rule that ``strategy`` names, with its settings."""
    match config.strategy:
        case "fedadam":
            return FedAdam(
                learning_rate=config.server_learning_rate,
                beta_1=config.server_beta_1,
                beta_2=config.server_beta_2,
                tau=config.server_tau,
            )
        case "median":
            return Combine(coordinate_median)
        case "trimmed-mean":
            return Combine(lambda updates, name: trimmed_mean(updates, name, fraction=config.trim_fraction))
        case "krum":
            return Krum(config.num_malicious_nodes, num_nodes_to_select=1)
        case "multi-krum":
            return Krum(config.num_malicious_nodes, config.num_nodes_to_select)
        case _:
            return Combine(weighted_mean)
