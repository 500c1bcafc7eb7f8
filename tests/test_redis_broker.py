"""Channels in Redis: outages, lost events, and many processes."""

import json
import os
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
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
    PATIENCE_SECONDS,
    RedisServer,
    Server,
    free_port,
    wait_until,
)

import broker
import redis_broker
from app import create_app
from broker import (
    BEGIN,
    Unavailable,
    forget,
    newest,
    publish,
    subscribe,
)
from event_source import EventSource, ReceivedEvent
from redis_broker import RedisBroker
from sse import Event


def test_redis_keeps_max_events_for_keep_seconds_after_the_newest(
    redis_server, use, channel, read
):
    use(redis_server.url)
    client, key = redis_server.client(), f"sse:{channel}"
    (id, *_) = publish_all(channel, *map(str, range(5)), max_events=2)
    assert client.xlen(key) == 2
    assert broker.KEEP_SECONDS - 99 < client.ttl(key) <= broker.KEEP_SECONDS
    client.expire(key, 5)
    publish_all(channel, "b")
    assert client.ttl(key) > broker.KEEP_SECONDS - 99
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
    assert client.ttl(key) > broker.KEEP_SECONDS - 99


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
    other = RedisBroker(redis_server.url)

    def publish_elsewhere(*texts, max_events=broker.MAX_EVENTS):
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
@pytest.mark.parametrize("outage", [killed, cut, frozen])
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


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (["1", "2"], ["1", "2"]),
        (["1", "2", "3"], ["reset", "2", "3"]),
    ],
    ids=["no gap", "a gap"],
)
def test_a_cut_is_a_gap_if_redis_has_trimmed_the_next_event(
    line, channel, read, elsewhere, published, expected
):
    events = read()
    elsewhere("0")
    assert take_texts(events, 2) == ["begin", "0"]
    line.cut()
    elsewhere(*published, max_events=2)
    line.mend()
    assert take_texts(events, len(expected)) == expected


@pytest.mark.usefixtures("_impatient")
def test_a_redis_that_lost_everything_is_a_gap(
    redis_server, use, channel, read
):
    use(redis_server.url)
    publish_all(channel, "a")
    events = read(BEGIN)
    (event,) = take(events, 1)
    redis_server.client().delete(f"sse:{channel}")
    resuming = read(event.id)
    assert take_texts(events, 1) == take_texts(resuming, 1) == ["reset"]
    publish_all(channel, "b")
    assert take_texts(events, 1) == take_texts(resuming, 1) == ["b"]
    assert take_texts(read(event.id), 2) == ["reset", "b"]


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
    """Redis may lose the newest events in a crash, and assign lower ids."""
    use(redis_server.url)
    client, key = redis_server.client(), f"sse:{channel}"
    for id, text, previous in (("1-9", "a", BEGIN), ("1-10", "b", "1-9")):
        fields = {"event": json.dumps({"data": text}), "previous": previous}
        client.xadd(key, fields | {"max_events": 9}, id=id)
    events = read(BEGIN)
    assert take_texts(events, 2) == ["a", "b"]
    client.xdel(key, "1-10")
    assert take_texts(events, 2) == ["reset", "a"]


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
    line.cut()
    line.mend()
    publish_all(channel, "c")  # a dead connection in the pool is replaced
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
    with ThreadPoolExecutor() as pool, outage(redis_server, line):
        error = pool.submit(ask, channel).exception(PATIENCE_SECONDS)
    assert isinstance(error, Unavailable)
    settings = broker.BROKER._redis.get_connection_kwargs()
    assert settings["socket_timeout"] == redis_broker.TIMEOUT_SECONDS


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
    for _ in range(2):
        for _ in range(3):
            line.cut()
            with pytest.raises(Unavailable):
                publish(channel, Event("a"))
            line.mend()
            publish(channel, Event("a"))
        clock.now += redis_broker.LOG_SECONDS
    logged = [message.partition(":")[0] for message in caplog.messages]
    assert logged == 2 * ["Redis is down", "Redis is available again."]


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
    cluster = RedisServer(tmp_path, "--cluster-enabled", "yes")
    monkeypatch.setenv("REDIS_URL", cluster.url)
    with (
        closing(SimpleNamespace(close=cluster.stop)),
        pytest.raises(SystemExit) as stopped,
    ):
        create_app()
    assert stopped.value.code == 3  # also stops gunicorn
    assert caplog.messages == ["REDIS_URL must not be a Redis Cluster."]


def test_starting_during_an_outage_logs_one_line(monkeypatch, caplog):
    url = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("REDIS_URL", url)
    create_app()
    (line,) = caplog.messages
    assert line.startswith("Redis is down: ")


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
        for number in range(3):
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


def connections(server: RedisServer, name: str) -> list[dict]:
    """Return the connections whose URL ends with `?client_name=` and a name."""
    with closing(server.client()) as asking:
        found = server.clients(other_than=asking)
    return [one for one in found if one["name"] == name]


def test_clients_share_one_thread_and_successive_ones_its_connection(
    redis_server, use, channel
):
    use(f"{redis_server.url}?client_name={channel}")
    for _ in range(3):
        with ExitStack() as opened, ThreadPoolExecutor(9) as pool:
            names = [f"{channel}{number % 3}" for number in range(9)]
            for events in pool.map(subscribe, names):
                opened.enter_context(closing(events))
                assert take_texts(events, 1) == ["begin"]
            assert len(copiers()) == 1
            # Redis may not have noticed yet that an older one was closed.
            wait_until(lambda: len(connections(redis_server, channel)) == 1)
        wait_until(lambda: not copiers())
    wait_until(lambda: len(connections(redis_server, channel)) == 1)


@pytest.mark.parametrize("seed", range(2))
def test_random_clients_of_two_machines_get_every_event_or_reset(
    seed, channel, lines, line, use, elsewhere, monkeypatch
):
    monkeypatch.setattr(redis_broker, "LOAD_SECONDS", 0.02)

    def publish_there(max_events):
        return elsewhere("x", max_events=max_events)[0]

    walk(seed, channel, lines, use, publish_there)


def workers_of(server: Server) -> list[int]:
    lines = server.logged(r"Booting worker with pid: \d+")
    return [int(line.rpartition(" ")[2]) for line in lines]


@pytest.mark.parametrize("server", ["gunicorn"], indirect=True)
def test_gunicorn_starts_one_worker_without_redis_and_logs_why(server):
    assert server.logged(
        r"Workers: 1 \(set REDIS_URL to share events between several\)$"
    )
    assert len(workers_of(server)) == 1


STREAM = "/stream/notifications"
OUTAGE = "Redis is not available. Try again in a few seconds."


def notify(server, text) -> tuple[int, dict]:
    body = json.dumps({"text": text, "level": "info"}).encode()
    headers = {"Content_Type": "application/json"}
    with server.post("/notifications", body, **headers) as client:
        return client.status, json.loads(client.read())


def text_of(event: ReceivedEvent) -> str:
    return json.loads(event.data)["text"]


class Reader(threading.Thread):
    """A client that reads from random servers up to the text "end"."""

    def __init__(self, urls: list[str], seed: int):
        super().__init__(daemon=True)
        self.urls, self.choose = urls, random.Random(seed)
        self.events: list[ReceivedEvent] = []
        self.connections = 0
        self.start()

    def run(self) -> None:
        last_event_id = ""
        while not self.has_read("end"):
            url = self.choose.choice(self.urls) + STREAM
            source = EventSource(url, last_event_id=last_event_id)
            source.retry = 100
            for event in islice(source, self.choose.randint(1, 15)):
                self.events.append(event)
                if self.has_read("end"):
                    break
            last_event_id = source.last_event_id
            source.close()
            self.connections += 1

    def has_read(self, text: str) -> bool:
        last = self.events[-1] if self.events else None
        return last and last.event == "message" and text_of(last) == text


def test_clients_of_two_instances_get_each_event_once_and_in_order(
    own_redis, start
):
    start_one = partial(start, REDIS_URL=own_redis.url)
    instances = [start_one("gunicorn -w 1"), start_one("gunicorn")]
    cores = len(os.sched_getaffinity(0))
    assert instances[1].logged(rf"Workers: {cores} \(they share a Redis\)$")
    wait_until(lambda: len(workers_of(instances[1])) == cores)
    urls = [instance.url for instance in instances]
    readers = [Reader(urls, seed) for seed in range(8)]
    wait_until(lambda: all(reader.events for reader in readers))
    texts = [str(number) for number in range(50)] + ["end"]
    for number, text in enumerate(texts):
        if number == 25:
            own_redis.stop(signal.SIGKILL)
            assert notify(instances[0], "x") == (503, {"error": OUTAGE})
            own_redis.start()
        assert notify(instances[number % 2], text)[0] == 201
    # Each process has one to read for all its clients, and one to publish.
    assert len(connections(own_redis, "")) <= 2 * (1 + cores)
    for reader in readers:
        reader.join(60)
        assert reader.connections > 3
        assert reader.events[0].event == "begin"
        assert [text_of(event) for event in reader.events[1:]] == texts
    for instance in instances:
        assert not instance.logged("Traceback")
