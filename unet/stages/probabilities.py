"""The store of an image's probabilities, which `predict` fills and `stitch` reads."""

from __future__ import annotations

from pathlib import Path

from unet.planning.plan import Plan
from unet.storage import ome
from unet.storage.block_store import BlockStore
from unet.storage.location import Location
from unet.storage.metadata import write_attributes
from unet.storage.store import ArrayRef, create_array
from unet.storage.workspace import Workspace

NAME = "probabilities"  # in `Workspace.recompute`, and where a damaged block is named


def probabilities_group(plan: Plan, workspace: Workspace) -> Location:
    """The OME-Zarr of the probabilities; it need not be there yet."""
    return _work_folder(plan, workspace) / "probabilities.ome.zarr"


def probabilities_array(plan: Plan, workspace: Workspace) -> ArrayRef:
    """Its array, as a worker opens it wherever it was started."""
    group = probabilities_group(plan, workspace).absolute()
    return ArrayRef(group / "0", plan.probabilities_layout.axes)


def probabilities_ledger(plan: Plan, workspace: Workspace) -> Path:
    """The folder of the ledger of its blocks."""
    return workspace.ledger(_work_folder(plan, workspace).name)


def create_probabilities(plan: Plan, workspace: Workspace) -> BlockStore:
    """Make the store, or open it where it is there; several jobs may do so at once."""
    group, layout, image = (
        probabilities_group(plan, workspace),
        plan.probabilities_layout,
        plan.image,
    )
    attributes = ome.multiscales(
        workspace.name, layout.axes, image.pixel_size, [(1,) * 4], "mean", image.origin
    )
    write_attributes(group, ome.add_channels(attributes, plan.classes[1:], (0.0, 1.0)))
    return BlockStore(create_array(group, "0", layout), probabilities_ledger(plan, workspace))


def _work_folder(plan: Plan, workspace: Workspace) -> Location:
    return workspace.work("predict", plan.fingerprint)
