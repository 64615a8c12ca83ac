"""The worker's log: type and place of a fault, never a path of the site."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from federation.site.log import describe_fault, path_scrubber


def test_paths_become_their_keys_the_longest_first() -> None:
    scrub = path_scrubber({"folder": Path("/srv/site"), "data": Path("/srv/site/scans")})
    assert (
        scrub("cannot read /srv/site/scans/a.png nor /srv/site/b")
        == "cannot read <data>/a.png nor <folder>/b"
    )


def test_the_root_folder_is_not_scrubbed_out_of_everything() -> None:
    assert path_scrubber({"folder": Path("/")})("a/b") == "a/b"


def test_a_fault_is_told_by_type_and_line_and_its_text_only_to_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        try:
            raise ValueError("patient 7")
        except ValueError as error:
            text = describe_fault(error)
    assert text.startswith("ValueError at test_log.py:")
    assert "patient" not in text + caplog.text
