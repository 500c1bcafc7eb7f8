"""The lessons, in teaching order."""

from demos import (
    batch,
    chat,
    clock,
    completion,
    hello,
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
)
