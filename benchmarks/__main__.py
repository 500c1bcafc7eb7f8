"""Benchmarks: compare this app with Express, sse-starlette, FastAPI and others.

    python -m benchmarks [--repeat N] [--tiny]

Prints a Markdown table. Each figure is the median of all repetitions, with the
minimum and the maximum. The number after × is this app's figure divided by the
peer's in the same repetition.
"""

import argparse
import math
import os
import platform
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple, TypeVar

from benchmarks import encoders
from benchmarks.readers import Readers, Reading, read_answers, read_page
from benchmarks.servers import (
    COMMANDS,
    EVENTS_PER_SECOND,
    LOAD_CORE,
    SERVER_CORE,
    UPSTREAM,
    Running,
    missing,
)

T = TypeVar("T")
TIMERS = {
    "this app": "/real-time-updates?interval=0.05",
    "Express": "/timer",
    "sse-starlette": "/timer",
    "FastAPI": "/timer",
}
BROADCAST = {
    "this app": "/stream/prices?interval=0.05",
    "Express": "/broadcast",
    "bare `send`": "/",
}
IDLE = {
    "this app": "/stream/notifications",
    "Express": "/idle",
    "sse-starlette": "/idle",
    "FastAPI": "/idle",
}
ANSWERS = dict.fromkeys(
    ("this app", "Express", "FastAPI"), "/completion?prompt=a"
)
PIPES = dict.fromkeys(("this app", "Express"), "/v1/chat/completions")
ASK = '{"messages":[{"role":"user","content":"a"}],"stream":true}'
MARKDOWN = "/stream/markdown?prompt=a"
PAGE, PAGE_SECONDS = "/demos/clock", 0.05
CPU, P99 = "CPU per event", "delay, 99th percentile"
SENT, LOAD = "events sent, of those due", "CPU use of the load generator"
COLUMNS = ("this app", "Express", "sse-starlette", "FastAPI", "others")


@dataclass(frozen=True)
class Size:
    """The size of each benchmark. `calls` is for the encoders and parsers."""

    readers: int = 2000
    idle: tuple[int, ...] = (2000, 10_000)
    growth: tuple[int, ...] = (500, 1000, 2000, 4000, 8000)
    crowd: int = 8000
    herd: int = 5000
    answers: int = 100
    deltas: int = 200
    markdown_answers: int = 20
    markdown_deltas: int = 1000
    calls: int = 100_000
    seconds: float = 5
    settle_seconds: float = 2


TINY = Size(
    readers=3,
    idle=(2,),
    growth=(2,),
    crowd=2,
    herd=2,
    answers=2,
    deltas=5,
    markdown_answers=2,
    markdown_deltas=5,
    calls=1000,
    seconds=0.2,
    settle_seconds=0.1,
)


class Figure(NamedTuple):
    """One measurement of one server or library."""

    work: str
    name: str
    server: str
    value: float
    unit: str


def here(paths: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Return the servers that can run here, with their paths."""
    return ((name, path) for name, path in paths.items() if name in COMMANDS)


def events(
    work: str,
    paths: dict[str, str],
    number: int,
    size: Size,
    *,
    per_second: float = EVENTS_PER_SECOND,
    sent_at: bytes = rb'"number": ?(\d+)',
) -> Iterator[Figure]:
    """Measure servers that send events to `number` clients."""
    for server, path in here(paths):
        command = COMMANDS[server]
        with Running(command, SERVER_CORE, per_second=per_second) as running:
            readers = Readers(running.port, path, number, sent_at=sent_at)
            cpu, reading = cpu_and_reading(running, readers, size)
        cpu_us = cpu / reading.count * 1e6
        p50, p99 = (quantiles(reading.delays, n=100)[at] for at in (49, 98))
        due = number * per_second * size.seconds
        yield Figure(work, CPU, server, cpu_us, "µs")
        yield Figure(work, "delay, median", server, p50, "ms")
        yield Figure(work, P99, server, p99, "ms")
        yield Figure(work, SENT, server, reading.count / due * 100, "%")
        yield Figure(work, LOAD, server, reading.busy * 100, "%")


def cpu_and_reading(
    running: Running, readers: Readers, size: Size
) -> tuple[float, Reading]:
    """Return the server's CPU seconds during a reading, and the reading."""
    with closing(readers):
        readers.read(size.settle_seconds)
        cpu = running.cpu_seconds()
        reading = readers.read(size.seconds, at_least=2)  # for quantiles
        return running.cpu_seconds() - cpu, reading


def idle(number: int, size: Size) -> Iterator[Figure]:
    work = f"{number:,} idle clients"
    for server, path in here(IDLE):
        with (
            Running(COMMANDS[server], SERVER_CORE) as running,
            closing(Readers(running.port, path, 1)) as first,
        ):
            first.read(size.settle_seconds)
            before = running.memory_bytes()
            with closing(Readers(running.port, path, number)) as readers:
                readers.read(size.settle_seconds)
                taken = running.memory_bytes() - before
        yield Figure(
            work, "memory per client", server, taken / number / 1024, "KiB"
        )


def answers(
    work: str, paths: dict[str, str], size: Size, body: str = ""
) -> Iterator[Figure]:
    """Measure servers that relay the answers of a language model."""
    work = f"{size.answers} answers of {size.deltas} deltas, {work}"
    with Running(f"{UPSTREAM} {size.deltas}", LOAD_CORE) as upstream:
        for server, path in here(paths):
            command = COMMANDS[server]
            with Running(command, SERVER_CORE, upstream.port) as running:
                read_answers(running.port, path, 1, body)
                cpu = running.cpu_seconds()
                firsts = read_answers(running.port, path, size.answers, body)
                cpu = running.cpu_seconds() - cpu
            cpu_us = cpu / (size.answers * size.deltas) * 1e6
            yield Figure(work, "CPU per delta", server, cpu_us, "µs")
            first = "time to first delta"
            yield Figure(work, f"{first}, median", server, median(firsts), "ms")
            yield Figure(work, f"{first}, slowest", server, max(firsts), "ms")


def markdown(size: Size) -> Iterator[Figure]:
    number, deltas = size.markdown_answers, size.markdown_deltas
    kilobytes = deltas * len("word ") / 1000
    work = f"{number} answers of {kilobytes:g} KB, as Markdown"
    with (
        Running(f"{UPSTREAM} {deltas}", LOAD_CORE) as upstream,
        Running(COMMANDS["this app"], SERVER_CORE, upstream.port) as running,
    ):

        def read() -> list[float]:
            return read_answers(running.port, MARKDOWN, number)

        read_page(running.port, PAGE)
        cpu = running.cpu_seconds()
        read()
        cpu_ms = (running.cpu_seconds() - cpu) / number / kilobytes * 1000
        _, pages = pages_during(running.port, read)
    yield Figure(work, "CPU per KB", "this app", cpu_ms, "ms")
    p99 = quantiles(pages, n=100)[98]
    yield Figure(work, "page load, 99th percentile", "this app", p99, "ms")


def herd(size: Size) -> Iterator[Figure]:
    """Connect many clients simultaneously, as after a restart."""
    work = f"{size.herd:,} clients connect simultaneously"
    with Running(COMMANDS["this app"], SERVER_CORE) as running:

        def connect() -> float:
            begin, port = time.monotonic(), running.port
            path = "/real-time-updates?interval=1"
            clients = Readers(port, path, size.herd, most_pending=size.herd)
            taken = time.monotonic() - begin
            clients.close()
            return taken

        read_page(running.port, PAGE)
        taken, pages = pages_during(running.port, connect)
    yield Figure(work, "time until all have a response", "this app", taken, "s")
    yield Figure(work, "slowest page load", "this app", max(pages), "ms")


def pages_during(port: int, work: Callable[[], T]) -> tuple[T, list[float]]:
    """Load pages while `work` runs. Return its result and the load times."""
    with ThreadPoolExecutor(1) as pool:
        working, pages = pool.submit(work), []
        while len(pages) < 2 or not working.done():
            pages.append(read_page(port, PAGE))
            time.sleep(PAGE_SECONDS)
    return working.result(), pages


def one_stream(size: Size) -> Iterator[Figure]:
    for kind, flush in {"one per event": 0, "batched": 100}.items():
        work = f"10,000 messages/s to one client, {kind}"
        with Running(COMMANDS["this app"], SERVER_CORE) as running:
            path = f"/stream/batch?rate=10000&flush={flush}"
            readers = Readers(running.port, path, 1, unit=b'"n":')
            cpu, reading = cpu_and_reading(running, readers, size)
        cpu_us = cpu / reading.count * 1e6
        sent = reading.count / size.seconds
        yield Figure(work, "CPU per message", "this app", cpu_us, "µs")
        yield Figure(work, "messages sent", "this app", sent, "/s")


def libraries(size: Size) -> Iterator[Figure]:
    for work, times in {
        "`Event.encode`": encoders.encode(size.calls),
        "`parse_events`": encoders.parse(size.calls),
    }.items():
        for library, nanoseconds in times:
            yield Figure(work, "per event", library, nanoseconds / 1000, "µs")


def everything(size: Size) -> Iterator[Figure]:
    """Run every benchmark once."""
    clients = f"{size.readers:,} clients"
    timers = f"{clients}, one timer per client"
    yield from events(timers, TIMERS, size.readers, size)
    yield from events(
        f"{clients}, one broadcast",
        BROADCAST,
        size.readers,
        size,
        sent_at=rb"id: (\d+)-",
    )
    yield from events(
        f"{size.crowd:,} clients, one broadcast, 5 events/s",
        BROADCAST,
        size.crowd,
        size,
        per_second=5,
        sent_at=rb"id: (\d+)-",
    )
    for number in size.idle:
        yield from idle(number, size)
    yield from answers("parsed and re-sent", ANSWERS, size)
    yield from answers("passed through unchanged", PIPES, size, ASK)
    yield from markdown(size)
    yield from herd(size)
    yield from one_stream(size)
    yield from libraries(size)
    longer = replace(size, seconds=2 * size.seconds)
    for number in size.growth:
        path = "/real-time-updates?interval=0.25"
        work = f"{number:,} clients, 4 events/s"
        own = events(work, {"this app": path}, number, longer, per_second=4)
        yield from (figure for figure in own if figure.name in (CPU, P99))


def table(repetitions: list[list[Figure]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    rows = defaultdict(lambda: defaultdict(list))
    for figures in repetitions:
        for figure in figures:
            rows[figure.work, figure.name][figure.server].append(figure)
    yield f"| | | {' | '.join(COLUMNS)} |"
    yield "|---|---|" + "---:|" * len(COLUMNS)
    before = None
    for (work, name), servers in rows.items():
        cells = dict.fromkeys(COLUMNS, "")
        own = [figure.value for figure in servers["this app"]]
        for server, figures in servers.items():
            values = [figure.value for figure in figures]
            cell = f"{spread(values)} {figures[0].unit}"
            if server != "this app" and name not in (SENT, LOAD):
                pairs = zip(own, values, strict=True)
                ratios = [a / b if b else math.nan for a, b in pairs]
                cell += f", ×{spread(ratios)}"
            if server in COLUMNS:
                cells[server] = cell
            else:
                others = [cells["others"], f"{server}: {cell}"]
                cells["others"] = "; ".join(filter(None, others))
        shown, before = "" if work == before else work, work
        yield f"| {shown} | {name} | {' | '.join(cells.values())} |"


def spread(values: list[float]) -> str:
    """Return the median and, for several values, the minimum and maximum."""
    middle = short(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({short(min(values))}–{short(max(values))})"


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def machine() -> str:
    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"On {date.today()}: {len(cpus)} cores of {cpus[0]}, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument(
        "--tiny", action="store_true", help="check that everything runs"
    )
    options = parser.parse_args()
    size = TINY if options.tiny else Size()
    os.sched_setaffinity(0, {LOAD_CORE})
    allow_open_files(max(*size.idle, *size.growth, size.crowd) + 200)
    lacking = missing()
    for server in lacking:
        del COMMANDS[server]
    repetitions = []
    for _ in range(options.repeat):
        repetitions.append([])
        for figure in everything(size):
            print(*figure, file=sys.stderr, flush=True)
            repetitions[-1].append(figure)
    print(machine(), end="\n\n")
    for line in table(repetitions):
        print(line)
    for server, reason in lacking.items():
        print(f"\nSkipped: {server}, because {reason}.")


def allow_open_files(number: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < number:
        raise SystemExit(f"Too few open files. Run: ulimit -Hn {number}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, most))


if __name__ == "__main__":
    main()
