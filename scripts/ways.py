"""What benchmark.py holds against the pipeline: other ways to a mask, and the network alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unet.model.folder import find_model
from unet.network.inference import DTYPES, Inference, WindowRunner
from unet.network.unet import CHANNELS_LAST, UNet, crop_image
from unet.network.weights import load_network
from unet.planning.geometry import read_mirrored
from unet.planning.plan import Plan
from unet.stages.predict import PredictJob
from unet.storage import store

WINDOW, STEP, CONTEXT = 572, 388, 92  # what the paper's code does, and so every copy of it
ROI, OVERLAP, ROIS_AT_ONCE = 512, 0.25, 4


class Plain(nn.Module):
    """The same weights as a plain implementation runs them: torch's own layers, NCHW.

    padding  0 as in 2015, or 1: outputs as large as inputs, which MONAI's windows need
    """

    def __init__(self, network: UNet, padding: int) -> None:
        super().__init__()
        self.net = network
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = nn.Conv2d
                module.padding = (padding * (module.kernel_size[0] // 2),) * 2
            elif isinstance(module, nn.ConvTranspose2d):
                module.__class__ = nn.ConvTranspose2d
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, K, Y', X')."""
        skips = []
        for down, pool in zip(self.net.down, self.net.pool, strict=False):
            x = down(x)
            skips.append(x)
            x = pool(x)
        x = self.net.down[-1](x)
        for level in reversed(range(len(skips))):
            x = self.net.up[level](x)
            x = self.net.merge[level](torch.cat([crop_image(skips[level], x.shape[2:]), x], dim=1))
        logits: Tensor = self.net.head(x)
        return logits


class CentreCrop(nn.Module):
    """What stands for the network where only the moving of pixels is measured."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, Y, X) -> two logits of the valid output, (B, 2, Y', X')."""
        x = x[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
        return torch.cat([-x, x], dim=1)


@dataclass(frozen=True)
class CropJob(PredictJob):
    """The stage's own job with the crop for a network."""

    def runner(self) -> WindowRunner:
        """As the stage's, but for the weights."""
        plan = self.plan
        torch.set_num_threads(self.threads)
        inference = Inference(CentreCrop(), 2, plan.offset, plan.scale)
        classes = len(plan.classes)
        return WindowRunner(inference, plan.stride, plan.halo, plan.core, plan.batch, classes)


class Recorder:
    """Stands for an `Inference` and keeps its windows: so these are the windows of the plan."""

    def __init__(self) -> None:
        self.batches: list[NDArray[np.generic]] = []

    def probabilities(self, windows: list[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Keep (B, C, Y, X); answer zeros of the valid output."""
        self.batches.append(np.stack([window[0, :, 0] for window in windows]))
        count, _, y, x = self.batches[-1].shape
        return np.zeros((count, 1, y - 2 * CONTEXT, x - 2 * CONTEXT), np.float32)


def network_alone(plan: Plan, cores: int) -> tuple[float, float]:
    """The forward passes on the plan's windows, which wait in memory as the network takes them.

    Returns seconds by the clock, and of the processors.
    """
    torch.set_num_threads(cores)
    image, recorder = plan.image, Recorder()
    source = store.open_image(image)
    runner = WindowRunner(
        recorder, plan.stride, plan.halo, plan.core, plan.batch, len(plan.classes)
    )
    for block in range(plan.blocks):
        runner.block(read_mirrored(source.read, plan.reads(block), image.shape), plan.box(block))
    dtype, layout = DTYPES[plan.precision], CHANNELS_LAST[2]
    network = load_network(find_model(plan.model)).to(dtype)
    windows = [
        torch.from_numpy(batch).to(dtype).div_(255).contiguous(memory_format=layout)
        for batch in recorder.batches
    ]

    begin, used = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for window in windows:
            network(window)
    return time.perf_counter() - begin, time.process_time() - used


def seconds_of(way: str, model: Path, image: NDArray[np.uint8]) -> float:
    """Seconds from an image in memory to its mask, by "plain loop" or "MONAI"."""
    loop, padding = {"plain loop": (plain_loop, 0), "MONAI": (monai_loop, 1)}[way]
    network = Plain(load_network(find_model(model)), padding)
    begin = time.perf_counter()
    with torch.inference_mode():
        loop(network, image)
    return time.perf_counter() - begin


def plain_loop(network: Plain, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What a script would do, the whole image in memory: mirror, cut, predict, paste."""
    height, width = image.shape
    rows, columns = -(-height // STEP), -(-width // STEP)
    edges = [(CONTEXT, n * STEP - m + CONTEXT) for n, m in ((rows, height), (columns, width))]
    padded = np.pad(image.astype(np.float32) / 255, edges, mode="reflect")
    mask = np.empty((rows * STEP, columns * STEP), bool)
    for y in range(0, rows * STEP, STEP):
        for x in range(0, columns * STEP, STEP):
            window = torch.from_numpy(padded[None, None, y : y + WINDOW, x : x + WINDOW])
            found = torch.softmax(network(window), dim=1)[0, 1]
            mask[y : y + STEP, x : x + STEP] = found.numpy() > 0.5
    return mask[:height, :width]


def monai_loop(network: Plain, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """MONAI's sliding window as its users call it, the whole image in memory."""
    from monai.inferers import sliding_window_inference

    x = torch.from_numpy(image.astype(np.float32)[None, None] / 255)
    logits = sliding_window_inference(
        x, (ROI, ROI), ROIS_AT_ONCE, network, overlap=OVERLAP, mode="gaussian"
    )
    mask: NDArray[np.bool_] = torch.softmax(logits, dim=1)[0, 1].numpy() > 0.5
    return mask
