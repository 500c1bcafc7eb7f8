"""The course: its parts, and their lessons in teaching order."""

from types import ModuleType
from typing import NamedTuple

from demos import (
    agent,
    batch,
    before_sse,
    broadcast,
    chat,
    client,
    clock,
    completion,
    console,
    document,
    hello,
    html,
    markdown,
    notifications,
    numbers,
    post,
    prices,
    private,
    progress,
    reconnect,
    relay,
    resume,
    six_connections,
    thinking,
)


class Lesson(NamedTuple):
    """A lesson, and what the website must know about it.

    long_views: views that keep a connection open, to be limited.
    free_offline: costs money unless the offline model answers. Then
        pages of other sites may use it, too.
    also_shown: more files that its page shows.
    inline_scripts: scripts in its stream, to be allowed to run.
    wire_beside: its page shows the bytes beside the result.
    """

    module: ModuleType
    long_views: tuple[str, ...] = ("stream",)
    free_offline: bool = False
    also_shown: tuple[str, ...] = ()
    inline_scripts: tuple[str, ...] = ()
    wire_beside: bool = False

    @property
    def name(self) -> str:
        return self.module.bp.name


class Part(NamedTuple):
    """A group of lessons, and what they have in common."""

    title: str
    about: str
    lessons: tuple[Lesson, ...]


EVENT_STREAM = "static/event-stream.js"
SEND_JSON = "static/send-json.js"

PARTS = (
    Part(
        "The protocol",
        "What the server sends, and what the browser's EventSource "
        "does with it.",
        (
            Lesson(hello, wire_beside=True),
            Lesson(clock, wire_beside=True),
            Lesson(thinking, wire_beside=True),
            Lesson(numbers, wire_beside=True),
            Lesson(batch, wire_beside=True),
            Lesson(
                before_sse,
                long_views=("stream", "long_poll", "socket"),
            ),
        ),
    ),
    Part(
        "When connections fail",
        "How the browser reconnects and resumes, and why the "
        "seventh stream hangs.",
        (
            Lesson(reconnect, wire_beside=True),
            Lesson(
                six_connections,
                also_shown=("demos/clock.py", "nginx.conf"),
            ),
            Lesson(client, also_shown=("demos/numbers.py",)),
        ),
    ),
    Part(
        "Streaming answers",
        "Show slow results as they are produced, by a language "
        "model or by your own code.",
        (
            Lesson(completion, free_offline=True),
            Lesson(chat, free_offline=True),
            Lesson(post, also_shown=(EVENT_STREAM,)),
            Lesson(markdown, free_offline=True),
            Lesson(html, inline_scripts=(html.SCRIPT,)),
            Lesson(
                relay,
                long_views=("chat_completions",),
                free_offline=True,
                also_shown=(EVENT_STREAM, SEND_JSON),
            ),
            Lesson(agent, free_offline=True),
        ),
    ),
    Part(
        "Many readers",
        "One stream shared by many clients, including those that "
        "join late or reconnect.",
        (
            Lesson(broadcast, also_shown=(SEND_JSON,)),
            Lesson(notifications, also_shown=(SEND_JSON,)),
            Lesson(
                prices,
                also_shown=(
                    "static/chart.js",
                    "static/price-table.js",
                ),
            ),
            Lesson(progress, also_shown=(SEND_JSON,)),
            Lesson(console),
            Lesson(document),
            Lesson(resume, also_shown=(SEND_JSON,)),
            Lesson(private, also_shown=(SEND_JSON,)),
        ),
    ),
)

LESSONS = {
    lesson.name: lesson for part in PARTS for lesson in part.lessons
}
FREE_OFFLINE = frozenset(
    name for name, lesson in LESSONS.items() if lesson.free_offline
)
