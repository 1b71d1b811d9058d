"""verify: a finished run is checked, and what was damaged since is made again.

First every shard of the image's copy, the probabilities and the result is read, and compared with
what was written. A damaged block is named and made again by the stage that made it, and no other
block is.

Then a sample of the image is predicted again through other blocks and other windows, see
`unet.planning.cross_check`, and compared with what is stored. How both agree is written to
`verify.json` and to the attributes of the result.
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
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.model.classify import decide
from unet.network.devices import processor_name, torch_device
from unet.network.inference import WindowRunner
from unet.network.self_test import tolerance
from unet.planning.cross_check import other_core, sample_blocks, shifted_box
from unet.planning.geometry import read_mirrored, slab_range
from unet.planning.options import StitchOptions
from unet.planning.plan import Plan
from unet.planning.result_layout import MASK
from unet.sources.base import SourceSpec
from unet.stages import copy, ingest, predict, probabilities, stitch
from unet.stages.integrity import DamagedBlock, read_all
from unet.stages.manifests import (
    Agreement,
    IngestManifest,
    Numerics,
    StitchManifest,
    VerifyManifest,
    absolute,
    read_plan,
)
from unet.stages.predict import DEVICE, CheckedPredictJob, PredictJob
from unet.stages.result import Result, result_run
from unet.storage.ledger import processors
from unet.storage.location import locate
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.metadata import read_attributes, write_attributes
from unet.storage.result_record import OURS, mend_documents, refuse_changed_groups
from unet.storage.store import ArrayRef, open_image, refuse_changed
from unet.storage.workspace import Workspace

log = logging.getLogger(__name__)

LIBRARIES = ("unet-stitch", "torch", "numpy", "zarr", "distributed")


@dataclass(frozen=True)
class VerifyOptions:
    """What the configuration asks, of the run that is verified and of its check.

    source  the image, which a damaged copy is made from again
    stitch  what the result was asked to be
    blocks  how many blocks of the check are predicted
    seed    of the random ones among them
    """

    source: SourceSpec
    stitch: StitchOptions
    blocks: int = 16
    seed: int = 0


@dataclass(frozen=True)
class StageMachines:
    """The machines of the stages that move pixels, and of the network; and its device."""

    data: Machines
    network: Machines
    device: str


@dataclass(frozen=True)
class BlockComparison:
    """How one block of the check agrees, in float32 too if the run was in another precision."""

    agreement: Agreement
    float32: Agreement
    processor: str


@dataclass(frozen=True)
class CheckJob:
    """Predict a block of the check and compare it with what is stored."""

    name: str
    checked: CheckedPredictJob
    mask: ArrayRef
    threshold: float

    def open(self) -> Callable[[int], BlockComparison]:
        """Load the network on a worker, with other windows than the run's."""
        predicting = self.checked.predicting
        plan, shape = predicting.plan, predicting.plan.image.shape
        source, stored, mask = open_image(plan.image), predicting.target.open(), self.mask.open()
        processor = processor_name(torch_device(predicting.device))
        runner = self.checked.checked_runner()
        exact = None if plan.precision == "float32" else _in_float32(predicting).runner()

        def compare(index: int) -> BlockComparison:
            box = shifted_box(index, plan)
            pixels = read_mirrored(source.read, plan.lattice.reads(box), shape)
            old = stored.read(box), mask.read(box)

            def agreement(runner: WindowRunner) -> Agreement:
                return self._agreement(runner.block(pixels, box), *old)

            with DEVICE:
                in_float32 = agreement(exact) if exact else Agreement()
                return BlockComparison(agreement(runner), in_float32, processor)

        return compare

    def _agreement(
        self, new: NDArray[np.float32], old: NDArray[Any], mask: NDArray[np.generic]
    ) -> Agreement:
        if not np.isfinite(new).all():
            raise ModelError(
                "Expected finite probabilities in the check, got NaN: the device that verifies "
                "computes something else. Mend it or leave it out, and verify again."
            )
        differences = np.abs(new - old)
        classes = decide(new, self.threshold)
        return Agreement(mask.size, float(differences.max()), int((classes != mask).sum()))


def _in_float32(predicting: PredictJob) -> PredictJob:
    """The job in float32, which needs twice the memory: with windows of half the size."""
    plan = predicting.plan
    core = plan.lattice.smaller(plan.core) or plan.core
    return replace(predicting, plan=replace(plan, precision="float32", core=core))


def run(workspace: Workspace, options: VerifyOptions, machines: StageMachines) -> None:
    """Verify one image, make again what is damaged, and write how it went.

    Raises RunError where the check fails, StoreError where a damaged block cannot be made again.
    """
    plan = read_plan(workspace)
    refuse_changed(plan.image)
    stitched = read_manifest(workspace.manifest("stitch"), StitchManifest)
    if stitched.fingerprint != result_run(workspace, plan, options.stitch):
        raise StoreError(
            f"Expected the result {stitched.result} to be of the present configuration, but it is "
            f"of another. Run the workflow first."
        )
    place = locate(stitched.result)
    result = Result(workspace, plan, stitched.fingerprint, place)
    with workspace.lock():
        mended = _mend_metadata(result, options.stitch)
        shards, blocks = read_all(result, options.stitch, machines.data)
    if blocks:
        _recompute(workspace, plan, options, machines, blocks)

    with workspace.lock():  # so that the verdict gets into the result that it is about
        result.refuse_another()
        comparisons = _compare(result, options, machines)
        computed_by = processors(probabilities.probabilities_ledger(plan, workspace))
        made_again = (*mended, *map(str, blocks))
        verified = _judge(plan, computed_by, comparisons, result.run, shards, made_again)
        write_manifest(workspace.manifest("verify"), verified)
        _publish(result, verified)


def _mend_metadata(result: Result, options: StitchOptions) -> list[str]:
    """Make the zarr.json files of a run again where they are damaged; returns those of the result.

    Raises StoreError where one of the result was changed by somebody.
    """
    workspace, plan, record = result.workspace, result.plan, result.record(options)
    if plan.image.copied:
        copy.create_copy(plan.image, workspace)
    probabilities.create_probabilities(plan, workspace)
    mended = mend_documents(workspace.records, record, result.group)
    for name in mended:
        log.warning("%s: %s is made again: it was damaged", workspace.name, result.group / name)
    result.refuse_another()
    refuse_changed_groups(record, result.group)
    return mended


def _judge(
    plan: Plan,
    computed_by: set[str],
    comparisons: list[BlockComparison],
    run: str,
    shards: int,
    made_again: tuple[str, ...],
) -> VerifyManifest:
    """How the check agrees, and whether that is enough.

    computed_by  the processors that computed the run
    run, shards, made_again  as in `VerifyManifest`
    """
    agreement = sum((each.agreement for each in comparisons), Agreement())
    float32 = sum((each.float32 for each in comparisons), Agreement())
    verified_by = {each.processor for each in comparisons}
    allowed = tolerance(plan, computed_by | verified_by)
    passed = agreement.largest_difference <= allowed
    return VerifyManifest(
        run=run,
        shards=shards,
        made_again=made_again,
        blocks=len(comparisons),
        core=other_core(plan),
        agreement=agreement,
        tolerance=allowed,
        passed=passed and (allowed > 0 or agreement.mask_pixels_differ == 0),
        numerics=Numerics(
            precision=plan.precision,
            processors=tuple(sorted(computed_by)),
            verified_by=tuple(sorted(verified_by)),
            versions=_versions(),
        ),
        float32=None if plan.precision == "float32" else float32,
    )


def _publish(result: Result, verified: VerifyManifest) -> None:
    attributes = read_attributes(result.group)[OURS]
    write_attributes(result.group, {OURS: {**attributes, "verify": asdict(verified)}})
    agreement = verified.agreement
    summary = (
        f"{agreement.pixels} pixels predicted again in {verified.blocks} other blocks: the largest "
        f"difference in probability is {agreement.largest_difference:.3g} (at most "
        f"{verified.tolerance:.3g}), and {agreement.mask_pixels_differ} pixels of the mask differ"
    )
    if not verified.passed:
        raise RunError(
            f"Expected {result.group} to be what the model predicts through any windows, but of "
            f"{summary}. Its probabilities were computed by something else than the plan says: "
            f"run it again with --forceall, after deleting its folder `work`."
        )
    log.info("%s: %d shards read, %s", result.group.name, verified.shards, summary)


def _recompute(
    workspace: Workspace,
    plan: Plan,
    options: VerifyOptions,
    machines: StageMachines,
    damaged: list[DamagedBlock],
) -> None:
    """Have the stages make what is damaged, and only that.

    Nothing that can be read is deleted: each new shard takes the place of the old one, at once.
    """
    blocks: dict[str, set[int]] = {}
    for each in damaged:
        blocks.setdefault(each.array, set()).add(each.block)
    workspace = replace(workspace, recompute=blocks)
    if copy.COPY in blocks:
        ingest.run(options.source, workspace, machines.data)
        image = read_manifest(workspace.manifest("ingest"), IngestManifest).image
        if absolute(image) != plan.image:
            raise StoreError(
                f"Expected {options.source.path} as it was when it was ingested, to make the "
                f"damaged copy again, but it was changed since. Run the workflow again."
            )
    missing = blocks.pop(probabilities.NAME, set())
    for slab in range(plan.slabs):
        if not missing.isdisjoint(slab_range(slab, plan.slabs, plan.blocks)):
            only = replace(workspace, recompute={probabilities.NAME: missing})
            predict.run(only, slab, plan.slabs, machines.network, machines.device)
    stitch.run(workspace, options.stitch, machines.data)


def _compare(
    result: Result, options: VerifyOptions, machines: StageMachines
) -> list[BlockComparison]:
    """Predict the sample again, and compare each of its blocks."""
    workspace, plan = result.workspace, result.plan
    blocks = sample_blocks(plan, options.blocks, options.seed)
    network = machines.network.fitting(len(blocks), plan.worker_bytes)
    name = f"verify {workspace.name}"
    run = predict.checked_job(name, workspace, plan, network, machines.device)
    other_plan = replace(plan, core=other_core(plan), batch=1)
    check = replace(run, predicting=replace(run.predicting, plan=other_plan))
    job = CheckJob(name, check, result.level(MASK, 0), options.stitch.threshold)
    comparisons: list[BlockComparison] = []
    with connect(network) as pool:
        pool.run(job, blocks, lambda _block, comparison: comparisons.append(comparison))
    return comparisons


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
