"""A run that is resumed knows its hospitals by the node keys they have by now, and has no new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.coordinator.sites import SiteBook
from federation.run_sites import carry_over
from federation.study import Study, admit, create_study, write_run_sites
from instahide.errors import IntegrityError

from .test_study import request_of


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """With a run of two hospitals."""
    made = create_study(tmp_path / "study", names=("fl.example.org",), listen="0.0.0.0", port=9443)
    for node_id, name in ((11, "st-mary"), (22, "northside")):
        admit(made, request_of(name, tmp_path), node_id)
    made.run_folder("t").mkdir(parents=True)
    write_run_sites(made.sites(), made.run_folder("t") / "sites.json")
    return made


def book(study: Study) -> dict[int, str]:
    return {
        node: site.name for node, site in SiteBook.read(study.run_folder("t") / "sites.json").sites.items()
    }


def exchange(study: Study, tmp_path: Path, node_id: int, *, identity: bool = False) -> None:
    old = request_of("st-mary", tmp_path)
    changes = {"replaced_public_key": old.public_key}
    changes |= {"replaced_identity_key": old.identity_key} if identity else {"identity_key": old.identity_key}
    admit(study, request_of("st-mary", tmp_path / "new", **changes), node_id)


def test_without_an_exchange_nothing_is_written(study: Study) -> None:
    before = (study.run_folder("t") / "sites.json").stat().st_mtime_ns
    assert carry_over(study, "t") == []
    assert (study.run_folder("t") / "sites.json").stat().st_mtime_ns == before


def test_a_new_node_key_takes_the_place_of_the_old_one(study: Study, tmp_path: Path) -> None:
    exchange(study, tmp_path, 33)
    assert carry_over(study, "t") == ["st-mary"]
    assert book(study) == {33: "st-mary", 22: "northside"}
    assert carry_over(study, "t") == []


def test_a_new_identity_key_does_not(study: Study, tmp_path: Path) -> None:
    """What it signed in the run, and its place in a roster, belong to the old one."""
    exchange(study, tmp_path, 33, identity=True)
    assert carry_over(study, "t") == []
    assert book(study) == {11: "st-mary", 22: "northside"}


def test_a_hospital_admitted_since_is_not_in_the_run(study: Study, tmp_path: Path) -> None:
    admit(study, request_of("west", tmp_path), 44)
    assert carry_over(study, "t") == []
    assert book(study) == {11: "st-mary", 22: "northside"}


@pytest.mark.parametrize("text", ["{", "[]", '{"11": "st-mary"}', '{"11": {"name": "st-mary"}}'])
def test_a_damaged_file_is_named(study: Study, text: str) -> None:
    (study.run_folder("t") / "sites.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"sites\.json cannot be read"):
        carry_over(study, "t")
