import gc
import json
import threading
import types
import weakref
from contextlib import closing
from operator import attrgetter

import pytest
import requests

import language_model
from event_source import parse_events
from language_model import Answer, ModelError, ask, deltas
from website import offline_answers, offline_model
from website.offline_model import URL, OfflineModel

PROMPTS = {
    "What is an event stream?": "**Server-sent events** are",
    "Compare with WebSockets": "## Event streams or WebSockets?",
    "What if the browser reconnects?": "A browser **reconnects by itself**",
    "Show me the Python code": "In **Flask**, a generator",
    "Show me Markdown": "## What an answer may contain",
    "Attack this page": "Nothing in this answer may run",
    "什么是事件流？": "**服务器发送事件**",
    "和 WebSocket 有什么区别？": "## 事件流还是 WebSocket？",
    "断开以后怎么办？": "浏览器会**自动重新连接**",
    "给我看一个例子": "在 **Flask** 里",
    "写一点 Markdown 吧": "## 一个回答里可以有什么",
    "攻击这个页面": "这个回答里的任何内容都不得运行",
}
CONSTRUCTS = {
    "markdown": [
        *("\n## ", "*", "**", "~~", "`", "](https://", "\n1. ", "\n   - "),
        *("\n> ", "\n|:---|---:|:---:|\n", "\n```python\n", "\n```\n"),
        "\n---\n",
    ],
    "attack": [
        *("<img", " onerror=", "<svg", " onload=", "](javascript:"),
        *("](JaVaScRiPt&colon;", " onclick=", "![", "<scr<script>ipt>"),
        *(" onerror =", "<iframe srcdoc=", " style=", ' id="state"'),
    ],
}
"""Markup that the pages show, or must survive."""

TIME = {
    "name": "get_time",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
    },
}
SUM = {
    "name": "sum",
    "parameters": {
        "type": "object",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "number"}}
        },
    },
}


@pytest.fixture(autouse=True)
def plug_in(monkeypatch):
    """Mount an offline model. Return a function that mounts a slower one."""
    monkeypatch.setattr(language_model, "session", requests.Session())
    monkeypatch.setattr(language_model, "BASE_URL", URL)

    def plug_in(word_seconds: float) -> None:
        language_model.session.mount(URL, OfflineModel(word_seconds))

    plug_in(0)
    return plug_in


def user(content: object) -> dict:
    return {"role": "user", "content": content}


def tools(*functions: dict) -> list[dict]:
    return [{"type": "function", "function": one} for one in functions]


def text_of(*messages: dict, **options) -> str:
    return "".join(deltas(ask(list(messages), **options)))


def received(answer: Answer) -> bytes:
    with closing(answer):
        assert answer.open().status_code == 200
        return b"".join(answer)


def unstreamed(*messages: dict, **options) -> dict:
    return json.loads(received(ask(list(messages), stream=False, **options)))


def chunks(*messages: dict, **options) -> list[dict]:
    body = received(ask(list(messages), **options))
    *events, done = [event.data for event in parse_events([body])]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def tool_calls(prompt: str, *functions: dict) -> list[dict]:
    (choice,) = unstreamed(user(prompt), tools=tools(*functions))["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert (choice["message"]["content"] is None) == bool(calls)
    return calls


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_answer_matches_the_prompt_and_its_language(prompt):
    words = list(deltas(ask([user(prompt)])))
    answer = unstreamed(user(prompt))["choices"][0]["message"]["content"]
    assert "".join(words) == answer
    assert answer.startswith(PROMPTS[prompt])
    assert len(words) > 40
    assert all(len(word.split()) <= 1 for word in words)


def test_samples_contain_every_construct():
    for topic, constructs in CONSTRUCTS.items():
        for language in ("en", "zh"):
            sample = "\n" + offline_answers.ANSWERS[f"{topic}.{language}"]
            assert [part for part in constructs if part not in sample] == []


@pytest.mark.parametrize(
    "messages",
    [
        [user("Compare")],
        [user([{"type": "text", "text": "Compare"}])],
        [
            user("什么是事件流？"),
            {"role": "assistant", "content": "Python"},
            user("Compare"),
        ],
        [user("Compare"), {"role": "assistant", "content": "什么"}],
    ],
)
def test_answers_the_last_message_of_the_user(messages):
    assert text_of(*messages).startswith("## Event streams or WebSockets?")


def test_messages_without_text_get_the_default_answer():
    for message in (
        {},
        {"role": "system", "content": "Be brief."},
        {"role": "user"},
        user(5),
        user([5, {"type": "image_url"}]),
    ):
        assert text_of(message).startswith("**Server-sent events** are")


def chunk_bytes(delta: str, reason: str = "null") -> bytes:
    return (
        'data: {"id":"chatcmpl-1a","object":"chat.completion.chunk",'
        '"created":1700000000,"model":"offline","system_fingerprint":null,'
        f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,'
        f'"finish_reason":{reason}}}]}}\n\n'
    ).encode()


@pytest.fixture
def same_ids(monkeypatch):
    monkeypatch.setattr(offline_model.secrets, "token_hex", lambda size: "1a")
    monkeypatch.setattr(offline_model.time, "time", lambda: 1700000000.5)


def test_text_is_streamed_in_the_official_format(same_ids, monkeypatch):
    monkeypatch.setitem(offline_answers.ANSWERS, "default.en", "Hi \n你好")
    with closing(ask([user("Hi")])) as answer:
        media_type = answer.open().headers["Content-Type"]
    assert media_type == "text/event-stream"
    assert received(ask([user("Hi")])) == b"".join(
        [
            chunk_bytes('{"role":"assistant","content":"","refusal":null}'),
            chunk_bytes('{"content":"Hi"}'),
            chunk_bytes('{"content":" \\n你"}'),
            chunk_bytes('{"content":"好"}'),
            chunk_bytes("{}", '"stop"'),
            b"data: [DONE]\n\n",
        ]
    )


def test_tool_calls_are_streamed_in_the_official_format(same_ids, monkeypatch):
    monkeypatch.setitem(offline_answers.THOUGHTS, "en", "I call {}.")

    def call(index: int, name: str) -> bytes:
        return chunk_bytes(
            f'{{"tool_calls":[{{"index":{index},"id":"call_1a",'
            f'"type":"function","function":{{"name":"{name}",'
            '"arguments":""}}]}'
        )

    def arguments(index: int, piece: str) -> bytes:
        return chunk_bytes(
            f'{{"tool_calls":[{{"index":{index},'
            f'"function":{{"arguments":{json.dumps(piece)}}}}}]}}'
        )

    answer = ask(
        [user("The time in Rome, and the sum of 3 and 4.5, please")],
        tools=tools(TIME, SUM),
    )
    assert received(answer) == b"".join(
        [
            chunk_bytes('{"role":"assistant","content":null,"refusal":null}'),
            *(
                chunk_bytes(f'{{"reasoning_content":"{word}"}}')
                for word in ("I", " call", " get_time", " and", " sum.")
            ),
            call(0, "get_time"),
            arguments(0, '{"city":'),
            arguments(0, ' "Rome"}'),
            call(1, "sum"),
            arguments(1, '{"number'),
            arguments(1, 's": [3, '),
            arguments(1, "4.5]}"),
            chunk_bytes("{}", '"tool_calls"'),
            b"data: [DONE]\n\n",
        ]
    )


def test_usage_is_sent_last_and_only_on_request():
    for options in (None, {}, {"include_usage": False}, "include_usage"):
        found = chunks(user("Two words"), stream_options=options)
        assert all("usage" not in chunk for chunk in found)
    *first, last = chunks(
        user("Two words"), stream_options={"include_usage": True}
    )
    assert [chunk["usage"] for chunk in first] == [None] * len(first)
    assert len({chunk["id"] for chunk in [*first, last]}) == 1
    assert last["choices"] == []
    answered = len(list(deltas(ask([user("Two words")]))))
    assert last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": answered,
        "total_tokens": 2 + answered,
    }


NO_REQUESTS = [
    *(b"", b"{", b"\xff", b"null", b"[]", b'"messages"', b"{}"),
    *(
        b'{"messages":%b}' % value
        for value in (b"null", b"[]", b"{}", b'"Hi"', b'["Hi"]', b'[{},"H"]')
    ),
    *(
        b'{"messages":[{"role":"user"}],"tools":%b}' % value
        for value in (b"5", b"[5]", b"[{}]", b'[{"function":{}}]')
    ),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/embeddings", None, 404),
        ("POST", "/models", b"{}", 404),
        ("GET", "/chat/completions", None, 404),
        ("GET", "", None, 404),
        *(("POST", "/chat/completions", body, 400) for body in NO_REQUESTS),
    ],
)
def test_an_invalid_request_gets_an_official_error(method, path, body, status):
    response = language_model.session.request(method, URL + path, data=body)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("What time is it?", ["get_time"]),
        ("TIME!", ["get_time"]),
        ("sum 1 and 2", ["sum"]),
        ("Sum up the time", ["get_time", "sum"]),
        ("Sometimes I get the best of summaries", []),
        ("", []),
    ],
)
def test_calls_the_tools_that_the_message_mentions(prompt, names):
    calls = tool_calls(prompt, TIME, SUM)
    assert [call["function"]["name"] for call in calls] == names
    assert len({call["id"] for call in calls}) == len(names)


@pytest.mark.parametrize(
    "name", ["get-the-time-of", "the_time", "time__", "getTime_TIME"]
)
def test_one_word_of_a_tools_name_is_enough(name):
    assert tool_calls("The time", {"name": name})
    assert not tool_calls("get the of", {"name": name})


def test_without_tools_or_a_new_message_it_answers_in_text():
    question = user("What time is it?")
    for messages, given in (
        ([question], None),
        ([question, {}], tools(TIME)),
        ([question, {"role": "assistant"}], tools(TIME)),
    ):
        text = text_of(*messages, tools=given)
        assert text.startswith("**Server-sent events**")


TEXT, NUMBER, INTEGER, FLAG = (
    {"type": kind} for kind in ("string", "number", "integer", "boolean")
)
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}


@pytest.mark.parametrize(
    ("prompt", "properties", "arguments"),
    [
        ("Run in Paris", {"city": TEXT}, {"city": "Paris"}),
        ("Run in paris", {"city": TEXT}, {"city": "paris"}),
        ("Run in Asia/Tokyo", {"zone": TEXT}, {"zone": "Asia/Tokyo"}),
        ("Run it. Then New York, I say", {"city": TEXT}, {"city": "New York"}),
        ("Run", {"city": TEXT}, {}),
        ("Can I run in Paris?", {"city": TEXT}, {"city": "Paris"}),
        (
            "Run from Rome to Paris",
            {"start": TEXT, "end": TEXT, "via": TEXT},
            {"start": "Rome", "end": "Paris"},
        ),
        (
            "Run Rome and Paris",
            {"cities": {"type": "array", "items": TEXT}},
            {"cities": ["Rome", "Paris"]},
        ),
        (
            "Run 3 of -4.5",
            {"a": INTEGER, "b": NUMBER, "c": NUMBER},
            {"a": 3, "b": -4.5},
        ),
        (
            "Run 1-2 and 007",
            {"all": {"type": "array", "items": NUMBER}},
            {"all": [1, 2, 7]},
        ),
        ("Run", {"all": {"type": "array"}}, {"all": []}),
        ("Run in FAHRENHEIT", {"unit": UNIT}, {"unit": "fahrenheit"}),
        ("Run in Paris", {"unit": UNIT}, {}),
        ("Run in millicelsius", {"unit": UNIT}, {}),
        ("Run C", {"by": {"enum": ["C++", "C"]}}, {"by": "C"}),
        ("Run level 2", {"level": {"enum": [1, 2]}}, {"level": 2}),
        ("Run", {"loud": FLAG}, {"loud": True}),
        ("Run", {"any": {}}, {}),
    ],
)
def test_arguments_are_filled_from_the_message(prompt, properties, arguments):
    parameters = {"properties": properties}
    (call,) = tool_calls(prompt, {"name": "run", "parameters": parameters})
    assert json.loads(call["function"]["arguments"]) == arguments


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}])
def test_a_tool_may_have_no_parameters(parameters):
    (call,) = tool_calls("Run", {"name": "run"} | parameters)
    assert call["function"] == {"name": "run", "arguments": "{}"}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("The time and the sum", "get_time returned 9:30. sum returned 7."),
        ("时间和总和", "get_time 返回了 9:30。 sum 返回了 7。"),
    ],
)
def test_the_answer_repeats_the_results_of_tools(prompt, text):
    calls = tool_calls("The sum and the time", TIME, SUM)
    first, second = [call["id"] for call in calls]
    messages = [
        {"role": "tool", "tool_call_id": "before", "content": "old"},
        user(prompt),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": first, "content": "9:30"},
        {"role": "tool", "tool_call_id": second, "content": "7"},
    ]
    assert text_of(*messages, tools=tools(TIME, SUM)) == text


@pytest.mark.parametrize("tool_id", [{}, {"tool_call_id": "another"}])
def test_a_result_of_an_unknown_call_is_repeated_too(tool_id):
    result = {"role": "tool", "content": "7"} | tool_id
    text = "The tool returned 7."
    assert text_of(user("Sum"), result, tools=tools(SUM)) == text


def test_pauses_between_words(plug_in, monkeypatch):
    seconds = []
    event = types.SimpleNamespace(wait=seconds.append, set=lambda: None)
    module = types.SimpleNamespace(Event=lambda: event)
    monkeypatch.setattr(offline_model, "threading", module)
    plug_in(0.25)
    words = []
    for word in deltas(ask([user("Hi")])):
        words.append(word)
        assert seconds == [0.0] + [0.25] * len(words)


@pytest.mark.parametrize("stream", [True, False])
def test_the_body_can_be_read_whole_or_in_pieces(same_ids, stream):
    body = {"messages": [user("Compare")], "stream": stream}
    expected, response = (
        language_model.session.post(
            f"{URL}/chat/completions", json=body, stream=is_read_later
        )
        for is_read_later in (False, True)
    )
    pieces = iter(lambda: response.raw.read1(3, decode_content=True), b"")
    assert expected.content
    assert b"".join(pieces) == expected.content


@pytest.fixture
def waiting(plug_in, monkeypatch):
    """An event that is set when the model begins a long pause."""
    waiting = threading.Event()

    class Event(threading.Event):
        def wait(self, seconds):
            if seconds:
                waiting.set()
            return super().wait(seconds)

    module = types.SimpleNamespace(Event=Event)
    monkeypatch.setattr(offline_model, "threading", module)
    plug_in(3600)
    return waiting


@pytest.mark.parametrize("way", ["raw.shutdown", "close"])
def test_closing_a_response_in_another_thread_ends_the_pause(waiting, way):
    with closing(ask([user("Hi")])) as answer:
        close = attrgetter(way)(answer.open())

        def close_while_it_waits() -> None:
            waiting.wait(30)
            close()

        closer = threading.Thread(target=close_while_it_waits)
        closer.start()
        with pytest.raises(ModelError, match="broke off"):
            list(answer)
        closer.join()


def test_a_shutdown_ends_an_answer_but_not_a_complete_one():
    with closing(ask([user("Hi")])) as answer:
        raw = answer.open().raw
        assert list(answer)
        raw.shutdown()
        assert list(answer) == []
    with closing(ask([user("Hi")])) as answer:
        answer.open().raw.shutdown()
        with pytest.raises(ModelError, match="broke off"):
            next(iter(answer))


def test_a_dropped_response_leaves_nothing_behind(plug_in):
    plug_in(3600)
    threads = threading.active_count()
    gc.disable()  # because reference counting must be enough
    try:
        answer = ask([user("Hi")])
        left = weakref.ref(answer.open().raw._fp)
        assert next(iter(answer))
        assert left() is not None
        assert threading.active_count() == threads
        del answer
        assert left() is None
    finally:
        gc.enable()
