"""The answers of the offline model.

It answers the user's last message in its language, English or Chinese, with one
of the files in `answers/`. If the message mentions tools, it says why it needs
them, and calls them.
"""

import json
import re
import secrets
from itertools import takewhile
from pathlib import Path

TOPICS = {
    "markdown": r"\bmarkdown\b",
    "attack": r"\battack|\bxss\b|攻击",
    "websocket": r"websocket|compar|differ|versus|\bvs\b|区别|比较",
    "reconnect": "reconnect|retry|resume|lost|drop|last.event|重连|重新连接|断",
    "python": "python|flask|code|how (do|can|to)|example|代码|怎么|如何|例子",
    "default": "",  # matches every message
}
ANSWERS = {
    path.stem: path.read_text("utf-8")
    for path in Path(__file__).parent.glob("answers/*.md")
}
THOUGHTS = {
    "en": "I need {} to answer this.",
    "zh": "要回答这个问题，我需要 {}。",
}
RESULTS = {"en": "{} returned {}.", "zh": "{} 返回了 {}。"}
TOOL = {"en": "The tool", "zh": "工具"}
AND = {"en": " and ", "zh": " 和 "}

CHINESE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
# As in real models' tokens, spaces lead. Each Chinese character is a word.
WORD = re.compile(rf"\s*[{CHINESE}]|\s*[^\s{CHINESE}]+|\s+")
NUMBER = re.compile(r"(?:(?<!\w)-)?[0-9]{1,15}(?:\.[0-9]{1,15})?")
# Capitalised words, except "I" and the first word of a sentence.
PROPER_NAME = re.compile(r"(?<=[^.?!]\s)(?!I\b)[A-Z][\w/-]*(?: [A-Z][\w/-]*)*")


def answer_to(messages: list[dict], tools: list[dict]) -> dict:
    """Return the assistant's next message.

    Raises one of several exceptions if the messages or tools are malformed.
    """
    prompt, message = last_prompt(messages), {"role": "assistant"}
    calls = []
    if messages[-1].get("role") == "user":
        calls = _tool_calls(tools, prompt)
    if calls:
        names = [call["function"]["name"] for call in calls]
        language = _language(prompt)
        thought = THOUGHTS[language].format(AND[language].join(names))
        message |= {"content": None, "refusal": None, "tool_calls": calls}
        return message | {"reasoning_content": thought}
    return message | {"content": _text(messages, prompt), "refusal": None}


def last_prompt(messages: list[dict]) -> str:
    """Return the text of the user's last message."""
    prompts = [one for one in messages if one.get("role") == "user"]
    return _content(prompts[-1]) if prompts else ""


def _content(message: dict) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))


def _language(prompt: str) -> str:
    return "zh" if re.search(f"[{CHINESE}]", prompt) else "en"


def _text(messages: list[dict], prompt: str) -> str:
    """Return the results of the tools, if any, or one of the answers."""
    language = _language(prompt)
    results = takewhile(
        lambda message: message.get("role") == "tool", reversed(messages)
    )
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    sentences = [
        RESULTS[language].format(
            names.get(one.get("tool_call_id"), TOOL[language]), _content(one)
        )
        for one in results
    ]
    if sentences:
        return " ".join(reversed(sentences))
    topics = (
        topic
        for topic, pattern in TOPICS.items()
        if re.search(pattern, prompt, re.IGNORECASE)
    )
    return ANSWERS[f"{next(topics)}.{language}"]


def _tool_calls(tools: list[dict], prompt: str) -> list[dict]:
    """Return one call of each tool that the prompt mentions.

    One word of the tool's name is enough: "time" for `get_time`.
    """
    mentioned, calls = set(re.findall("[a-z0-9]+", prompt.lower())), []
    for function in [tool["function"] for tool in tools]:
        name = function["name"]
        words = set(re.split("[_-]", name.lower())) - {"get", "the", "of"}
        if words & mentioned:
            arguments = json.dumps(_arguments(function, prompt))
            call = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
            call["function"] = {"name": name, "arguments": arguments}
            calls.append(call)
    return calls


def _arguments(function: dict, prompt: str) -> dict:
    """Fill in those parameters of the tool for which the prompt has values."""
    found = NUMBER.findall(prompt)
    numbers = [float(one) if "." in one else int(one) for one in found]
    names = PROPER_NAME.findall(prompt) or re.findall(r"\bin (\w+)", prompt)
    parameters, arguments = function.get("parameters") or {}, {}
    for name, schema in parameters.get("properties", {}).items():
        match schema:
            case {"enum": values}:
                if chosen := [one for one in values if _occurs(one, prompt)]:
                    arguments[name] = chosen[0]
            case {"type": "boolean"}:
                arguments[name] = True
            case {"type": "array", "items": {"type": "string"}}:
                arguments[name], names = names, []
            case {"type": "array"}:
                arguments[name], numbers = numbers, []
            case {"type": "number" | "integer"} if numbers:
                arguments[name] = numbers.pop(0)
            case {"type": "string"} if names:
                arguments[name] = names.pop(0)
    return arguments


def _occurs(value: object, prompt: str) -> bool:
    word = re.escape(str(value))
    return re.search(rf"\b{word}\b", prompt, re.IGNORECASE) is not None
