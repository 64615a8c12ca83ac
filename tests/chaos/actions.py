"""What is done to the product in a sweep: each action writes files, can be repeated, and can be checked."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def helpers(path: str) -> ModuleType:
    """A module of helpers that belongs to other tests."""
    name = Path(path).stem
    specification = importlib.util.spec_from_file_location(name, TESTS / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


class Action:
    """Something the product does with files."""

    def prepare(self, folder: Path) -> None:
        """Make what has to be there before."""

    def perform(self, folder: Path, again: bool) -> None:
        """Do it; ``again`` after a fault. Raises what the product raises."""
        raise NotImplementedError

    def look(self, folder: Path) -> list[str]:
        """What is wrong with the files that lie there, in words."""
        return half_files(folder)

    def lost(self, folder: Path) -> int:
        """Rounds that had to be done twice."""
        return 0

    def phase(self, folder: Path, label: str) -> str:
        """What was being done when the fault came, in words; ``label`` is the step's."""
        return ""

    def left(self, folder: Path) -> Any:
        """What must be the same with and without a fault, as plain JSON."""
        return None


def half_files(folder: Path) -> list[str]:
    """Files that a reader would take for whole and that are not."""
    faults = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.endswith(".partial"):
            continue
        try:
            _READERS.get(path.suffix, lambda _: None)(path)
        except Exception as error:
            faults.append(f"{path.name} is no whole file: {type(error).__name__}")
    return faults


def _safetensors(path: Path) -> None:
    from safetensors.numpy import load

    load(path.read_bytes())


def _csv(path: Path) -> None:
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # `train` appends to one; a last line without its end is none
    widths = {len(row) for row in csv.reader(whole.splitlines())}
    if len(widths) > 1:
        raise ValueError(widths)


def _toml(path: Path) -> None:
    import tomllib

    tomllib.loads(path.read_text())


def _pem(path: Path) -> None:
    text = path.read_text()
    if not text.startswith("-----BEGIN ") or not text.rstrip().endswith("-----"):
        raise ValueError("cut short")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".safetensors": _safetensors,
    ".csv": _csv,
    ".toml": _toml,
    ".crt": _pem,
    ".key": _pem,
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors_digest(path: Path) -> str:
    """Of the tensors of a safetensors file (its metadata come in any order, and may name the folder)."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    parts = [f"{name} {arrays[name].dtype} {arrays[name].tobytes().hex()}" for name in sorted(arrays)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class CoordinatorRun(Action):
    """A run of three rounds over a network of this process, with a server optimiser and an audit log.

    The sites' answers are a function of the node, the round and the weights they receive, so two
    runs have equal bits if and only if the coordinator's own state does. Repeating is resuming.
    """

    rounds = 3
    strategy = "fedadam"

    def __init__(self) -> None:
        self.fakes = helpers("federation/coordinator/fakes.py")

    def prepare(self, folder: Path) -> None:
        from federation.identity import IDENTITY_FILE, load_or_create_identity

        (folder / "study").mkdir()
        load_or_create_identity(folder / "study" / IDENTITY_FILE)
        self.config(folder)

    def config(self, folder: Path, **settings: Any) -> Any:
        return self.fakes.prepare(
            folder / "run",
            num_server_rounds=self.rounds,
            strategy=self.strategy,
            keep_checkpoints=2,
            audit_folder=str(folder / "study"),
            **settings,
        )

    def perform(self, folder: Path, again: bool) -> None:
        from federation.config import RunConfig
        from federation.coordinator import rounds

        clock = self.fakes.FakeClock()
        config = RunConfig(
            num_server_rounds=self.rounds,
            strategy=self.strategy,
            keep_checkpoints=2,
            round_deadline=60.0,
            start_deadline=30.0,
            settle_time=2.0,
            run_directory=str(folder / "run"),
            audit_folder=str(folder / "study"),
            resume=again,
        )
        rounds.run(config, self.fakes.FakeGrid(clock), clock=clock)

    def look(self, folder: Path) -> list[str]:
        from federation.coordinator.events import read_events

        faults = half_files(folder)
        read_events(folder / "run" / "events.jsonl")  # every whole line is one
        return faults

    def phase(self, folder: Path, label: str) -> str:
        from federation.coordinator.events import read_events

        seen = [event["event"] for event in read_events(folder / "run" / "events.jsonl")]
        last = seen[-1] if seen else ""
        if last == "site-replied" and "metrics" in label:
            return "between aggregate and checkpoint"
        if last == "site-replied" and ("round-" in label or ".tmp" in label or "checkpoints" in label):
            return "writing the checkpoint"
        return _PHASES.get(last, "before the first event")

    def lost(self, folder: Path) -> int:
        from federation.coordinator.events import read_events

        started = [
            event["round"]
            for event in read_events(folder / "run" / "events.jsonl")
            if event["event"] == "round-started"
        ]
        return len(started) - len(set(started))

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log

        run, log = folder / "run", folder / "study" / "audit.jsonl"
        return {
            "model": tensors_digest(run / "model.safetensors"),
            "last checkpoint": tensors_digest(run / "checkpoints" / f"round-{self.rounds:04d}.safetensors"),
            "metrics": json.loads((run / "metrics.json").read_text())["rounds"],
            "card": (run / "model_card.md").read_text().replace("resume: true", "resume: false"),
            "audit problems": list(read_log(log).problems),
        }


_PHASES = {
    "run-started": "before the first round",
    "run-resumed": "before the first round",
    "waiting-for-sites": "before the first round",
    "round-started": "waiting for replies",
    "site-replied": "waiting for replies",
    "checkpoint-saved": "after the checkpoint",
    "round-finished": "between rounds",
    "evaluation-started": "final evaluation",
    "evaluation-finished": "writing model and card",
    "run-finished": "after the last event",
    "run-failed": "after the last event",
}


class SiteRound(Action):
    """A hospital's worker, opened and asked for two rounds of training on encodings, then closed.

    A refusal is raised here as an error, so that it must bring a reason and a hint. Nothing at a
    site is equal from run to run (fresh secrets); what is compared is what the files say happened.
    """

    def __init__(self) -> None:
        self.examples = helpers("federation/site/site_examples.py")

    def prepare(self, folder: Path) -> None:
        policy = self.examples.UNASKED + "minimum-cohort-size = 1\n"
        self.examples.write_site(folder, policy=policy)

    def perform(self, folder: Path, again: bool) -> None:
        from federation.site.worker import open_site
        from federation.site.worker_config import load_worker_config
        from instahide.errors import RefusedError

        site = open_site(load_worker_config(folder / "worker.toml"))
        for server_round in (1, 2):
            request = self.examples.request(server_round, num_views=1, minimum_sites=2)
            reply = site.tasks.answer("train", request.to_mapping(), self.examples.initial_weights())
            if reply.refusal is not None:
                raise RefusedError(reply.refusal.reason, hint=reply.refusal.hint)

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log
        from federation.site.run_history import RunHistory
        from instahide.exposure import THROUGH_UPDATES, ExposureLedger

        state = folder / "state"
        counts = ExposureLedger(state / "exposure.sqlite3").counts(
            self.examples.digit_images(0, 120), kind=THROUGH_UPDATES
        )
        log = read_log(state / "audit.jsonl")
        return {
            "exposures": sorted(set(counts.own.tolist())),  # the budget of one, whatever happened
            "audit problems": list(log.problems),
            "updates sent": sum(record.event == "update-sent" for record in log.records) >= 2,
            "rounds counted": RunHistory(state).rounds_trained()["run"] >= 2,
        }


class NewStudy(Action):
    """`coordinator init`: keys, certificates, secrets, settings."""

    names = ("127.0.0.1",)

    def perform(self, folder: Path, again: bool) -> None:
        from federation.study import SETTINGS, create_study

        if again and (folder / "study" / SETTINGS).exists():
            return  # whole: the fault came after the last thing to do, and a second try is refused saying so
        create_study(folder / "study", names=self.names, listen="127.0.0.1", port=9443)

    def left(self, folder: Path) -> Any:
        from federation.study import load_study

        load_study(folder / "study")
        return sorted(path.name for path in (folder / "study").iterdir())


class StudyWithRun(NewStudy):
    """`admit` and the preparation of a run in a study that is there."""

    def prepare(self, folder: Path) -> None:
        super().perform(folder, False)
        for name in ("st-mary", "northside"):
            self.make_request(folder, name)

    def make_request(self, folder: Path, name: str) -> None:
        from federation.identity import load_or_create_identity
        from federation.joining import JoinRequest, write_exchange
        from federation.provisioning import create_node_key

        home = folder / name
        home.mkdir()
        request = JoinRequest(
            name=name,
            public_key=create_node_key(home).public.read_text().strip(),
            identity_key=load_or_create_identity(home / "identity.key").public_line,
            num_examples=100,
            evaluate_num_examples=20,
            class_names=("benign", "malignant"),
            image_shape=(1, 8, 8),
        )
        write_exchange(request, home / "request.json")

    def perform(self, folder: Path, again: bool) -> None:
        from federation.joining import read_request, write_exchange
        from federation.study import admit, load_study, prepare_run

        study = load_study(folder / "study")
        for node_id, name in enumerate(("st-mary", "northside"), start=1):
            request = read_request(folder / name / "request.json")
            write_exchange(admit(study, request, node_id), folder / name / "join.json")
        if not study.run_names():
            prepare_run(study, {"run-name": "trial", "model": "mlp"})

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log
        from federation.joining import read_answer
        from federation.study import load_run, load_study

        study = load_study(folder / "study")
        for name in ("st-mary", "northside"):
            read_answer(folder / name / "join.json")
        return {
            "sites": sorted(site.name for site in study.sites()),
            "run": load_run(study, "trial").model,
            "weights": tensors_digest(study.run_folder("trial") / "initial.safetensors"),
            "audit problems": list(read_log(folder / "study" / "audit.jsonl").problems),
        }


class NewNode(Action):
    """`node init` and `node join`."""

    def prepare(self, folder: Path) -> None:
        examples = helpers("federation/site/site_examples.py")
        examples.write_site(folder / "data")

    def perform(self, folder: Path, again: bool) -> None:
        from federation.identity import load_or_create_identity
        from federation.joining import JoinAnswer, read_request
        from federation.node_folder import NodeFolder, create_node, join
        from federation.provisioning import create_authority

        made = NodeFolder(folder / "node")
        if not made.key.exists():
            data = folder / "data" / "data.npz"
            create_node(made.path, name="north", data=data, test_data=None, public_data=None)
        request = read_request(made.path / "north.request.json")
        outside = folder.parent / "coordinator"  # on another machine, whose disk is not full
        if not outside.exists():
            outside.mkdir()
            create_authority(outside)
        answer = JoinAnswer(
            name="north",
            coordinator="127.0.0.1:9443",
            authority=(outside / "authority.crt").read_text(),
            identity_key=load_or_create_identity(outside / "identity.key").public_line,
            fingerprint=request.fingerprint,
        )
        join(made, answer)

    def left(self, folder: Path) -> Any:
        return sorted(path.name for path in (folder / "node").iterdir())


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
        return helpers("federation/site/site_examples.py").digit_images(0, 80)

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

        examples = helpers("federation/site/site_examples.py")
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

        examples = helpers("federation/site/site_examples.py")
        plan, book = Plan.of(examples.request(), bundle_sha256="0" * 64), PlanBook(folder)
        if not (folder / "policy.toml").exists():
            write_default_policy(folder / "policy.toml")
        book.add(plan)
        book.decide(plan, APPROVED, by="somebody")

    def left(self, folder: Path) -> Any:
        from federation.site.plans import PlanBook

        return [entry.status for entry in PlanBook(folder).entries()]


ACTIONS: dict[str, Callable[[], Action]] = {
    "coordinator-run": CoordinatorRun,
    "site-round": SiteRound,
    "new-study": NewStudy,
    "study-with-run": StudyWithRun,
    "new-node": NewNode,
    "encode": EncodeToDisk,
    "train": TrainToDisk,
    "privacy-charges": PrivacyCharges,
    "plan-decisions": PlanDecisions,
}
