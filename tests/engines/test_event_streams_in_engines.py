"""Firefox and WebKit read event streams as the tables say."""

import pytest
from event_stream_site import CHECKS, check_back, event_stream_site

ADD_FRAME = """
() => {
  const frame = document.createElement("iframe");
  frame.src = "/silence";
  document.body.append(frame);
}
"""
STATE = "() => frames[0]?.document.readyState"


@pytest.mark.parametrize("check", CHECKS)
def test_an_engine_reads_event_streams_as_the_tables_say(engine, check):
    with event_stream_site() as url:
        engine.open(url)
        check(engine.name, engine.run)
        engine.open("about:blank")
        engine.problems.clear()  # Firefox reports each failed response


def test_back_shows_a_page_as_the_tables_say(engine):
    with event_stream_site() as url:
        engine.open(url)
        engine.run(ADD_FRAME)
        engine.wait_for("() => frames[0].document.body?.textContent")
        engine.open(f"{url}?elsewhere")
        engine.back(url)
        check_back(engine.name, engine.run(STATE))
        engine.open("about:blank")
