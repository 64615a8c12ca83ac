"""The pages in a real browser: everything is in the DOM, nothing is fetched, nothing runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.status.study_page import study_page
from federation.status.study_status import UP, StudyWatch

from .page_reader import PageReader, is_harmless
from .study_files import HOSTILE, NOW, SITES, events_of_a_run, make_study, write_audit, write_events

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
    "--hide-scrollbars",
    # Whatever would leave this machine has nowhere to go, and shows in the log.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=direct://",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    sites = (*SITES, HOSTILE)
    study = make_study(root / "study", sites)
    events = events_of_a_run(8, sites=sites)
    folder = write_events(study, "trial-1", [*events, {"event": "run-failed", "reason": HOSTILE}])
    (folder / ".lock").write_text(str(os.getpid()))
    for number in (2, 4, 8):
        write_audit(folder, f"round-{number}/membership", 0.5 + number / 20, verdict=HOSTILE)
    watch = StudyWatch(study)
    watch.read_events()
    path = root / "status.html"
    path.write_text(study_page(watch.status(NOW, coordinator=UP, presence={100: "online"})))
    return path


def browse(page: Path, folder: Path, *options: str) -> str:
    """What the browser prints; its own network log is in ``folder/net.json``."""
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_dom_has_every_part_and_hostile_words_stay_words(page: Path, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "--dump-dom")
    assert is_harmless(document)
    seen = PageReader(document)
    for words in ("In one look", "1 of 4 online", "Refusals and failures", "Certificates", "8 of 10"):
        assert words in seen.text
    assert '<script>alert("x")</script>' in seen.text
    assert seen.tags.count("svg") == 2
    assert seen.tags.count("polyline") == 4  # three accuracies and a leak


def requests_of(page: Path, folder: Path) -> set[str]:
    """What a page made the browser ask the network for; the browser's own errands have no origin."""
    log = folder / "net.json"
    browse(page, folder, f"--log-net-log={log}", "--net-log-capture-mode=Everything", "--dump-dom")
    lines = log.read_text().splitlines()
    found = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"params":')]
    events = [event for event in found if isinstance(event["params"], dict)]
    started = [event["params"] for event in events if "initiator" in event["params"]]
    assert lines[0].startswith('{"constants":')
    return {one["url"] for one in started if one["initiator"] != "not an origin"}


def test_the_page_asks_the_network_for_nothing(page: Path, tmp_path: Path) -> None:
    assert requests_of(page, tmp_path) == set()


def test_a_page_that_asks_for_a_picture_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "other.html"
    page.write_text('<!doctype html><title>other</title><img src="http://picture.invalid/x.png">')
    assert requests_of(page, tmp_path) == {"http://picture.invalid/x.png"}


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_seen_in_light_and_dark_narrow_and_wide(
    page: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    """Ink and paper differ, and the paper is light or dark as the reader wants it."""
    import numpy as np
    from PIL import Image

    shot = tmp_path / "shot.png"
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    browse(page, tmp_path, f"--window-size={width},1600", f"--screenshot={shot}", *dark)
    grey = np.asarray(Image.open(shot).convert("L"))
    assert grey.shape[1] >= width
    paper = int(np.median(grey))
    assert (paper < 60) if scheme == "dark" else (paper > 230)
    contrast = (grey > 150) if scheme == "dark" else (grey < 100)
    assert 0.005 < contrast.mean() < 0.2, "there are words on it"
