"""What the stages of one image hand to one another besides pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from unet.model.normalisation import Bins
from unet.planning.axes import Sizes
from unet.planning.image import ImageRef, IngestedImage
from unet.planning.plan import Plan
from unet.storage.location import locate
from unet.storage.manifest import read_manifest
from unet.storage.workspace import Workspace

Image = TypeVar("Image", bound=ImageRef)


@dataclass(frozen=True)
class IngestManifest:
    """The manifest of `ingest`.

    image       where the pixels are and what they are
    histograms  file of the counts, (channels, 65536) int64, beside the manifest
    histograms_digest  names its content
    bins        what the counts of each channel are of
    """

    image: IngestedImage
    histograms: str
    histograms_digest: str
    bins: tuple[Bins, ...]


@dataclass(frozen=True)
class PredictManifest:
    """The manifest of one slab of `predict`."""

    fingerprint: str
    slab: int
    slabs: int
    blocks: int


@dataclass(frozen=True)
class StitchManifest:
    """The manifest of `stitch`: what the result was made of, and where it is."""

    result: str
    mask: str
    fingerprint: str


@dataclass(frozen=True)
class Agreement:
    """How a second prediction agrees with what is stored.

    largest_difference  of any foreground probability
    mask_pixels_differ  of `pixels`
    """

    pixels: int = 0
    largest_difference: float = 0.0
    mask_pixels_differ: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        """Of both together."""
        return Agreement(
            self.pixels + other.pixels,
            max(self.largest_difference, other.largest_difference),
            self.mask_pixels_differ + other.mask_pixels_differ,
        )


@dataclass(frozen=True)
class Numerics:
    """What the last bits depend on: `processors` computed the run, `verified_by` the check."""

    precision: str
    processors: tuple[str, ...]
    verified_by: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class VerifyManifest:
    """The manifest of `verify`.

    run         names the result that was verified
    shards      how many there are; every one was read
    made_again  names of the blocks that were damaged or missing
    blocks      of the check that were predicted; their cores were at most `core`
    tolerance   the most that a probability may differ; where it is 0, no pixel of the mask may
    float32     agreement with float32, where the run was in lower precision
    """

    run: str
    shards: int
    made_again: tuple[str, ...]
    blocks: int
    core: Sizes
    agreement: Agreement
    tolerance: float
    passed: bool
    numerics: Numerics
    float32: Agreement | None


def read_plan(workspace: Workspace) -> Plan:
    """The plan that `split` wrote, with paths that workers find wherever they were started."""
    plan = read_manifest(workspace.manifest("split"), Plan)
    return replace(plan, image=absolute(plan.image))


def absolute(image: Image) -> Image:
    """The image with a path that workers find wherever they were started."""
    return replace(image, store=str(locate(image.store).absolute()))
