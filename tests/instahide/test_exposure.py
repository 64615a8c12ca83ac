"""The ledger counts, refuses beyond the budget, and survives kills and races."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.exposure import RELEASED, THROUGH_UPDATES, ExposureLedger, default_ledger_path
from instahide.images import ImageSet

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-c"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def pictures(count: int = 6, seed: int = 0) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 2, ("a", "b"))


@pytest.fixture
def ledger(tmp_path: Path) -> ExposureLedger:
    return ExposureLedger(tmp_path / "ledger.sqlite3")


def test_a_new_image_has_no_uses(ledger: ExposureLedger) -> None:
    counts = ledger.counts(pictures(), kind=RELEASED)
    assert counts.own.tolist() == [0] * 6
    assert counts.partner.tolist() == [0] * 6


def test_own_and_partner_uses_and_the_two_kinds_are_counted_apart(ledger: ExposureLedger) -> None:
    images = pictures()
    ledger.reserve(images, kind=RELEASED, own=1, partner=3)
    ledger.reserve(images.subset([0, 1]), kind=THROUGH_UPDATES, own=2, partner=1, max_own_uses=2)
    released, updates = (ledger.counts(images, kind=kind) for kind in (RELEASED, THROUGH_UPDATES))
    assert released.own.tolist() == [1] * 6
    assert released.partner.tolist() == [3] * 6
    assert updates.own.tolist() == [2, 2, 0, 0, 0, 0]
    assert updates.partner.tolist() == [1, 1, 0, 0, 0, 0]


def test_by_default_a_second_release_is_refused_and_charges_nothing(ledger: ExposureLedger) -> None:
    images = pictures()
    ledger.reserve(images.subset([2]), kind=RELEASED)
    with pytest.raises(RefusedError, match="1 of 6 images would pass the budget of 1"):
        ledger.reserve(images, kind=RELEASED)
    assert ledger.counts(images, kind=RELEASED).own.tolist() == [0, 0, 1, 0, 0, 0]


def test_partner_uses_have_their_own_cap(ledger: ExposureLedger) -> None:
    images = pictures()
    ledger.reserve(images, kind=RELEASED, own=1, partner=3, max_own_uses=None, max_partner_uses=3)
    with pytest.raises(RefusedError, match=r"6 of 6 images .* as partner"):
        ledger.reserve(images, kind=RELEASED, own=1, partner=1, max_own_uses=None, max_partner_uses=3)
    ledger.reserve(images, kind=RELEASED, own=1, partner=0, max_own_uses=None, max_partner_uses=3)
    assert ledger.counts(images, kind=RELEASED).own.tolist() == [2] * 6


def test_a_copy_in_the_same_set_is_a_second_use(ledger: ExposureLedger) -> None:
    twice = pictures().subset([0, 1, 0])
    with pytest.raises(RefusedError, match="2 of 3 images"):
        ledger.reserve(twice, kind=RELEASED)
    ledger.reserve(twice, kind=RELEASED, max_own_uses=2)
    assert ledger.counts(twice, kind=RELEASED).own.tolist() == [2, 1, 2]


def test_the_same_job_token_is_charged_once(ledger: ExposureLedger) -> None:
    images = pictures()
    first = ledger.reserve(images, kind=RELEASED, partner=3, job="job")
    again = ledger.reserve(images, kind=RELEASED, partner=3, job="job")
    assert (first.repeated, again.repeated) == (False, True)
    assert ledger.counts(images, kind=RELEASED).own.tolist() == [1] * 6


def test_a_job_token_cannot_be_stretched_to_other_images_or_numbers(ledger: ExposureLedger) -> None:
    images = pictures()
    ledger.reserve(images, kind=RELEASED, job="job")
    with pytest.raises(InvalidInputError, match="already charged"):
        ledger.reserve(pictures(seed=1), kind=RELEASED, job="job")
    with pytest.raises(InvalidInputError, match="already charged"):
        ledger.reserve(images, kind=RELEASED, own=2, job="job")


def test_the_refusal_tells_of_copies(ledger: ExposureLedger) -> None:
    with pytest.raises(RefusedError) as refusal:
        ledger.reserve(pictures().subset([0, 1, 0, 0]), kind=RELEASED)
    assert "3 times in the data" in refusal.value.hint


def test_copies_can_be_left_out(ledger: ExposureLedger) -> None:
    images = pictures().subset([0, 1, 0, 2, 0, 1])
    once = ledger.without_copies(images)
    twice = ledger.without_copies(images, allowed=2)
    assert (once.images == images.images[[0, 1, 3]]).all()
    assert (twice.images == images.images[[0, 1, 2, 3, 5]]).all()
    assert ledger.without_copies(once) is once


def test_a_set_hashed_once_can_stand_for_its_images(ledger: ExposureLedger) -> None:
    known = ledger.fingerprints(pictures())
    ledger.reserve(known, kind=RELEASED, job="job")
    assert ledger.reserve(pictures(), kind=RELEASED, job="job").repeated
    assert ledger.counts(known, kind=RELEASED).own.tolist() == [1] * 6
    assert ledger.commitment(pictures()) == known.commitment


def test_each_ledger_has_a_key_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    one, other = (ExposureLedger(tmp_path / name) for name in ("a.sqlite3", "b.sqlite3"))
    again = ExposureLedger(tmp_path / "a.sqlite3")
    assert one.commitment(pictures()) != other.commitment(pictures())
    assert one.commitment(pictures()) == again.commitment(pictures())


def test_only_its_owner_reads_the_ledger(ledger: ExposureLedger) -> None:
    ledger.path.chmod(0o644)
    reopened = ExposureLedger(ledger.path)
    with sqlite3.connect(reopened.path) as open_too:
        open_too.execute("SELECT count(*) FROM uses").fetchone()  # keeps -wal and -shm alive
        reopened.reserve(pictures(), kind=RELEASED)
        files = sorted(reopened.path.parent.iterdir())
        assert len(files) == 3
        assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    open_too.close()


def test_the_summary_names_no_image(ledger: ExposureLedger) -> None:
    ledger.reserve(pictures(), kind=RELEASED, partner=3)
    released, updates = ledger.summary()
    assert (released.num_images, released.max_own, released.max_partner) == (6, 1, 3)
    assert updates.num_images == 0


def test_wrong_arguments_are_refused(ledger: ExposureLedger) -> None:
    with pytest.raises(InvalidInputError, match="'leaked' is unknown"):
        ledger.reserve(pictures(), kind="leaked")
    with pytest.raises(InvalidInputError, match="negative"):
        ledger.reserve(pictures(), kind=RELEASED, own=-1)


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite3"
    file.write_bytes(b"not a database " * 500)
    with pytest.raises(IntegrityError, match="corrupt or not a ledger"):
        ExposureLedger(file)


def test_a_later_format_is_refused(ledger: ExposureLedger) -> None:
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE ledger SET format_version = 99")
    connection.close()
    with pytest.raises(IntegrityError, match="format 99"):
        ExposureLedger(ledger.path)


def test_a_folder_in_the_way_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be opened"):
        ExposureLedger(tmp_path)


def test_the_default_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INSTAHIDE_LEDGER", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_ledger_path() == tmp_path / "instahide" / "exposure.sqlite3"
    monkeypatch.setenv("INSTAHIDE_LEDGER", str(tmp_path / "mine.sqlite3"))
    assert default_ledger_path() == tmp_path / "mine.sqlite3"


def test_threads_may_share_one_ledger_and_one_of_them_wins(ledger: ExposureLedger) -> None:
    outcomes: list[str] = []

    def reserve() -> None:
        try:
            ledger.reserve(pictures(), kind=RELEASED)
            outcomes.append("charged")
        except RefusedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=reserve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["charged", "refused", "refused", "refused"]


RACE = """
import sys, numpy as np
from instahide.errors import RefusedError
from instahide.exposure import ExposureLedger
from instahide.images import ImageSet
images = ImageSet(np.random.default_rng(0).integers(0, 256, (3000, 3, 8, 8), dtype=np.uint8))
print("ready", flush=True)
sys.stdin.readline()
ledger = ExposureLedger(sys.argv[1])
try:
    ledger.reserve(images, kind="released")
    print("charged")
except RefusedError:
    print("refused")
"""


def test_of_two_processes_after_the_last_use_exactly_one_gets_it(tmp_path: Path) -> None:
    """They also create the ledger at the same moment, so its salt is drawn once."""
    path = tmp_path / "ledger.sqlite3"
    racers = [
        subprocess.Popen(
            [*PYTHON, RACE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert outcomes == ["charged", "refused"]


KILLED = """
import os, signal, sys, numpy as np
from instahide import exposure
from instahide.images import ImageSet
images = ImageSet(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8))
ledger = exposure.ExposureLedger(sys.argv[1])
if sys.argv[2] == "inside":  # after the counts are changed, before they are committed
    class datetime:
        @staticmethod
        def now(zone): os.kill(os.getpid(), signal.SIGKILL)
    exposure.datetime = datetime
ledger.reserve(images, kind="released")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "expected"), [("inside", 0), ("after", 1)])
def test_a_killed_process_leaves_all_of_a_charge_or_none(tmp_path: Path, moment: str, expected: int) -> None:
    path = tmp_path / "ledger.sqlite3"
    done = subprocess.run([*PYTHON, KILLED, str(path), moment], env=ENVIRONMENT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert ExposureLedger(path).counts(pictures(), kind=RELEASED).own.tolist() == [expected] * 6
