"""worker.toml: keys, paths, users, and the commented file to start from."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from federation.setting_rules import to_kebab
from federation.site.worker_config import WorkerConfig, default_worker_text, load_worker_config
from instahide.errors import InvalidInputError

from .site_examples import write_site

NEEDED = {"site-name": "north", "data": "d", "policy": "p", "socket": "s", "state-folder": "t"}


def written(folder: Path, values: dict[str, str]) -> Path:
    path = folder / "worker.toml"
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    return path


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    config = load_worker_config(write_site(tmp_path))
    assert config.path("data.npz") == tmp_path.resolve() / "data.npz"
    assert config.path("../x") == tmp_path.resolve().parent / "x"
    assert config.path("/srv/data") == Path("/srv/data")


def test_by_default_only_the_workers_own_user_may_connect(tmp_path: Path) -> None:
    assert load_worker_config(write_site(tmp_path)).uids == (os.getuid(),)
    assert load_worker_config(write_site(tmp_path, worker="allowed-uids = [7, 8]\n")).uids == (7, 8)
    assert load_worker_config(write_site(tmp_path, worker="allowed-uids = []\n")).uids == ()


@pytest.mark.parametrize("missing", NEEDED)
def test_a_needed_key_left_out_is_named(tmp_path: Path, missing: str) -> None:
    path = written(tmp_path, {key: value for key, value in NEEDED.items() if key != missing})
    with pytest.raises(InvalidInputError, match=f"lacks '{missing}'"):
        load_worker_config(path)


@pytest.mark.parametrize("values", [{"data": ""}, {"site-name": "a b"}, {"threads": "2"}, {"folder": "/"}])
def test_a_wrong_value_or_key_is_named(tmp_path: Path, values: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        load_worker_config(written(tmp_path, NEEDED | values))


def test_the_file_to_start_from_names_every_key_and_is_toml_once_filled_in(tmp_path: Path) -> None:
    text = default_worker_text()
    for item in fields(WorkerConfig):
        if item.name != "folder":
            assert f"{to_kebab(item.name)} = " in text
    tomllib.loads(text)
    for key, value in NEEDED.items():
        text = text.replace(f'# {key} = ""', f'{key} = "{value}"')
    (tmp_path / "worker.toml").write_text(text)
    assert load_worker_config(tmp_path / "worker.toml").device == "auto"
