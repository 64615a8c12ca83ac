"""``instahide log``: tables for people, exit codes for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from federation.audit_log import AuditLog
from federation.cli import run
from federation.identity import create_identity


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, Path]:
    """A site's and a coordinator's log that hold each other's heads, and their public keys."""
    made: dict[str, AuditLog] = {}
    for name, role in (("north", "site"), ("coordinator", "coordinator")):
        identity = create_identity(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pub").write_text(identity.public_line + "\n")
        made[name] = AuditLog(tmp_path / f"{name}.jsonl", identity, role=role, name=name)
    asked = made["coordinator"].append("round-started", round=1, run="trial")
    head = made["coordinator"].sign(asked).to_text()
    made["north"].append("request-accepted", round=1, run="trial", audit_head=head)
    sent = made["north"].append("update-sent", round=1, update_sha256="ab" * 32)
    head = made["north"].sign(sent).to_text()
    made["coordinator"].append("site-replied", site="north", audit_head=head, update_sha256="ab" * 32)
    return {path.name: path for path in tmp_path.iterdir()}


def test_a_whole_log_passes_and_says_whose_it_is(
    logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["log", "verify", str(logs["north.jsonl"])]) == 0
    text = capsys.readouterr().out
    assert "site north (SHA256:" in text
    assert "3 records" in text
    assert text.splitlines()[-1].startswith("whole:")


def test_two_logs_and_their_keys_pass_in_json(
    logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["log", "verify", str(logs["north.jsonl"]), "--against", str(logs["coordinator.jsonl"])]
    words += ["--public-key", str(logs["north.pub"]), "--public-key", str(logs["coordinator.pub"])]
    assert run([*words, "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert facts["heads-compared"] == 2
    assert [(log["name"], log["records"]) for log in facts["logs"]] == [("north", 3), ("coordinator", 3)]


def test_the_other_side_s_key_alone_pins_the_other_side_s_log(
    logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["log", "verify", str(logs["north.jsonl"]), "--against", str(logs["coordinator.jsonl"])]
    assert run([*words, "--public-key", str(logs["coordinator.pub"])]) == 0
    assert (
        run([*words[:3], "--against", str(logs["north.jsonl"]), "--public-key", str(logs["coordinator.pub"])])
        == 4
    )
    assert "no log given is of the key in" in capsys.readouterr().out


def test_an_edit_and_a_missing_tail_end_with_code_4_and_are_named(
    logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = logs["north.jsonl"]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"run":"trial"', b'"run":"other"'))
    assert run(["log", "verify", str(path)]) == 4
    shown = capsys.readouterr()
    assert "wrong: north.jsonl: line 2 was edited" in shown.out
    assert "hint:" in shown.err

    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert run(["log", "verify", str(path)]) == 0  # alone it cannot show
    capsys.readouterr()
    words = ["log", "verify", str(path), "--against", str(logs["coordinator.jsonl"]), "--format", "json"]
    assert run(words) == 4
    assert "its tail is missing" in json.loads(capsys.readouterr().out)["problems"][0]


def test_a_log_of_another_key_than_given_fails(
    logs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["log", "verify", str(logs["north.jsonl"]), "--public-key", str(logs["coordinator.pub"])]
    assert run(words) == 4
    assert "no log given is of the key in" in capsys.readouterr().out


def test_a_log_is_shown_as_a_table_or_as_json(
    logs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["log", "show", str(logs["coordinator.jsonl"]), "--last", "1"]) == 0
    text = capsys.readouterr().out
    assert "site-replied" in text
    assert "round-started" not in text
    assert "record 3 (" in text  # the site's head, shortened
    assert run(["log", "show", str(logs["coordinator.jsonl"]), "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["event"] for record in records] == ["log-created", "round-started", "site-replied"]


def test_what_cannot_be_read_is_invalid_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["log", "verify", str(tmp_path / "none")]) == 2
    assert run(["log", "show", str(tmp_path / "none")]) == 2
    (tmp_path / "audit.jsonl").write_text("")
    words = ["log", "verify", str(tmp_path / "audit.jsonl")]
    assert run([*words, "--public-key", str(tmp_path / "none")]) == 2
    assert "hint:" in capsys.readouterr().err
    assert run(words) == 4
