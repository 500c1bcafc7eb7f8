"""Firefox and WebKit read event streams as the tables say."""

import pytest
from event_stream_site import CHECKS, event_stream_site


@pytest.mark.parametrize("check", CHECKS)
def test_an_engine_reads_event_streams_as_the_tables_say(engine, check):
    with event_stream_site() as url:
        engine.open(url)
        check(engine.name, engine.run)
        engine.open("about:blank")
