"""How far a stage is, in its log."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Logs how far a stage is: blocks, megapixels per second, time left."""

    def __init__(self, title: str, blocks: int, done_before: int, pixels: int) -> None:
        self._title, self._blocks, self._pixels = title, blocks, pixels
        self._done_before = self._done = done_before
        self._begin = self._last_line = time.monotonic()
        log.info("%s: %d of %d blocks were done before", title, done_before, blocks)

    def step(self) -> None:
        """One more block is done."""
        self._done += 1
        now = time.monotonic()
        if self._done < self._blocks and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        seconds = max(now - self._begin, 1e-9)
        share = (self._done - self._done_before) / self._blocks
        rate = share * self._pixels / seconds / 1e6
        left = (self._blocks - self._done) / (self._done - self._done_before) * seconds
        log.info(
            "%s: %d / %d blocks, %.2f Mpx/s, %.0f s left",
            *(self._title, self._done, self._blocks, rate, left),
        )
