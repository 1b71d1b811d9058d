"""predict: the network on every block of one slab, into the store of probabilities.

A worker loads the network once. Then it does block after block: read the block through its halo,
run its windows, keep the cores, write one whole shard. A worker holds several blocks, and one lock
gives the device to one of them, so that reading and writing hide behind computing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from unet.errors import ModelError
from unet.execution.machines import Machines
from unet.execution.pool import connect
from unet.execution.resume import resume
from unet.execution.worker import threads_of_worker
from unet.model.folder import find_model
from unet.network.devices import choose_devices, processor_name, torch_device
from unet.network.inference import Inference, WindowRunner
from unet.network.self_test import SelfTest
from unet.network.weights import load_network
from unet.planning.geometry import read_mirrored, slab_range
from unet.planning.plan import Plan
from unet.stages.copy import refuse_damaged_copy
from unet.stages.manifests import PredictManifest, read_plan
from unet.stages.probabilities import (
    NAME,
    create_probabilities,
    probabilities_array,
    probabilities_ledger,
)
from unet.storage.ledger import Written
from unet.storage.manifest import read_manifest, write_manifest
from unet.storage.store import ArrayRef, open_image, refuse_changed
from unet.storage.workspace import Workspace

DEVICE = threading.Lock()  # of this worker's process: one forward pass at a time, of any run
LIGHT = 0.25  # of the memory that a worker may use: for processes of light networks together


@dataclass(frozen=True)
class PredictJob:
    """Predict the blocks of one image.

    target   the array of the probabilities
    device   "gpu", "cpu", or "auto": a GPU where the worker sees one
    threads  of torch, on a CPU; None for one on each CPU of the worker
    """

    name: str
    plan: Plan
    target: ArrayRef
    device: str
    threads: int | None

    def open(self) -> Callable[[int], Written]:
        """Load the network on a worker and open its stores."""
        return self.predict_with(self.runner())

    def predict_with(self, runner: WindowRunner) -> Callable[[int], Written]:
        """The function that predicts a block with a runner and writes it."""
        plan, shape = self.plan, self.plan.image.shape
        source = open_image(plan.image)
        target = self.target.open()
        processor = processor_name(torch_device(self.device))

        def predict(block: int) -> Written:
            box = plan.grid.box(block)
            pixels = read_mirrored(source.read, plan.lattice.reads(box), shape)
            with DEVICE:
                probabilities = runner.block(pixels, box)
            if not np.isfinite(probabilities).all():
                raise ModelError(
                    f"Expected finite probabilities, got NaN at (t, z, y, x) = {box}: the values "
                    f"of the image or of the weights are too large for the network's numbers."
                )
            return target.write_block(block, probabilities, processor)

        return predict

    def runner(self) -> WindowRunner:
        """What turns the pixels of a block into probabilities."""
        plan = self.plan
        torch.set_num_threads(self.threads or threads_of_worker())
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
            torch_device(self.device),
            plan.precision,
        )
        return WindowRunner(inference, plan.lattice, plan.core, plan.batch, len(plan.classes))


@dataclass(frozen=True)
class CheckedPredictJob:
    """A `PredictJob` whose workers must compute the test window right before they may write."""

    predicting: PredictJob
    self_test: SelfTest

    @property
    def name(self) -> str:
        """What its progress lines call it."""
        return self.predicting.name

    def open(self) -> Callable[[int], Written]:
        """As `PredictJob.open`. Raises WorkerError where the worker computes something else."""
        return self.predicting.predict_with(self.checked_runner())

    def checked_runner(self) -> WindowRunner:
        """The runner, once it has computed the test window right; else WorkerError."""
        plan, device = self.predicting.plan, torch_device(self.predicting.device)
        runner = self.predicting.runner()
        self.self_test.refuse_other(runner, plan, processor_name(device))
        return runner


def run(workspace: Workspace, slab: int, slabs: int, machines: Machines, device: str) -> None:
    """Predict slab number `slab` of `slabs`, and write its manifest."""
    plan = read_plan(workspace)
    refuse_changed(plan.image)
    blocks = slab_range(slab, slabs, plan.blocks)
    machines = machines.at_least(light_processes(plan)).fitting(len(blocks), plan.worker_bytes)
    writer = f"slab-{slab + 1}-of-{slabs}"
    with workspace.lock(blocks):
        refuse_damaged_copy(plan.image, workspace)
        store = create_probabilities(plan, workspace)
        with connect(machines) as pool:
            name = f"predict {workspace.name} {slab + 1}/{slabs}"
            job = checked_job(name, workspace, plan, machines, device)
            again = workspace.to_recompute(NAME) & set(blocks)
            resume(pool, job, store, blocks, writer, again)
    refuse_changed(plan.image)
    manifest = workspace.root / "predict" / f"{slab + 1}-of-{slabs}.json"
    write_manifest(manifest, PredictManifest(plan.fingerprint, slab, slabs, len(blocks)))


def light_processes(plan: Plan) -> int:
    """Worker processes that a light network is spread over, where its CPUs would share one.

    As many as fit in LIGHT of the memory. A heavy network keeps its CPUs busy in one process, and
    more processes would only touch more memory.
    """
    return max(1, int(plan.memory * LIGHT) // plan.worker_bytes)


def checked_job(
    name: str, workspace: Workspace, plan: Plan, machines: Machines, device: str
) -> CheckedPredictJob:
    """What predicts blocks of a plan, with the test window that its workers have to compute."""
    threads = None if machines.address else max(1, machines.cpus // machines.workers)
    target = probabilities_array(plan, workspace)
    predicting = PredictJob(name, plan, target, device, threads)
    return CheckedPredictJob(predicting, _self_test(workspace, predicting))


def _self_test(workspace: Workspace, predicting: PredictJob) -> SelfTest:
    """The plan's test window, as the first of its jobs computed it: on a CPU, in float32."""
    ledger = probabilities_ledger(predicting.plan, workspace)
    file = ledger.with_name("self_test.json")
    if not file.exists():
        exact = replace(predicting.plan, precision="float32")
        runner = replace(predicting, plan=exact, device="cpu", threads=1).runner()
        computed = SelfTest.of(runner, exact, processor_name("cpu"))
        # Slabs may come here at once; what they write agrees, and whole files replace each other.
        write_manifest(file, computed)
    return read_manifest(file, SelfTest)


def network_machines(
    address: str | None,
    device: str,
    gpus: int,
    cpus: int,
    block_seconds: float | None = None,
    mem_mb: int | None = None,
) -> tuple[Machines, str]:
    """The machines for the network, and the device that each of their workers has to use.

    device, gpus  as `choose_devices` has them

    Workers of an address look for a GPU each, and where one was asked for they have to find it.
    Raises DeviceError where one was asked for here and none is there.
    """
    devices = () if address else choose_devices(device, gpus)
    machines = Machines.for_network(address, devices, cpus, block_seconds, mem_mb)
    if devices or (address and gpus and device != "cpu"):
        return machines, "gpu"
    return machines, device if address else "cpu"
