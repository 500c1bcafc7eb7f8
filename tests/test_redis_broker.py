"""Channels in Redis: outages, lost events, and many processes."""

import gc
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from channels import (
    channel,
    copiers,
    fresh_broker,
    publish_all,
    read,
    take,
    take_texts,
    use,
    wait_for_the_next_millisecond,
    walk,
)
from conftest import (
    Client,
    RedisServer,
    free_port,
    lack,
    need,
    wait_until,
)

import broker
import redis_broker
import sse
from app import create_app
from broker import (
    BEGIN,
    Unavailable,
    forget,
    newest,
    publish,
    subscribe,
)
from event_source import parse_events
from redis_broker import RedisBroker
from sse import Event


def test_redis_keeps_max_events(redis_server, use, channel):
    use(redis_server.url)
    publish_all(channel, *map(str, range(5)), max_events=2)
    assert redis_server.client().xlen(f"sse:{channel}") == 2


def test_redis_discards_a_channel_keep_seconds_after_its_newest_event(
    redis_server, use, channel, read
):
    use(redis_server.url)
    client = redis_server.client()
    key = f"sse:{channel}"
    publish_all(channel, "a")
    assert broker.KEEP_SECONDS - 10 < client.ttl(key) <= broker.KEEP_SECONDS
    client.expire(key, 5)
    (id,) = publish_all(channel, "b")
    assert client.ttl(key) > broker.KEEP_SECONDS - 10
    client.delete(key)  # as Redis does when the key expires
    wait_for_the_next_millisecond()
    publish(channel, Event("c"), after=BEGIN)
    assert take_texts(read(id), 2) == ["reset", "c"]


def test_forget_leaves_an_empty_key_for_a_short_time(
    redis_server, use, channel
):
    use(redis_server.url)
    client, key = redis_server.client(), f"sse:{channel}"
    publish_all(channel, "a")
    forget(channel)
    assert client.xlen(key) == 0
    assert 0 < client.ttl(key) <= redis_broker.FORGET_SECONDS
    publish_all(channel, "b")
    assert client.ttl(key) > broker.KEEP_SECONDS - 10


class Line:
    """A line to Redis that a test can cut, freeze, or make lose a reply."""

    def __init__(self, port: int):
        self.port = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        own_port = self.listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{own_port}/0"
        self.is_cut = False
        self.loses_next_answer = False
        self.flows = threading.Event()
        self.flows.set()
        self.open: set[socket.socket] = set()
        self.threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, *work) -> None:
        self.threads.append(threading.Thread(target=work[0], args=work[1:]))
        self.threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                there, _ = self.listener.accept()
                try:
                    if self.is_cut:
                        raise OSError
                    back = socket.create_connection(("127.0.0.1", self.port))
                except OSError:
                    there.close()
                    continue
                self.open |= {there, back}
                if self.is_cut:  # in the meantime
                    self.cut()
                self._run(self._pump, there, back, False)
                self._run(self._pump, back, there, True)

    def _pump(self, source, target, is_answer) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                if is_answer and self.loses_next_answer:
                    self.loses_next_answer = False
                    break
                target.sendall(data)
        hang_up(source)
        hang_up(target)

    def cut(self) -> None:
        self.is_cut = True
        for one in list(self.open):
            hang_up(one)

    def freeze(self) -> None:
        self.flows.clear()

    def mend(self) -> None:
        self.is_cut = False
        self.flows.set()

    def close(self) -> None:
        self.mend()
        hang_up(self.listener)
        self.threads[0].join()
        self.cut()
        for thread in self.threads:
            thread.join()
        for one in (self.listener, *self.open):
            one.close()


def hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(redis_broker, "TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 20)
    monkeypatch.setattr(redis_broker, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(redis_broker, "MAX_BACKOFF_SECONDS", 0.05)


@pytest.fixture
def _down_at_the_start(_impatient, monkeypatch):
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 0.3)


@pytest.fixture
def lines(redis_server, _impatient):
    """Two lines to the same Redis, as if from two machines."""
    port = redis_server.port
    with closing(Line(port)) as one, closing(Line(port)) as other:
        yield one, other


@pytest.fixture
def line(lines, use) -> Line:
    """The line from this machine to Redis."""
    use(lines[0].url)
    return lines[0]


@pytest.fixture
def elsewhere(redis_server, channel):
    """Return a function that publishes from a machine without outages."""

    def publish_elsewhere(*texts, max_events=broker.MAX_EVENTS):
        other = RedisBroker(redis_server.url)
        return [
            other.publish(channel, Event(text), None, max_events, False)
            for text in texts
        ]

    return publish_elsewhere


@contextmanager
def killed(server: RedisServer, line: Line):
    server.stop(signal.SIGKILL)
    yield
    server.start()


@contextmanager
def restarted(server: RedisServer, line: Line):
    server.stop()
    yield
    server.start()


@contextmanager
def cut(server: RedisServer, line: Line):
    line.cut()
    yield
    line.mend()


@contextmanager
def frozen(server: RedisServer, line: Line):
    line.freeze()
    yield
    line.mend()


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("outage", [killed, restarted, cut, frozen])
def test_after_an_outage_clients_get_everything_that_redis_has_stored(
    outage, own_redis, use, channel, read, caplog, monkeypatch
):
    with closing(Line(own_redis.port)) as line:
        use(line.url)
        events = read()
        publish_all(channel, "a")
        assert take_texts(events, 2) == ["begin", "a"]
        caplog.clear()
        with outage(own_redis, line):
            wait_until(lambda: "Redis is down" in caplog.text)
            assert [next(events) for _ in range(3)] == [None] * 3
            monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 0.3)
            late = read()
            assert next(late) is None
            if outage in (cut, frozen):
                use(own_redis.url)
                publish_all(channel, "b")
                use(line.url)
        wait_until(lambda: "Redis is available" in caplog.text)
        publish_all(channel, "c")
        expected = ["b", "c"] if outage in (cut, frozen) else ["c"]
        assert take_texts(events, len(expected)) == expected
        logged = [message.partition(":")[0] for message in caplog.messages]
        assert logged == ["Redis is down", "Redis is available again."]
        events.close()
        late.close()
        wait_until(lambda: not copiers())


def test_the_first_publish_after_a_restart_of_redis_succeeds(
    own_redis, use, channel
):
    use(own_redis.url)
    publish_all(channel, "a")
    own_redis.stop(signal.SIGKILL)
    own_redis.start()
    publish_all(channel, "b")
    assert own_redis.client().xlen(f"sse:{channel}") == 2


@pytest.mark.usefixtures("_down_at_the_start")
def test_a_client_that_subscribes_during_an_outage_gets_later_events(
    line, channel, read, elsewhere
):
    (id,) = elsewhere("a")
    line.cut()
    resuming, new = read(id), read()
    for events in (resuming, new):
        assert [next(events) for _ in range(2)] == [None] * 2
    line.mend()
    assert take_texts(new, 1) == ["begin"]
    elsewhere("b")
    assert take_texts(resuming, 1) == take_texts(new, 1) == ["b"]


def test_events_that_redis_trimmed_during_a_cut_are_a_gap(
    line, channel, read, elsewhere
):
    events = read()
    elsewhere("a", "b")
    assert take_texts(events, 3) == ["begin", "a", "b"]
    line.cut()
    elsewhere("0", "1", "2", "3", "4", max_events=2)
    line.mend()
    assert take_texts(events, 3) == ["reset", "3", "4"]


def test_a_cut_is_no_gap_if_redis_still_has_the_next_event(
    line, channel, read, elsewhere
):
    events = read()
    elsewhere("a")
    assert take_texts(events, 2) == ["begin", "a"]
    line.cut()
    elsewhere("b", "c", max_events=2)
    line.mend()
    assert take_texts(events, 2) == ["b", "c"]


@pytest.mark.usefixtures("_impatient")
def test_a_redis_that_lost_everything_is_a_gap(own_redis, use, channel, read):
    use(own_redis.url)
    publish_all(channel, "a")
    events = read(BEGIN)
    (event,) = take(events, 1)
    own_redis.client().flushall()
    assert take_texts(events, 1) == ["reset"]
    publish_all(channel, "b")
    assert take_texts(events, 1) == ["b"]
    assert take_texts(read(event.id), 2) == ["reset", "b"]


def test_resuming_at_a_redis_that_lost_everything_gets_reset(
    own_redis, use, channel, read
):
    use(own_redis.url)
    (id,) = publish_all(channel, "a")
    own_redis.client().flushall()
    events = read(id)
    assert take_texts(events, 1) == ["reset"]
    publish_all(channel, "b")
    assert take_texts(events, 1) == ["b"]


@pytest.mark.usefixtures("_impatient")
def test_a_redis_that_lost_the_newest_events_is_a_gap(
    redis_server, use, channel, read
):
    """Redis may lose them in a crash, without `appendfsync always`."""
    use(redis_server.url)
    _, lost = publish_all(channel, "a", "lost")
    events = read(BEGIN)
    assert take_texts(events, 2) == ["a", "lost"]
    redis_server.client().xdel(f"sse:{channel}", lost)
    assert take_texts(events, 2) == ["reset", "a"]
    publish_all(channel, "b")
    assert take_texts(events, 1) == ["b"]
    assert take_texts(read(lost), 3) == ["reset", "a", "b"]


def test_all_stored_events_follow_reset(redis_server, use, channel, read):
    use(redis_server.url)
    _, lost = publish_all(channel, "a", "lost")
    events = read(BEGIN)
    assert take_texts(events, 2) == ["a", "lost"]
    redis_server.client().xdel(f"sse:{channel}", lost)
    publish_all(channel, "b")
    assert take_texts(events, 3) == ["reset", "a", "b"]


@pytest.mark.usefixtures("_impatient")
def test_ids_are_compared_as_numbers(redis_server, use, channel, read):
    use(redis_server.url)
    client, previous = redis_server.client(), BEGIN
    for id in ("1-9", "1-10"):
        event = json.dumps({"data": id})
        fields = {"event": event, "previous": previous, "max_events": 9}
        client.xadd(f"sse:{channel}", fields, id=id)
        previous = id
    events = read(BEGIN)
    assert take_texts(events, 2) == ["1-9", "1-10"]
    client.xdel(f"sse:{channel}", "1-10")
    assert take_texts(events, 2) == ["reset", "1-9"]


@pytest.mark.usefixtures("_impatient")
def test_a_redis_that_assigns_lower_ids_is_a_gap(
    redis_server, use, channel, read
):
    """This happens if a machine with a slow clock takes over."""
    use(redis_server.url)
    client = redis_server.client()
    publish_all(channel, "a", "b")
    events = read(BEGIN)
    assert take_texts(events, 2) == ["a", "b"]
    client.delete(f"sse:{channel}")
    event = json.dumps({"data": "c"})
    fields = {"event": event, "previous": BEGIN, "max_events": 9}
    client.xadd(f"sse:{channel}", fields, id="1-1")
    assert take_texts(events, 2) == ["reset", "c"]
    publish_all(channel, "d")
    assert take_texts(events, 1) == ["d"]


@pytest.mark.usefixtures("_down_at_the_start")
@pytest.mark.parametrize("outage", [cut, frozen])
def test_a_client_that_is_ahead_of_this_machine_gets_no_event_twice(
    outage, line, redis_server, channel, read, elsewhere
):
    waiting = read(BEGIN)
    elsewhere("a")
    assert take_texts(waiting, 1) == ["a"]
    with outage(redis_server, line):
        (ahead,) = elsewhere("b")
        events = read(ahead)
        assert next(events) is None
    elsewhere("c")
    assert take_texts(events, 1) == ["c"]
    assert take_texts(waiting, 2) == ["b", "c"]


def test_a_publish_is_never_retried(line, channel, elsewhere, redis_server):
    publish_all(channel, "a")
    line.loses_next_answer = True
    with pytest.raises(Unavailable):
        publish(channel, Event("b"))
    assert not line.loses_next_answer
    assert redis_server.client().xlen(f"sse:{channel}") == 2
    publish_all(channel, "c")
    assert redis_server.client().xlen(f"sse:{channel}") == 3


def publish_one(channel) -> str:
    return publish(channel, Event("a"))


@pytest.mark.parametrize(
    ("ask", "outage"),
    [(publish_one, frozen), (publish_one, cut), (newest, cut), (forget, cut)],
)
def test_commands_raise_unavailable_during_an_outage(
    ask, outage, line, redis_server, channel
):
    ask(channel)
    begin = time.monotonic()
    with outage(redis_server, line), pytest.raises(Unavailable):
        ask(channel)
    assert time.monotonic() - begin < 3


def test_a_rejected_publish_raises_unavailable_and_is_logged_once(
    own_redis, use, channel, caplog
):
    use(own_redis.url)
    client = own_redis.client()
    client.config_set("maxmemory", "1")
    for _ in range(3):
        with pytest.raises(Unavailable):
            publish(channel, Event("a"))
    assert newest(channel) is None
    client.config_set("maxmemory", "0")
    publish(channel, Event("b"))
    logged = [message.partition(":")[0] for message in caplog.messages]
    assert logged == ["Redis rejected a command"]


def test_flapping_logs_two_lines_in_log_seconds(
    line, channel, caplog, monkeypatch
):
    clock = SimpleNamespace(now=0, sleep=time.sleep)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(redis_broker, "time", clock)
    for _ in range(3):
        for _ in range(10):
            line.cut()
            with pytest.raises(Unavailable):
                publish(channel, Event("a"))
            line.mend()
            publish(channel, Event("a"))
        clock.now += redis_broker.LOG_SECONDS
    logged = [message.partition(":")[0] for message in caplog.messages]
    assert logged == 3 * ["Redis is down", "Redis is available again."]


@pytest.mark.usefixtures("_impatient")
def test_publishing_recovers_from_a_failover_behind_a_fixed_address(
    own_redis, tmp_path, use, channel, read
):
    """Connections to the old primary stay open, but it rejects writes."""
    (tmp_path / "new").mkdir()
    new, count = RedisServer(tmp_path / "new"), 5
    with (
        closing(SimpleNamespace(close=new.stop)),
        closing(Line(own_redis.port)) as line,
        ThreadPoolExecutor() as pool,
    ):
        use(line.url)
        line.freeze()
        published = [pool.submit(publish_one, channel) for _ in range(count)]
        wait_until(lambda: len(line.open) == 2 * count)
        line.mend()
        assert all(one.result() for one in published)
        line.port = new.port
        own_redis.client().replicaof("127.0.0.1", free_port())
        with pytest.raises(Unavailable):
            publish(channel, Event("b"))
        publish(channel, Event("c"))
        assert take_texts(read(BEGIN), 1) == ["c"]


def test_refuses_to_start_with_a_redis_cluster(tmp_path, monkeypatch, caplog):
    port = free_port()
    options = f"--port {port} --dir {tmp_path} --cluster-enabled yes"
    process = subprocess.Popen(
        [need("redis-server"), *options.split()], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: is_listening(port))
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
        with pytest.raises(SystemExit) as stopped:
            create_app()
    finally:
        process.terminate()
        process.wait(10)
    assert stopped.value.code == 3  # also stops gunicorn
    assert caplog.messages == ["REDIS_URL must not be a Redis Cluster."]


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.usefixtures("_impatient")
def test_an_unreadable_channel_affects_no_other_and_recovers(
    redis_server, use, channel, read, caplog
):
    use(redis_server.url)
    client, bad = redis_server.client(), f"{channel}:bad"
    client.set(f"sse:{bad}", "x")
    with closing(subscribe(bad)) as bad_events:
        assert take_texts(bad_events, 1) == ["begin"]
        events = read()
        assert take_texts(events, 1) == ["begin"]
        for number in range(10):
            publish_all(channel, str(number))
            assert take_texts(events, 1) == [str(number)]
            assert next(bad_events) is None
            with pytest.raises(Unavailable):
                publish(bad, Event("lost"))
        client.delete(f"sse:{bad}")
        publish_all(bad, "a")
        assert take_texts(bad_events, 1) == ["a"]
        lines = [line for line in caplog.messages if "Cannot read" in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"Cannot read {bad}: ")
        client.set(f"sse:{bad}", "x")
        publish_all(channel, "b")
        assert take_texts(events, 1) == ["b"]
        client.delete(f"sse:{bad}")
        assert take_texts(bad_events, 1) == ["reset"]


FOREIGN_ENTRIES = [
    {"lines": "data: a"},  # from an earlier version
    {"event": "[]", "previous": BEGIN, "max_events": "9"},
    {"event": '{"data": "a", "id": "a\\n"}', "max_events": "9"},
    {"event": '{"data": "a"}', "previous": BEGIN, "max_events": "x"},
    {"event": '{"data": "a"}', "previous": b"\xff", "max_events": "-1"},
]


@pytest.mark.parametrize("entry", FOREIGN_ENTRIES)
def test_an_invalid_entry_is_a_gap(entry, redis_server, use, channel, read):
    use(redis_server.url)
    events, other = read(), f"{channel}:2"
    publish_all(channel, "a")
    assert take_texts(events, 2) == ["begin", "a"]
    redis_server.client().xadd(f"sse:{channel}", entry)
    publish_all(channel, "b")
    publish_all(other, "c")
    received = take_texts(events, 1)
    while received[-1] != "b":
        received += take_texts(events, 1)
    assert received[0] == "reset"
    with closing(subscribe(other, BEGIN)) as events_of_other:
        assert take_texts(events_of_other, 1) == ["c"]


def test_invalid_entries_are_logged_in_one_line(
    redis_server, use, channel, read, caplog
):
    use(redis_server.url)
    for entry in FOREIGN_ENTRIES[:3]:
        redis_server.client().xadd(f"sse:{channel}", entry)
    events = read(BEGIN)
    assert take_texts(events, 1) == ["reset"]
    assert [next(events) for _ in range(3)] == [None, None, None]
    (line,) = caplog.messages
    assert line.startswith(f"{channel} contains an invalid entry: ")


def test_retries_forever_with_backoff(
    own_redis, use, channel, read, monkeypatch
):
    pauses = []
    watch = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    use(own_redis.url)
    own_redis.stop()
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 0.01)
    monkeypatch.setattr(redis_broker, "time", watch)
    events = read()
    wait_until(lambda: len(pauses) > 1100 or not copiers(), 20)
    own_redis.start()
    assert take_texts(events, 1) == ["begin"]
    publish_all(channel, "a")
    assert take_texts(events, 1) == ["a"]
    for number, pause in enumerate(pauses, 1):
        longest = min(0.1 * 2 ** min(number - 1, 10), 5)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) > 1000
    pauses.clear()
    own_redis.stop()
    wait_until(lambda: pauses)
    assert pauses[0] <= 0.1


def connections(server: RedisServer) -> list[dict]:
    gc.collect()  # closes unused connections of earlier tests
    with closing(server.client()) as asking:
        return server.clients(asking)


def test_all_clients_share_one_thread_and_one_connection(
    own_redis, use, channel
):
    use(own_redis.url)
    with ExitStack() as opened, ThreadPoolExecutor(50) as pool:
        names = [f"{channel}{number % 5}" for number in range(50)]
        for events in pool.map(subscribe, names):
            opened.enter_context(closing(events))
        wait_until(lambda: len(connections(own_redis)) == 1)
        assert len(copiers()) == 1
    wait_until(lambda: not copiers())


def test_successive_clients_reuse_the_connection(own_redis, use, channel):
    use(own_redis.url)
    for _ in range(5):
        with closing(subscribe(channel)) as events:
            assert take_texts(events, 1) == ["begin"]
        wait_until(lambda: not copiers())
    wait_until(lambda: len(connections(own_redis)) == 1)


@pytest.mark.parametrize("seed", range(5))
def test_random_clients_of_two_machines_get_every_event_or_reset(
    seed, channel, lines, line, use, elsewhere, monkeypatch
):
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 0.02)

    def publish_there(max_events):
        return elsewhere("x", max_events=max_events)[0]

    walk(seed, channel, lines, use, publish_there)


def test_starting_during_an_outage_logs_one_line(start):
    url = f"redis://127.0.0.1:{free_port()}/0"
    server = start("flask run", REDIS_URL=url)
    wait_until(lambda: server.logged("Running on"))  # logged after it
    (line,) = server.logged("Redis")
    assert line.startswith("Redis is down: ")


def workers_of(server) -> list[int]:
    lines = server.logged(r"Booting worker with pid: \d+")
    return [int(line.rpartition(" ")[2]) for line in lines]


def test_gunicorn_starts_one_worker_without_redis_and_logs_why(start):
    server = start("gunicorn")
    assert server.logged(
        r"Workers: 1 \(set REDIS_URL to share events between several\)$"
    )
    assert len(workers_of(server)) == 1


def test_gunicorn_starts_one_worker_per_core_with_redis_and_logs_why(
    start, redis_server
):
    cores = len(os.sched_getaffinity(0))
    server = start("gunicorn", REDIS_URL=redis_server.url)
    assert server.logged(rf"Workers: {cores} \(they share a Redis\)$")
    wait_until(lambda: len(workers_of(server)) == cores)


STREAM = "/stream/notifications"


def notify(server, text) -> tuple[int, dict]:
    body = json.dumps({"text": text, "level": "info"}).encode()
    headers = {"Content_Type": "application/json"}
    with server.post("/notifications", body, **headers) as client:
        return client.status, json.loads(client.read())


def text_of(event: Event) -> str:
    return json.loads(event.data)["text"]


def test_streams_survive_an_outage_and_publishing_gets_503(
    start, command, own_redis
):
    environ = {"FLASK_KEEP_ALIVE_SECONDS": "0.1", "REDIS_URL": own_redis.url}
    server = start(command, **environ)
    with server.get(STREAM) as client, server.get(STREAM) as other:
        chunks = client.chunks()
        events, others = parse_events(chunks), parse_events(other.chunks())
        assert next(events).event == next(others).event == "begin"
        assert notify(server, "before")[0] == 201
        assert text_of(next(events)) == text_of(next(others)) == "before"
        own_redis.stop(signal.SIGKILL)
        sentence = "Redis is not available. Try again in a few seconds."
        assert notify(server, "x") == (503, {"error": sentence})
        assert [next(chunks) for _ in range(5)] == [b":\n"] * 5
        own_redis.start()
        assert notify(server, "after")[0] == 201
        assert text_of(next(events)) == text_of(next(others)) == "after"
    assert not server.logged("Traceback")


def test_500_clients_of_one_process_need_one_connection(start, own_redis):
    server = start("gunicorn -w 1", REDIS_URL=own_redis.url)
    assert server.logged(r"Workers: 1 \(")
    with ExitStack() as opened:
        readers = [opened.enter_context(server.get(STREAM)) for _ in range(500)]
        streams = [parse_events(reader.chunks()) for reader in readers]
        assert {next(events).event for events in streams} == {"begin"}
        assert len(connections(own_redis)) == 1
        status, answer = notify(server, "Hi")
        assert status == 201
        assert {next(events).id for events in streams} == {answer["id"]}
        assert len(connections(own_redis)) == 2  # the other one published


def resident_bytes(pid: int) -> int:
    statm = Path(f"/proc/{pid}/statm")
    if not statm.exists():
        lack("needs Linux, which reports the memory of a process")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_stalled_client_costs_little_memory_and_delays_nobody(
    start, own_redis, use
):
    use(own_redis.url)
    count, size, stored = 200, 200_000, 5
    server = start("gunicorn -w 1", REDIS_URL=own_redis.url)
    with server.get(STREAM) as stalled, server.get(STREAM) as client:
        assert stalled.status == 200
        events = parse_events(client.chunks())
        assert next(events).event == "begin"
        before = resident_bytes(workers_of(server)[0])
        ids = [BEGIN]
        for _ in range(count):
            ids += publish_all("notifications", "x" * size, max_events=stored)
            assert next(events).id == ids[-1]
        grown = resident_bytes(workers_of(server)[0]) - before
        assert grown < count * size / 2
        late = []
        for event in parse_events(stalled.chunks()):
            late.append(event)
            if event.id == ids[-1]:
                break
    (gap,) = (n for n, event in enumerate(late) if event.event == "reset")
    assert [event.id for event in late[:gap]] == ids[:gap]
    assert [event.id for event in late[gap + 1 :]] == ids[-stored:]


class Reader(threading.Thread):
    """A client that reads from random servers, and resumes each time."""

    def __init__(self, ports: list[int], seed: int):
        super().__init__(daemon=True)
        self.ports = ports
        self.choose = random.Random(seed)
        self.events: list[Event] = []
        self.connections = 0
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        last_event_id = None
        while not self.done.is_set():
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            port = self.choose.choice(self.ports)
            with (
                suppress(OSError, http.client.HTTPException),
                Client(port, "GET", STREAM, headers=headers) as client,
            ):
                last_event_id = self.read(client) or last_event_id

    def read(self, client: Client) -> str | None:
        """Read a random number of events. Return the last event ID."""
        assert client.status == 200
        self.connections += 1
        id, rest = None, self.choose.randint(1, 150)
        with suppress(OSError, http.client.HTTPException):
            chunks = takewhile(
                lambda _: not self.done.is_set(), client.chunks()
            )
            for event in parse_events(chunks):
                self.events.append(event)
                id, rest = event.id or id, rest - 1
                if not rest:
                    break
        return id


def stored_in(server: RedisServer) -> list[tuple[str, str]]:
    """Return the id and the text of each notification in Redis."""
    stored = []
    for id, fields in server.client().xrange("sse:notifications"):
        event = json.loads(fields[b"event"])
        stored.append((id.decode(), json.loads(event["data"])["text"]))
    return stored


def count_stored(server: RedisServer) -> int:
    """Return the number of notifications in Redis, once it answers."""
    while True:
        with suppress(redis.RedisError), closing(server.client()) as client:
            return client.xlen("sse:notifications")


def notify_all(servers, stored_at: RedisServer, count: int, seed: int) -> None:
    """Publish the texts "1", "2" ... on random servers.

    If a request fails or gets no response, only Redis knows whether it
    published the text.
    """
    choose = random.Random(seed)
    number = 1
    while number <= count:
        try:
            status, _ = notify(choose.choice(servers), str(number))
        except (OSError, http.client.HTTPException):
            status = None
        number = number + 1 if status == 201 else count_stored(stored_at) + 1


def kill_and_restart_an_instance(instances, own_redis, start_one) -> None:
    victim = instances[0]
    for pid in (victim.process.pid, *workers_of(victim)):
        os.kill(pid, signal.SIGKILL)
    victim.process.wait(10)
    start_one(port=victim.port)


def kill_and_restart_redis(instances, own_redis, start_one) -> None:
    own_redis.stop(signal.SIGKILL)
    own_redis.start()


@pytest.mark.parametrize(
    "disturb", [kill_and_restart_an_instance, kill_and_restart_redis]
)
def test_every_client_gets_1000_events_once_and_in_order(
    disturb, start, own_redis
):
    count = broker.MAX_EVENTS
    environ = {"REDIS_URL": own_redis.url, "FLASK_KEEP_ALIVE_SECONDS": "0.2"}
    start_one = partial(start, "gunicorn", **environ)
    instances = [start_one(), start_one()]
    ports = [instance.port for instance in instances]
    readers = [Reader(ports, seed) for seed in range(6)]
    try:
        wait_until(lambda: all(reader.events for reader in readers))
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(notify_all, instances, own_redis, count, 1)
            wait_until(lambda: count_stored(own_redis) > count * 0.4, 30)
            disturb(instances, own_redis, start_one)
            job.result()
        stored = stored_in(own_redis)
        assert [text for _, text in stored] == [
            str(number) for number in range(1, count + 1)
        ]
        last_id = stored[-1][0]
        wait_until(
            lambda: all(reader.events[-1].id == last_id for reader in readers)
        )
    finally:
        for reader in readers:
            reader.done.set()
        for reader in readers:
            reader.join()
    for reader in readers:
        assert reader.connections > 3
        events = [one for one in reader.events if one.event != "begin"]
        assert [one.event for one in events] == ["message"] * count
        assert [(one.id, text_of(one)) for one in events] == stored
