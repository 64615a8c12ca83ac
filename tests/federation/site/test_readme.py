"""The privacy officer's page: its table of policy keys is the policy's own."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import federation.site.audit
from federation.setting_rules import rule_of, to_kebab
from federation.site.plans import MAX_PENDING
from federation.site.policy import Policy

PAGE = (Path(federation.site.audit.__file__).parent / "README.md").read_text(encoding="utf-8")
BEGIN, END = r"<!-- policy keys: .*? -->\n", "<!-- end of policy keys -->"


def policy_table() -> str:
    """One row for each key, as the page must have it."""
    lines = ["| key | default | what it says |", "|---|---|---|"]
    for item in fields(Policy):
        default = item.default
        if default is None:
            shown = "–"
        elif isinstance(default, tuple) and len(default) > 3:
            shown = f"{len(default)} names"
        else:
            shown = json.dumps(default).replace('"', "`")
        lines.append(f"| `{to_kebab(item.name)}` | {shown} | {rule_of(item).meaning} |")
    return "\n".join(lines) + "\n"


def test_the_table_has_every_key_its_default_and_its_meaning() -> None:
    match = re.search(BEGIN + r"(.*?)" + END, PAGE, re.DOTALL)
    assert match is not None
    assert match[1] == policy_table(), f"the table must be:\n{policy_table()}"


def test_the_events_and_numbers_it_names_are_the_codes_own() -> None:
    assert f"at\nmost {MAX_PENDING} wait" in PAGE
    source = Path(federation.site.audit.__file__).read_text(encoding="utf-8")
    others = [Path(federation.site.audit.__file__).parent / "round_task.py"]
    others += [Path(federation.__file__).parent / name for name in ("node_plans.py", "audit_log.py")]
    source += "".join(path.read_text(encoding="utf-8") for path in others)
    table = PAGE.split("| event | recorded |\n|---|---|\n")[1].split("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`([a-z-]+)`", line.split("|")[1])}
    assert len(named) > 10
    for name in named:
        assert f'"{name}"' in source, name
