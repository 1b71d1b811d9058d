"""predict: the network on every block of one slab, into the store of probabilities.

A worker loads the network once. Then it does block after block: read the block through its halo,
run its windows, keep the cores, write one whole shard. A worker has several blocks in hand, and one
lock gives the device to one of them, so that reading and writing hide behind computing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import uuid4

import numpy as np
import torch

from unet.errors import DeviceError, ModelError
from unet.execution import pool
from unet.model.folder import find_model
from unet.network.inference import Inference, WindowRunner
from unet.network.self_test import Reference, processor_name
from unet.network.weights import load_network
from unet.planning.geometry import read_mirrored, slab_range
from unet.planning.plan import Plan
from unet.stages.split import read_plan, refuse_changed
from unet.storage import store
from unet.storage.ledger import Written
from unet.storage.location import locate
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.workspace import Workspace, finish, probabilities, probabilities_group

DEVICE = threading.Lock()  # of this worker's process: one forward pass at a time, of any run
LIGHT = 0.25  # of the memory that a worker may use: for processes of light networks together


@dataclass(frozen=True)
class PredictManifest:
    """The manifest of one slab."""

    fingerprint: str
    slab: int
    slabs: int
    blocks: int


@dataclass(frozen=True)
class PredictJob:
    """Predict the blocks of one image.

    store    group of the probabilities
    device   "gpu", "cpu", or "auto": a GPU where the worker sees one
    threads  of torch, on a CPU; None for the cores of the worker
    reference  what the worker has to reproduce first; None: it is the one that others are held to
    """

    name: str
    plan: Plan
    store: str
    device: str
    threads: int | None
    reference: Reference | None = None

    def open(self) -> Callable[[int], Written]:
        """Load the network on a worker and open its stores. Raises WorkerError; see `Reference`."""
        plan, image = self.plan, self.plan.image
        source = store.open_image(image)
        target = store.open_pixels(locate(self.store), "0", plan.axes)
        runner = self.checked_runner()
        processor = processor_name(self.torch_device())

        def predict(block: int) -> Written:
            box = plan.box(block)
            pixels = read_mirrored(source.read, plan.reads(block), image.shape)
            with DEVICE:
                probabilities = runner.block(pixels, box)
            if not np.isfinite(probabilities).all():
                raise ModelError(
                    f"Expected finite probabilities, got NaN at (t, z, y, x) = {box}: the values "
                    f"of the image or of the weights are too large for the network's numbers."
                )
            target.write(box, probabilities)
            return Written(target.settle(block, plan.block), processor)

        return predict

    def checked_runner(self) -> WindowRunner:
        """The runner, once it has reproduced the reference window; else WorkerError."""
        runner = self.runner()
        if self.reference is not None:
            self.reference.refuse_other(runner, self.plan, processor_name(self.torch_device()))
        return runner

    def runner(self) -> WindowRunner:
        """What turns the pixels of a block into probabilities."""
        plan = self.plan
        torch.set_num_threads(self.threads or pool.cores_of_worker())
        spec = find_model(plan.model)
        if spec.fingerprint != plan.model_fingerprint:
            raise ModelError(
                f"Expected the model {plan.model} as it was when the image was split, but its "
                f"weights or its description were changed since. Run the workflow again."
            )
        inference = Inference(
            load_network(spec),
            spec.architecture.dims,
            plan.offset,
            plan.scale,
            self.torch_device(),
            plan.precision,
        )
        return WindowRunner(
            inference, plan.stride, plan.halo, plan.core, plan.batch, len(plan.classes)
        )

    def torch_device(self) -> str:
        """The worker's device; its GPU is the first that it sees, since others are hidden."""
        there = torch.cuda.is_available()
        if self.device == "gpu" and not there:
            raise DeviceError(
                "Expected every worker to see a GPU, as asked for, but one sees none. Check the "
                "driver and CUDA_VISIBLE_DEVICES of the workers, or set `device: cpu`."
            )
        return "cuda" if there and self.device != "cpu" else "cpu"


def run(place: Workspace, slab: int, slabs: int, machines: pool.Machines, device: str) -> None:
    """Predict slab number `slab` of `slabs`, and write its manifest."""
    plan = read_plan(place)
    refuse_changed(plan.image)
    target = probabilities(plan, place)
    blocks = slab_range(slab, slabs, plan.blocks)
    machines = machines.at_least(processes(plan)).fitting(len(blocks), plan.worker_bytes)
    writer = f"slab-{slab + 1}-of-{slabs}"
    with place.claimed(blocks), pool.connect(machines) as client:
        named = job(place, plan, machines, device)
        named = replace(named, name=f"{named.name} {slab + 1}/{slabs}")
        finish(client, named, target, blocks, writer, machines)
    refuse_changed(plan.image)
    manifest = place.root / "predict" / f"{slab + 1}-of-{slabs}.json"
    write_manifest(manifest, PredictManifest(plan.fingerprint, slab, slabs, len(blocks)))


def processes(plan: Plan) -> int:
    """Worker processes that a light network is spread over, where cores would allow one.

    As many as fit in LIGHT: a heavy network fills its cores alone, and memory takes time to touch.
    """
    return max(1, int(plan.memory * LIGHT) // plan.worker_bytes)


def job(place: Workspace, plan: Plan, machines: pool.Machines, device: str) -> PredictJob:
    """What predicts blocks of a plan, with the reference window that its workers are held to."""
    predicting = PredictJob(
        name=f"predict {place.name}",
        plan=plan.absolute(),
        store=str(probabilities_group(plan, place).absolute()),
        device=device,
        threads=None if machines.address else max(1, machines.cores // machines.workers),
    )
    return replace(predicting, reference=_reference(place, predicting))


def _reference(place: Workspace, predicting: PredictJob) -> Reference:
    """The plan's reference window: of the first of its jobs, on a CPU in float32."""
    work = place.work("predict", predicting.plan.fingerprint)
    file = place.ledger(work).with_name("reference.json")
    if not file.exists():
        exact = replace(predicting.plan, precision="float32")
        runner = replace(predicting, plan=exact, device="cpu", threads=1).runner()
        computed = Reference.of(runner, exact, processor_name("cpu"))
        # Slabs may come here at once; what they write agrees, and whole files replace each other.
        draft = file.with_name(f"reference-{uuid4().hex}.json")
        write_manifest(draft, computed)
        draft.replace(file)
    return read_manifest(file, Reference)


def crew(
    address: str | None,
    wanted: str,
    gpus: int,
    cores: int,
    block_seconds: float | None = None,
    mem_mb: int | None = None,
) -> tuple[pool.Machines, str]:
    """The machines for the network, and the device that each of their workers has to use.

    wanted, gpus  as `choose_devices` has them

    Workers of an address look for a GPU each, and where one was asked for they have to find it.
    Raises DeviceError where one was asked for here and none is there.
    """
    devices = () if address else choose_devices(wanted, gpus)
    machines = pool.Machines.for_network(address, devices, cores, block_seconds, mem_mb)
    if devices or (address and gpus and wanted != "cpu"):
        return machines, "gpu"
    return machines, wanted if address else "cpu"


def choose_devices(wanted: str, gpus: int) -> tuple[str, ...]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them; none for the CPU.

    wanted  "cpu", "gpu", or "auto": GPUs where there are some
    gpus    how many the job asked its scheduler for; 0 if it did not ask

    Raises DeviceError where a GPU was asked for and none is there: the CPU is never a silent
    second choice.
    """
    if wanted == "cpu":
        return ()
    there = visible_devices()
    if not there and (wanted == "gpu" or gpus):
        raise DeviceError(
            f"Expected {max(gpus, 1)} GPU(s), as asked for, and found none that torch "
            f"{torch.__version__} can use. Check the driver, CUDA_VISIBLE_DEVICES and that torch "
            f"is a CUDA build, or set `device: cpu`."
        )
    if gpus > len(there):
        raise DeviceError(
            f"Expected {gpus} GPUs, as asked for, and found {len(there)} ({', '.join(there)}). "
            f"Ask for as many as there are."
        )
    return there[:gpus] if gpus else there


def visible_devices() -> tuple[str, ...]:
    """The GPUs of this job, named as its scheduler named them; makes no CUDA context."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named[:count] or map(str, range(count)))
