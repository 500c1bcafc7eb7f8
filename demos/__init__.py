"""The course: its parts, and their lessons in teaching order."""

from types import ModuleType
from typing import NamedTuple

from demos import (
    batch,
    before_sse,
    chat,
    clock,
    completion,
    document,
    hello,
    html,
    markdown,
    notifications,
    numbers,
    post,
    prices,
    progress,
    reconnect,
    resume,
    six_connections,
    thinking,
)


class Part(NamedTuple):
    """Some lessons, and what they are about."""

    title: str
    about: str
    demos: tuple[ModuleType, ...]


PARTS = (
    Part(
        "The protocol",
        "What goes over the wire, and what a browser makes of it.",
        (hello, numbers, clock, thinking, batch, before_sse),
    ),
    Part(
        "Streaming answers",
        "What is slow is shown while it is made, by a language model or not.",
        (completion, chat, post, markdown, html),
    ),
    Part(
        "Many readers",
        "One stream for all who look, whoever comes late, leaves or returns.",
        (notifications, prices, progress, document, resume),
    ),
    Part(
        "What goes wrong",
        "Lost connections, failures, silence, and more streams than allowed.",
        (reconnect, six_connections),
    ),
)

DEMOS = tuple(demo for part in PARTS for demo in part.demos)
