"""The lessons, in teaching order."""

from demos import (
    batch,
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
    resume,
    thinking,
)

DEMOS = (
    hello,
    numbers,
    clock,
    thinking,
    batch,
    completion,
    chat,
    post,
    markdown,
    html,
    notifications,
    prices,
    progress,
    document,
    resume,
)
