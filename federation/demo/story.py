"""The demonstration, start to end: what is run, in which order, and what is kept of it.

data → hospitals and coordinator as processes → each hospital alone → federated on plain
images → federated on encodings, one hospital killed in the middle → a known-image
membership test on what the encodings are → demo.json, index.html
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from instahide.atomic import atomic_write_text
from instahide.errors import InstaHideError

from ..commands.console import describe_event
from ..following import EventTail, follow_run, raise_unless_completed
from ..study import prepare_run
from .data import DemoData, prepare
from .hospitals import Federation, approve_plan, running_federation, wait_until_connected
from .settings import HOSPITALS, VICTIM, DemoSettings

Say = Callable[[str], None]
MODES = ("plain", "one-view", "ten-views")


def run_demo(settings: DemoSettings, say: Say) -> dict[str, Any]:
    """Run the whole demonstration into ``settings.out``; the results, which ``demo.json`` holds too.

    Raises InstaHideError subclasses when any part of it fails: a demonstration that skipped a part
    would prove nothing.
    """
    began = time.monotonic()
    data = prepare(
        settings.data, HOSPITALS, concentration=settings.concentration, split_seed=settings.split_seed
    )
    say(f"data: {data.source}; " + ", ".join(f"{h.name} {len(h.train)}" for h in data.hospitals))
    results: dict[str, Any] = {"data": describe_data(data), "settings": _settings(settings)}
    with running_federation(settings, data, say) as federation:
        say("meanwhile, each hospital alone: training on its own images only")
        results["alone"] = train_alone(settings, data, say)
        wait_until_connected(federation)
        say("three hospitals connected over TLS with node keys")
        results["federated-plain"] = _federated(settings, federation, say, name="plain", encoded=False)
        results["federated-encoded"] = _federated(settings, federation, say, name="encoded", encoded=True)
        say("asking an outsider's question: which of these images were encoded?")
        results["membership"] = measure_membership(settings, data)
    results["seconds"] = round(time.monotonic() - began, 1)
    atomic_write_text(settings.out / "demo.json", json.dumps(results, indent=2) + "\n")
    from .report import write_page

    write_page(settings, data, results)
    return results


def describe_data(data: DemoData) -> dict[str, Any]:
    """Counts a reader needs to judge the results."""
    return {
        "source": data.source,
        "image-shape": list(data.test.image_shape),
        "class-names": list(data.test.class_names or ()),
        "public-images": len(data.public),
        "test-images": len(data.test),
        "hospitals": {
            hospital.name: np.bincount(
                hospital.train.labels if hospital.train.labels is not None else [],
                minlength=hospital.train.num_classes,
            ).tolist()
            for hospital in data.hospitals
        },
    }


def _settings(settings: DemoSettings) -> dict[str, Any]:
    return {
        key: str(value) if key in ("out", "data") else value
        for key, value in asdict(settings).items()
        if key != "out"
    }


def train_alone(settings: DemoSettings, data: DemoData, say: Say) -> dict[str, Any]:
    """Each hospital trains the same model for as many passes on its own images; measured on everybody's."""
    import torch

    from instahide.encoder import Encoder, FewPixelsWarning
    from instahide.encoder_config import EncoderConfig
    from instahide.evaluation import evaluate
    from instahide.models import build_model
    from instahide.training import train
    from instahide.training_config import TrainingConfig

    torch.set_num_threads(1)
    run = settings.run_settings(name="alone", encoded=False)
    training = TrainingConfig(
        epochs=settings.num_server_rounds * settings.local_epochs,
        batch_size=run["batch-size"],
        learning_rate=run["learning-rate"],
        lr_schedule="constant",
        device="cpu",
        num_threads=1,
    )
    config = EncoderConfig(num_mixed=settings.num_mixed, num_private=settings.num_private)
    measured = {}
    for hospital in data.hospitals:
        model = build_model(
            run["model"], image_shape=data.test.image_shape, num_classes=data.test.num_classes
        )
        train(model, hospital.train, training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewPixelsWarning)
            encoder = Encoder(config, private=hospital.train, public=data.public)
        report = evaluate(model, data.test, encoder=encoder)
        shown = (report.plain, report.encoded_once, report.encoded_average)
        measured[hospital.name] = {
            mode: None if part is None else part.accuracy for mode, part in zip(MODES, shown, strict=True)
        }
        say(f"  {hospital.name} alone: accuracy {report.plain.accuracy:.3f} on everybody's test images")
    return measured


def _federated(
    settings: DemoSettings, federation: Federation, say: Say, *, name: str, encoded: bool
) -> dict[str, Any]:
    """One run of the federation, followed to its end; in the encoded one a hospital is killed."""
    from ..flower_processes.bundle import build_bundle

    kind = "encodings (InstaHide, hardened), under secure aggregation" if encoded else "plain images"
    say(f"federated run on {kind}: {settings.num_server_rounds} rounds")
    config = prepare_run(federation.study, settings.run_settings(name=name, encoded=encoded))
    folder = federation.study.run_folder(name)
    bundle = build_bundle()
    plan = approve_plan(federation, config, bundle)
    say(f"  the hospitals approve its plan {plan.short}; a run of any other plan would be refused")
    run_id = federation.control.submit_run(bundle, config.to_run_config())
    events: list[dict[str, Any]] = []
    accident = Accident(settings, federation, say) if encoded else None

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if accident is not None:
            accident.watch(event)
        if words := describe_event(event):
            say(f"  {words}")

    status = follow_run(federation.control, run_id, EventTail(folder / "events.jsonl"), on_event)
    raise_unless_completed(status, events)
    table = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    final = next(event for event in reversed(events) if event["event"] == "evaluation-finished")
    return {
        "rounds": table["rounds"],
        "final": {mode: final["metrics"].get(f"evaluate-accuracy-{mode}") for mode in MODES},
        "sites-measured": final["sites"],
        "accident": None if accident is None else accident.summary(events),
        "folder": str(folder.relative_to(settings.out)),
    }


class Accident:
    """Kills one hospital in the middle of a round, lets it come back, and tells what became of it."""

    def __init__(self, settings: DemoSettings, federation: Federation, say: Say) -> None:
        self._round = settings.kill_round
        self._victim = federation.hospitals[VICTIM]
        self._say = say
        self._killed = self._revived = False

    def watch(self, event: dict[str, Any]) -> None:
        """Called with every event of the run."""
        if event["event"] == "round-started" and event["round"] == self._round and not self._killed:
            self._killed = True
            self._victim.kill()
            self._say(f"  {VICTIM} is killed now, in the middle of round {self._round} (SIGKILL)")
        elif event["event"] == "round-finished" and event["round"] == self._round:
            self._revived = True
            self._victim.revive_worker()
            self._say(f"  {VICTIM}'s machine is back; its node keeps knocking until it is admitted again")

    def summary(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Rounds with and without the victim, by its events."""
        finished = [event for event in events if event["event"] == "round-finished"]
        if not self._killed or not finished:
            raise InstaHideError("the accident of the demonstration did not happen", hint="report this")
        return {
            "hospital": VICTIM,
            "killed-in-round": self._round,
            "rounds-without-it": [e["round"] for e in finished if VICTIM not in e["sites"]],
            "rounds-with-it": [e["round"] for e in finished if VICTIM in e["sites"]],
        }


def measure_membership(settings: DemoSettings, data: DemoData) -> dict[str, Any]:
    """One encoding of each image of the largest hospital: can an outsider tell who is inside?

    The outsider holds candidate images (the members and as many others), the soft labels, the
    public pool and other images of the same kind; each private image is in exactly one encoding
    as its own and in ``num_private - 1`` as a partner.
    """
    from instahide.attacks.membership import known_image_membership
    from instahide.attacks.view import AttackerView
    from instahide.encoder import Encoder, FewPixelsWarning
    from instahide.encoder_config import EncoderConfig
    from instahide.images import ImageSet

    hospital = max(data.hospitals, key=lambda part: len(part.train))
    reference, others = np.array_split(np.arange(len(data.held_out)), 2)
    members = hospital.train.subset(np.arange(min(len(hospital.train), 4 * len(others))))
    measured: dict[str, Any] = {"hospital": hospital.name}
    for num_mixed in (1, settings.num_mixed):
        config = EncoderConfig(num_mixed=num_mixed, num_private=min(settings.num_private, num_mixed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewPixelsWarning)
            pool = data.public if config.num_private < num_mixed else None
            released = Encoder(config, private=members, public=pool).encode_epoch()
        non_members = data.held_out.subset(others)
        candidates = ImageSet(
            np.concatenate([members.images, non_members.images]),
            np.concatenate([_labels(members), _labels(non_members)]),
            members.class_names,
        )
        is_member = np.arange(len(candidates)) < len(members)
        view = AttackerView.of(released, data.held_out.subset(reference), public_pool=data.public)
        measured[f"k={num_mixed}"] = known_image_membership(
            view, candidates, is_member, uses=config.num_private, check=False
        ).to_dict()
    return measured


def _labels(images: Any) -> Any:
    assert images.labels is not None
    return images.labels
