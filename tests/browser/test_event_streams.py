"""Chromium reads event streams as the tables say."""

import pytest
from event_stream_site import CHECKS, event_stream_site


@pytest.mark.parametrize("check", CHECKS)
def test_chromium_reads_event_streams_as_the_tables_say(browser, check):
    page = browser.new_page()
    with event_stream_site() as url:
        page.goto(url)
        check("chromium", page.evaluate)
        page.close()
