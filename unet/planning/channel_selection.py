"""Which channels of a file are used, and how they are read.

A file may have an axis of channels (c), an axis of samples of a pixel (s, such as red, green and
blue), or both. With both, channel k of the image is sample k % samples of the file's index
k // samples on axis c. A format decodes all samples of a pixel together, and often several indices
of c, so what is read is seldom exactly what was selected:

    selected channels      4 0        of 2 indices of c, with 3 samples each
    reads on axis c        [0, 1] [1, 2]
    channels that arrive   0 1 2 3 4 5
    positions              4 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from unet.planning.axes import Sizes
from unet.planning.geometry import runs


@dataclass(frozen=True)
class ChannelSelection:
    """The selected channels of a file, in any order; a channel may be selected more than once.

    channels   numbers of the selected channels, in the order of the result
    samples    channels for each index of axis c
    reads      (start, stop) on axis c, one for each read of the file
    positions  of the selected channels, among all channels that the reads bring
    """

    channels: Sizes
    samples: int
    reads: tuple[tuple[int, int], ...]
    positions: Sizes

    @classmethod
    def of(cls, channels: Sizes, samples: int = 1, chunk: int = 1) -> Self:
        """Plan the reads.

        chunk  how many indices of axis c are decoded together
        """
        reads = runs([k // samples for k in channels], chunk)
        indices = [c for start, stop in reads for c in range(start, stop)]
        arrival = {c: number for number, c in enumerate(indices)}
        positions = tuple(arrival[k // samples] * samples + k % samples for k in channels)
        return cls(channels, samples, tuple(reads), positions)

    @property
    def channels_read(self) -> int:
        """How many channels the reads bring."""
        return sum(stop - start for start, stop in self.reads) * self.samples

    @property
    def is_all_in_order(self) -> bool:
        """Whether the reads bring the selected channels only, in their order."""
        return self.positions == tuple(range(self.channels_read))
