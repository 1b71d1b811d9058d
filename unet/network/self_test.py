"""The test window: what every worker has to compute before it may write.

Why: a device or a library that computes something else gives numbers that look like any others.
They would be found late, when the store is full of them, or never. So the job that predicts first
computes one small window on its CPU in float32, and each worker computes the same window by all
that its blocks go through. In float32 on the same kind of CPU the bits must be equal. Else they may
differ by rounding, within the plan's `tolerance`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet.errors import WorkerError
from unet.network.inference import WindowRunner
from unet.planning.geometry import Box
from unet.planning.plan import Plan

MULTIPLIER = 2654435761  # Knuth's: consecutive numbers become scattered ones
STEPS = 1 << 16
FIRST, SPAN = -1.0, 3.0  # of the network's input, normalised


@dataclass(frozen=True)
class SelfTest:
    """What a processor computed: the foreground probabilities of the test window, in its order."""

    processor: str
    values: tuple[float, ...]

    @classmethod
    def of(cls, runner: WindowRunner, plan: Plan, processor: str) -> SelfTest:
        """Compute it with `runner`, which belongs to `plan` but for its device and precision."""
        return cls(processor, tuple(map(float, _window(runner, plan).ravel())))

    def refuse_other(self, runner: WindowRunner, plan: Plan, processor: str) -> None:
        """Raise WorkerError if a processor computes something else with `runner`."""
        values = _window(runner, plan).ravel()
        differences = np.abs(values - np.asarray(self.values, np.float32))
        allowed = tolerance(plan, {self.processor, processor})
        if not (differences <= allowed).all():  # also where one is NaN
            raise WorkerError(
                f"Expected the worker's {processor} to compute the test window as "
                f"{self.processor} does, to within {allowed}, but a probability is "
                f"{float(differences.max()):.3g} off. Its torch, its driver or the device itself "
                f"is at fault: mend this worker or leave it out."
            )


def tolerance(plan: Plan, processors: set[str]) -> float:
    """By how much a probability may differ: 0 in float32 on one kind of CPU, else as planned."""
    is_one_cpu = len(processors) == 1 and all(name.startswith("CPU") for name in processors)
    return 0.0 if is_one_cpu and plan.precision == "float32" else plan.tolerance


def _window(runner: WindowRunner, plan: Plan) -> NDArray[np.float32]:
    """The smallest window there is, at the origin."""
    box = Box((0,) * len(plan.lattice.stride), plan.lattice.stride)
    t, *zyx = box.grow(plan.lattice.halo).shape
    shape = (t, len(plan.offset), *zyx)
    scattered = np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(MULTIPLIER) % STEPS
    inputs = (FIRST + SPAN * scattered / STEPS).reshape(shape)
    per_channel = (1, -1, 1, 1, 1)
    offset, scale = (np.reshape(each, per_channel) for each in (plan.offset, plan.scale))
    return runner.block((inputs / scale + offset).astype(np.float32), box)
