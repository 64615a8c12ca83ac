"""Stock FedAvg, train only; writes the time of each round's end."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from plain_app.model import build

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config

    def note(server_round: int, arrays: ArrayRecord) -> None:
        with Path(settings["report"]).open("a") as report:
            report.write(f"{time.monotonic()}\n")

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=settings["num-nodes"])
    strategy.start(
        grid,
        ArrayRecord(build().state_dict()),
        num_rounds=settings["num-server-rounds"],
        evaluate_fn=note,
    )
