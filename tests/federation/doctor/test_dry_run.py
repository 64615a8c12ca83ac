"""The dry run: a round by a real worker over its socket, and not a byte of the site's own changed."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from federation.cli import run
from federation.doctor import dry_run as module
from federation.doctor.checks import Outcome, State, failed, ok
from federation.doctor.dry_run import dry_run
from federation.doctor.dummy_site import SiteFacts, facts_of, run_config, settings_of
from federation.messages import RoundRequest
from federation.node_folder import NodeFolder, create_node
from federation.site.policy import ENCODING_MODES, Policy
from federation.site.policy import SiteFacts as PolicyFacts
from federation.site.worker_config import load_worker_config
from instahide.errors import InvalidInputError, RefusedError

STEPS = ["settings", "worker", "refusals", "round", "measurement", "audit log"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> NodeFolder:
    root = tmp_path_factory.mktemp("site")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 9, 11, 3), dtype=np.uint8)
    np.savez(root / "scans.npz", x=pixels, y=np.array(["benign", "malignant"])[np.arange(80) % 2])
    data = root / "scans.npz"
    return create_node(root / "node", name="st-mary", data=data, test_data=None, public_data=None, threads=1)[
        0
    ]


@pytest.fixture
def node(template: NodeFolder) -> Iterator[NodeFolder]:
    """The node with the default policy and no state."""
    policy = template.policy.read_bytes()
    yield template
    template.policy.write_bytes(policy)


def set_policy(node: NodeFolder, **keys: Any) -> None:
    node.policy.write_text(
        "".join(f"{key.replace('_', '-')} = {json.dumps(value)}\n" for key, value in keys.items())
    )


def states(rows: list[tuple[str, Outcome]]) -> dict[str, State]:
    return {name.removeprefix("dry run: "): outcome.state for name, outcome in rows}


def digest_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of the test's own, by a name short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="dr") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


# --- the whole of it --------------------------------------------------------------------------------


def test_a_round_is_served_and_nothing_of_the_site_is_touched(node: NodeFolder, temporary: Path) -> None:
    before = digest_of(node.path)
    rows = dry_run(node, within=200.0)
    assert states(rows) == dict.fromkeys(STEPS, State.ok), rows
    seen = {name.removeprefix("dry run: "): outcome.seen for name, outcome in rows}
    assert "64 made-up images of 3×9×11 in 2 classes; encoded (hardened, 4 mixed" in seen["settings"]
    assert "plan nobody has approved" in seen["refusals"]
    assert "one update of 2 sites, checked and aggregated" in seen["round"]
    assert digest_of(node.path) == before
    assert list(temporary.iterdir()) == []
    assert not [child for child in psutil.Process().children(recursive=True) if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "federation.site.worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"secure_aggregation_required": True}, "masked in a sum of 3 sites"),
        ({"dp_required": True, "encoding_required": False, "max_epsilon": 1.0}, "one update of 2 sites"),
        ({"plan_approval": False, "minimum_cohort_size": 5}, "one update of 5 sites"),
        ({"secure_aggregation_required": True, "minimum_cohort_size": 4}, "masked in a sum of 4 sites"),
        ({"allowed_metrics": ["num-examples"], "allowed_encoding_modes": ["mixup"]}, "one update of 2 sites"),
    ],
)
def test_it_follows_the_policy(node: NodeFolder, temporary: Path, policy: dict[str, Any], words: str) -> None:
    set_policy(node, **policy)
    rows = dry_run(node, within=200.0)
    assert states(rows) == dict.fromkeys(STEPS, State.ok), rows
    assert words in dict(rows)["dry run: round"].seen
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_what_the_worker_refuses_in_the_round_is_told_with_its_reason(
    node: NodeFolder, temporary: Path
) -> None:
    set_policy(node, plan_approval=False, max_runs=0)
    rows = dry_run(node, within=200.0)
    assert states(rows)["round"] is State.failed
    assert "st-mary: this site has served its 0 runs" in dict(rows)["dry run: round"].seen
    assert states(rows)["audit log"] is State.skipped


@pytest.mark.slow
def test_a_policy_that_forbids_every_run_is_told_by_its_own_reason(node: NodeFolder, temporary: Path) -> None:
    set_policy(node, max_runs=0)
    rows = dry_run(node, within=200.0)
    assert states(rows)["refusals"] is State.failed
    assert "this site has served its 0 runs" in dict(rows)["dry run: refusals"].seen
    assert states(rows)["round"] is State.skipped


# --- which run is tried -----------------------------------------------------------------------------


def facts(node: NodeFolder, shape: tuple[int, int, int] = (1, 28, 28), **keys: Any) -> SiteFacts:
    return SiteFacts(load_worker_config(node.worker_config), Policy(**keys), ("a", "b"), shape)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 224), (1, 2, 30), (1, 4, 5)])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"encoding_required": False, "allowed_encoding_modes": ()},
        *({"allowed_encoding_modes": (mode,)} for mode in ENCODING_MODES),
        {"minimum_num_mixed": 6, "minimum_num_private": 3},
        {"minimum_num_mixed": 1, "minimum_num_private": 9},
        {"minimum_cohort_size": 7, "minimum_examples": 500},
        {
            "dp_required": True,
            "encoding_required": False,
            "minimum_noise_multiplier": 120.0,
            "max_delta": 1e-7,
        },
        {"secure_aggregation_required": True},
        {"secure_aggregation_required": True, "minimum_cohort_size": 9},
    ],
    ids=str,
)
def test_any_policy_that_lets_some_run_through_lets_this_one_through(
    node: NodeFolder, tmp_path: Path, keys: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    """Held against the policy's own rules; a table cannot be encoded, so its site allows plain rows."""
    if shape[:2] == (1, 2):
        keys = keys | {"encoding_required": False}
    site = facts(node, shape, **keys)
    config = run_config(site, roster=(), run_folder=tmp_path, audit=tmp_path)
    order = RoundRequest.for_round(config, 1, {})
    site.policy.check(order, PolicyFacts(num_examples=site.num_images))
    assert site.num_images >= max(64, site.policy.minimum_examples)


def test_the_shape_is_the_registered_one_else_the_requests(node: NodeFolder) -> None:
    assert facts_of(node).image_shape == (3, 9, 11)
    assert facts_of(node).class_names == ("benign", "malignant")
    node.state.mkdir(exist_ok=True)
    card = node.state / "dataset.json"
    card.write_text(json.dumps({"image-shape": [1, 5, 6], "class-names": ["x", "y", "z"]}))
    assert facts_of(node).image_shape == (1, 5, 6)
    assert facts_of(node).class_names == ("x", "y", "z")
    card.write_text("{")
    assert facts_of(node).image_shape == (3, 9, 11)
    card.unlink()
    request = node.path / "st-mary.request.json"
    hidden = request.rename(request.with_suffix(".hidden"))
    with pytest.raises(InvalidInputError, match="no file says which shape") as missing:
        facts_of(node)
    assert "node request" in missing.value.hint
    hidden.rename(request)


def test_a_policy_that_asks_for_gigabytes_of_images_is_not_tried(node: NodeFolder) -> None:
    set_policy(node, minimum_examples=10**8)
    with pytest.raises(InvalidInputError, match=r"asks for 100,000,000 images, 27\.\d GiB"):
        facts_of(node)
    node.policy.write_text("no-such-key = 1\n")
    with pytest.raises(RefusedError, match="refuses everything"):
        facts_of(node)


def test_one_round_is_asked_for_and_no_more(node: NodeFolder) -> None:
    settings = settings_of(facts(node))
    assert (settings["num-server-rounds"], settings["run-name"]) == (1, "dry-run")


# --- steps that fail --------------------------------------------------------------------------------


def rows_of(looks: list[Any], within: float = 30.0) -> list[tuple[str, Outcome]]:
    return module._in_order([(f"step {number}", look) for number, look in enumerate(looks)], within)


def test_after_the_first_that_fails_the_rest_is_skipped_and_points_to_it() -> None:
    def raises() -> Outcome:
        raise InvalidInputError("no shape", hint="ask for one")

    rows = rows_of([lambda: ok("fine"), raises, lambda: ok("never")])
    assert [outcome.state for _, outcome in rows] == [State.ok, State.failed, State.skipped]
    assert rows[1][1] == failed("no shape", fix="ask for one")
    assert rows[2][1].fix == "see `step 1`"


def test_a_step_that_hangs_is_given_up_when_the_time_is_up() -> None:
    def hangs() -> Outcome:
        time.sleep(60)
        return ok("too late")

    began = time.monotonic()
    rows = rows_of([lambda: ok("fine"), hangs, lambda: ok("never")], within=0.2)
    assert time.monotonic() - began < 30
    assert [outcome.state for _, outcome in rows] == [State.ok, State.failed, State.skipped]
    assert "not done when 0.2 s were up" in rows[1][1].seen


def test_an_unforeseen_error_does_not_quote_what_it_says() -> None:
    def breaks() -> Outcome:
        raise ValueError("patient-7.png")

    [(_, outcome)] = rows_of([breaks])
    assert outcome.state is State.failed
    assert "patient" not in outcome.seen + outcome.fix


@pytest.mark.slow
def test_a_worker_that_does_not_come_up_says_why_and_leaves_nothing(
    node: NodeFolder, temporary: Path
) -> None:
    text = node.worker_config.read_text()
    node.worker_config.write_text(text + 'device = "cuda:99"\n')
    try:
        rows = dry_run(node, within=200.0)
    finally:
        node.worker_config.write_text(text)
    assert states(rows)["worker"] is State.failed
    assert dict(rows)["dry run: worker"].fix
    assert states(rows)["round"] is State.skipped
    assert list(temporary.iterdir()) == []


def test_the_rows_are_in_the_report_and_its_exit_code(
    node: NodeFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [("dry run: settings", ok("fine")), ("dry run: worker", failed("it fell", fix="mend it"))]
    asked: list[float] = []

    def instead(folder: NodeFolder, *, within: float) -> list[tuple[str, Outcome]]:
        asked.append(within)
        return given

    monkeypatch.setattr(module, "dry_run", instead)
    words = ["node", "doctor", str(node.path), "--no-data", "--wait", "30"]
    assert run([*words, "--format", "json"]) == 5
    assert asked == []
    capsys.readouterr()
    assert run([*words, "--dry-run", "--format", "json"]) == 5
    shown = capsys.readouterr()
    assert asked == [60.0]
    rows = {row["name"]: row for row in json.loads(shown.out)["checks"]}
    assert rows["dry run: worker"] == {
        "name": "dry run: worker",
        "state": "failed",
        "seen": "it fell",
        "fix": "mend it",
    }
    assert "dry run: worker" in shown.err
