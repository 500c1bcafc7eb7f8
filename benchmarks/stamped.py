"""This app, with the current time instead of random numbers.

From it, a client of `numbers` can compute how long an event took to arrive.
"""

import time
from functools import partial

from app import app
from demos import numbers

numbers.numbers = partial(
    numbers.numbers, choose=lambda stop: time.time_ns() // 1_000_000
)

__all__ = ["app"]
