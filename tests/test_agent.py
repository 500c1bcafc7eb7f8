import json
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from conftest import read_until, wait_until, without_comments
from playwright.sync_api import expect
from upstream import (
    BROKEN_EVENT,
    DONE,
    FAULTS,
    FINISH,
    HELLO,
    ROLE,
    chunk,
    delta,
    stream,
)

from app import create_app
from demos import agent
from event_source import parse_events

RETRY = b"retry: 86400000\n"
PATH = "/stream/agent?question=Hi"
QUESTION = {"role": "user", "content": "Hi"}


@pytest.fixture
def app(online_app):
    return online_app


def in_turn(upstream, *answers):
    """Return an answer that is another one for each request."""
    return lambda connection: answers[len(upstream.requests) - 1](connection)


def pieces(*calls: dict) -> bytes:
    """Return a chunk with pieces of tool calls."""
    return chunk({"tool_calls": list(calls)})


def piece(index, arguments, **others) -> dict:
    return {"index": index, "function": {"arguments": arguments}} | others


def first(index, id, name, arguments="", **others) -> dict:
    function = {"name": name, "arguments": arguments}
    start = {"id": id, "type": "function", "function": function} | others
    return start if index is None else {"index": index} | start


def called(id, name, arguments) -> dict:
    """Return a complete call, as it is sent back to the model."""
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


END = (chunk({}, "tool_calls"), DONE)
SUM = called("a", "get_sum", '{"numbers": [1, 2]}')
OTHER = called("b", "get_sum", '{"numbers": [30, 4]}')


def events_of(body: bytes) -> list[tuple[str, object]]:
    """Return the type and data of each event, with JSON parsed."""
    return [
        (
            event.event,
            json.loads(event.data) if event.data[0] == "{" else event.data,
        )
        for event in parse_events([body])
    ]


# The conversation


def test_sends_exactly_these_bytes_and_returns_results_to_the_model(
    client, upstream
):
    upstream.answer = in_turn(
        upstream,
        stream(
            ROLE,
            chunk({"content": None, "reasoning_content": "Add\n"}),
            chunk({"reasoning_content": " them."}),
            delta("One"),
            delta(" moment"),
            pieces(first(0, "a", "get_sum")),
            pieces(piece(0, '{"numbers":')),
            pieces(piece(0, " [1, 2]}"), first(1, **flat(OTHER))),
            *END,
        ),
        stream(*HELLO),
    )
    response = client.get(PATH)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert without_comments(response.data) == (
        RETRY
        + b"id: 1\nevent: thinking\ndata: Add\ndata: \n\n"
        + b"id: 1\nevent: thinking\ndata:  them.\n\n"
        + b"id: 1\nevent: text\ndata: One\n\n"
        + b"id: 1\nevent: text\ndata:  moment\n\n"
        + b'event: tool\ndata: {"id":"a","name":"get_sum",'
        + b'"arguments":"{\\"numbers\\": [1, 2]}"}\n\n'
        + b'event: result\ndata: {"tool_call_id":"a","content":"3"}\n\n'
        + b'event: tool\ndata: {"id":"b","name":"get_sum",'
        + b'"arguments":"{\\"numbers\\": [30, 4]}"}\n\n'
        + b'event: result\ndata: {"tool_call_id":"b","content":"34"}\n\n'
        + b"id: 1\nevent: text\ndata: Hello\n\n"
        + b"event: done\ndata: [DONE]\n\n"
    )
    asked, again = [request.json for request in upstream.requests]
    assert asked["messages"] == [QUESTION]
    assert asked["tools"] == again["tools"] == agent.TOOLS
    assert again["messages"] == [
        QUESTION,
        {
            "role": "assistant",
            "content": "One moment",
            "reasoning_content": "Add\n them.",
            "tool_calls": [SUM, OTHER],
        },
        {"role": "tool", "tool_call_id": "a", "content": "3"},
        {"role": "tool", "tool_call_id": "b", "content": "34"},
    ]


def flat(call: dict) -> dict:
    return {"id": call["id"]} | call["function"]


SIGNED = {"extra_content": {"google": {"thought_signature": "x"}}}
A, B = [flat(call) for call in (SUM, OTHER)]
STREAMED_CALLS = {
    "in turn": [
        *(pieces(first(0, "a", "get_sum")), pieces(piece(0, '{"numbers": '))),
        *(pieces(piece(0, "[1, 2]}")), pieces(first(1, "b", "get_sum"))),
        *(pieces(piece(1, '{"numbers": ')), pieces(piece(1, "[30, 4]}"))),
    ],
    "interleaved": [
        pieces(first(0, "a", "get_sum"), first(1, "b", "get_sum")),
        pieces(piece(1, '{"numbers": '), piece(0, '{"numbers": [')),
        *(pieces(piece(0, "1, 2]}")), pieces(piece(1, "[30, 4]}"))),
    ],
    "from index 1": [pieces(first(1, **A)), pieces(first(2, **B))],
    "whole": [pieces(first(0, **A), first(1, **B))],
    "whole, index 0 twice": [pieces(first(0, **A)), pieces(first(0, **B))],
    "in pieces, index 0 twice": [
        *(pieces(first(0, "a", "get_sum")), pieces(piece(0, '{"numbers": '))),
        *(pieces(piece(0, "[1, 2]}")), pieces(first(0, "b", "get_sum"))),
        pieces(piece(0, '{"numbers": [30, 4]}')),
    ],
    "whole, without index": [pieces(first(None, **A), first(None, **B))],
    "in pieces, without index": [
        *(pieces(first(None, "a", "get_sum")), pieces(first(None, "", ""))),
        pieces({"function": {"arguments": '{"numbers": [1, 2]}'}}),
        *(pieces(first(None, "b", "get_sum")),),
        pieces({"id": "b", "function": {"arguments": '{"numbers": [30, 4]}'}}),
    ],
    "empty strings, and null": [
        pieces(first(0, "a", "get_sum", None), first(1, "b", "get_sum", "")),
        pieces(first(0, "", "", '{"numbers": [1,'), first(1, None, None, None)),
        pieces(first(0, None, None, " 2]}"), {"index": 1, "function": None}),
        pieces({"index": 0}, first(1, "", "", '{"numbers": [30, 4]}')),
    ],
    "id and name in every piece": [
        pieces(first(0, "a", "get_sum", '{"numbers": ')),
        pieces(first(0, "a", "get_sum", "[1, 2]}"), first(1, **B)),
    ],
}
"""Two calls, as the official API and others stream them."""


@pytest.mark.parametrize("name", STREAMED_CALLS)
def test_pieces_become_the_same_two_calls(client, upstream, name):
    calls = stream(ROLE, *STREAMED_CALLS[name], FINISH, DONE)
    upstream.answer = in_turn(upstream, calls, stream(*HELLO))
    events = events_of(client.get(PATH).data)
    assert events == [
        ("tool", flat(SUM)),
        ("result", {"tool_call_id": "a", "content": "3"}),
        ("tool", flat(OTHER)),
        ("result", {"tool_call_id": "b", "content": "34"}),
        ("text", "Hello"),
        ("done", "[DONE]"),
    ]
    assert upstream.requests[1].json["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [SUM, OTHER],
    }


def test_extra_fields_go_back_to_the_model_and_are_not_arguments(
    client, upstream
):
    call = first(0, **A) | SIGNED
    call["function"] |= {"strict": None, "id": 5}
    upstream.answer = in_turn(
        upstream, stream(pieces(call), *END), stream(*HELLO)
    )
    assert events_of(client.get(PATH).data) == [
        ("tool", flat(SUM)),
        ("result", {"tool_call_id": "a", "content": "3"}),
        ("text", "Hello"),
        ("done", "[DONE]"),
    ]
    (sent,) = upstream.requests[1].json["messages"][1]["tool_calls"]
    function = SUM["function"] | {"strict": None, "id": 5}
    assert sent == SUM | SIGNED | {"function": function}


def test_a_call_without_an_id_gets_one(client, upstream):
    calls = [first(index, None, "get_sum", "[]") for index in (0, 1)]
    calls = stream(pieces(*calls), *END)
    upstream.answer = in_turn(upstream, calls, stream(*HELLO))
    assert events_of(client.get(PATH).data)[-1] == ("done", "[DONE]")
    _, message, *results = upstream.requests[1].json["messages"]
    ids = [call["id"] for call in message["tool_calls"]]
    assert ids == ["call_0", "call_1"]
    assert [result["tool_call_id"] for result in results] == ids


def test_a_call_without_a_name_reports_an_error_to_the_model(client, upstream):
    calls = stream(pieces(piece(0, "{}", id="a")), *END)
    upstream.answer = in_turn(upstream, calls, stream(*HELLO))
    _, result, *rest = events_of(client.get(PATH).data)
    content = "Error: KeyError('')"
    assert result == ("result", {"tool_call_id": "a", "content": content})
    assert rest == [("text", "Hello"), ("done", "[DONE]")]


def test_asks_at_most_five_times(client, upstream):
    upstream.answer = stream(pieces(first(0, **A)), *END)
    *events, last = events_of(client.get(PATH).data)
    assert [kind for kind, _ in events] == ["tool", "result"] * 5
    assert last == ("failed", {"error": "No answer after 5 rounds."})
    assert len(upstream.requests) == 5


# The tools


def test_get_time_returns_the_time_in_a_time_zone():
    before = datetime.now(ZoneInfo("Asia/Kolkata"))
    found = agent.run("get_time", '{"time_zone": "Asia/Kolkata"}')
    after = datetime.now(ZoneInfo("Asia/Kolkata"))
    assert found in (f"{before:%H:%M}", f"{after:%H:%M}")


def test_an_error_is_a_result_that_the_model_can_read():
    for name, arguments, error in [
        ("get_sum", '{"numbers": [1', "JSONDecodeError("),
        ("get_sum", "[" * 100_000, "RecursionError("),
        ("get_sum", "[1, 2]", "TypeError("),
        ("get_sum", "null", "TypeError("),
        ("get_sum", "", "TypeError("),
        ("get_sum", '{"values": [1]}', "TypeError("),
        ("get_sum", '{"numbers": ["1"]}', "TypeError("),
        ("get_time", '{"time_zone": "Atlantis"}', "ZoneInfoNotFoundError("),
        ("get_time", '{"time_zone": "../../etc/passwd"}', "ValueError("),
        ("get_time", '{"time_zone": 5}', "TypeError("),
        ("get_weather", "{}", "KeyError('get_weather')"),
    ]:
        assert agent.run(name, arguments).startswith(f"Error: {error}")


# What goes wrong


def test_a_bad_delta_ends_the_stream_with_a_failure(client, upstream):
    for bad in [
        {"tool_calls": 5},
        {"tool_calls": ["get_sum"]},
        {"tool_calls": [None]},
        {"tool_calls": [first([], **A)]},
        {"tool_calls": [first(0, **A | {"id": float("nan")})]},
        {"tool_calls": [{"index": 0, "function": "get_sum"}]},
        {"tool_calls": [piece(0, 5)]},
        {"tool_calls": [piece(0, {"numbers": []})]},
        {"reasoning": 5},
        {"reasoning": ["Hm."]},
    ]:
        upstream.answer = stream(delta("Hello"), chunk(bad), *END)
        assert events_of(client.get(PATH).data) == [
            ("text", "Hello"),
            ("failed", {"error": BROKEN_EVENT}),
        ], bad


def test_a_disconnect_during_a_long_tool_call_closes_the_connection(
    client, upstream, monkeypatch
):
    monkeypatch.setattr(agent, "NOTICE_SECONDS", 0.01)

    def long(connection):
        start = pieces(first(0, "a", "get_sum", '{"numbers": ['))
        stream(start, framing="close", end="silent")(connection)
        for _ in range(1000):
            if not connection.disconnected.wait(0.02):
                connection.send(pieces(piece(0, "1, ")))
        connection.close()

    upstream.answer = long
    with client.get(PATH) as response:
        chunks = iter(response.response)
        read_until(chunks, b":\n")
        wait_until(lambda: upstream.requests)
        assert [next(chunks) for _ in range(3)] == [b":\n"] * 3
    wait_until(upstream.connections[0].disconnected.is_set)


# The offline model


def test_the_offline_model_thinks_calls_two_tools_and_answers():
    client = create_app({"OFFLINE_WORD_SECONDS": 0}).test_client()
    query = {"question": "What time is it in Asia/Tokyo? And the sum of 1,2"}
    response = client.get("/stream/agent", query_string=query)
    events = events_of(response.data)
    kinds = [kind for kind, _ in events]
    thoughts, words = kinds.count("thinking"), kinds.count("text")
    assert kinds == (
        ["thinking"] * thoughts
        + ["tool", "result"] * 2
        + ["text"] * words
        + ["done"]
    )
    assert min(thoughts, words) > 4
    calls = [data for kind, data in events if kind == "tool"]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("get_time", '{"time_zone": "Asia/Tokyo"}'),
        ("get_sum", '{"numbers": [1, 2]}'),
    ]
    answer = "".join(data for kind, data in events if kind == "text")
    time_there, total = [
        data["content"] for kind, data in events if kind == "result"
    ]
    assert answer == (
        f"get_time returned {time_there}. get_sum returned {total}."
    )


# The page


def test_page_shows_thoughts_calls_and_the_answer_or_a_failure(
    live, upstream, page
):
    calls = [
        chunk({"reasoning": "Add"}),
        chunk({"reasoning": " <b>them</b>"}),
        pieces(first(0, **A), first(1, "b", "get_time", "<i>")),
    ]
    answer, sentence, _ = FAULTS["401"]
    upstream.answer = in_turn(
        upstream,
        stream(*calls, *END),
        stream(delta("It"), delta(" is"), *HELLO),
        answer,
    )
    page.goto(f"{live.url}/demos/agent")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#state")).to_have_text("closed")
    shown = page.locator("#log p").all_text_contents()
    thought, total, failure, answer = shown
    assert thought == "Add <b>them</b>"
    assert total == 'get_sum({"numbers": [1, 2]}) → 3'
    assert failure.startswith("get_time(<i>) → Error: JSONDecodeError(")
    assert answer == "It isHello"
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#log")).to_have_text(sentence)
    expect(page.locator("#state")).to_have_text("closed")
