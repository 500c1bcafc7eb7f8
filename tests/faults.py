"""Mutation check: inject one fault at a time, and expect a test to fail.

    python tests/faults.py                  # all faults
    python tests/faults.py sse.py static/   # those in files with such a path

`faults.toml` lists the faults by file. Each has the text to replace, the new
text, and the test that must fail, or one case of it. The text to replace must
occur exactly once. Each fault runs alone, in a copy of the project, and with
only that test. It survives if the test passes, or fails only by its timeout.
The exit code is 1 if any fault survives.

Run this before you delete or merge tests, and afterwards. For a fault that
survives, write the cheapest test that kills it.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

PROJECT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__")
MAX_SECONDS = 600  # of one run of pytest, which stops a test after 120
_seconds_later = count(1)  # each fault gets its own second


class Fault(NamedTuple):
    """A change to one file, and the test that must fail because of it."""

    file: str
    old: str
    new: str
    test: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new or 'nothing'}"


def read_faults(paths: list[str]) -> list[Fault]:
    """Return the faults in files whose path contains one of these texts."""
    table = tomllib.loads(read("tests/faults.toml"))
    faults = [Fault(file, **row) for file in table for row in table[file]]
    return [one for one in faults if any(path in one.file for path in paths)]


def misfits(faults: list[Fault]) -> Iterator[str]:
    """Yield an error for each text or test that no longer exists."""
    for fault in faults:
        times = read(fault.file).count(fault.old)
        if times != 1:
            yield f"{fault.file} contains this {times} times: {fault.old}"
        file, _, name = fault.test.partition("::")
        if f"\ndef {name.partition('[')[0]}(" not in read(file):
            yield f"{fault.test} does not exist. It must fail after: {fault}"


def read(path: str) -> str:
    return (PROJECT / path).read_text("utf-8")


def run(copy: Path, *arguments: str) -> tuple[int | None, str]:
    """Run pytest in a copy. Return its exit code, if any, and its output."""
    environ = {
        "CI": "true",  # what would be skipped fails
        "PATIENCE_SECONDS": "10",  # as most faults make a test wait in vain
        "PYTEST_XDIST_WORKER": f"gw{copy.name}",  # gets its own ports
        "PYTHONDONTWRITEBYTECODE": "",  # or each run would compile everything
    }
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={copy}-files")
    with TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *arguments],
            cwd=copy,
            env=os.environ | environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(MAX_SECONDS)
        with suppress(ProcessLookupError):  # or servers could outlive a crash
            os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        return code, output.read()


def outcome(fault: Fault, copy: Path) -> str:
    """Inject the fault, run its test, and restore the file."""
    path = copy / fault.file
    text, changed = path.read_text("utf-8"), path.stat().st_mtime
    later = changed + next(_seconds_later)
    path.write_text(text.replace(fault.old, fault.new), "utf-8")
    # Python recompiles a file only if its size or its time in seconds differs.
    os.utime(path, (later, later))
    code, output = run(copy, "-n0", "-x", fault.test)
    path.write_text(text, "utf-8")
    os.utime(path, (changed, changed))
    if code == 0:
        return "survived"
    if code is None or "Failed: Timeout (" in output:
        return "timed out"
    failed = rf"^(FAILED|ERROR) {re.escape(fault.test)}(?!\w)"
    if re.search(failed, output, re.M):
        return "killed"
    return f"pytest failed with {code}:\n{output[-3000:]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=[""])
    parser.add_argument("--jobs", type=int, default=3)
    arguments = parser.parse_args()
    start, faults = time.monotonic(), read_faults(arguments.paths)
    if wrong := list(misfits(faults)):
        raise SystemExit("\n".join(wrong))
    with TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.jobs):
            copy = shutil.copytree(
                PROJECT, Path(folder, str(number)), ignore=LEFT_OUT
            )
            copies.put(copy)
        tests = dict.fromkeys(one.test for one in faults)
        code, output = run(copy, f"-n{arguments.jobs}", *tests)
        if code != 0:
            raise SystemExit(f"The tests fail without a fault:\n{output}")
        print(f"{len(tests)} tests pass without a fault.", flush=True)

        def check(fault: Fault) -> str:
            copy, begun = copies.get(), time.monotonic()
            found = outcome(fault, copy)
            copies.put(copy)
            print(
                f"{found} {time.monotonic() - begun:.1f} s {fault}", flush=True
            )
            return found

        with ThreadPoolExecutor(arguments.jobs) as pool:
            killed = list(pool.map(check, faults)).count("killed")
    seconds = time.monotonic() - start
    print(f"{killed} of {len(faults)} faults killed, {seconds:.0f} seconds")
    raise SystemExit(killed < len(faults))


if __name__ == "__main__":
    main()
