"""Where the stages of one image keep things.

    results/<name>/
        ingest.json  split.json  predict/<slab>.json  stitch.json    manifests, one a stage
        <name>.ome.zarr                                              the result
        stitch-<fingerprint>/<name>.ome.zarr                         the result that is being built
        written/stitch-<fingerprint>.json                            what a result consists of
        written/last.json                                            which was the last one
        work/<stage>-<fingerprint>/                                  a store and its ledger

The stores may lie elsewhere, on another disk or behind a URL: then <stores>/<name>/ holds the same
without the manifests, records and ledgers, which stay here; its file `owner` names this folder.
A result is built beside its place, on the same disk, also where `work` is a link to another. Behind
a URL nothing can be renamed, so there it stays where it was built.

A folder in `work` is named by everything that its pixels depend on. So a changed model, setting or
input never meets the pixels of another run, two jobs of one run share a folder without asking each
other, and going back to an earlier setting finds what was done for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unet.storage.location import Location, RemotePath, locate
from unet.storage.locks import lock_file
from unet.storage.ownership import claim


@dataclass(frozen=True)
class Workspace:
    """The paths of one image.

    root       of its manifests and ledgers
    stores     of its stores, a path or URL; None for `root`
    recompute  of arrays, by their names in `unet.stages.integrity`, the blocks to make again
               although they were done
    """

    root: Path
    stores: str | None = None
    recompute: Mapping[str, Set[int]] = field(default_factory=dict)

    def to_recompute(self, array: str) -> Set[int]:
        """The blocks of an array to make again."""
        return self.recompute.get(array, frozenset())

    @property
    def name(self) -> str:
        """The image's name in the configuration."""
        return self.root.name

    @property
    def home(self) -> Location:
        """The folder of its stores."""
        return locate(self.stores) / self.name if self.stores else self.root

    @property
    def result(self) -> Location:
        """The OME-Zarr that the workflow is run for, on a disk."""
        return self.home / f"{self.name}.ome.zarr"

    def built(self, run: str) -> tuple[Location, Location]:
        """Where the OME-Zarr of a run is built, and where it ends: one place, behind a URL."""
        built = self.home / run / self.result.name
        return built, built if isinstance(built, RemotePath) else self.result

    def manifest(self, stage: str) -> Path:
        """The manifest of ingest, split or stitch."""
        return self.root / f"{stage}.json"

    def work(self, stage: str, fingerprint: str) -> Location:
        """The folder of a stage for one fingerprint; it need not be there yet."""
        return self.home / "work" / f"{stage}-{fingerprint}"

    def ledger(self, work: str) -> Path:
        """The folder of the ledger of a folder in `work`, which stays beside the manifests."""
        return self.root / "work" / work / "ledger"

    @property
    def records(self) -> Path:
        """The folder of the records of what each run wrote as its result."""
        return self.root / "written"

    @property
    def repairs(self) -> Path:
        """The record of the last result, by which a damaged one is seen; see `storage.repairs`."""
        return self.root / "written" / "last.json"

    @contextmanager
    def lock(self, blocks: range | None = None) -> Iterator[None]:
        """Keep other runs from this image, or from these blocks of it, while one works on it."""
        home = self.home
        folder = self.root if isinstance(home, RemotePath) else home
        with lock_file(folder / "work" / "lock", blocks):
            claim(self.root, home)
            yield
