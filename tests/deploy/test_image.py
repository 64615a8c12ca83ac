"""The image: two stages, no compiler and no root at the end, and everything it copies is there."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch

from .deploy_files import DEPLOY, ROOT, tool

DOCKERFILE = DEPLOY / "Dockerfile"
INSTRUCTIONS = {
    *("ARG", "FROM", "SHELL", "ENV", "RUN", "WORKDIR", "COPY", "USER"),
    *("EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}
Stage = list[tuple[str, str]]


def instructions() -> Stage:
    """(instruction, rest) of each, comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        elif name:
            found[name].append((word, rest))
    return found


def values(stage: Stage, word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def test_only_known_instructions_in_two_named_stages() -> None:
    assert {word for word, _ in instructions()} == INSTRUCTIONS
    assert list(stages()) == ["build", "runtime"]


def test_the_last_stage_has_no_compiler_and_takes_the_environment_from_the_first() -> None:
    runtime = stages()["runtime"]
    text = " ".join(rest for _, rest in runtime)
    assert not re.search(r"\b(gcc|g\+\+|clang|build-essential|libc6-dev|make|curl|wget|git)\b", text)
    assert "gcc" in " ".join(values(stages()["build"], "RUN"))
    assert "--from=build /opt/instahide /opt/instahide" in values(runtime, "COPY")


def test_it_ends_as_a_numbered_user_who_owns_the_service_folders_and_is_not_root() -> None:
    runtime = stages()["runtime"]
    [user] = values(runtime, "USER")
    number, group = user.split(":")
    assert int(number) > 1000
    [made] = [rest for rest in values(runtime, "RUN") if "useradd" in rest]
    assert f"--uid {number}" in made
    assert f"--gid {group} instahide" in made
    assert f"install -d -m 0700 -o {number} -g {group} /study /node /relay" in made
    after = [word for word, _ in runtime[runtime.index(("USER", user)) + 1 :]]
    assert "RUN" not in after
    assert "COPY" not in after


def test_torch_and_torchvision_come_as_one_pair_through_uv_with_the_pinned_versions() -> None:
    runs = " ".join(values(stages()["build"], "RUN"))
    assert runs.count("uv pip install") == 2
    assert runs.count("-c constraints.txt") == 3  # uv itself, what we depend on, our own package
    assert '--torch-backend "${TORCH_BACKEND}"' in runs
    assert "-r pyproject.toml" in runs
    assert not re.search(r"pip install[^&]*\btorch(vision)?[ =]", runs)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert {"torch", "torchvision", "uv"} <= set(pinned)
    assert values(stages()["build"], "ARG") == ["TORCH_BACKEND=cpu"]
    cuda = re.search(r"--build-arg TORCH_BACKEND=(cu\d+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert cuda
    series = {found[1] for name in pinned if (found := re.fullmatch(r"nvidia-.*-cu(\d\d)", name))}
    assert series == {cuda[1][2:4]}  # cu130: the NVIDIA packages pinned are those of CUDA 13


def test_extras_named_in_the_build_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"--extra (\w+)", " ".join(values(stages()["build"], "RUN")))
    assert asked
    assert set(asked) <= set(extras)


def test_what_is_copied_exists_and_is_let_through_by_dockerignore() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [
        source
        for stage in stages().values()
        for rest in values(stage, "COPY")
        if "--from=" not in rest
        for source in [word for word in rest.split() if not word.startswith("--")][:-1]
    ]
    assert len(copied) >= 8
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == one or source.startswith(f"{one}/") for one in allowed), source
    assert sorted(allowed) == sorted({one for one in allowed if (ROOT / one).exists()})
    for secret in ("authority.key", "study/authority.key", ".git", "tests", "federation-data"):
        assert not any(fnmatch(secret, one) for one in allowed), secret


def test_health_check_entry_point_and_signal_are_ours() -> None:
    runtime = stages()["runtime"]
    [health] = values(runtime, "HEALTHCHECK")
    assert health.endswith('CMD ["instahide-health"]')
    assert "--chmod=0755 deploy/container/instahide-health /usr/local/bin/instahide-health" in values(
        runtime, "COPY"
    )
    assert values(runtime, "ENTRYPOINT") == ['["tini", "--", "instahide"]']
    assert values(runtime, "STOPSIGNAL") == ["SIGTERM"]
    assert values(runtime, "EXPOSE") == ["9443"]


def test_no_secret_is_in_its_environment_or_arguments() -> None:
    for stage in stages().values():
        for rest in [*values(stage, "ENV"), *values(stage, "ARG")]:
            assert not re.search(r"(?i)key|secret|token|passw", rest), rest


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [tool("hadolint"), "--no-color", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something() -> None:
    wrong = "FROM python\nRUN cd /tmp && sudo pip install torch\n"
    done = subprocess.run([tool("hadolint"), "-"], input=wrong, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    for rule in ("DL3003", "DL3004", "DL3006"):
        assert rule in done.stdout
