"""The lessons, in teaching order."""

from demos import batch, chat, clock, completion, hello, numbers, post, thinking

DEMOS = (hello, numbers, clock, thinking, batch, completion, chat, post)
