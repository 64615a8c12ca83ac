"""The adapter around Flower, without starting any of its programs."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import time
import tomllib
import types
import zipfile
from pathlib import Path

import flwr.supernode.start_client_internal as flower_loop
import pytest

from federation.config import RunConfig
from federation.flower_processes import bundle as bundles
from federation.flower_processes.bundle import build_bundle, bundle_from_files, bundled_files
from federation.flower_processes.control import RunStatus
from federation.flower_processes.environment import (
    OFFLINE_SWITCHES,
    flower_environment,
    program,
    without_proxies,
)
from federation.flower_processes.node import NodeSettings, explain_node_exit, load_settings
from federation.flower_processes.polling import NodeClock, install
from federation.flower_processes.relay_executor import load_client
from instahide.errors import FederationError, InvalidInputError

ROOT = Path(__file__).resolve().parents[2]


def test_every_child_gets_the_offline_switches_and_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("all_proxy", "http://proxy:1")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_OIDC_ENABLED", "1")
    made = flower_environment(
        tmp_path / "home", num_threads=2, extra={"FLWR_TELEMETRY_ENABLED": "1", "MINE": "kept"}
    )
    assert {key: made[key] for key in OFFLINE_SWITCHES} == OFFLINE_SWITCHES
    assert not [key for key in made if "proxy" in key.lower() or key == "FLWR_OIDC_ENABLED"]
    assert (made["MINE"], made["OMP_NUM_THREADS"]) == ("kept", "2")
    assert made["FLWR_HOME"] == str(tmp_path / "home")
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    assert (Path(made["PATH"].split(":")[0]) / "flwr-serverapp").is_file()  # the SuperExec looks it up there


def test_proxies_are_hidden_only_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    with without_proxies():
        assert "HTTPS_PROXY" not in os.environ
    assert os.environ["HTTPS_PROXY"] == "http://proxy:1"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(FederationError, match="flower-nonsense is missing"):
        program("flower-nonsense")


def test_the_modules_that_start_processes_import_no_flower() -> None:
    text = (
        "import sys, federation.gateway, federation.flower_processes.superlink, "
        "federation.flower_processes.node;"
        "print([name for name in ('flwr', 'torch', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the bundle -----------------------------------------------------------------------------


def unpacked(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_holds_the_server_side_the_client_shell_and_nothing_else() -> None:
    files = unpacked(build_bundle().content)
    expected = {f"federation/{name}" for name in bundled_files(ROOT / "federation")}
    assert set(files) == expected | {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert files["federation/server_app.py"] == (ROOT / "federation" / "server_app.py").read_bytes()
    assert not [name for name in files if name.startswith(("instahide/", "federation/site", "tests/"))]


def test_the_same_files_give_the_same_bundle() -> None:
    assert build_bundle() == build_bundle()
    assert len(build_bundle().sha256) == 64


def test_the_bundle_and_the_project_file_describe_the_same_app() -> None:
    ours = tomllib.loads(unpacked(build_bundle().content)["pyproject.toml"].decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    app, described = ours["tool"]["flwr"]["app"], project["tool"]["flwr"]["app"]
    for key in ("publisher", "components", "fab-format-version", "flwr-version-target"):
        assert app[key] == described[key]
    for key in ("name", "version", "license"):
        assert ours["project"][key] == project["project"][key]
    assert app["config"] == RunConfig().to_run_config()
    assert described["config"].items() <= app["config"].items()


def test_flower_itself_packs_the_same_files_from_the_project_file() -> None:
    """``flwr build`` in a checkout: only the listed files are given, as its folder walk would find them."""
    files: dict[str, bytes | Path] = {
        path.relative_to(ROOT).as_posix(): path
        for top in ("federation", "instahide", "theory_modules", "tests", "deploy")
        for path in sorted((ROOT / top).rglob("*.py"))
    }
    files |= {"pyproject.toml": ROOT / "pyproject.toml", "LICENSE": ROOT / "LICENSE"}
    packed = unpacked(bundle_from_files(files).content)
    assert set(packed) == set(unpacked(build_bundle().content))


def test_every_module_the_bundle_imports_from_its_own_package_is_in_it() -> None:
    """Flower puts the bundle first on the path, so ``federation`` is the bundle's there."""
    import ast

    packed = set(bundled_files(ROOT / "federation"))
    for name in packed:
        for node in ast.walk(ast.parse((ROOT / "federation" / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "federation":
                target = "/".join((node.module or "").split(".")[1:])
                assert {f"{target}.py", f"{target}/__init__.py"} & packed, f"{name} imports {node.module}"


def test_an_app_that_flower_would_refuse_is_refused_here() -> None:
    with pytest.raises(FederationError, match="cannot be built"):
        bundle_from_files({"pyproject.toml": b"[project]\nname = 'x'\n"})


def test_a_missing_file_of_the_bundle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "BUNDLED", ("absent.py",))
    with pytest.raises(FederationError, match=r"absent\.py is missing"):
        list(bundled_files(tmp_path))


# --- how a node waits -----------------------------------------------------------------------


def test_flowers_loop_is_as_known_and_sleeps_by_our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_loop, "time", time)
    clock = NodeClock()
    assert install(clock, flower_loop)
    assert flower_loop.time is clock


def test_an_unknown_loop_keeps_its_own_timing(caplog: pytest.LogCaptureFixture) -> None:
    other = types.ModuleType("other")
    assert not install(NodeClock(), other)
    assert "using Flower's own polling" in caplog.text
    assert not hasattr(other, "time")


def test_the_sleep_grows_with_the_waiting_and_is_never_longer_than_flowers() -> None:
    """At most 5 % of the wait so far, so a message is noticed within 5 % of the time it took to come."""
    now = [0.0]
    clock = NodeClock(shortest=0.1, monotonic=lambda: now[0])
    asked = []
    while now[0] < 600:
        pause = clock.idle_sleep()
        assert pause <= max(0.1, 0.05 * now[0])
        asked.append(pause)
        now[0] += pause
    assert asked[0] == 0.1
    assert asked[-1] == 3.0
    # 20 calls in the first 2 s at 0.1 s; then each pause is 1.05 times the last: ln(30)/ln(1.05) = 70
    # calls to 3 s, reached at 60 s; then one every 3 s for 540 s = 180: 270 in all.
    assert math.isclose(len(asked), 270, rel_tol=0.03)


def test_a_task_starts_the_waiting_anew_and_the_reply_ends_the_sleep() -> None:
    now = [0.0]
    clock = NodeClock(shortest=0.1, monotonic=lambda: now[0])
    clock.idle_sleep()
    now[0] = 100.0
    assert clock.idle_sleep() == 3.0
    clock.reply_ready.set()
    clock.sleep(0.5)
    assert clock.task_waiting.is_set()
    assert not clock.reply_ready.is_set()
    assert clock.idle_sleep() == 0.1


def test_the_rest_of_time_is_real() -> None:
    assert abs(NodeClock().time() - time.time()) < 60  # type: ignore[operator]


# --- settings and reasons -------------------------------------------------------------------


def test_node_settings_survive_their_file_and_paths_start_at_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'name = "north"\ncoordinator = "fl.example.org:8443"\nauthority = "authority.crt"\n'
        'private-key = "node.key"\nstate-folder = "state"\nworker-socket = "state/worker.sock"\n'
    )
    settings = load_settings(path)
    assert settings.private_key == tmp_path / "node.key"
    assert settings.worker_socket == tmp_path / "state" / "worker.sock"
    assert settings.client == "federation.client_app:app"
    path.write_text(settings.to_toml())
    assert load_settings(path) == settings


@pytest.mark.parametrize("text", ["nmae = 1", 'name = "x"', "not toml"])
def test_wrong_node_settings_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError):
        load_settings(path)


def test_a_name_with_quotes_survives(tmp_path: Path) -> None:
    here = tmp_path.resolve()
    settings = NodeSettings(
        name='St. "Mary" \\ North', coordinator="c:1", authority=here, private_key=here, state_folder=here
    )
    (tmp_path / "node.toml").write_text(settings.to_toml())
    assert load_settings(tmp_path / "node.toml") == settings


@pytest.mark.parametrize(
    ("output", "meaning"),
    [
        ("... [code: 2004] Failed to activate SuperNode", "its key is not registered"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired",
            "has expired",
        ),
        (
            "certificate verify failed: unable to get local issuer certificate",
            "not signed by this federation",
        ),
        (
            "certificate verify failed: Hostname mismatch, certificate is not valid for 'x'",
            "another host name",
        ),
        ("[Errno 111] Connection refused", "nothing answers"),
    ],
)
def test_the_reason_a_node_ended_is_read_from_its_output(output: str, meaning: str) -> None:
    reason = explain_node_exit(5, output)
    assert reason is not None
    assert meaning in reason


def test_a_reason_that_is_not_known_is_not_invented() -> None:
    assert explain_node_exit(5, "something new") is None
    assert explain_node_exit(-9, "something new") == "killed by signal 9"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("pending", None),
        ("running", None),
        ("finished:completed", 0),
        ("finished:failed", 1),
        ("finished:stopped", 130),
        ("finished", 1),
    ],
)
def test_the_exit_code_of_a_run_is_its_true_end(status: str, code: int | None) -> None:
    assert RunStatus(1, status, "").exit_code == code


def test_a_client_is_found_by_name_and_a_wrong_name_is_explained() -> None:
    assert callable(load_client("federation.client_app:app"))
    for reference in ("federation.absent:app", "federation.client_app:absent", "nonsense"):
        with pytest.raises(InvalidInputError, match="there is no client"):
            load_client(reference)


def test_an_object_on_its_way_is_looked_for_again_soon_and_an_unknown_flower_is_left_alone() -> None:
    from types import SimpleNamespace

    from federation.flower_processes.polling import look_again_soon

    def pull_objects(object_ids: list[str], initial_backoff: float = 1.0) -> float:
        return initial_backoff

    known, unknown = SimpleNamespace(pull_objects=pull_objects), SimpleNamespace(pull_objects=len)
    assert look_again_soon(known, first_wait=0.1)  # type: ignore[arg-type]
    assert known.pull_objects([]) == 0.1
    assert not look_again_soon(unknown)  # type: ignore[arg-type]
    assert unknown.pull_objects is len


def test_the_installed_flower_is_known_to_both_ends() -> None:
    import functools

    from flwr.superlink.grid import http_grid
    from flwr.supernode import start_client_internal as loop

    from federation.flower_processes.polling import look_again_soon
    from federation.server_app import look_again_soon as at_the_server

    for module, change in ((loop, lambda: look_again_soon(loop)), (http_grid, at_the_server)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "pull_objects", module.pull_objects)
            change()
            assert isinstance(module.pull_objects, functools.partial)
