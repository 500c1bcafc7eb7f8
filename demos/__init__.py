"""The lessons, in teaching order."""

from demos import (
    batch,
    chat,
    clock,
    completion,
    hello,
    html,
    markdown,
    numbers,
    post,
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
)
