"""What the pipeline is compared with: other ways to a mask, and the network alone."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unet.execution.settings import KEEP_FREED_MEMORY
from unet.model.folder import find_model
from unet.network.inference import DTYPES, Inference, WindowRunner
from unet.network.unet import CHANNELS_LAST, UNet, crop_image
from unet.network.weights import load_network
from unet.planning.geometry import read_mirrored
from unet.planning.plan import Plan
from unet.stages.predict import PredictJob
from unet.storage.store import open_image

WINDOW, STEP, CONTEXT = 572, 388, 92  # what the paper's code does, and so every copy of it
ROI, OVERLAP, ROIS_AT_ONCE = 512, 0.25, 4
LOOP, MONAI = "plain loop", "MONAI"


class PlainUNet(nn.Module):
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
    """Takes the network's place where only the moving of pixels is measured."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, Y, X) -> two logits of the valid output, (B, 2, Y', X')."""
        x = x[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
        return torch.cat([-x, x], dim=1)


@dataclass(frozen=True)
class CropJob(PredictJob):
    """The stage's own job with the crop in the network's place."""

    def runner(self) -> WindowRunner:
        """As the stage's, but for the weights."""
        plan = self.plan
        torch.set_num_threads(self.threads or 1)
        inference = Inference(CentreCrop(), 2, plan.offset, plan.scale)
        return WindowRunner(inference, plan.lattice, plan.core, plan.batch, len(plan.classes))


class Recorder(Inference):
    """Keeps the windows that a `WindowRunner` asks for: so these are the windows of the plan."""

    def __init__(self) -> None:
        self.batches: list[NDArray[np.generic]] = []

    def probabilities(self, windows: list[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Keep (B, C, Y, X); answer zeros of the valid output."""
        self.batches.append(np.stack([window[0, :, 0] for window in windows]))
        count, _, y, x = self.batches[-1].shape
        return np.zeros((count, 1, y - 2 * CONTEXT, x - 2 * CONTEXT), np.float32)


def seconds_of_network_alone(plan: Plan, cores: int) -> tuple[float, float]:
    """The forward passes alone, in a new process whose environment is that of a worker.

    Returns seconds by the clock, and of the processors.
    """
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in KEEP_FREED_MEMORY.items()})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(_run_network_alone, plan, cores).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def seconds_of_others(model: Path, image: NDArray[np.uint8], cores: int) -> dict[str, float]:
    """Seconds from an image in memory to its mask: by a plain loop, and by MONAI if it is there."""
    torch.set_num_threads(cores)  # the stage's test window leaves it at one
    seconds = {LOOP: _seconds(LOOP, model, image)}
    if find_spec("monai"):
        seconds[MONAI] = _seconds(MONAI, model, image)
    return seconds


def plain_loop(network: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What a script would do, the whole image in memory: mirror, cut, predict, paste."""
    height, width = image.shape
    rows, columns = -(-height // STEP), -(-width // STEP)
    edges = [(CONTEXT, n * STEP - m + CONTEXT) for n, m in ((rows, height), (columns, width))]
    padded = np.pad(image.astype(np.float32) / 255, edges, mode="reflect")
    mask = np.empty((rows * STEP, columns * STEP), bool)
    for y in range(0, rows * STEP, STEP):
        for x in range(0, columns * STEP, STEP):
            window = torch.from_numpy(padded[None, None, y : y + WINDOW, x : x + WINDOW])
            foreground = torch.softmax(network(window), dim=1)[0, 1]
            mask[y : y + STEP, x : x + STEP] = foreground.numpy() > 0.5
    return mask[:height, :width]


def monai_loop(network: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """MONAI's sliding window as its users call it, the whole image in memory."""
    from monai.inferers import sliding_window_inference

    x = torch.from_numpy(image.astype(np.float32)[None, None] / 255)
    logits = sliding_window_inference(
        x, (ROI, ROI), ROIS_AT_ONCE, network, overlap=OVERLAP, mode="gaussian"
    )
    mask: NDArray[np.bool_] = torch.softmax(logits, dim=1)[0, 1].numpy() > 0.5
    return mask


def _seconds(way: str, model: Path, image: NDArray[np.uint8]) -> float:
    loop, padding = {LOOP: (plain_loop, 0), MONAI: (monai_loop, 1)}[way]
    network = PlainUNet(load_network(find_model(model)), padding)
    begin = time.perf_counter()
    with torch.inference_mode():
        loop(network, image)
    return time.perf_counter() - begin


def _run_network_alone(plan: Plan, cores: int) -> tuple[float, float]:
    """The network on the plan's windows, which wait in memory as it takes them."""
    torch.set_num_threads(cores)
    image, recorder = plan.image, Recorder()
    source = open_image(image)
    runner = WindowRunner(recorder, plan.lattice, plan.core, plan.batch, len(plan.classes))
    for block in range(plan.blocks):
        box = plan.grid.box(block)
        runner.block(read_mirrored(source.read, plan.lattice.reads(box), image.shape), box)
    dtype, layout = DTYPES[plan.precision], CHANNELS_LAST[2]
    network = load_network(find_model(plan.model)).to(dtype)
    windows = [
        torch.from_numpy(batch).to(dtype).div_(255).contiguous(memory_format=layout)
        for batch in recorder.batches
    ]

    begin, processors = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for window in windows:
            network(window)
    return time.perf_counter() - begin, time.process_time() - processors
