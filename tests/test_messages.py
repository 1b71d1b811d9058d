"""What a run tells: a warning says that it is one, and a number has a unit that suits it."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
import zarr
from conftest import REPOSITORY, picture
from hypothesis import given
from hypothesis import strategies as st
from support import planned

from unet.console import report_to
from unet.errors import ModelError
from unet.model.folder import ModelSpec, find_model
from unet.quantities import PREFIXES, with_prefix
from unet.stages.split import ODD_SCALE, describe, scale_warning

SIZES = st.floats(1e-4, 1e4)


@given(st.integers(0, 10**20))
def test_a_number_keeps_three_digits_whatever_its_unit(value):
    told = re.fullmatch(rf"([\d.]+) ([{''.join(PREFIXES)}]?)B", with_prefix(value, "B"))
    assert told is not None
    number, prefix = float(told[1]), told[2]
    assert number < 1000
    assert number >= 1 or value == 0
    assert number * 1000 ** PREFIXES.index(prefix) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("pixels", [(40, 50), (700, 900)])
def test_a_plan_never_tells_that_something_takes_nothing(tiny_model, tmp_path, pixels):
    told = describe(planned(picture(*pixels), "yx", tiny_model, tmp_path))
    amounts = re.findall(r"([\d.,e+]+) [kMGT]?(?:B|FLOP)\b", told)
    assert len(amounts) == 5
    assert all(float(amount) > 0 for amount in amounts)


@given(SIZES, SIZES)
def test_pixels_of_another_size_are_told_with_how_much_larger_or_smaller(actual, expected):
    told = scale_warning(actual, sized(expected))
    ratio = actual / expected
    if 1 / ODD_SCALE < ratio < ODD_SCALE:
        assert told is None
        return
    found = re.search(r"look ([\d.,]+) times (larger|smaller)", told or "")
    assert found is not None
    assert float(found[1].replace(",", "")) == pytest.approx(max(ratio, 1 / ratio), rel=0.06)
    assert found[2] == ("smaller" if ratio > 1 else "larger")


@pytest.mark.parametrize("actual", [None, 0.0])
def test_a_pixel_size_is_asked_for_only_where_it_matters(actual):
    assert "set `pixel_size`" in (scale_warning(actual, sized(0.5)) or "")
    assert scale_warning(actual, sized(None)) is None


def sized(pixel_size: float | None) -> ModelSpec:
    return replace(find_model("he-nuclei"), pixel_size=pixel_size)


def test_a_warning_says_that_it_is_one(tmp_path, capsys):
    """On the terminal and in the file; other messages stay as they are."""
    file = tmp_path / "log"
    with report_to(str(file)):
        for level in ("info", "warning", "error"):
            getattr(logging.getLogger("unet.any"), level)("one %s here", level)
    lines = file.read_text().splitlines()
    assert capsys.readouterr().err.splitlines() == lines
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "one info here",
        "WARNING: one warning here",
        "one error here",
    ]


RGB = ("red", "green", "blue")


@pytest.mark.parametrize(
    ("model", "names", "advice", "is_of_colours"),
    [
        ("fluo-nuclei", RGB, "channels: [red]", True),
        ("fluo-nuclei", (*RGB, "alpha"), "channels: [red]", True),
        ("fluo-nuclei", ("gray", "alpha"), "channels: [gray]", False),
        ("fluo-nuclei", ("DAPI", "GFP"), "channels: [DAPI]", False),
        ("he-nuclei", (*RGB, "alpha"), "channels: [red, green, blue]", False),
        ("he-nuclei", ("alpha", *reversed(RGB)), "channels: [red, green, blue]", False),
        ("he-nuclei", ("a", "b", "c", "d"), "channels: [a, b, c]", False),
        ("he-nuclei", ("gray",), "another model", False),
    ],
)
def test_channels_that_do_not_fit_are_told_with_what_to_choose(model, names, advice, is_of_colours):
    with pytest.raises(ModelError) as caught:
        find_model(model).refuse_channels(names, "image.tif")
    assert advice in str(caught.value)
    assert ("such as he-nuclei" in str(caught.value)) == is_of_colours


@pytest.mark.parametrize("holds", ["nothing", "a folder", "a group", "an image without a mask"])
def test_a_result_that_cannot_be_drawn_is_told_without_a_word_of_the_configuration(holds, tmp_path):
    """`scripts/picture.py` reads none: its user named a path."""
    store = tmp_path / "mine.ome.zarr"
    if holds == "a folder":
        store.mkdir()
    if holds == "a group":
        zarr.create_group(store)
    if holds == "an image without a mask":
        zarr.create_array(store, data=picture(20, 30))
    draw = run_path(str(REPOSITORY / "scripts" / "picture.py"))["picture"]
    with pytest.raises(SystemExit) as ended:
        draw(str(store), None, 64, None)
    assert re.search(r"to hold an image and labels/mask.*Name the folder", str(ended.value))
    assert str(Path(store)) in str(ended.value)
    assert "configuration" not in str(ended.value)
