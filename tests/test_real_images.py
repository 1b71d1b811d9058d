"""The workflow's stages on real slides and stacks.

The images are not part of the repository: where `../shared/data` is not there, the tests say so.
"""

import numpy as np
import pytest
import zarr
from conftest import REPOSITORY
from support import run_stages

import unet
from unet.model.folder import find_model
from unet.sources.base import SourceSpec
from unet.storage.workspace import Workspace

DATA = REPOSITORY.parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not DATA.is_dir(), reason="the real images of ../shared/data are not on this machine"
    ),
]


def mask_of(workspace: Workspace):
    return zarr.open_array(workspace.result / "labels/mask/0", mode="r")


def assert_equals_the_reference(workspace, model, axes):
    """Mask and probabilities against one pass over the image as the result holds it."""
    image = zarr.open_array(workspace.result / "0", mode="r")[...]
    expected = unet.predict(unet.load_model(model.folder), image, axes)[1]
    assert np.array_equal(mask_of(workspace)[...], expected > 0.5)
    assert 0 < (expected > 0.5).mean() < 1


def test_a_fluorescence_slide_at_level_2(make_model, tmp_path):
    """An NDPI whose nuclei are in its blue channel."""
    workspace = Workspace(tmp_path / "ndpi")
    source = SourceSpec(str(DATA / "wsi" / "test3-DAPI.ndpi"), level=2, channels=("blue",))
    model = make_model(width=4)
    plan = run_stages(source, model, workspace, shard=(512, 512), chunk=(256, 256))
    assert plan.image.shape == (1, 1, 1216, 992)
    assert plan.image.pixel_size["x"] == pytest.approx(0.912, abs=0.01)
    assert_equals_the_reference(workspace, model, "cyx")


def test_an_ome_zarr_of_version_04(make_model, tmp_path):
    folder = DATA / "ome_zarr" / "xyz_8bit__mitotic_plate_calibrated.ome.zarr"
    workspace = Workspace(tmp_path / "plate")
    model = make_model(width=4)
    plan = run_stages(
        SourceSpec(str(folder)), model, workspace, shard=(2, 128, 128), chunk=(64, 64)
    )
    assert plan.image.shape == (1, 6, 263, 263)
    assert plan.image.pixel_size["z"] == 3.0
    assert not plan.image.copied
    assert_equals_the_reference(workspace, model, "tczyx")


def test_the_stack_of_the_demo_is_segmented_well():
    """With the model that is shipped, on planes that it never saw (see its model.yaml)."""
    import tifffile

    stack = tifffile.imread(DATA / "cells3d_nuclei" / "nuclei.tif")
    labels = tifffile.imread(DATA / "cells3d_nuclei" / "nuclei_label.tif")[40:44] > 0
    found = unet.predict(unet.load_model(find_model("fluo-nuclei").folder), stack[40:44], "zyx")
    mask = found[1] > 0.5
    dice = 2 * (mask & labels).sum() / (mask.sum() + labels.sum())
    assert dice > 0.9
