"""The result of a run: its arrays, where each lies, and the ledger of its blocks.

Why apart from `stitch`, which makes them: `verify` and `evaluate` look at the same arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from unet.errors import StoreError
from unet.fingerprint import fingerprint
from unet.planning.layout import Layout
from unet.planning.options import StitchOptions
from unet.planning.plan import RESULTS, Plan
from unet.planning.result_layout import (
    FOLDERS,
    GROUPS,
    IMAGE,
    MASK,
    image_arrays,
    level_factors,
    mask_arrays,
)
from unet.storage import ome
from unet.storage.block_store import BlockStore
from unet.storage.location import Location, locate
from unet.storage.metadata import group_document
from unet.storage.result_record import OURS, ResultRecord, run_of
from unet.storage.store import ArrayRef, array_document, create_array, open_array
from unet.storage.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """A result, whole or in the making.

    run    names it
    group  the folder of its OME-Zarr
    """

    workspace: Workspace
    plan: Plan
    run: str
    group: Location

    def refuse_another(self) -> None:
        """Raise StoreError if another result, or none, is in its place."""
        actual = run_of(self.group)
        if actual != self.run:
            raise StoreError(
                f"Expected at {self.group} the result {self.run} of this run, found {actual}: it "
                f"was deleted, or replaced by another run of the same name. Run again with "
                f"--forcerun stitch."
            )

    def layouts(self, pyramid: str) -> list[Layout]:
        """The arrays of the image or of the mask, largest first."""
        image, mask = self.plan.image, self.plan.mask_layout
        return image_arrays(image) if pyramid == IMAGE else mask_arrays(image, mask)

    def record(self, options: StitchOptions) -> ResultRecord:
        """What it consists of: all its zarr.json files, that of the root last."""
        documents, ledgers = dict[str, dict[str, Any]](), dict[str, str]()
        for pyramid in pyramids(options):
            for level, layout in enumerate(self.layouts(pyramid)):
                folder = str(PurePosixPath(FOLDERS[pyramid], str(level)))
                ledger = self._ledger(pyramid, level).relative_to(self.workspace.root)
                documents[folder], ledgers[folder] = array_document(layout), ledger.as_posix()
        groups = {
            FOLDERS[MASK]: self._describe_mask(),
            "labels": ome.label_list([PurePosixPath(FOLDERS[MASK]).name]),
            ".": {**(self._describe_image() if options.image else {}), OURS: {"run": self.run}},
        }
        documents |= {folder: group_document(groups[folder]) for folder in GROUPS}
        return ResultRecord(self.run, self.plan.fingerprint, documents, ledgers)

    def level(self, pyramid: str, level: int) -> ArrayRef:
        """A level of the image or of the mask, as a worker opens it wherever it was started."""
        folder = self.group.absolute() / FOLDERS[pyramid] / str(level)
        return ArrayRef(folder, self.layouts(pyramid)[level].axes)

    def create(self, pyramid: str, level: int) -> BlockStore:
        """Make a level, or open it where it is there."""
        layout = self.layouts(pyramid)[level]
        array = create_array(self.group / FOLDERS[pyramid], str(level), layout)
        return BlockStore(array, self._ledger(pyramid, level))

    def open(self, pyramid: str, level: int) -> BlockStore:
        """Open a level. Raises StoreError where there is none, or another."""
        layout = self.layouts(pyramid)[level]
        array = open_array(self.group / FOLDERS[pyramid], str(level), layout)
        return BlockStore(array, self._ledger(pyramid, level))

    def stores(self, options: StitchOptions) -> Iterator[tuple[str, BlockStore]]:
        """All its levels, each with its title, open."""
        for pyramid in pyramids(options):
            for level, _ in enumerate(self.layouts(pyramid)):
                yield title(pyramid, level), self.open(pyramid, level)

    def _describe_image(self) -> dict[str, Any]:
        image = self.plan.image
        attributes = self._multiscales(IMAGE, self.workspace.name, "mean")
        return ome.add_channels(
            attributes, image.channel_names, image.data_range, image.contrast_limits
        )

    def _describe_mask(self) -> dict[str, Any]:
        attributes = self._multiscales(MASK, PurePosixPath(FOLDERS[MASK]).name, "mode")
        return ome.add_label(attributes, self.plan.classes)

    def _multiscales(self, pyramid: str, name: str, kind: str) -> dict[str, Any]:
        image, axes = self.plan.image, self.layouts(pyramid)[0].axes
        levels = level_factors(image)
        return ome.multiscales(name, axes, image.pixel_size, levels, kind, image.origin)

    def _ledger(self, pyramid: str, level: int) -> Path:
        """The shards of a copied image are those of the copy, so its ledger is theirs."""
        image = self.plan.image
        if image.copied and (pyramid, level) == (IMAGE, 0):
            return self.workspace.ledger(locate(image.store).parent.name)
        return self.workspace.ledger(self.run) / pyramid / str(level)


def result_run(workspace: Workspace, plan: Plan, options: StitchOptions) -> str:
    """The name of a result: it names everything that the result depends on."""
    image = replace(plan.image, store="", digest="")
    parts = (plan.fingerprint, options, workspace.name, image, plan.classes, RESULTS)
    return workspace.work("stitch", fingerprint(*parts)).name


def pyramids(options: StitchOptions) -> tuple[str, ...]:
    """What a result holds."""
    return (IMAGE, MASK) if options.image else (MASK,)


def title(pyramid: str, level: int) -> str:
    """What a level is called where a block of it is named."""
    return f"{pyramid} level {level}"
