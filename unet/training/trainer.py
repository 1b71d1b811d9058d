"""The steps of a training: the loss, the optimiser, the running mean of the weights.

As in the 2015 paper: a softmax over the classes and a cross-entropy in which every pixel has its
weight; big windows rather than big batches; first weights after He et al. 2015; dropout at the end
of the contracting path, in training only.

Newer than the paper: AdamW (Loshchilov & Hutter 2019) with a learning rate that rises, then falls
as a cosine; and a running mean of the weights, which varies less than the weights themselves. This
mean is saved and measured: the last one, never the one with the best validation scores.

No random state passes from step to step: dropout is seeded by the number of the step, and samples
are functions of it. So a training that resumes from a checkpoint ends in the same bits.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from unet.errors import RunError
from unet.model.architecture import FLOAT32_BYTES
from unet.network.inference import DTYPES, Inference, WindowRunner
from unet.network.unet import CHANNELS_LAST, UNet
from unet.planning.geometry import Box, read_mirrored
from unet.planning.lattice import Lattice
from unet.training import checkpoint
from unet.training.checkpoint import Row, State
from unet.training.config import Training
from unet.training.pretrained import load_pretrained
from unet.training.sampling import Sample, Sampler

log = logging.getLogger(__name__)

WARM_UP = 0.04  # share of the steps in which the learning rate rises
LEAST_RATE = 1e-3  # as a share of the largest
WEIGHT_DECAY = 1e-3
LARGEST_GRADIENT = 1.0
SAMPLES_AHEAD = 4  # drawn before they are needed
TIMED_STEPS = 4  # after which the time per step is logged; the first, slower one does not count
VALIDATION_CORES = {2: (1, 512, 512), 3: (32, 128, 128)}  # (z, y, x), by dims of the network
WEIGHT_COPIES = 5  # in memory: weights, gradients, two moments, mean


@dataclass(frozen=True)
class TrainingProcess:
    """One of `size` processes that train together, number `rank`, with its device."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"


def initial_state(training: Training, channels: int, device: str) -> State:
    """A training before its first step: the weights follow from the seed, or from `start`."""
    torch.manual_seed(training.seed)
    network = UNet(training.architecture(channels))
    if training.start is not None:
        load_pretrained(network, training.start)
    network.to(device)
    mean = copy.deepcopy(network).eval()
    if training.network.dropout:
        *_, last = network.down[-1].children()
        last.register_forward_hook(_dropping(training.network.dropout))
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    return State(network, mean, optimiser)


def _dropping(share: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def drop(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.dropout(output, share, training=module.training)

    return drop


def process_bytes(training: Training, channels: int) -> int:
    """About how many bytes one process needs, without the images."""
    architecture = training.architecture(channels)
    windows = training.batch * architecture.training_bytes(training.window)
    return windows + WEIGHT_COPIES * FLOAT32_BYTES * architecture.parameters


@dataclass
class Trainer:
    """Trains a state to its last step.

    measure          scores of a network on the validation images: columns of the curves
    checkpoint_file  that the process of rank 0 writes
    """

    training: Training
    state: State
    sampler: Sampler
    measure: Callable[[UNet], dict[str, float]]
    checkpoint_file: Path
    process: TrainingProcess = TrainingProcess()

    def run(self) -> None:
        """Do the remaining steps. Raises RunError where the loss of a sample is not finite."""
        last_step = self.training.steps
        start, seconds_before = time.monotonic(), self.state.seconds
        first_step, losses = self.state.step, []
        network = self._parallel()
        self.state.network.train()
        with self._samples() as samples:
            for batch in samples:
                losses.append(self._step(network, batch))
                self.state.seconds = seconds_before + time.monotonic() - start
                if self.state.step == first_step + 1:
                    seconds_after_first = self.state.seconds
                if self.state.step == first_step + TIMED_STEPS:
                    seconds = self.state.seconds - seconds_after_first
                    self._log_time(seconds / (TIMED_STEPS - 1))
                if self.state.step % self.training.report == 0 or self.state.step == last_step:
                    self._report(losses)
                    losses.clear()
                    start, seconds_before = time.monotonic(), self.state.seconds

    def _parallel(self) -> nn.Module:
        if self.process.size == 1:
            return self.state.network
        devices = [torch.device(self.process.device)] if "cuda" in self.process.device else None
        return DistributedDataParallel(self.state.network, device_ids=devices)

    @contextmanager
    def _samples(self) -> Iterator[Iterator[list[Sample]]]:
        """This process's samples of each step, drawn by a thread while the network computes."""
        indices = range(self.process.rank, self.training.batch, self.process.size)
        steps = range(self.state.step, self.training.steps)
        numbers = iter([(step, index) for step in steps for index in indices])
        with ThreadPoolExecutor(1) as pool:
            queue: list[Future[Sample]] = []

            def submit_next() -> None:
                if (number := next(numbers, None)) is not None:
                    queue.append(pool.submit(self.sampler.draw, *number))

            def batches() -> Iterator[list[Sample]]:
                for _ in range(SAMPLES_AHEAD):
                    submit_next()
                for _ in steps:
                    batch = []
                    for _ in indices:
                        batch.append(queue.pop(0).result())
                        submit_next()
                    yield batch

            try:
                yield batches()
            finally:
                pool.shutdown(cancel_futures=True)

    def _step(self, network: nn.Module, batch: list[Sample]) -> float:
        """One step of the optimiser on the weighted cross-entropy of a batch; returns the loss."""
        state, training = self.state, self.training
        torch.manual_seed(combine_seeds(training.seed, state.step, self.process.rank))
        device, layout = self.process.device, CHANNELS_LAST[training.network.dims]
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in batch]))
        classes = torch.from_numpy(np.stack([sample.classes for sample in batch])).to(device)
        weights = torch.from_numpy(np.stack([sample.weights for sample in batch])).to(device)
        kind, precision = torch.device(device).type, DTYPES[training.precision]
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            logits = network(pixels.to(device).contiguous(memory_format=layout))
        losses = functional.cross_entropy(logits.float(), classes, reduction="none") * weights
        _refuse_not_finite(losses, batch)
        loss = losses.sum() / self._total(weights)
        for group in state.optimiser.param_groups:
            group["lr"] = training.learning_rate * rate(state.step, training.steps)
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.network.parameters(), LARGEST_GRADIENT)
        state.optimiser.step()
        state.step += 1
        share = min(training.average, (1 + state.step) / (10 + state.step))
        update_mean(state.mean, state.network, share)
        return loss.item()

    def _total(self, weights: Tensor) -> Tensor:
        """The sum of the step's weights over all processes, divided by their number.

        DistributedDataParallel divides the sum of gradients by that number too.
        """
        total = weights.sum()
        if self.process.size > 1:
            torch.distributed.all_reduce(total)
            total = total / self.process.size
        return total.clamp(min=1e-6)

    def _log_time(self, step_seconds: float) -> None:
        minutes = (self.training.steps - self.state.step) * step_seconds / 60
        log.info("a step takes %.2f s: about %.0f minutes remain", step_seconds, minutes)

    def _report(self, losses: list[float]) -> None:
        """Add a row to the curves, and write a checkpoint."""
        if self.process.rank:
            return
        state = self.state
        row: Row = {"step": state.step, "seconds": round(state.seconds, 1)}
        row |= {"loss": float(np.mean(losses))} | self.measure(state.mean)
        state.curves.append(row)
        checkpoint.save(self.checkpoint_file, state)
        text = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")
        log.info("step %d of %d: %s", state.step, self.training.steps, text)


def combine_seeds(*numbers: int) -> int:
    """One seed for torch from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def rate(step: int, steps: int) -> float:
    """The learning rate at a step as a share of the largest: it rises, then falls as a cosine."""
    share = step / steps
    return min(max(share, 1 / steps) / WARM_UP, 0.5 * (1 + math.cos(math.pi * share))) + LEAST_RATE


@torch.no_grad()
def update_mean(mean: UNet, network: UNet, share: float) -> None:
    """Move the mean of the weights towards the present weights; `share` of the mean remains."""
    for average, weight in zip(mean.parameters(), network.parameters(), strict=True):
        average.lerp_(weight, 1 - share)


def _refuse_not_finite(losses: Tensor, batch: list[Sample]) -> None:
    """Raise RunError that names the sample whose loss is not finite."""
    finite = torch.isfinite(losses.detach().flatten(1).sum(1)).tolist()
    for sample, is_finite in zip(batch, finite, strict=True):
        if not is_finite:
            raise RunError(
                f"Expected a finite loss, got NaN or infinity in {sample.name}. Either its pixels "
                f"are far outside the range that the normalisation expects, or the weights have "
                f"grown without bound: then lower learning_rate. The last checkpoint is kept."
            )


def predict_foreground(
    network: UNet, pixels: NDArray[np.float32], device: str
) -> NDArray[np.float32]:
    """Foreground probabilities (classes - 1, Z, Y, X) of normalised pixels (C, Z, Y, X).

    They are computed as in the main job: window by window, and mirrored at the borders.
    """
    architecture = network.architecture
    lattice = Lattice.of(architecture)
    shape = (1, *pixels.shape[1:])
    core = lattice.cover(tuple(map(min, (1, *VALIDATION_CORES[architecture.dims]), shape)))
    offsets, scales = [0.0] * len(pixels), [1.0] * len(pixels)
    inference = Inference(network, architecture.dims, offsets, scales, device)
    runner = WindowRunner(inference, lattice, core, 1, architecture.classes)
    whole = Box((0, 0, 0, 0), shape)

    def read(box: Box) -> NDArray[np.generic]:
        _, *zyx = box.slices
        return pixels[(None, slice(None), *zyx)]

    block = runner.block(read_mirrored(read, lattice.reads(whole), shape), whole)
    foreground: NDArray[np.float32] = block[0]
    return foreground


@contextmanager
def process_group(process: TrainingProcess, rendezvous_file: Path) -> Iterator[None]:
    """Connect this process with the others, on this machine only.

    rendezvous_file  by which the processes find one another
    """
    backend = "nccl" if "cuda" in process.device else "gloo"
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ[f"{backend.upper()}_SOCKET_IFNAME"] = socket.if_indextoname(1)  # loopback
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{rendezvous_file.absolute()}",
        rank=process.rank,
        world_size=process.size,
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
