"""What a worker and a device hold, in bytes: so that a run that cannot fit ends before it begins.

The constants were measured on real runs; `python -m scripts.benchmark.memory` measures again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from unet.model.architecture import FLOAT32_BYTES, Architecture
from unet.model.folder import ModelSpec
from unet.planning.axes import Sizes
from unet.planning.geometry import Box
from unet.planning.image import ImageRef
from unet.planning.lattice import Lattice

PROCESS_BYTES = 300_000_000  # of a worker that has imported torch, and holds nothing yet
HEAP = 2  # a heap that is reused holds up to twice what is alive: 1.8 was measured
COPIES = 4  # of a block that is moved: as stored, decoded, reordered; 3 to 4 were measured
END_BYTES = 12  # of an input or output value: as it is stored, in float32, and as computed with
BLOCKS_PER_WORKER = 3  # one is read, one is computed, one is written


def mover_bytes(threads: int, block_bytes: int) -> int:
    """What a worker holds that only moves blocks, one in each thread.

    block_bytes  of the largest block
    """
    return PROCESS_BYTES + threads * COPIES * block_bytes


@dataclass(frozen=True)
class NetworkMemory:
    """What a worker holds that predicts, beside the windows that it runs: the fixed part.

    fixed       bytes of the worker: its process, its blocks and the network
    parameters  bytes of the network alone, which is what a device holds of them
    """

    architecture: Architecture
    precision: str
    fixed: int
    parameters: int

    @classmethod
    def of(cls, image: ImageRef, model: ModelSpec, block: Sizes, precision: str) -> Self:
        """Of a worker that predicts blocks of this size."""
        architecture = model.architecture
        window = Box((0,) * len(block), block).grow(Lattice.of(architecture).halo).shape
        pixels = math.prod(window) * len(image.channel_names) * np.dtype(image.dtype).itemsize
        probabilities = math.prod(block) * (len(model.classes) - 1) * FLOAT32_BYTES
        parameters = 2 * architecture.parameters * FLOAT32_BYTES  # as read, and as computed with
        blocks = BLOCKS_PER_WORKER * (COPIES * pixels + 2 * probabilities)
        return cls(architecture, precision, PROCESS_BYTES + blocks + parameters, parameters)

    def window_bytes(self, core: Sizes) -> int:
        """Of the activations of one window around this core, (t, z, y, x)."""
        architecture = self.architecture
        window = architecture.window(Lattice.of(architecture).spatial(core))
        peak = HEAP * architecture.peak_bytes(window)
        ends = architecture.in_channels * math.prod(window) + architecture.classes * math.prod(core)
        return (peak // 2 if self.precision == "bfloat16" else peak) + END_BYTES * ends

    def worker_bytes(self, core: Sizes, batch: int) -> int:
        """Of a worker that runs `batch` windows at once."""
        return self.fixed + batch * self.window_bytes(core)

    def device_bytes(self, core: Sizes, batch: int) -> int:
        """Of a device that runs `batch` windows at once."""
        return self.parameters + batch * self.window_bytes(core)
