"""Packages of the npm registry, for the tests alone."""

import subprocess
import tarfile
from pathlib import Path

from conftest import lack, need


def unpack(packages: dict[str, str], folder: Path) -> Path:
    """Fetch these versions, each into a folder of its name, and return all."""
    npm = need("npm")
    names = [f"{name}@{version}" for name, version in packages.items()]
    packed = subprocess.run(
        [npm, "pack", *names, "--prefer-offline", "--loglevel=error"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if packed.returncode:
        lack(f"needs the npm registry: {packed.stderr}")
    for name, version in packages.items():
        stem = name.removeprefix("@").replace("/", "-")
        with tarfile.open(folder / f"{stem}-{version}.tgz") as files:
            # Python before 3.11.4 has no filters, 3.14 asks for one.
            files.extraction_filter = lambda member, path: member
            files.extractall(folder / name)
    return folder
