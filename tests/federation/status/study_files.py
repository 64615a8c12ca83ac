"""Study folders as coordinators leave them, without any process: sites, certificates, runs, audits."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from federation.accounting import PrivacyEvent
from federation.config import RunConfig
from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger
from federation.provisioning import create_authority, issue_server_certificate
from federation.study import Study, load_study

HOSTILE = '<script>alert("x")</script>&\'"\n\u202e[red]`{}\\'
"""As a name and as a reason: HTML, quotes, a line break, a change of direction, markup, an escape."""
NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
SITES = ("st-mary", "northside", "eastern")


def stamp(seconds_ago: float) -> str:
    """An event's time stamp, so long before ``NOW``."""
    moment = NOW - timedelta(seconds=seconds_ago)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_study(folder: Path, names: tuple[str, ...] = SITES, *, days: float = 365) -> Study:
    """A study with admitted hospitals, node ids from 100."""
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text('names = ["fl.example.org"]\nlisten = "0.0.0.0"\nport = 9443\n')
    authority = create_authority(folder)
    for name in ("gateway", "superlink"):
        issue_server_certificate(
            authority, folder, names=["fl.example.org"], file_name=name, days=days, starting=NOW
        )
    rows = [
        {
            "node_id": 100 + number,
            "name": name,
            "fingerprint": f"SHA256:{number}",
            "num_examples": 1200 + number,
            "evaluate_num_examples": 300,
            "class_names": ["benign", "malignant"],
            "image_shape": [1, 8, 8],
            "identity_key": "ssh-ed25519 AAAA",
        }
        for number, name in enumerate(names)
    ]
    (folder / "sites.json").write_text(json.dumps(rows))
    return load_study(folder)


def events_of_a_run(
    rounds: int, *, planned: int = 10, sites: tuple[str, ...] = SITES, **settings: Any
) -> list[dict[str, Any]]:
    """What a run of so many rounds wrote, a minute a round; the last site refuses the second round."""
    config = RunConfig(run_name="trial-1", num_server_rounds=planned, **settings)
    events: list[dict[str, Any]] = [
        {
            "event": "run-started",
            "run-name": "trial-1",
            "num-server-rounds": planned,
            "sites": list(sites),
            "settings": config.to_mapping(),
        },
        {"event": "waiting-for-sites", "present": list(sites), "absent": []},
    ]
    for number in range(1, rounds + 1):
        events.append({"event": "round-started", "round": number})
        replying = sites[:-1] if number == 2 else sites
        events += [
            {"event": "site-replied", "round": number, "site": site, "kind": "train", "metrics": {}}
            for site in replying
        ]
        if number == 2:
            events.append(
                {
                    "event": "site-refused",
                    "round": 2,
                    "site": sites[-1],
                    "kind": "policy",
                    "reason": "at most 1 round a run is allowed here",
                    "hint": "ask the site",
                }
            )
        events.append(
            {
                "event": "round-finished",
                "round": number,
                "sites": list(replying),
                "metrics": {"seconds": 2.5, "train-loss": 1 / number, "num-examples": 3603},
                "incoming": {
                    "evaluate-accuracy-plain": 1 - 0.6**number,
                    "evaluate-accuracy-one-view": 1 - 0.7**number,
                    "evaluate-accuracy-ten-views": 1 - 0.63**number,
                },
            }
        )
    for index, event in enumerate(events):
        event["time"] = stamp(60.0 * (len(events) - index))
    return events


def write_events(study: Study, name: str, events: list[dict[str, Any]]) -> Path:
    """Append events to a run's file; its folder is made the first time."""
    folder = study.run_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").exists():
        (folder / "run.json").write_text("{}")
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return folder


def write_audit(run_folder: Path, where: str, figure: float, **changes: Any) -> Path:
    """An attack's result below the run's audit folder."""
    folder = run_folder / "audit" / where
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "format": "instahide-attack-result/1",
        "version": "0.1.0",
        "attack": "model-membership",
        "name": "model membership",
        "verdict": "members can be told from others",
        "leaked": figure > 0.6,
        "metrics": {"shadow_models": 16.0, "auc": figure},
        "intervals": {"auc": [figure - 0.05, figure + 0.05]},
        "pictures": {},
    }
    (folder / "result.json").write_text(json.dumps(values | changes))
    return folder / "result.json"


def charge(run_folder: Path, rounds: int, *, noise_multiplier: float = 1.0) -> PrivacyLedger:
    """The coordinator's ledger of a run with client-level privacy."""
    ledger = PrivacyLedger(run_folder / LEDGER_NAME)
    for number in range(1, rounds + 1):
        ledger.charge(
            PrivacyEvent(
                run_name="trial-1",
                server_round=number,
                mechanism="client",
                noise_multiplier=noise_multiplier,
                sample_rate=1.0,
                num_steps=1,
                num_draws=1000,
            )
        )
    return ledger
