"""The official OpenAI client, with this app and compared with it.

A fixture imports the client, which takes half a second of CPU time.
"""

import json

import httpx
import pytest
from upstream import (
    DONE,
    ERRORS,
    FAULTS,
    FINISH,
    HARMLESS_ANSWERS,
    HELLO,
    OFFICIAL_CLIENT_FAILS,
    ROLE,
    delta,
    event,
    page,
    stream,
)

from app import create_app
from language_model import tool


@pytest.fixture(scope="session")
def openai():
    import openai

    return openai


@pytest.fixture
def connect(openai):
    """Return a function that connects the client to a URL, or to an app."""

    def connect(url="http://localhost/v1", app=None):
        http_client = app and httpx.Client(transport=httpx.WSGITransport(app))
        return openai.OpenAI(
            base_url=url,
            api_key="caller-key",
            max_retries=0,
            http_client=http_client,
        )

    return connect


@pytest.fixture
def relayed(connect, upstream, monkeypatch):
    """A client of an app that relays the answers of the upstream."""
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    with connect(app=create_app()) as official:
        yield official


def ask(official, prompt="Hi", **options):
    messages = [{"role": "user", "content": prompt}]
    return official.chat.completions.create(
        model="a", messages=messages, **options
    )


def text_read_by(official) -> str:
    """Return the text of a streamed answer.

    The client passes on everything it receives, so be tolerant.
    """
    text = ""
    for each in ask(official, stream=True):
        for choice in each.choices or ():
            content = (choice.delta and choice.delta.content) or ""
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            text += content
    return text


def test_official_client_reads_nearly_all_answers_that_we_read(
    connect, upstream
):
    failed = set()
    with connect(upstream.url) as official:
        for name, upstream.answer in HARMLESS_ANSWERS.items():
            try:
                assert text_read_by(official) == "Hello", name
            except json.JSONDecodeError:
                failed.add(name)
    assert failed == OFFICIAL_CLIENT_FAILS


def test_official_client_raises_only_some_errors(openai, connect, upstream):
    raised = {}
    with connect(upstream.url) as official:
        for name, (error, _) in ERRORS.items():
            upstream.answer = stream(delta("Hello"), error, FINISH, DONE)
            try:
                raised[name] = text_read_by(official) != "Hello"
            except (openai.APIError, json.JSONDecodeError):
                raised[name] = True
    assert raised == {name: raises for name, (_, raises) in ERRORS.items()}


def summary(completion) -> tuple:
    """Return what is the same in an answer and in its joined chunks."""
    (choice,) = completion.choices
    calls = [
        (call.type, call.function.name, call.function.arguments)
        for call in choice.message.tool_calls or ()
    ]
    content, reason = choice.message.content, choice.finish_reason
    return content, calls, reason, completion.usage


def check_answer(official, prompt="Hi", **options) -> list:
    """Compare both forms of an answer. Return all objects received."""
    complete = ask(official, prompt, **options)
    with official.chat.completions.stream(
        model="a",
        messages=[{"role": "user", "content": prompt}],
        stream_options={"include_usage": True},
        **options,
    ) as streamed:
        chunks = [one.chunk for one in streamed if one.type == "chunk"]
        assert summary(streamed.get_final_completion()) == summary(complete)
    return [complete, *chunks]


def test_official_client_works_offline(openai, connect):
    tools = [tool("sum", {"numbers": {"type": "array"}})]
    tools[0]["function"]["strict"] = True  # or the client won't join calls
    with connect(app=create_app({"OFFLINE_WORD_SECONDS": 0})) as official:
        text = check_answer(official, "Compare")
        call = check_answer(official, "The sum of 1", tools=tools)
        models = list(official.models.list())
        for one in (*text, *call, *models):
            type(one).model_validate(one.to_dict(), strict=True)
        with pytest.raises(openai.NotFoundError, match="/v1/embeddings") as e:
            official.embeddings.create(model="a", input="Hi")
        openai.types.ErrorObject.model_validate(e.value.body, strict=True)
    assert text[0].choices[0].finish_reason == "stop"
    assert call[0].choices[0].finish_reason == "tool_calls"
    assert [model.id for model in models] == [text[0].model]


def test_official_client_works_online(relayed, upstream):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    message = {"role": "assistant", "content": "Hello"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"object": "chat.completion", "choices": [choice], "usage": usage}
    complete = page(json.dumps(body).encode())
    last = {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    streamed = stream(*HELLO[:-1], event(last), DONE)
    upstream.answer = lambda connection: (
        streamed if connection.request.json["stream"] else complete
    )(connection)
    check_answer(relayed)
    model = {"id": "a", "object": "model", "created": 1, "owned_by": "us"}
    upstream.answer = page(json.dumps({"data": [model]}).encode())
    assert [one.id for one in relayed.models.list()] == ["a"]


def test_official_client_raises_when_an_answer_fails(openai, relayed, upstream):
    for name in ("401", "cut, chunked", "an error object"):
        upstream.answer = FAULTS[name].answer
        with pytest.raises(openai.APIError):
            list(ask(relayed, stream=True))
    upstream.answer = stream(ROLE, delta("Hello")[:-9], end="cut")
    with pytest.raises(json.JSONDecodeError):
        list(ask(relayed, stream=True))
