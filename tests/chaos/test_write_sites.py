"""Every module of the product that writes files is met by a sweep, or is named here with the reason why not.

A new place that writes makes this fail until somebody has thought about a full disk there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .actions import ACTIONS
from .scoreboard import Recorder

ROOT = Path(__file__).resolve().parents[2]
WRITERS = {"atomic_path", "atomic_write_bytes", "atomic_write_text", "write_private_file"}
METHODS = {"write_bytes", "write_text", "ftruncate", "truncate", "mkstemp"}

# Module -> the sweep that meets its writes.
SWEPT = {
    "federation/audit_log.py": "coordinator-run",
    "federation/commands/export.py": "export",
    "federation/coordinator/checkpoints.py": "coordinator-run",
    "federation/coordinator/events.py": "coordinator-run",
    "federation/coordinator/outputs.py": "coordinator-run",
    "federation/coordinator/rounds.py": "coordinator-run",
    "federation/identity.py": "new-study",
    "federation/joining.py": "study-with-run",
    "federation/node_folder.py": "new-node",
    "federation/node_rotation.py": "keys-exchanged",
    "federation/privacy_ledger.py": "privacy-charges",
    "federation/revocation.py": "keys-exchanged",
    "federation/private_files.py": "new-study",
    "federation/provisioning.py": "new-study",
    "federation/site/dataset.py": "site-round",
    "federation/site/plans.py": "plan-decisions",
    "federation/site/policy.py": "new-node",
    "federation/site/run_history.py": "site-round",
    "federation/study.py": "study-with-run",
    "instahide/atomic.py": "coordinator-run",
    "instahide/checkpoints.py": "train",
    "instahide/encode_job.py": "encode",
    "instahide/epochs.py": "site-round",
    "instahide/exposure.py": "site-round",
    "instahide/manifest.py": "encode",
    "instahide/storage.py": "site-round",
    "instahide/training_job.py": "train",
    "instahide/training_log.py": "train",
}

# One whole file through instahide.atomic, written anew by running the same verb again.
ONE_WHOLE_FILE = {
    "federation/commands/attack/shared.py",
    "federation/commands/simulate.py",
    "federation/commands/theory/shared.py",
    "federation/demo/hospitals.py",
    "federation/demo/report.py",
    "federation/demo/story.py",
    "federation/external_certificate.py",
    "federation/flower_processes/superlink.py",
    "federation/plan.py",
    "federation/run_sites.py",
    "federation/site/worker.py",
    "federation/status/connection.py",
    "federation/status/files.py",
    "instahide/attacks/challenge.py",
    "instahide/attacks/frontier/page.py",
    "instahide/attacks/frontier/table.py",
    "instahide/attacks/report.py",
    "instahide/attacks/result_files.py",
    "instahide/attacks/update_inversion/capture.py",
    "instahide/picture_grid.py",
}

# Writes something else than a file that is kept.
NOT_KEPT = {
    "federation/cli.py": "standard output",
    "federation/doctor/dummy_site.py": "a folder of its own, gone when the dry run ends",
    "federation/doctor/rehearsal.py": "in the same",
    "federation/simulation/population.py": "a temporary folder, gone when the study ends",
    "federation/simulation/run_folder.py": "in the same, or a study in one process done anew from the start",
    "federation/simulation/sites.py": "in the same",
    "federation/site/listener.py": "a lock",
    "federation/supervision.py": "logs of child processes",
    "instahide/attacks/implementation_audits/planted_checks.py": "a test folder of its own",
}


def writes(path: Path) -> bool:
    """Whether a module opens a file to write, or calls what writes one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITERS | METHODS:
            return True
        of_sqlite = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "sqlite3"
        of_os = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "os"
        if (of_sqlite and name == "connect") or (of_os and name in {"write", "fsync"}):
            return True
        if name in {"open", "fdopen"} and _opens_to_write(node, of_os):
            return True
    return False


def _opens_to_write(call: ast.Call, of_os: bool) -> bool:
    text = " ".join(ast.unparse(argument) for argument in [*call.args, *(key.value for key in call.keywords)])
    if of_os:
        return any(flag in text for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "'wb'"))
    modes = [
        argument.value
        for argument in [*call.args, *(key.value for key in call.keywords)]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
    return any(mode in {"w", "a", "x", "wb", "ab", "xb", "w+", "r+", "r+b"} for mode in modes)


@pytest.fixture(scope="module")
def writers() -> set[str]:
    paths = [*ROOT.glob("federation/**/*.py"), *ROOT.glob("instahide/**/*.py")]
    return {path.relative_to(ROOT).as_posix() for path in paths if writes(path)}


def test_every_place_that_writes_is_thought_of(writers: set[str], chaos: Recorder) -> None:
    with chaos.attempt("disk full", "modules that write, each met by a sweep or excused"):
        unknown = writers - set(SWEPT) - ONE_WHOLE_FILE - set(NOT_KEPT)
        assert not unknown, f"add these to test_write_sites.py: {sorted(unknown)}"


def test_the_lists_name_only_what_is_there(writers: set[str]) -> None:
    assert set(SWEPT.values()) <= set(ACTIONS)
    gone = (set(SWEPT) | ONE_WHOLE_FILE | set(NOT_KEPT)) - writers
    assert not gone, sorted(gone)
