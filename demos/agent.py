"""Agent: stream a model's reasoning and tool calls

Show what a model thinks, which tools it calls, and what it answers.
If the model calls tools, the server runs them, sends the results
back, and asks again. That takes several requests to the model, but
the browser reads just one stream.

Notice: a tool call arrives in pieces, and one answer can contain
several calls. The `index` of a piece says which call it belongs to.
A tool's error also goes back to the model, which can then try
again. After five rounds, the server stops asking.

Try: with `flask run --reload`, change `return sum(numbers)` to
`return max(numbers)`, save, and press Ask. The model answers 23,
because it believes its tools. Then ask "What time is it in
Atlantis?" The tool fails, and the model reads the error.

    curl -N "http://127.0.0.1:5000/stream/agent?question=Sum+of+1,2"
"""

import json
from datetime import datetime
from zoneinfo import ZoneInfo

from flask import Blueprint, request

from checks import query_text, same_origin_only
from language_model import ModelError, ask, message_deltas, tool
from sse import Event, EventStream, keep_alive

MAX_QUESTION_CHARACTERS = 4000
MAX_ROUNDS = 5
NOTICE_SECONDS = 0.5  # to notice a disconnect: tokens cost money
DAY_MS = 24 * 60 * 60 * 1000  # retry delay: never ask twice
ASKED = ("name", "arguments")  # some APIs add other fields

bp = Blueprint("agent", __name__)
bp.before_request(same_origin_only)  # an answer costs money


@bp.get("/stream/agent")
def stream():
    question = query_text("question", 1, MAX_QUESTION_CHARACTERS)
    if "Last-Event-ID" in request.headers:
        return "", 204  # never pay twice for a question
    return EventStream(agent(question), retry=DAY_MS)


def get_time(time_zone):
    return f"{datetime.now(ZoneInfo(time_zone)):%H:%M}"


def get_sum(numbers):
    return sum(numbers)


FUNCTIONS = {"get_time": get_time, "get_sum": get_sum}
# The parameters of each function, as JSON Schema for the model.
TIME = {"time_zone": {"type": "string"}}
SUM = {"numbers": {"type": "array", "items": {"type": "number"}}}
TOOLS = [tool("get_time", TIME), tool("get_sum", SUM)]


def run(name, arguments):
    try:
        return str(FUNCTIONS[name](**json.loads(arguments or "{}")))
    except Exception as error:  # the model can correct its mistake
        return f"Error: {error!r}"


def agent(question):
    messages = [{"role": "user", "content": question}]
    try:
        for _ in range(MAX_ROUNDS):
            message = yield from read(ask(messages, tools=TOOLS))
            messages.append(message)
            if not message["tool_calls"]:
                yield Event("[DONE]", event="done")
                return
            for call in message["tool_calls"]:
                id, function = call["id"], call["function"]
                asked = {key: function[key] for key in ASKED}
                yield Event({"id": id} | asked, event="tool")
                content = run(**asked)
                result = {"tool_call_id": id, "content": content}
                yield Event(result, event="result")
                messages.append({"role": "tool"} | result)
        raise ModelError(f"No answer after {MAX_ROUNDS} rounds.")
    except ModelError as error:
        yield Event({"error": str(error)}, event="failed")


def read(answer):
    message, calls = {"role": "assistant", "content": None}, {}
    events = collect(answer, message, calls)
    # It also yields None, and so notices a disconnect, while the
    # model pauses or sends a long tool call.
    yield from keep_alive(events, NOTICE_SECONDS, answer.close)
    # Some models want everything back, including their reasoning.
    return message | {"tool_calls": list(calls.values())}


def collect(answer, message, calls):
    for delta in message_deltas(answer):
        for field in ("reasoning", "reasoning_content", "content"):
            if text := delta[field]:
                message[field] = (message.get(field) or "") + text
                kind = "text" if field == "content" else "thinking"
                yield Event(text, event=kind, id=1)
        # The index says which call the arguments belong to.
        for index, call, arguments in delta["tool_calls"]:
            call = calls.setdefault(index, call)
            call["function"]["arguments"] += arguments
