"""A fault to inject: a shard that is written, but not in its place, for as long as a test says.

Python imports this module at its start, where this folder is in PYTHONPATH. While the file
$HOLD/<shard> is there (as 0-3, its place on the grid), the writer of that shard of probabilities
waits between its last byte and its renaming, and says so by $HOLD/<shard>.held.
"""

import os
import time
from pathlib import Path

move = Path.replace


def held(self: Path, target: str | Path) -> Path:
    if "probabilities.ome.zarr" in self.parts and self.suffix == ".partial":
        hold = Path(os.environ["HOLD"], "-".join(Path(target).parts[-2:]))
        while hold.exists():
            hold.with_suffix(".held").touch()
            time.sleep(0.05)
    return move(self, target)


if "HOLD" in os.environ:
    Path.replace = held  # type: ignore[method-assign]
