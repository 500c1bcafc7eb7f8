import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from conftest import Client, Server, read_until, wait_until
from playwright.sync_api import Page, expect

from broker import forget, newest
from demos import document
from demos.document import HISTORY_EVENTS, MAX_BODY_BYTES
from event_source import parse_events
from sse import Event

BEGIN = "0-0"
STALE = "Somebody else has changed the document."
NO_VERSION = 'Name the version you changed: If-Match: "id".'
NO_TEXT = "text must be a text of 0 to 2000 characters."
NO_AUTHOR = "author must be a text of 1 to 40 characters."
AWAY = "Redis is not available. Try again in a few seconds."
NO_OBJECT = 'The body must be a JSON object, such as {"a": 1}.'
MARKUP = "<img src=x onerror=alert(1)><b>&amp;"


def put(server: Server, body: bytes, **headers: str) -> Client:
    headers = {"Content_Type": "application/json"} | headers
    return Client(server.port, "PUT", "/document", body, headers)


def answer(client: Client) -> tuple[int, dict, str | None]:
    with client:
        body = json.loads(client.read())
        return client.status, body, client.header("ETag")


def write(
    server: Server, text: str, if_match: str, author: str = "Ada"
) -> tuple[int, dict, str | None]:
    body = json.dumps({"text": text, "author": author}).encode()
    return answer(put(server, body, If_Match=if_match))


def current(server: Server) -> tuple[str, dict | None]:
    """Return the version and what it holds, as a stale write is told."""
    status, body, _ = write(server, "", '"stale"')
    assert status == 412
    return body["version"], body["current"]


def overwrite(server: Server, text: str, author: str = "Ada") -> str:
    """Write, starting from the current version, and return the new one."""
    version, _ = current(server)
    status, body, _ = write(server, text, f'"{version}"', author)
    assert status == 200
    return body["version"]


@pytest.fixture(scope="module")
def instances(redis_server) -> Iterator[list[Server]]:
    """Two servers that share one Redis."""
    running = [Server("gunicorn", REDIS_URL=redis_server.url) for _ in range(2)]
    yield running
    for one in running:
        one.stop()


def test_a_change_tells_who_what_and_when_in_exactly_these_bytes(
    server,
):
    old = overwrite(server, "before")
    body = {"text": 'Größe "1"\n<b>👋', "author": "Zoë"}
    with server.get("/stream/document", Last_Event_ID=old) as client:
        assert client.header("Content-Type") == "text/event-stream"
        assert client.header("Cache-Control") == "no-cache, no-transform"
        chunks = client.chunks()
        assert next(chunks) == b":\n"
        before = datetime.now(UTC).replace(microsecond=0)
        body = json.dumps(body).encode()
        status, answered, etag = answer(put(server, body, If_Match=f'"{old}"'))
        received = read_until(chunks, b"\n\n").decode()
    version = answered["version"]
    assert (status, answered, etag) == (
        200,
        {"version": version},
        f'"{version}"',
    )
    at = json.loads(received.partition("data: ")[2])["at"]
    assert received == (
        f"id: {version}\n"
        'data: {"text":"Größe \\"1\\"\\n<b>👋","author":"Zoë",'
        f'"at":"{at}"}}\n\n'
    )
    assert at.endswith("+00:00")
    passed = datetime.fromisoformat(at) - before
    assert timedelta(0) <= passed < timedelta(seconds=5)


def test_a_stale_write_is_told_the_current_text_and_changes_nothing(server):
    old = overwrite(server, "One")
    new = overwrite(server, "Two", "Grace")
    status, body, etag = write(server, "Three", f'"{old}"')
    assert (status, etag) == (412, f'"{new}"')
    assert set(body) == {"error", "version", "current"}
    assert (body["error"], body["version"]) == (STALE, new)
    assert set(body["current"]) == {"text", "author", "at"}
    assert body["current"]["text"] == "Two"
    assert body["current"]["author"] == "Grace"
    assert current(server) == (new, body["current"])


def test_the_etag_of_each_answer_is_what_the_next_write_starts_from(server):
    _, _, etag = write(server, "no", '"stale"')
    for text in ("One", "Two", "Three"):
        status, _, etag = write(server, text, etag)
        assert status == 200
    assert current(server)[1]["text"] == "Three"


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        ('"{version}"', 200),
        ('"0-0", "{version}"', 200),
        ('"{version}","other"', 200),
        ("*", 200),
        ('W/"{version}"', 412),
        ('w/"{version}"', 412),
        ('"0-0"', 412),
        ('"{version}0"', 412),
        ('"0-0", "1-0"', 412),
        ('""', 412),
        ('"*"', 412),
        ("x", 412),
        ('"', 428),
        ("", 428),
    ],
)
def test_if_match_decides(server, if_match, status):
    overwrite(server, "before")
    before = version, _ = current(server)
    if_match = if_match.replace("{version}", version)
    told, body, etag = write(server, "after", if_match)
    assert told == status
    if status == 200:
        assert current(server)[1]["text"] == "after"
        assert current(server)[0] == body["version"]
    else:
        assert current(server) == before
    if status == 412:
        assert (body["error"], etag) == (STALE, f'"{version}"')
    if status == 428:
        assert (body, etag) == ({"error": NO_VERSION}, None)


GOOD = b'{"text": "no", "author": "Eve"}'


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b'{"author": "Eve"}', {}, 400, NO_TEXT),
        (b'{"text": null, "author": "Eve"}', {}, 400, NO_TEXT),
        (b'{"text": 1, "author": "Eve"}', {}, 400, NO_TEXT),
        (b'{"text": ["x"], "author": "Eve"}', {}, 400, NO_TEXT),
        (b'{"text":"' + b"x" * 2001 + b'","author":"Eve"}', {}, 400, NO_TEXT),
        (b'{"text": "no"}', {}, 400, NO_AUTHOR),
        (b'{"text": "no", "author": ""}', {}, 400, NO_AUTHOR),
        (b'{"text": "no", "author": null}', {}, 400, NO_AUTHOR),
        (b'{"text": "no", "author": 1}', {}, 400, NO_AUTHOR),
        (
            b'{"text": "no", "author": "' + b"x" * 41 + b'"}',
            {},
            400,
            NO_AUTHOR,
        ),
        (b"", {}, 400, NO_OBJECT),
        (b"{", {}, 400, NO_OBJECT),
        (b"[]", {}, 400, NO_OBJECT),
        (
            GOOD.ljust(MAX_BODY_BYTES + 1),
            {},
            413,
            f"The body must have at most {MAX_BODY_BYTES} bytes.",
        ),
        (
            GOOD,
            {"Content_Type": "text/plain"},
            415,
            "The body must have the Content-Type application/json.",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused_changes_nothing(
    server, body, headers, status, sentence
):
    before = current(server)
    headers = {"If_Match": f'"{before[0]}"'} | headers
    refused = put(server, body, **headers)
    assert answer(refused) == (status, {"error": sentence}, None)
    assert current(server) == before


@pytest.mark.parametrize(
    "text", ["", " ", "x" * 2000, "\u4f60" * 2000], ids=lambda text: text[:1]
)
def test_a_text_may_have_0_to_2000_characters(server, text):
    overwrite(server, text, "x" * 40)
    assert current(server)[1]["text"] == text


@pytest.mark.parametrize("is_ascii", [False, True], ids=["UTF-8", "escaped"])
def test_2000_emoji_are_taken_however_json_writes_them(server, is_ascii):
    body = {"text": "\U0001f600" * 2000, "author": "Ada"}
    body = json.dumps(body, ensure_ascii=is_ascii).encode()
    told, _, _ = answer(put(server, body, If_Match="*"))
    assert told == 200


def write_at_once(servers: list[Server], version: str) -> list[tuple]:
    """Return the answers of 20 writers that start from the same version."""
    ready = threading.Barrier(20)

    def one(number: int) -> tuple:
        ready.wait()
        server = servers[number % len(servers)]
        return write(server, f"text {number}", f'"{version}"')

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(one, range(20)))


def assert_one_has_won(answers: list[tuple], servers: list[Server]) -> None:
    (winner,) = [n for n, answer in enumerate(answers) if answer[0] == 200]
    _, body, etag = answers.pop(winner)
    version, held = current(servers[-1])
    assert etag == f'"{version}"'
    assert body == {"version": version}
    assert held["text"] == f"text {winner}"
    refusal = {"error": STALE, "version": version, "current": held}
    assert answers == [(412, refusal, etag)] * 19


def test_of_writers_at_once_only_one_wins(server):
    for _ in range(3):
        version = overwrite(server, "before")
        answers = write_at_once([server], version)
        assert_one_has_won(answers, [server])


def test_of_writers_at_once_on_two_instances_only_one_wins(instances):
    for _ in range(3):
        version = overwrite(instances[0], "before")
        answers = write_at_once(instances, version)
        assert_one_has_won(answers, instances)


@pytest.mark.parametrize("is_with_redis", [False, True])
def test_of_writers_that_have_all_found_their_version_current_one_wins(
    app, monkeypatch, request, is_with_redis
):
    if is_with_redis:
        redis = request.getfixturevalue("redis_server")
        monkeypatch.setenv("REDIS_URL", redis.url)
    forget("document")
    all_have_looked = threading.Barrier(8)
    has_looked = threading.local()

    def look(channel: str) -> Event | None:
        event = newest(channel)
        if not hasattr(has_looked, "once"):
            has_looked.once = all_have_looked.wait(5)
        return event

    monkeypatch.setattr(document, "newest", look)

    def one(number: int) -> int:
        body = {"text": str(number), "author": "Ada"}
        headers = {"If-Match": '"0-0"'}
        answer = app.test_client().put("/document", json=body, headers=headers)
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(one, range(8)))
    assert sorted(statuses) == [200] + [412] * 7


def texts(client: Client, count: int) -> list[str]:
    events = parse_events(client.chunks())
    return [json.loads(next(events).data)["text"] for _ in range(count)]


def test_what_is_written_at_one_instance_is_read_at_the_other(instances):
    one, other = instances
    version = overwrite(one, "before")
    with other.get("/stream/document", Last_Event_ID=version) as client:
        overwrite(one, "One")
        assert texts(client, 1) == ["One"]
        overwrite(other, "Two")
        assert texts(client, 1) == ["Two"]


def test_who_was_away_receives_exactly_what_was_missed(server):
    version = overwrite(server, "before")
    for text in ("One", "Two"):
        overwrite(server, text)
    with server.get("/stream/document", Last_Event_ID=version) as client:
        events = parse_events(client.chunks())
        missed = [json.loads(next(events).data)["text"] for _ in range(2)]
        overwrite(server, "live")
        missed.append(json.loads(next(events).data)["text"])
    assert missed == ["One", "Two", "live"]


@pytest.mark.parametrize("last", [None, "x", "1-0"])
def test_a_new_reader_begins_with_the_newest_changes(server, last):
    written = [str(number) for number in range(HISTORY_EVENTS + 1)]
    for text in written:
        overwrite(server, text)
    headers = {} if last is None else {"Last_Event_ID": last}
    with server.get("/stream/document", **headers) as client:
        events = parse_events(client.chunks())
        assert next(events).event == "reset"
        held = [json.loads(next(events).data)["text"] for _ in written[1:]]
        overwrite(server, "live")
        assert json.loads(next(events).data)["text"] == "live"
    assert held == written[1:]


def test_while_redis_is_away_only_writing_fails(start, own_redis):
    server = start("gunicorn", REDIS_URL=own_redis.url)
    version = overwrite(server, "One")
    with server.get("/stream/document") as client:
        assert texts(client, 1) == ["One"]
        own_redis.stop()
        with put(server, GOOD, If_Match=f'"{version}"') as refused:
            assert refused.header("Retry-After") == "5"
            assert answer(refused) == (503, {"error": AWAY}, None)
        own_redis.start()
        assert write(server, "Two", f'"{version}"')[0] == 200
        assert texts(client, 1) == ["Two"]


def test_what_a_restart_has_forgotten_is_no_version_any_more(start):
    server = start("flask run")
    version = overwrite(server, "forgotten")
    server.stop()
    server = start("flask run", port=server.port)
    assert write(server, "kept", f'"{version}"') == (
        412,
        {"error": STALE, "version": BEGIN, "current": None},
        '"0-0"',
    )
    assert write(server, "kept", '"0-0"')[0] == 200
    with server.get("/stream/document", Last_Event_ID=version) as client:
        events = parse_events(client.chunks())
        assert next(events).event == "reset"
        assert json.loads(next(events).data)["text"] == "kept"


def text_of(page: Page):
    return page.get_by_label("The document")


def changes(page: Page):
    return page.get_by_role("log").locator("> *")


def press(page: Page, name: str) -> None:
    """Press a button by keyboard: a click waits for a window to be in front."""
    page.get_by_role("button", name=name, exact=True).press("Enter")


def begin(page: Page, url: str, author: str) -> Page:
    """Open the page, and wait until it shows the document."""
    page.goto(f"{url}/demos/document")
    page.get_by_label("Your name").fill(author)
    press(page, "Start")
    expect(page.locator("#state")).to_have_text("open")
    return page


def save(page: Page, text: str) -> None:
    text_of(page).fill(text)
    press(page, "Save")


def said(page: Page):
    return page.locator("#problem")


@pytest.fixture
def ada(page, site) -> Page:
    """A page that shows the text "Hello"."""
    overwrite(site, "Hello")
    begin(page, site.url, "Ada")
    expect(text_of(page)).to_have_value("Hello")
    yield page
    page.problems[:] = [one for one in page.problems if "412" not in one]


@pytest.fixture
def grace(ada, site) -> Iterator[Page]:
    """A second window beside it."""
    with closing(ada.context.new_page()) as page:
        begin(page, site.url, "Grace")
        expect(text_of(page)).to_have_value("Hello")
        yield page


def test_each_window_shows_what_the_other_saves_as_it_happens(ada, grace):
    save(ada, "Hello world")
    expect(said(ada)).to_have_text("Saved.")
    expect(text_of(grace)).to_have_value("Hello world")
    save(grace, "Hello you")
    expect(text_of(ada)).to_have_value("Hello you")
    for page in (ada, grace):
        assert "Grace: “world” became “you”" in changes(page).first.inner_text()
        assert "Ada: added “ world”" in changes(page).nth(1).inner_text()
        assert page.locator("#both").is_hidden()


def meet(ada: Page, grace: Page) -> None:
    """Let both change the same version; Ada is the second who saves."""
    text_of(ada).fill("Ada's")
    save(grace, "Grace's")
    expect(changes(ada).first).to_contain_text("Grace: ")
    assert text_of(ada).input_value() == "Ada's"
    press(ada, "Save")
    expect(ada.locator("#both")).to_be_visible()


def test_both_texts_are_shown_when_a_save_meets_another(ada, grace):
    meet(ada, grace)
    expect(said(ada)).to_have_text(STALE)
    assert ada.get_by_label("Your text").inner_text() == "Ada's"
    assert ada.get_by_label("Their text").inner_text() == "Grace's"
    assert text_of(ada).input_value() == "Ada's"
    assert text_of(grace).input_value() == "Grace's"


def test_save_yours_wins(ada, grace):
    meet(ada, grace)
    press(ada, "Save yours")
    expect(said(ada)).to_have_text("Saved.")
    expect(ada.locator("#both")).to_be_hidden()
    expect(text_of(grace)).to_have_value("Ada's")
    assert text_of(ada).input_value() == "Ada's"


def test_take_theirs_takes_it_and_can_be_changed(ada, grace):
    meet(ada, grace)
    press(ada, "Take theirs")
    expect(text_of(ada)).to_have_value("Grace's")
    expect(ada.locator("#both")).to_be_hidden()
    save(ada, "Grace's and Ada's")
    expect(text_of(grace)).to_have_value("Grace's and Ada's")
    expect(said(ada)).to_have_text("Saved.")


def test_save_yours_meets_whoever_was_faster_again(ada, grace):
    meet(ada, grace)
    press(ada, "Stop")
    save(grace, "Grace's second")
    expect(said(grace)).to_have_text("Saved.")
    press(ada, "Save yours")
    expect(ada.get_by_label("Their text")).to_have_text("Grace's second")
    assert text_of(grace).input_value() == "Grace's second"
    press(ada, "Save yours")
    expect(text_of(grace)).to_have_value("Ada's")


def test_take_theirs_takes_the_newest_text(ada, grace):
    meet(ada, grace)
    text_of(ada).fill("Ada's, of now")
    save(grace, "Grace's second")
    expect(ada.get_by_label("Their text")).to_have_text("Grace's second")
    assert ada.get_by_label("Your text").inner_text() == "Ada's, of now"
    press(ada, "Take theirs")
    expect(ada.locator("#both")).to_be_hidden()
    assert text_of(ada).input_value() == "Grace's second"


def test_both_texts_are_shown_with_their_lines(ada, site):
    text_of(ada).fill("One\n  two")
    overwrite(site, "Three\n\nfour")
    press(ada, "Save")
    expect(ada.locator("#both")).to_be_visible()
    assert ada.get_by_label("Your text").inner_text() == "One\n  two"
    assert ada.get_by_label("Their text").inner_text() == "Three\n\nfour"


def test_what_others_write_never_becomes_markup(ada, site):
    text_of(ada).fill(f"{MARKUP} mine")
    overwrite(site, MARKUP, MARKUP[:40])
    expect(changes(ada).first).to_contain_text(f"{MARKUP[:40]}: ")
    expect(changes(ada).first).to_contain_text(f"became “{MARKUP}”")
    press(ada, "Save")
    expect(ada.get_by_label("Their text")).to_have_text(MARKUP)
    expect(ada.get_by_label("Your text")).to_have_text(f"{MARKUP} mine")
    assert ada.locator(".live .log img, .live .log b").count() == 0


CHANGES = [
    ("", "Hello", "added “Hello”"),
    ("Hello", "Hello you", "added “ you”"),
    ("Hello", "Oh, Hello", "added “Oh, ”"),
    ("aa", "aaa", "added “a”"),
    ("Hello", "Helo", "removed “l”"),
    ("Hello", "", "removed “Hello”"),
    ("one two three", "one 2 three", "“two” became “2”"),
    ("one", "2\n3", "“one” became “2\n3”"),
]
WITH_EMOJI = [
    ("a😀b", "a😁b", "“😀” became “😁”"),
    ("a😀b", "a👀b", "“😀” became “👀”"),
    ("a😀b", "a😀😁b", "added “😁”"),
]


@pytest.mark.parametrize("table", [CHANGES, WITH_EMOJI], ids=["", "emoji"])
def test_log_tells_who_did_what_and_when(ada, site, table):
    for before, after, what in table:
        overwrite(site, before)
        overwrite(site, after, "Grace")
        expect(text_of(ada)).to_have_value(after)
        at = current(site)[1]["at"]
        time = ada.evaluate("at => new Date(at).toLocaleTimeString()", at)
        newest = changes(ada).first.text_content()
        assert newest == f"{time}, Grace: {what}"


def test_log_does_not_say_that_a_save_without_a_change_added_something(
    ada, site
):
    press(ada, "Save")
    expect(said(ada)).to_have_text("Saved.")
    overwrite(site, "Hello!")
    expect(changes(ada).first).to_contain_text("Ada: added “!”")
    assert "added “”" not in changes(ada).nth(1).text_content()


def test_log_does_not_make_up_what_its_oldest_change_was(page, site):
    for number in range(HISTORY_EVENTS):
        overwrite(site, f"Kept {number:02}", f"Writer {number}")
    overwrite(site, "Kept", "Last writer")
    begin(page, site.url, "Ada")
    expect(text_of(page)).to_have_value("Kept")
    oldest = changes(page).last.text_content()
    assert "Writer 1: " in oldest
    assert "added “Kept 01”" not in oldest  # it was “0” that became “1”


def test_a_text_with_other_line_ends_does_not_stop_the_page_from_following(
    start, page
):
    server = start("flask run")
    overwrite(server, "One\r\ntwo\rthree")
    begin(page, server.url, "Ada")
    expect(text_of(page)).to_have_value("One\ntwo\nthree")
    overwrite(server, "4")
    expect(changes(page).first).to_contain_text("became “4”")
    assert text_of(page).input_value() == "4"


def test_undone_typing_follows_the_others_again(ada, grace):
    text_of(ada).fill("Hello, half a thou")
    save(grace, "Grace's")
    expect(changes(ada).first).to_contain_text("Grace's")
    assert text_of(ada).input_value() == "Hello, half a thou"
    text_of(ada).fill("Hello")
    save(grace, "Grace's second")
    expect(text_of(ada)).to_have_value("Grace's second")


def test_a_save_that_another_follows_at_once_shows_the_newest(ada, site):
    held = []
    ada.route(
        "**/document",
        lambda route: held.append((route, route.fetch())),
    )
    save(ada, "Ada's")
    wait_until(lambda: held or ada.wait_for_timeout(10))
    overwrite(site, "Grace's", "Grace")
    expect(changes(ada).first).to_contain_text("Grace: ")
    ((route, response),) = held
    route.fulfill(response=response)
    expect(said(ada)).to_have_text("Saved.")
    expect(text_of(ada)).to_have_value("Grace's")
    overwrite(site, "Grace's second", "Grace")
    expect(text_of(ada)).to_have_value("Grace's second")


def save_and_type_on(page: Page) -> None:
    """Type more before the answer to what is saved is there."""
    held = []
    page.route("**/document", lambda route: held.append(route), times=1)
    save(page, "Ada's")
    wait_until(lambda: held or page.wait_for_timeout(10))
    text_of(page).fill("Ada's second")
    held[0].continue_()
    expect(said(page)).to_have_text("Saved.")
    expect(changes(page).first).to_contain_text("Ada's")
    assert text_of(page).input_value() == "Ada's second"


def test_what_is_typed_while_a_text_is_saved_can_be_saved(ada):
    save_and_type_on(ada)
    press(ada, "Save")
    expect(changes(ada).first).to_contain_text("added “ second”")
    assert ada.locator("#both").is_hidden()


def test_what_is_typed_while_a_text_is_saved_is_not_overwritten(ada, site):
    save_and_type_on(ada)
    overwrite(site, "Grace's", "Grace")
    expect(changes(ada).first).to_contain_text("Grace: ")
    assert text_of(ada).input_value() == "Ada's second"


def test_who_does_not_look_overwrites_nothing(ada, site):
    press(ada, "Stop")
    expect(ada.locator("#state")).to_have_text("closed")
    overwrite(site, "Unseen")
    save(ada, "Ada's")
    expect(ada.get_by_label("Their text")).to_have_text("Unseen")
    assert current(site)[1]["text"] == "Unseen"


def test_start_again_keeps_what_is_typed(ada, site):
    text_of(ada).fill("Half a thou")
    overwrite(site, "Meanwhile")
    press(ada, "Start")
    expect(changes(ada).first).to_contain_text("Meanwhile")
    assert text_of(ada).input_value() == "Half a thou"
    press(ada, "Save")
    expect(ada.get_by_label("Their text")).to_have_text("Meanwhile")


def test_start_again_keeps_what_is_typed_though_it_once_was_saved(ada, site):
    overwrite(site, "Hello again")
    expect(text_of(ada)).to_have_value("Hello again")
    text_of(ada).fill("Hello")
    before = changes(ada).count()
    press(ada, "Start")
    expect(changes(ada)).to_have_count(before)
    expect(changes(ada).first).to_contain_text("again")
    assert text_of(ada).input_value() == "Hello"


def test_what_a_restarted_server_has_forgotten_can_be_saved(start, page):
    server = start("flask run")
    overwrite(server, "Held in memory")
    begin(page, server.url, "Ada")
    expect(text_of(page)).to_have_value("Held in memory")

    server.stop()
    expect(page.locator("#state")).to_have_text("reconnecting")
    save(page, "Typed meanwhile")
    expect(said(page)).to_have_text("Failed to fetch")
    assert text_of(page).input_value() == "Typed meanwhile"

    server = start("flask run", port=server.port)
    expect(page.locator("#state")).to_have_text("open")
    press(page, "Save")
    expect(page.get_by_label("Your text")).to_have_text("Typed meanwhile")
    expect(page.get_by_label("Their text")).to_have_text("")
    expect(said(page)).to_have_text(STALE)
    press(page, "Save yours")
    expect(said(page)).to_have_text("Saved.")
    expect(page.locator("#both")).to_be_hidden()
    assert current(server)[1]["text"] == "Typed meanwhile"
    page.problems.clear()


@pytest.mark.parametrize("name", ["text", "author"])
def test_the_page_shows_the_sentence_of_a_refusal(ada, name):
    ada.locator(f"#{name}").evaluate("e => { e.value = 'x'.repeat(2001); }")
    press(ada, "Save")
    sentence = {"text": NO_TEXT, "author": NO_AUTHOR}[name]
    expect(said(ada)).to_have_text(sentence)
    assert len(ada.locator(f"#{name}").input_value()) == 2001
    assert "400" in ada.problems.pop()
