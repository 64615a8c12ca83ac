"""The coordinator: rounds, validation of updates, aggregation, checkpoints, outputs. No Flower."""
