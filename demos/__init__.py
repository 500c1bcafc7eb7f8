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
    uses: other lessons whose views its page requests.
    also_shown: more files that its page shows.
    inline_scripts: scripts in its stream, to be allowed to run.
    wire_beside: its page shows the bytes beside the result.
    """

    module: ModuleType
    long_views: tuple[str, ...] = ("stream",)
    free_offline: bool = False
    uses: tuple[str, ...] = ()
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
                uses=("clock",),
                also_shown=("nginx.conf",),
            ),
            Lesson(client, uses=("numbers",)),
        ),
    ),
    Part(
        "Streaming answers",
        "Show slow results as they are produced, by a language "
        "model or by your own code.",
        (
            Lesson(completion, free_offline=True),
            Lesson(chat, free_offline=True),
            Lesson(post),
            Lesson(markdown, free_offline=True),
            Lesson(html, inline_scripts=(html.SCRIPT,)),
            Lesson(
                relay,
                long_views=("chat_completions",),
                free_offline=True,
            ),
            Lesson(agent, free_offline=True),
        ),
    ),
    Part(
        "Many readers",
        "One stream shared by many clients, including those that "
        "join late or reconnect.",
        (
            Lesson(broadcast),
            Lesson(notifications),
            Lesson(prices),
            Lesson(progress),
            Lesson(console),
            Lesson(document),
            Lesson(resume),
            Lesson(private),
        ),
    ),
)

LESSONS = {
    lesson.name: lesson for part in PARTS for lesson in part.lessons
}
FREE_OFFLINE = frozenset(
    name for name, lesson in LESSONS.items() if lesson.free_offline
)
