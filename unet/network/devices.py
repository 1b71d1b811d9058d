"""The processors of this machine: their names, and which of them a job may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from unet.errors import DeviceError


def choose_devices(device: str, gpus: int) -> tuple[str, ...]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them; none for the CPU.

    device  "cpu", "gpu", or "auto": GPUs where there are some
    gpus    how many the job asked its scheduler for; 0 if it did not ask

    Raises DeviceError where a GPU was asked for and none is there: the CPU is never used instead
    without a word.
    """
    if device == "cpu":
        return ()
    visible = visible_devices()
    if not visible and (device == "gpu" or gpus):
        raise DeviceError(
            f"Expected {max(gpus, 1)} GPU(s), as asked for, and found none that torch "
            f"{torch.__version__} can use. Check the driver, CUDA_VISIBLE_DEVICES and that torch "
            f"is a CUDA build, or set `device: cpu`."
        )
    if gpus > len(visible):
        raise DeviceError(
            f"Expected {gpus} GPUs, as asked for, and found {len(visible)} ({', '.join(visible)}). "
            f"Ask for as many as there are."
        )
    return visible[:gpus] if gpus else visible


def visible_devices() -> tuple[str, ...]:
    """The GPUs of this job, named as its scheduler named them; makes no CUDA context."""
    count = torch.cuda.device_count()
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(names[:count] or map(str, range(count)))


def torch_device(device: str) -> str:
    """The device of a worker, as torch names it: "cuda" or "cpu".

    device  "gpu", "cpu", or "auto": a GPU where the worker sees one

    A worker uses the first GPU that it sees, since others are hidden from it. Raises DeviceError
    where a GPU was asked for and it sees none.
    """
    sees_gpu = torch.cuda.is_available()
    if device == "gpu" and not sees_gpu:
        raise DeviceError(
            "Expected every worker to see a GPU, as asked for, but one sees none. Check the "
            "driver and CUDA_VISIBLE_DEVICES of the workers, or set `device: cpu`."
        )
    return "cuda" if sees_gpu and device != "cpu" else "cpu"


def processor_name(device: str) -> str:
    """The kind of processor behind a torch device: what the last bits of a result depend on."""
    if torch.device(device).type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    return f"CPU {_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
