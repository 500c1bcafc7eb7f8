"""This app, adapted for the benchmarks.

`numbers` sends the current time, so its clients can measure the delay. `prices`
publishes EVENTS_PER_SECOND events a second.
"""

import os
import time
from functools import partial

from app import app
from demos import numbers, prices

numbers.numbers = partial(
    numbers.numbers, choose=lambda stop: time.time_ns() // 1_000_000
)
prices.STEP_SECONDS = 1 / float(os.environ["EVENTS_PER_SECOND"])

__all__ = ["app"]
