"""What the demonstration does, in numbers; every one of them is printed in its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOSPITALS = ("st-mary", "northside", "riverside")
VICTIM = "northside"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Choices of one demonstration; ``data=None`` takes scikit-learn's digits."""

    out: Path
    data: Path | None = None
    num_server_rounds: int = 6
    local_epochs: int = 3
    concentration: float = 0.5
    split_seed: int = 7
    num_mixed: int = 4
    num_private: int = 2
    max_update_exposures: int = 6
    round_deadline: float = 12.0

    @property
    def kill_round(self) -> int:
        """The round of the encoded run in whose middle a hospital is killed."""
        return min(3, self.num_server_rounds)

    def run_settings(self, *, name: str, encoded: bool) -> dict[str, Any]:
        """The run configuration of the plain or of the encoded run."""
        return {
            "run-name": name,
            "num-server-rounds": self.num_server_rounds,
            "local-epochs": self.local_epochs,
            "model": "small-cnn",
            "batch-size": 32,
            "learning-rate": 0.05,
            "encoding": "instahide" if encoded else "none",
            # The sign mask carries no information about the label; |x| spares the model learning that.
            "absolute-input": encoded,
            "num-mixed": self.num_mixed,
            "num-private": self.num_private,
            "minimum-sites": 2,
            "round-deadline": self.round_deadline,
            "start-deadline": 90.0,
            "max-failed-rounds": 5,  # a busy machine may miss a deadline; the round is tried again
            # The coordinator opens sums only. Two of three answers open one, so that a hospital may be lost.
            "secure-aggregation": encoded,
            "reconstruction-threshold": 2 if encoded else 0,
        }
