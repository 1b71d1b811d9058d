"""What the configuration asks of the plan and of the result."""

from __future__ import annotations

from dataclasses import dataclass

from unet.planning.axes import Sizes


@dataclass(frozen=True)
class SplitOptions:
    """What is asked of the plan; None leaves a choice to it.

    memory     bytes that one worker, and one device, may use
    precision  "float32" or "bfloat16"
    shard      y and x, or z, y and x, of a block
    chunk      likewise, of what is compressed together
    core       likewise, the largest core of a window
    tolerance  by how much processors of two kinds may differ in a probability
    """

    memory: int
    precision: str = "float32"
    shard: Sizes | None = None
    chunk: Sizes | None = None
    core: Sizes | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class StitchOptions:
    """What is asked of the result.

    threshold  of two classes: a pixel is foreground above this probability
    image      whether the result holds the image beside the mask
    """

    threshold: float = 0.5
    image: bool = True
