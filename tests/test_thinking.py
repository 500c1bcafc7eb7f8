from functools import partial

from playwright.sync_api import expect

from demos import thinking
from demos.thinking import think
from event_source import parse_events

PATH = "/stream/thinking?question=Why"


def test_sends_exactly_these_bytes():
    happened = []
    for event in think("Why {}?", seen=3, pause=0.8, sleep=happened.append):
        happened.append(event.encode().decode())
    assert happened == [
        "id: 4\nevent: thinking\ndata: Choosing the words\n\n",
        0.8,
        "id: 5\nevent: answer\ndata: The answer to “Why {}?” is 42.\n\n",
    ]


def test_resumes_after_the_last_event_id(client):
    for last, next_id in {"2": "3", "4": "5", "x": "1"}.items():
        with client.get(PATH, headers={"Last-Event-ID": last}) as response:
            assert next(parse_events(response.response)).id == next_id


def test_a_reconnect_after_the_answer_gets_204(client):
    for last in ("5", "6"):
        response = client.get(PATH, headers={"Last-Event-ID": last})
        assert response.status_code == 204


def test_page_shows_the_thoughts_then_the_answer_and_closes(
    live, page, monkeypatch
):
    monkeypatch.setattr(thinking, "think", partial(think, pause=0.01))
    page.goto(f"{live.url}/demos/thinking")
    page.get_by_label("Question").fill("<b>Why?</b>")
    page.get_by_role("button", name="Ask").click()
    page.locator("#thoughts").get_by_text("Reading").wait_for()
    answer = page.locator("#answer")
    expect(answer).to_have_text("The answer to “<b>Why?</b>” is 42.")
    thoughts = page.locator("#thoughts > *")
    assert thoughts.count() == 4
    expect(thoughts.first).to_have_text("Choosing the words")
    expect(page.locator("#state")).to_have_text("closed")
