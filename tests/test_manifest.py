"""Manifests: read as they were written, and refused with a sentence where they are damaged."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet.errors import StoreError
from unet.network.self_test import SelfTest
from unet.planning.plan import Plan
from unet.stages.manifests import (
    Agreement,
    IngestManifest,
    Numerics,
    PredictManifest,
    StitchManifest,
    VerifyManifest,
)
from unet.storage.manifest import read_manifest, write_manifest

KINDS = [IngestManifest, Plan, PredictManifest, SelfTest, StitchManifest, VerifyManifest]
VERIFIED = VerifyManifest(
    run="stitch-1",
    shards=7,
    made_again=("mask level 0, block 2",),
    blocks=4,
    core=(1, 1, 32, 64),
    agreement=Agreement(pixels=100, largest_difference=1e-7, mask_pixels_differ=0),
    tolerance=0.0,
    passed=True,
    numerics=Numerics("float32", ("CPU",), ("CPU",), {"torch": "2.13.0"}),
    float32=None,
)


@dataclass(frozen=True)
class Numbers:
    """What a manifest may hold of numbers."""

    exact: float
    whole: int


@dataclass(frozen=True)
class MoreNumbers(Numbers):
    """A manifest that inherits fields, and holds others."""

    pairs: tuple[tuple[Numbers, float], ...]
    by_name: dict[str, Numbers]
    maybe: tuple[int, ...] | None


@pytest.mark.parametrize("kind", [*KINDS, MoreNumbers], ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_manifest_is_read_as_it_was_written(kind, data, tmp_path_factory):
    """Whatever its values: infinities, not a number, the smallest float, nothing."""
    written = data.draw(st.from_type(kind))
    file = tmp_path_factory.getbasetemp() / "manifest.json"
    write_manifest(file, written)
    content = file.read_bytes()
    read = read_manifest(file, kind)
    assert repr(read) == repr(written)  # of floats it has every bit, and NaN is equal to itself
    write_manifest(file, read)
    assert file.read_bytes() == content


@given(exact=st.integers(-(2**53), 2**53), whole=st.integers())
def test_a_whole_number_may_stand_for_a_float(exact, whole, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "manifest.json"
    write_manifest(file, Numbers(exact, whole))
    assert read_manifest(file, Numbers) == Numbers(exact, whole)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"shards": "7"}, "shards: expected `int`, got `str`"),
        ({"shards": 7.5}, "shards: expected `int`, got `float`"),
        ({"shards": True}, "shards: expected `int`, got `bool`"),
        ({"tolerance": None}, "tolerance: expected `float`, got `null`"),
        ({"tolerance": False}, "tolerance: expected `float`, got `bool`"),
        ({"passed": 1}, "passed: expected `bool`, got `int`"),
        ({"run": 1}, "run: expected `str`, got `int`"),
        ({"made_again": "mask"}, "made_again: expected `array`, got `str`"),
        ({"made_again": {"mask": 1}}, "made_again: expected `array`, got `object`"),
        ({"core": [1, 1, "32", 64]}, "core[2]: expected `int`, got `str`"),
        ({"agreement": [1, 0.0, 0]}, "agreement: expected `object`, got `array`"),
        ({"agreement": None}, "agreement: expected `object`, got `null`"),
        ({"agreement": {"pixels": 1, "largest_difference": 0.0}}, "mask_pixels_differ: missing"),
        ({"float32": {}}, "float32.largest_difference: missing key"),
        ({"numerics": {}}, "numerics: object missing required field `precision`"),
        ({"numerics": {**vars(VERIFIED.numerics), "gpu": ""}}, "numerics.gpu: unknown key"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"run": ...}, "object missing required field `run`"),
    ],
    ids=str,
)
def test_what_is_damaged_is_named(damage, why, tmp_path):
    file = tmp_path / "verify.json"
    write_manifest(file, VERIFIED)
    content = {**json.loads(file.read_text()), **damage}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    sentence = rf"^Expected {re.escape(str(file))} to be a manifest .*{re.escape(why)}.*\. Delete"
    with pytest.raises(StoreError, match=sentence):
        read_manifest(file, VerifyManifest)


@given(data=st.data())
def test_no_changed_value_is_read(data, tmp_path_factory):
    """A digit changed on the disk, or by hand, is of the right type, but not what it was."""
    file = tmp_path_factory.getbasetemp() / "manifest.json"
    write_manifest(file, VERIFIED)
    content = json.loads(file.read_text())
    content["shards"] = data.draw(st.integers().filter(lambda number: number != VERIFIED.shards))
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="its checksum is of another content"):
        read_manifest(file, VerifyManifest)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'"plan"', b"\xff\xfe", b"{}"])
def test_what_is_no_manifest_at_all_is_refused(content, tmp_path):
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"split\.json to be a manifest of this version, as"):
        read_manifest(tmp_path / "split.json", Plan)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_no_half_of_a_manifest_is_read(kind, data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "manifest.json"
    write_manifest(file, data.draw(st.from_type(kind)))
    content = file.read_bytes().rstrip()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(
        StoreError, match="to be a manifest of this version, as it was written, but it is not"
    ):
        read_manifest(file, kind)
