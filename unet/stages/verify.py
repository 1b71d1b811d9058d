"""verify: a finished run proves itself, and what was damaged since is made again.

First every shard of the image's copy, the probabilities and the result is read: the checksums in
the codec find a changed bit, and each pixel of the mask is decided once more. A damaged block is
named and made again by the stage that made it, and by no other block. Then a sample of the image is
predicted again through other blocks and other windows, see `unet.planning.cross_check`, and
compared with what is stored. The figures go into `verify.json` and into the attributes of the
result.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import ModelError, RunError, StoreError
from unet.execution import pool
from unet.model.classify import decide
from unet.network.inference import WindowRunner
from unet.network.self_test import processor_name, tolerance
from unet.planning.cross_check import chosen, other_core, shifted_box
from unet.planning.geometry import Sizes, read_mirrored, round_up, slab_range
from unet.planning.plan import Plan, shrink
from unet.planning.result_layout import mask_arrays
from unet.sources.base import SourceSpec
from unet.stages import ingest, predict, stitch
from unet.stages.integrity import DamagedBlock, Stored, levels, read_all
from unet.stages.predict import DEVICE, PredictJob
from unet.stages.split import read_plan, refuse_changed
from unet.storage import store
from unet.storage.ledger import processors
from unet.storage.location import Location, locate
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.workspace import Workspace, probabilities

log = logging.getLogger(__name__)

LIBRARIES = ("unet-stitch", "torch", "numpy", "zarr", "distributed")


@dataclass(frozen=True)
class Asked:
    """What the configuration asks, of the run that is verified and of its proof.

    source  the image, which a damaged copy is made from again
    choice  what the result was asked to be
    blocks  how many blocks of the proof are predicted
    seed    of the random ones among them
    """

    source: SourceSpec
    choice: stitch.Choice
    blocks: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Crews:
    """The machines of the stages that move pixels, and of the network; and its device."""

    data: pool.Machines
    network: pool.Machines
    device: str


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
    """What the last bits depend on; `processors` computed the run, `verified_by` the proof."""

    precision: str
    processors: tuple[str, ...]
    verified_by: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class VerifyManifest:
    """The manifest of the stage.

    run        of the result that was verified
    shards     that were read, every one there is
    made_again names of those that were damaged or missing
    blocks     of the proof; their cores were at most `core`
    tolerance  the most that a probability may differ; where it is 0, no pixel of the mask may
    float32    agreement with float32, where the run was in lower precision
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


@dataclass(frozen=True)
class BlockComparison:
    """One block of the proof: how it agrees, in float32 too if that is another, and where."""

    agreement: Agreement
    float32: Agreement
    processor: str


@dataclass(frozen=True)
class ProofJob:
    """Predict a block of the proof and compare it with what is stored."""

    name: str
    predicting: PredictJob
    mask: Stored
    threshold: float

    def open(self) -> Callable[[int], BlockComparison]:
        """Load the network on a worker, with other windows than the run's."""
        plan = self.predicting.plan
        source = store.open_image(plan.image)
        stored = store.open_pixels(locate(self.predicting.store), "0", plan.axes, mode="r")
        mask = store.open_pixels(self.mask.folder, "", self.mask.axes, mode="r")
        processor = processor_name(self.predicting.torch_device())
        runner = self.predicting.checked_runner()
        exact = None if plan.precision == "float32" else self._exact().runner()

        def prove(index: int) -> BlockComparison:
            box = shifted_box(index, plan)
            reads = replace(box, stop=_on_lattice(box.start, box.shape, plan.stride))
            pixels = read_mirrored(source.read, reads.grow(plan.halo), plan.image.shape)
            kept = stored.read(box), mask.read(box)

            def against(other: WindowRunner) -> Agreement:
                return self._agreement(other.block(pixels, box), *kept)

            with DEVICE:
                exactly = against(exact) if exact else Agreement()
                return BlockComparison(against(runner), exactly, processor)

        return prove

    def _exact(self) -> PredictJob:
        """In float32, which needs twice the memory: with windows of half the size."""
        plan = self.predicting.plan
        core = shrink(plan.core, plan.stride) or plan.core
        return replace(
            self.predicting, plan=replace(plan, precision="float32", core=core), reference=None
        )

    def _agreement(
        self, found: NDArray[np.float32], stored: NDArray[Any], mask: NDArray[np.generic]
    ) -> Agreement:
        if not np.isfinite(found).all():
            raise ModelError(
                "Expected finite probabilities in the proof, got NaN: the device that verifies "
                "computes something else. Mend it or leave it out, and verify again."
            )
        differences = np.abs(found - stored)
        decided = decide(found, self.threshold)
        return Agreement(mask.size, float(differences.max()), int((decided != mask).sum()))


def run(place: Workspace, asked: Asked, crews: Crews) -> None:
    """Verify one image, make again what is damaged, and write the proof.

    Raises RunError where the proof fails, StoreError where a damaged block cannot be made again.
    """
    plan = read_plan(place)
    refuse_changed(plan.image)
    stitched = read_manifest(place.manifest("stitch"), stitch.StitchManifest)
    name, result = stitched.fingerprint, locate(stitched.result)
    if name != place.work("stitch", stitch.fingerprint_of(plan, asked.choice, place)).name:
        raise StoreError(
            f"Expected the result {result} to be of the present configuration, but it is "
            f"of another. Run the workflow first."
        )
    _refuse_another(result, name)
    shards, damaged = read_all(place, plan, asked.choice, crews.data)
    _make_again(place, plan, asked, crews, damaged)
    with place.claimed():  # so that the proof gets into the result that it is of
        _refuse_another(result, name)
        proved = _proved(place, plan, asked, crews)
        verified = replace(proved, run=name, shards=shards, made_again=tuple(map(str, damaged)))
        write_manifest(place.manifest("verify"), verified)
        _publish(result, verified)


def _refuse_another(result: Location, run: str) -> None:
    found = store.read_attributes(result).get("unet", {}).get("run")
    if found != run:
        raise StoreError(
            f"Expected at {result} the result {run} of this run, found {found}: it was deleted, "
            f"or replaced by another run of the same name. Run again with --forcerun stitch."
        )


def _proved(place: Workspace, plan: Plan, asked: Asked, crews: Crews) -> VerifyManifest:
    """Predict the sample and judge it; what was read before is filled in by the caller."""
    agreement, float32, verified_by = _prove(place, plan, asked, crews)
    computed_by = processors(probabilities(plan, place).ledger)
    allowed = tolerance(plan, computed_by | verified_by)
    passed = agreement.largest_difference <= allowed
    return VerifyManifest(
        run="",
        shards=0,
        made_again=(),
        blocks=len(chosen(plan, asked.blocks, asked.seed)),
        core=other_core(plan),
        agreement=agreement,
        tolerance=allowed,
        passed=passed and (allowed > 0 or agreement.mask_pixels_differ == 0),
        numerics=Numerics(
            plan.precision, tuple(sorted(computed_by)), tuple(sorted(verified_by)), _versions()
        ),
        float32=float32 if plan.precision != "float32" else None,
    )


def _publish(result: Location, verified: VerifyManifest) -> None:
    recorded = store.read_attributes(result)["unet"]
    store.write_attributes(result, {"unet": {**recorded, "verify": asdict(verified)}})
    found = verified.agreement
    told = (
        f"{found.pixels} pixels predicted again in {verified.blocks} other blocks: the largest "
        f"difference in probability is {found.largest_difference:.3g} (at most "
        f"{verified.tolerance:.3g}), and {found.mask_pixels_differ} pixels of the mask differ"
    )
    if not verified.passed:
        raise RunError(
            f"Expected {result} to be what the model predicts through any windows, but of "
            f"{told}. Its probabilities were computed by something else than the plan says: "
            f"run it again with --forceall, after deleting its folder `work`."
        )
    log.info("%s: %d shards read, %s", result.name, verified.shards, told)


def _make_again(
    place: Workspace, plan: Plan, asked: Asked, crews: Crews, damaged: list[DamagedBlock]
) -> None:
    """Have the stages make what is damaged, and only that.

    Nothing that can be read is deleted: each new shard takes the place of the old one, at once.
    """
    again: dict[str, set[int]] = {}
    for each in damaged:
        again.setdefault(each.array, set()).add(each.block)
    place = replace(place, again=again)
    if "image copy" in again:
        ingest.run(asked.source, place, crews.data)
        image = read_manifest(place.manifest("ingest"), ingest.IngestManifest).image
        if image != plan.image:
            raise StoreError(
                f"Expected {asked.source.path} as it was when it was ingested, to make the "
                f"damaged copy again, but it was changed since. Run the workflow again."
            )
    missing = again.pop("probabilities", set())
    for slab in range(plan.slabs):
        blocks = slab_range(slab, plan.slabs, plan.blocks)
        if any(block in blocks for block in missing):
            only = replace(place, again={"probabilities": missing})
            predict.run(only, slab, plan.slabs, crews.network, crews.device)
    if damaged:
        stitch.run(place, asked.choice, crews.data)


def _prove(
    place: Workspace, plan: Plan, asked: Asked, crews: Crews
) -> tuple[Agreement, Agreement, set[str]]:
    """Predict the sample; its agreement, that with float32, and the processors it ran on."""
    blocks = chosen(plan, asked.blocks, asked.seed)
    machines = crews.network.fitting(len(blocks), plan.worker_bytes)
    other = replace(plan.absolute(), core=other_core(plan), batch=1)
    predicting = replace(predict.job(place, plan, machines, crews.device), plan=other)
    result = stitch.result_of(place, plan, asked.choice).absolute()
    (mask, *_) = levels("mask", result / stitch.MASK, mask_arrays(plan))
    job = ProofJob(f"verify {place.name}", predicting, mask, asked.choice.threshold)
    found: list[BlockComparison] = []

    def hear(_block: int, compared: BlockComparison) -> None:
        found.append(compared)

    with pool.connect(machines) as client:
        pool.run(client, job, iter(blocks), hear, machines.in_flight, machines.block_seconds)
    return (
        sum((each.agreement for each in found), Agreement()),
        sum((each.float32 for each in found), Agreement()),
        {each.processor for each in found},
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _on_lattice(start: Sizes, shape: Sizes, stride: Sizes) -> Sizes:
    return tuple(a + round_up(n, s) for a, n, s in zip(start, shape, stride, strict=True))
