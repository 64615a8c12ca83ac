"""What one hospital does on its own disk: encode, train, export, charge its ledger, decide on plans."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from .action import Action
from .whole_files import tensors_digest


class EncodeToDisk(Action):
    """`encode`: an encoding to a folder, its shards, its manifest and the ledger beside it."""

    def perform(self, folder: Path, again: bool) -> None:
        from instahide.encode_job import encode_to_folder
        from instahide.encoder_config import EncoderConfig
        from instahide.exposure import ExposureLedger

        out = folder / "encoded"
        if again and (out / "manifest.json").exists() and not (out / ".encode-job.json").exists():
            return  # whole: the fault came after the last thing to do, and a resume is refused saying so
        encode_to_folder(
            EncoderConfig(num_mixed=4, num_private=2),
            folder / "encoded",
            private=self.images(),
            ledger=ExposureLedger(folder / "ledger.sqlite3"),
            shard_size=40,
            resume=again,
        )

    @staticmethod
    def images() -> Any:
        from ..federation.site import site_examples as examples

        return examples.digit_images(0, 80)

    def left(self, folder: Path) -> Any:
        from instahide.exposure import RELEASED, ExposureLedger
        from instahide.storage import load_encoded

        counts = ExposureLedger(folder / "ledger.sqlite3").counts(self.images(), kind=RELEASED)
        return {
            "rows": len(load_encoded(folder / "encoded")),
            "exposures": sorted(set(counts.own.tolist())),
            "files": sorted(path.name for path in (folder / "encoded").iterdir()),
        }


class TrainToDisk(Action):
    """`train`: logs, the model and its report."""

    def perform(self, folder: Path, again: bool) -> None:
        from instahide.models import ModelSpec
        from instahide.training_config import TrainingConfig
        from instahide.training_job import CHECKPOINT_FILE, train_in_folder, write_report

        from ..federation.site import site_examples as examples

        out = folder / "trained"
        if again and (out / "model.safetensors").exists():
            return  # the work is done and kept; only what is written after the model may be missing
        run = train_in_folder(
            out,
            ModelSpec("mlp", (1, 8, 8), 10),
            examples.digit_images(0, 80),
            TrainingConfig(epochs=2, device="cpu", deterministic=True, num_threads=1),
            resume=again and (out / CHECKPOINT_FILE).exists(),
        )
        write_report(out, run, None)

    def left(self, folder: Path) -> Any:
        return {
            "model": tensors_digest(folder / "trained" / "model.safetensors"),
            "rows": len((folder / "trained" / "metrics.csv").read_text().splitlines()),
        }


class ExportToDisk(Action):
    """`export`: a folder of files that comes to be at once, or not."""

    def prepare(self, folder: Path) -> None:
        TrainToDisk().perform(folder, False)

    def perform(self, folder: Path, again: bool) -> None:
        from federation.commands.console import OutputFormat
        from federation.commands.export import export

        out = folder / "exported"
        if again and out.exists():
            return  # whole, since it is there; `left` looks
        # Not the graphs: torch would be loaded and traced at every step.
        with redirect_stdout(io.StringIO()):
            export(folder / "trained", out, "safetensors", None, OutputFormat.json)

    def left(self, folder: Path) -> Any:
        out = folder / "exported"
        return {
            "model": tensors_digest(out / "model.safetensors"),
            "files": sorted(path.name for path in out.iterdir()),
        }


class PrivacyCharges(Action):
    """Two charges to a site's privacy ledger. A charge that was told of is never lost."""

    def perform(self, folder: Path, again: bool) -> None:
        from federation.accounting import PrivacyEvent
        from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger

        ledger = PrivacyLedger(folder / LEDGER_NAME)
        for server_round in range(len(ledger.entries()) + 1, 3):
            event = PrivacyEvent(
                run_name="trial",
                server_round=server_round,
                mechanism="dp-sgd",
                noise_multiplier=1.0,
                sample_rate=0.1,
                num_steps=10,
                num_draws=1000,
            )
            ledger.charge(event)

    def left(self, folder: Path) -> Any:
        from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger

        return [event.server_round for event in PrivacyLedger(folder / LEDGER_NAME).events()]


class PlanDecisions(Action):
    """A plan is seen at a site and approved."""

    def perform(self, folder: Path, again: bool) -> None:
        from federation.plan import Plan
        from federation.site.plans import APPROVED, PlanBook
        from federation.site.policy import write_default_policy

        from ..federation.site import site_examples as examples

        plan, book = Plan.of(examples.request(), bundle_sha256="0" * 64), PlanBook(folder)
        if not (folder / "policy.toml").exists():
            write_default_policy(folder / "policy.toml")
        book.add(plan)
        book.decide(plan, APPROVED, by="somebody")

    def left(self, folder: Path) -> Any:
        from federation.site.plans import PlanBook

        return [entry.status for entry in PlanBook(folder).entries()]
