"""Seconds of what was run, and what they mean."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Seconds = dict[str, float]


def seconds_of(do: Callable[[], Any]) -> float:
    """Seconds of a call, by the clock."""
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def processor_seconds() -> float:
    """What processors spent on this process and on those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def medians(rounds: list[Seconds]) -> Seconds:
    """Name by name."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def with_rate(seconds: float, side: int) -> dict[str, float]:
    """Seconds, and the rate that they mean for a square image."""
    return {"seconds": seconds, "Mpx/s": side**2 / 1e6 / seconds}


def say(line: str) -> None:
    """Write a line on the terminal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
