"""Install npm packages that only the tests need."""

import subprocess
import tarfile
from pathlib import Path

from conftest import lack, need


def unpack(packages: dict[str, str], folder: Path) -> Path:
    """Download each package into a subfolder of its name. Return `folder`."""
    names = [f"{name}@{version}" for name, version in packages.items()]
    _npm("pack", *names, folder=folder)
    for name, version in packages.items():
        stem = name.removeprefix("@").replace("/", "-")
        with tarfile.open(folder / f"{stem}-{version}.tgz") as files:
            # Python before 3.11.4 has no filters. Python 3.14 needs one.
            files.extraction_filter = lambda member, path: member
            files.extractall(folder / name)
    return folder


def install(package: str, folder: Path) -> None:
    """Install a package for Node.js programs in `folder`."""
    _npm("install", package, "--ignore-scripts", "--no-audit", folder=folder)


def _npm(*arguments: str, folder: Path) -> None:
    done = subprocess.run(
        [need("npm"), *arguments, "--prefer-offline", "--loglevel=error"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lack(f"needs the npm registry: {done.stderr}")
