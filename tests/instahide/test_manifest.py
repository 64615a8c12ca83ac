"""A manifest says only public things, and every edit of it shows."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instahide.encoder_config import EncoderConfig
from instahide.errors import IntegrityError
from instahide.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    canonical_json,
    label_policy,
    read_manifest,
    stored_values,
    write_manifest,
)

CONFIG = EncoderConfig()


def example(config: EncoderConfig = CONFIG) -> Manifest:
    shards = [
        ShardRecord(name=f"shard-{i:05d}.safetensors", num_images=n, bytes=100_000, sha256=f"{i}" * 64)
        for i, n in enumerate([8, 8, 4])
    ]
    return Manifest(
        created_by="instahide-fl 0.1.0",
        scheme="inside",
        law=config.to_dict(),
        label_policy=label_policy(config),
        texture_filter_version=None,
        epochs=2,
        num_images=20,
        image_shape=(3, 8, 8),
        class_names=("benign", "malignant"),
        row_order="data",
        values=stored_values(config.quantization_levels),
        shards=tuple(shards),
    )


def signed(body: dict[str, Any]) -> dict[str, Any]:
    """The body with the digest a careful editor would put."""
    rest = {name: value for name, value in body.items() if name != "manifest_sha256"}
    return {**rest, "manifest_sha256": hashlib.sha256(canonical_json(rest)).hexdigest()}


def read(folder: Path, body: Any) -> Manifest:
    (folder / MANIFEST_NAME).write_text(json.dumps(body))
    return read_manifest(folder)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The address of every leaf of a JSON value."""
    if isinstance(value, dict | list) and value:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*at, key))
    else:
        yield at


BODY = example().to_dict()
LEAVES = list(places(BODY))
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["cross", "compat", "private-sum", "shuffled-within-shards", "shard-00001.safetensors"]),
    st.just([]),
    st.just({}),
)


@pytest.mark.parametrize(
    "config", [CONFIG, EncoderConfig(mode="compat"), EncoderConfig(quantization_bits=12)]
)
def test_a_manifest_comes_back_as_it_was(tmp_path: Path, config: EncoderConfig) -> None:
    write_manifest(tmp_path, example(config))
    assert read_manifest(tmp_path) == example(config)


def test_values_are_stored_in_the_smallest_type_that_holds_the_grid() -> None:
    assert stored_values(127) == {"type": "int8", "scale": 127}
    assert stored_values(15) == {"type": "int8", "scale": 15}
    assert stored_values(2047) == {"type": "int16", "scale": 2047}
    assert stored_values(None) == {"type": "float32", "scale": None}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.sampled_from(LEAVES), value=JSON_VALUES)
def test_every_edit_of_a_single_field_is_caught(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    body = copy.deepcopy(BODY)
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    if canonical_json(inner[place[-1]]) == canonical_json(value):
        return
    inner[place[-1]] = value
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        read(tmp_path, body)


@pytest.mark.parametrize("place", LEAVES, ids=str)
def test_every_removed_field_is_caught(tmp_path: Path, place: tuple[Any, ...]) -> None:
    body = copy.deepcopy(BODY)
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        read(tmp_path, body)


CONTRADICTIONS = {
    "unknown field": ({"weights": [0.4]}, "'weights' is unknown"),
    "later format": ({"format_version": 2}, "format version 2 is unknown"),
    "version of another type": ({"format_version": True}, "format version True is unknown"),
    "another format": ({"format": "zip"}, "format is 'zip'"),
    "unknown scheme": ({"scheme": "outside"}, "scheme is 'outside'"),
    "counts that differ": ({"num_images": 22}, "not the sum over the shards"),
    "epochs that do not divide": ({"epochs": 3}, "no multiple of epochs"),
    "no shards": ({"shards": []}, "shards is not a list"),
    "a path as shard": ({"shards": [{**BODY["shards"][0], "name": "../../etc/passwd"}]}, "shard name"),
    "a gap in the numbering": ({"shards": BODY["shards"][1:], "num_images": 12}, "not numbered"),
    "an unknown law": ({"law": {"seed": 1}}, "not an encoder configuration"),
    "labels against the law": ({"label_policy": "private-sum"}, "the law makes it"),
    "values against the law": ({"values": {"type": "float32", "scale": None}}, "the law makes it"),
    "a huge set in small files": ({"image_shape": [3, 40_000, 40_000]}, "too few for"),
    "a negative size": ({"image_shape": [3, -8, 8]}, "image_shape"),
    "a name that is no text": ({"class_names": ["a", 1]}, "class_names"),
    "filter version of another type": ({"texture_filter_version": 1.5}, "texture_filter_version"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused_even_with_a_fitting_digest(
    tmp_path: Path, case: str
) -> None:
    change, reason = CONTRADICTIONS[case]
    with pytest.raises(IntegrityError, match=reason):
        read(tmp_path, signed({**BODY, **change}))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_manifest_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_field_given_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(BODY).replace('"epochs": 2', '"epochs": 1, "epochs": 2')
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(IntegrityError, match="twice"):
        read_manifest(tmp_path)


def test_very_deep_nesting_is_refused_not_crashed_on(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("[" * 100_000)
    with pytest.raises(IntegrityError, match="not readable"):
        read_manifest(tmp_path)


def test_without_a_manifest_a_folder_is_called_unfinished(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="unfinished"):
        read_manifest(tmp_path)
