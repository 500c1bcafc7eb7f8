"""The lessons, in teaching order."""

from demos import batch, clock, completion, hello, numbers, thinking

DEMOS = (hello, numbers, clock, thinking, batch, completion)
