"""The steps of a training: the loss, the optimiser, the running mean of the weights.

As in the 2015 paper: a softmax over the classes and a cross-entropy in which every pixel has its
weight; big windows rather than big batches; weights drawn after He; dropout at the end of the
contracting path, in training only. Since then: AdamW (Loshchilov & Hutter 2019) with a rate that
rises and falls as a cosine, and a running mean of the weights, which is steadier than any single
state and is what is saved and measured. The last state is taken, never the best on the images that
were kept away.

Nothing random is carried from step to step: dropout is seeded by the step, samples are functions of
it. So a training that goes on from a checkpoint ends in the same bits.
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

WARM_UP = 0.04  # of the steps, in which the rate rises
LEAST_RATE = 1e-3  # of the largest
WEIGHT_DECAY = 1e-3
LARGEST_GRADIENT = 1.0
AHEAD = 4  # samples drawn before they are needed
TRIED = 4  # steps that the time of a step is told from; the first is not counted
VALIDATED = {2: (1, 512, 512), 3: (32, 128, 128)}  # cores, (z, y, x)
COPIES = 5  # of the weights: they, their gradients, two moments, the mean


@dataclass(frozen=True)
class Team:
    """The processes that train together, each with its device; one is the usual number."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"


def fresh(training: Training, channels: int, device: str) -> State:
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


def memory_needed(training: Training, channels: int) -> int:
    """Bytes that one process takes beside its images, about."""
    a = training.architecture(channels)
    windows = training.batch * a.training_bytes(training.window)
    return windows + COPIES * 4 * a.parameters


@dataclass
class Trainer:
    """Trains a state to its last step.

    measure  figures of the mean on the validation images: the columns of the curves
    place    where the checkpoint is; only the process of rank 0 writes
    """

    training: Training
    state: State
    sampler: Sampler
    measure: Callable[[UNet], dict[str, float]]
    place: Path
    team: Team = Team()

    def run(self) -> None:
        """Do the steps that are left. Raises RunError where the loss of a sample is not finite."""
        last = self.training.steps
        began, before = time.monotonic(), self.state.seconds
        first, losses = self.state.step, []
        network = self._parallel()
        self.state.network.train()
        with self._samples() as samples:
            for batch in samples:
                losses.append(self._step(network, batch))
                self.state.seconds = before + time.monotonic() - began
                if self.state.step == first + 1:
                    tried = self.state.seconds
                if self.state.step == first + TRIED:
                    self._tell_time((self.state.seconds - tried) / (TRIED - 1))
                if self.state.step % self.training.report == 0 or self.state.step == last:
                    self._report(losses)
                    losses.clear()
                    began, before = time.monotonic(), self.state.seconds

    def _parallel(self) -> nn.Module:
        if self.team.size == 1:
            return self.state.network
        devices = [torch.device(self.team.device)] if "cuda" in self.team.device else None
        return DistributedDataParallel(self.state.network, device_ids=devices)

    @contextmanager
    def _samples(self) -> Iterator[Iterator[list[Sample]]]:
        """This process's samples of each step, drawn by a thread while the network works."""
        mine = range(self.team.rank, self.training.batch, self.team.size)
        steps = range(self.state.step, self.training.steps)
        wanted = iter([(step, index) for step in steps for index in mine])
        with ThreadPoolExecutor(1) as pool:
            drawn: list[Future[Sample]] = []

            def ask() -> None:
                if (sample := next(wanted, None)) is not None:
                    drawn.append(pool.submit(self.sampler.draw, *sample))

            def batches() -> Iterator[list[Sample]]:
                for _ in range(AHEAD):
                    ask()
                for _ in steps:
                    batch = []
                    for _ in mine:
                        batch.append(drawn.pop(0).result())
                        ask()
                    yield batch

            try:
                yield batches()
            finally:
                pool.shutdown(cancel_futures=True)

    def _step(self, network: nn.Module, batch: list[Sample]) -> float:
        """One step down the weighted cross-entropy of a batch; returns the loss."""
        state, said = self.state, self.training
        torch.manual_seed(seed_of(said.seed, state.step, self.team.rank))
        device, layout = self.team.device, CHANNELS_LAST[said.network.dims]
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in batch]))
        classes = torch.from_numpy(np.stack([sample.classes for sample in batch])).to(device)
        weights = torch.from_numpy(np.stack([sample.weights for sample in batch])).to(device)
        kind, precision = torch.device(device).type, DTYPES[said.precision]
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            logits = network(pixels.to(device).contiguous(memory_format=layout))
        each = functional.cross_entropy(logits.float(), classes, reduction="none") * weights
        _refuse_not_finite(each, batch)
        loss = each.sum() / self._total(weights)
        for group in state.optimiser.param_groups:
            group["lr"] = said.learning_rate * rate(state.step, said.steps)
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.network.parameters(), LARGEST_GRADIENT)
        state.optimiser.step()
        state.step += 1
        follow(state.mean, state.network, min(said.average, (1 + state.step) / (10 + state.step)))
        return loss.item()

    def _total(self, weights: Tensor) -> Tensor:
        """The sum of all weights of the step, divided as DDP divides the sum of gradients."""
        total = weights.sum()
        if self.team.size > 1:
            torch.distributed.all_reduce(total)
            total = total / self.team.size
        return total.clamp(min=1e-6)

    def _tell_time(self, each: float) -> None:
        left = (self.training.steps - self.state.step) * each / 60
        log.info("a step takes %.2f s: %.0f minutes for those that are left", each, left)

    def _report(self, losses: list[float]) -> None:
        """A row of the curves and a checkpoint."""
        if self.team.rank:
            return
        state = self.state
        row: Row = {"step": state.step, "seconds": round(state.seconds, 1)}
        row |= {"loss": float(np.mean(losses))} | self.measure(state.mean)
        state.curves.append(row)
        checkpoint.save(self.place, state)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")
        log.info("step %d of %d: %s", state.step, self.training.steps, shown)


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, for what torch draws in a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def rate(step: int, steps: int) -> float:
    """The share of the largest learning rate at a step: it rises, then falls as a cosine."""
    done = step / steps
    return min(max(done, 1 / steps) / WARM_UP, 0.5 * (1 + math.cos(math.pi * done))) + LEAST_RATE


@torch.no_grad()
def follow(mean: UNet, network: UNet, kept: float) -> None:
    """Move the mean of the weights towards the present weights."""
    for average, now in zip(mean.parameters(), network.parameters(), strict=True):
        average.lerp_(now, 1 - kept)


def _refuse_not_finite(each: Tensor, batch: list[Sample]) -> None:
    """Raise RunError that names the sample whose loss is not finite."""
    finite = torch.isfinite(each.detach().flatten(1).sum(1)).tolist()
    for sample, is_finite in zip(batch, finite, strict=True):
        if not is_finite:
            raise RunError(
                f"Expected a finite loss, got NaN or infinity in {sample.name}. Either its pixels "
                f"are far outside of what the normalisation expects, or the weights have grown "
                f"without bound: then lower learning_rate. The last checkpoint is kept."
            )


def probabilities(network: UNet, pixels: NDArray[np.float32], device: str) -> NDArray[np.float32]:
    """Foreground probabilities (classes - 1, Z, Y, X) of normalised pixels (C, Z, Y, X).

    Computed as the main job computes them, window after window, mirrored at the borders.
    """
    a = network.architecture
    lattice = Lattice.of(a)
    shape = (1, *pixels.shape[1:])
    core = lattice.cover(tuple(map(min, (1, *VALIDATED[a.dims]), shape)))
    inference = Inference(network, a.dims, [0.0] * len(pixels), [1.0] * len(pixels), device)
    runner = WindowRunner(inference, lattice, core, 1, a.classes)
    whole = Box((0, 0, 0, 0), shape)

    def read(box: Box) -> NDArray[np.generic]:
        _, *zyx = box.slices
        return pixels[(None, slice(None), *zyx)]

    block = runner.block(read_mirrored(read, lattice.reads(whole), shape), whole)
    foreground: NDArray[np.float32] = block[0]
    return foreground


@contextmanager
def joined(team: Team, meeting: Path) -> Iterator[None]:
    """Join the other processes of a team, which meet in a file and talk on loopback only."""
    backend = "nccl" if "cuda" in team.device else "gloo"
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ[f"{backend.upper()}_SOCKET_IFNAME"] = socket.if_indextoname(1)  # loopback
    torch.distributed.init_process_group(
        backend, init_method=f"file://{meeting.absolute()}", rank=team.rank, world_size=team.size
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
