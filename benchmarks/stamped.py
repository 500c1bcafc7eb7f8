"""This app, with the time for its random numbers.

A reader of `numbers` can then tell how long an event was on its way.
"""

import time
from functools import partial

from app import app
from demos import numbers

numbers.numbers = partial(
    numbers.numbers, choose=lambda stop: time.time_ns() // 1_000_000
)

__all__ = ["app"]
