import gc
import json
import threading
import types
import weakref
from contextlib import closing

import pytest
import requests
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

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
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
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
    """Return an answer without streaming, in the official format."""
    body = received(ask(list(messages), stream=False, **options))
    answer = json.loads(body)
    ChatCompletion.model_validate(answer, strict=True)
    return answer


def chunks(*messages: dict, **options) -> list[dict]:
    """Return the chunks of an answer, each in the official format."""
    body = received(ask(list(messages), **options))
    *events, done = [event.data for event in parse_events([body])]
    assert done == "[DONE]"
    found = [json.loads(event) for event in events]
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return found


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_answer_matches_the_prompt_and_its_language(prompt):
    words = list(deltas(ask([user(prompt)])))
    answer = unstreamed(user(prompt))["choices"][0]["message"]["content"]
    assert "".join(words) == answer
    assert answer.startswith(PROMPTS[prompt])
    assert len(words) > 40
    assert all(len(word.split()) <= 1 for word in words)


def test_every_answer_exists_in_both_languages():
    assert set(offline_answers.ANSWERS) == {
        f"{topic}.{language}"
        for topic in offline_answers.TOPICS
        for language in ("en", "zh")
    }


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("topic", CONSTRUCTS)
def test_samples_contain_every_construct(topic, language):
    sample = "\n" + offline_answers.ANSWERS[f"{topic}.{language}"]
    assert [part for part in CONSTRUCTS[topic] if part not in sample] == []


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


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "system", "content": "Be brief."},
        {"role": "user"},
        user(None),
        user(5),
        user([5, {"type": "image_url"}]),
    ],
)
def test_messages_without_text_get_the_default_answer(message):
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


@pytest.mark.parametrize(
    ("prompt", "reason"), [("Compare", "stop"), ("The sum of 1", "tool_calls")]
)
def test_the_official_client_can_join_the_chunks(same_ids, prompt, reason):
    options = {"tools": tools(SUM)}
    state = ChatCompletionStreamState()
    streamed = chunks(
        user(prompt), stream_options={"include_usage": True}, **options
    )
    for chunk in streamed:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    found = state.get_final_completion()
    expected = ChatCompletion.model_validate(
        unstreamed(user(prompt), **options)
    )
    (choice,), (wanted,) = found.choices, expected.choices
    assert choice.finish_reason == wanted.finish_reason == reason
    assert choice.message.content == wanted.message.content
    assert found.usage == expected.usage
    calls, wanted_calls = [
        [
            (call.id, call.type, call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        ]
        for message in (choice.message, wanted.message)
    ]
    assert calls == wanted_calls
    assert bool(calls) == (reason == "tool_calls")


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, "include_usage"]
)
def test_usage_is_sent_only_on_request(options):
    found = chunks(user("Hi"), stream_options=options)
    assert all("usage" not in chunk for chunk in found)


def test_usage_is_sent_last():
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


def test_the_media_type_matches_the_body():
    for stream, media_type in ((True, "text/event-stream"), (False, "json")):
        with closing(ask([user("Hi")], stream=stream)) as answer:
            assert media_type in answer.open().headers["Content-Type"]


def test_lists_its_only_model():
    models = json.loads(received(Answer("/models")))
    assert models["object"] == "list"
    (model,) = models["data"]
    Model.model_validate(model, strict=True)
    assert model["id"] == unstreamed(user("Hi"))["model"] == "offline"


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
    ErrorObject.model_validate(error, strict=True)
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
    (choice,) = unstreamed(user(prompt), tools=tools(TIME, SUM))["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == names
    assert len({call["id"] for call in calls}) == len(names)
    assert (choice["message"]["content"] is None) == bool(names)


@pytest.mark.parametrize(
    "name", ["get-the-time-of", "the_time", "time__", "getTime_TIME"]
)
def test_one_word_of_a_tools_name_is_enough(name):
    options = {"tools": tools({"name": name})}
    for prompt, reason in (("The time", "tool_calls"), ("get the of", "stop")):
        (choice,) = unstreamed(user(prompt), **options)["choices"]
        assert choice["finish_reason"] == reason


@pytest.mark.parametrize("last", [{}, {"role": "assistant"}])
def test_calls_no_tool_until_the_user_writes_again(last):
    text = text_of(user("What time is it?"), last, tools=tools(TIME))
    assert text.startswith("**Server-sent events**")


@pytest.mark.parametrize("absent", [None, []])
def test_without_tools_it_answers_in_text(absent):
    assert text_of(user("What time is it?"), tools=absent)


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
    function = {"name": "run", "parameters": {"properties": properties}}
    answer = unstreamed(user(prompt), tools=tools(function))
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == arguments


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}])
def test_a_tool_may_have_no_parameters(parameters):
    answer = unstreamed(user("Run"), tools=tools({"name": "run"} | parameters))
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "run", "arguments": "{}"}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("The time and the sum", "get_time returned 9:30. sum returned 7."),
        ("时间和总和", "get_time 返回了 9:30。 sum 返回了 7。"),
    ],
)
def test_the_answer_repeats_the_results_of_tools(prompt, text):
    asked = unstreamed(user("The sum and the time"), tools=tools(TIME, SUM))
    message = asked["choices"][0]["message"]
    first, second = [call["id"] for call in message["tool_calls"]]
    messages = [
        {"role": "tool", "tool_call_id": "before", "content": "old"},
        user(prompt),
        message,
        {"role": "tool", "tool_call_id": first, "content": "9:30"},
        {"role": "tool", "tool_call_id": second, "content": "7"},
    ]
    assert text_of(*messages, tools=tools(TIME, SUM)) == text


@pytest.mark.parametrize("tool_id", [{}, {"tool_call_id": "another"}])
def test_a_result_of_an_unknown_call_is_repeated_too(tool_id):
    result = {"role": "tool", "content": "7"} | tool_id
    text = "The tool returned 7."
    assert text_of(user("Sum"), result, tools=tools(SUM)) == text


class Pauses:
    """A stand-in for `threading` that records the pauses and skips them."""

    def __init__(self):
        self.seconds = []

    def Event(self) -> threading.Event:  # noqa: N802
        event = threading.Event()
        event.wait = self.seconds.append
        return event


def test_pauses_between_words(plug_in, monkeypatch):
    pauses = Pauses()
    monkeypatch.setattr(offline_model, "threading", pauses)
    plug_in(0.25)
    words = []
    for word in deltas(ask([user("Hi")])):
        words.append(word)
        assert pauses.seconds == [0.0] + [0.25] * len(words)


def test_each_read_returns_one_word():
    with closing(ask([user("Hi")])) as answer:
        answer.open()
        beginning, *words, _ = answer
    assert b'"role":"assistant"' in beginning
    assert all(word.count(b'{"content":') == 1 for word in words)
    assert len(words) == len(list(deltas(ask([user("Hi")]))))


@pytest.mark.parametrize("stream", [True, False])
def test_the_body_can_be_read_in_any_way(same_ids, stream):
    body = {"messages": [user("Compare")], "stream": stream}
    url = f"{URL}/chat/completions"

    def post(**options) -> requests.Response:
        return language_model.session.post(url, json=body, **options)

    expected = post().content
    assert expected
    assert post(stream=True).raw.read() == expected
    assert b"".join(post(stream=True).iter_content(7)) == expected
    assert b"\n".join(post(stream=True).raw) == b"\n".join(
        expected.splitlines(keepends=True)
    )
    with post(stream=True) as response:
        pieces = iter(lambda: response.raw.read1(3, decode_content=True), b"")
        assert b"".join(pieces) == expected


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


@pytest.mark.parametrize("way", ["answer", "raw.shutdown", "response"])
def test_closing_an_answer_in_another_thread_ends_the_pause(waiting, way):
    with closing(ask([user("Hi")])) as answer:
        response = answer.open()

        def close() -> None:
            waiting.wait(30)
            {
                "answer": answer.close,
                "raw.shutdown": response.raw.shutdown,
                "response": response.close,
            }[way]()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises(ModelError, match="broke off"):
            list(answer)
        closer.join()


def test_an_answer_that_was_closed_before_reading_breaks_off():
    answer = ask([user("Hi")])
    answer.close()
    with pytest.raises(ModelError, match="broke off"):
        list(deltas(answer))


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
