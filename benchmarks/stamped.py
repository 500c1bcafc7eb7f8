"""This app, with the current time instead of random numbers.

A client of `numbers` compares it with its own clock to get the delay.
"""

import time
from functools import partial

from app import app
from demos import numbers

numbers.numbers = partial(
    numbers.numbers, choose=lambda stop: time.time_ns() // 1_000_000
)

__all__ = ["app"]
