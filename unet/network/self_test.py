"""The reference window: what every worker has to compute before it may write.

Why: a device or a library that computes something else gives numbers that look like any others,
and they would be found when the store is full of them, if at all. The job that predicts computes
one small window on its CPU in float32, and a worker by all that its blocks go through. In float32
on the same kind of CPU the bits must be equal, else they may differ by rounding: within the plan's
`tolerance`.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unet.errors import WorkerError
from unet.network.inference import WindowRunner
from unet.planning.geometry import Box
from unet.planning.plan import Plan

MULTIPLIER = 2654435761  # Knuth's: consecutive numbers become scattered ones
STEPS = 1 << 16
FIRST, SPAN = -1.0, 3.0  # of the network's input, normalised


@dataclass(frozen=True)
class Reference:
    """What a processor computed: foreground probabilities of the window, in its order."""

    processor: str
    values: tuple[float, ...]

    @classmethod
    def of(cls, runner: WindowRunner, plan: Plan, processor: str) -> Reference:
        """Compute it with `runner`, which belongs to `plan` but for its device and precision."""
        return cls(processor, tuple(map(float, _window(runner, plan).ravel())))

    def refuse_other(self, runner: WindowRunner, plan: Plan, processor: str) -> None:
        """Raise WorkerError if a processor computes something else with `runner`."""
        found = _window(runner, plan).ravel()
        differences = np.abs(found - np.asarray(self.values, np.float32))
        allowed = tolerance(plan, {self.processor, processor})
        if not (differences <= allowed).all():  # also where one is NaN
            raise WorkerError(
                f"Expected the worker's {processor} to compute the reference window as "
                f"{self.processor} does, to within {allowed}, but a probability is "
                f"{float(differences.max()):.3g} off. Its torch, its driver or the device itself "
                f"is at fault: mend or leave out this worker."
            )


def tolerance(plan: Plan, processors: set[str]) -> float:
    """By how much a probability may differ: 0 in float32 on one kind of CPU, else `tolerance`."""
    is_one_cpu = len(processors) == 1 and all(name.startswith("CPU") for name in processors)
    return 0.0 if is_one_cpu and plan.precision == "float32" else plan.tolerance


def processor_name(device: str) -> str:
    """The kind of processor behind a torch device: what the last bits of a result depend on."""
    if torch.device(device).type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    return f"CPU {_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_model() -> str:
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _window(runner: WindowRunner, plan: Plan) -> NDArray[np.float32]:
    """The smallest window there is, at the origin."""
    box = Box((0,) * len(plan.stride), plan.stride)
    t, *zyx = box.grow(plan.halo).shape
    shape = (t, len(plan.offset), *zyx)
    scattered = np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(MULTIPLIER) % STEPS
    inputs = (FIRST + SPAN * scattered / STEPS).reshape(shape)
    per_channel = (1, -1, 1, 1, 1)
    offset, scale = (np.reshape(each, per_channel) for each in (plan.offset, plan.scale))
    return runner.block((inputs / scale + offset).astype(np.float32), box)
