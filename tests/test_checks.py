"""Validate the values in a request, and check which site sent it."""

from io import BytesIO

import pytest
from flask import Flask
from werkzeug.exceptions import HTTPException

import checks
from checks import (
    json_object,
    json_text,
    query_number,
    query_text,
    same_origin_only,
)

request_with = Flask(__name__).test_request_context


def outcome(check, *arguments, **request):
    """Return the result of a check, or the status and message of its error."""
    with request_with(**request):
        try:
            return check(*arguments)
        except HTTPException as error:
            return error.code, error.description


NUMBERS = {
    ("", 1.5): 1.5,
    ("", 3): 3,
    ("other=2", 3): 3,
    ("n=0", 1.5): 0.0,
    ("n=10", 1.5): 10.0,
    ("n=0.01", 1.5): 0.01,
    ("n=.5", 1.5): 0.5,
    ("n=1e1", 1.5): 10.0,
    ("n=1E1", 1.5): 10.0,
    ("n=50e-1", 1.5): 5.0,
    ("n=.5e%2B1", 1.5): 5.0,
    ("n=%2B5", 1.5): 5.0,
    ("n=0", 3): 0,
    ("n=10", 3): 10,
    ("n=07", 3): 7,
    ("n=1&n=2", 3): 1,
}
NO_NUMBERS = (
    *("-0.1", "10.1", "1e999", "nan", "-nan", "inf", "-inf", "Infinity", ""),
    *("x", "1,5", "1s", "0x1", "1\0", "1_0", " 5 ", "٥", "1.", "1e", "+-1"),
    *(".", "e1", "1.5.5", "1e1.5", "5\n"),
)
NO_INTEGERS = ("-1", "11", "1.0", "1e1", "nan", "", "1_0", " 5", "٥", "<b>")


def test_a_number_has_the_type_of_its_default():
    found = {
        (query, default): outcome(
            query_number, "n", default, 0, 10, query_string=query
        )
        for query, default in NUMBERS
    }
    assert found == NUMBERS
    assert all(type(found[case]) is type(case[1]) for case in found)


def test_the_error_says_which_numbers_are_allowed():
    for values, default, kind in [
        (NO_NUMBERS, 1.0, "a number"),
        (NO_INTEGERS, 1, "an integer"),
    ]:
        found = {
            value: outcome(
                query_number, "n", default, 0, 10, query_string={"n": value}
            )
            for value in values
        }
        assert found == {
            value: (400, f"n must be {kind} from 0 to 10, got {value!r}.")
            for value in values
        }


# In quadratic time, the last one would take hours.
def test_very_long_numbers_are_rejected_immediately():
    for number in ("9" * 5000, "." + "9" * 5000 + "x", "9" * 1_000_000 + "x"):
        for default, kind in [(1, "an integer"), (1.0, "a number")]:
            status, sentence = outcome(
                query_number, "n", default, 0, 10, query_string=f"n={number}"
            )
            assert status == 400
            assert sentence == f"n must be {kind} from 0 to 10, got {number!r}."


TEXT = (400, "t must be text of 1 to 3 characters.")


def test_a_text_has_the_right_length():
    texts = {"a": "a", "abc": "abc", "😀😀😀": "😀😀😀", " ": " "}
    texts |= dict.fromkeys(("", "abcd"), TEXT)
    for text, expected in texts.items():
        query = {"t": text}
        assert outcome(query_text, "t", 1, 3, query_string=query) == expected
        assert outcome(json_text, query, "t", 1, 3) == expected
    assert outcome(query_text, "t", 1, 3) == TEXT
    for value in (None, 5, ["abc"], {"a": "b"}, True):
        assert outcome(json_text, {"t": value}, "t", 1, 3) == TEXT
    assert outcome(json_text, {}, "t", 1, 3) == TEXT
    assert outcome(json_text, {"t": ""}, "t", 0, 3) == ""


MAX_BYTES = 100
NOT_JSON = (415, "The body must have the Content-Type application/json.")
NO_OBJECT = (400, 'The body must be a JSON object, such as {"a": 1}.')
TOO_LARGE = (413, "The body must have at most 100 bytes.")
FULL = b'{"a": "' + b"x" * (MAX_BYTES - 9) + b'"}'
BODIES = {
    b'{"a": [null, 1.5, "\xe4\xbd\xa0"]}': {"a": [None, 1.5, "你"]},
    b"{}": {},
    b'{"a": 1, "a": 2}': {"a": 2},
    b'{"\\u0000": "\\ud83d"}': {"\0": "\ud83d"},  # a lone surrogate
    FULL: {"a": "x" * (MAX_BYTES - 9)},
    FULL + b" ": TOO_LARGE,
    b" " * 1000: TOO_LARGE,
} | dict.fromkeys(
    (
        *(b"", b"{", b"{} {}", b"{'a': 1}", b"city=Paris", b"[]", b'"a"'),
        *(b"1", b"null", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'),
        *(b'{"a": "\xff"}', b"[" * MAX_BYTES, b'\xef\xbb\xbf{"a": 1}'),
        *(b'{"a": "\xed\xa0\xbd"}', b'{"a": "\n"}', b'{"a": 1,}', b"{} //"),
    ),
    NO_OBJECT,
)
TYPES = {
    "application/json": {},
    "application/json; charset=utf-8": {},
    "application/problem+json": {},
    "text/plain": NOT_JSON,
    "application/x-www-form-urlencoded": NOT_JSON,
    "application/jsonp": NOT_JSON,
    None: NOT_JSON,
}


def test_a_body_is_a_json_object_of_limited_size():
    found = {
        body: outcome(
            json_object, MAX_BYTES, data=body, content_type="application/json"
        )
        for body in BODIES
    }
    assert found == BODIES


def test_huge_numbers_and_deep_nesting_are_rejected():
    options = {"content_type": "application/json"}
    huge = b'{"a": ' + b"1" * 5000 + b"}"
    assert outcome(json_object, 10**6, data=huge, **options) == NO_OBJECT
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    assert outcome(json_object, 10**6, data=deep, **options) == NO_OBJECT


def test_a_body_has_a_json_content_type():
    found = {
        one: outcome(json_object, MAX_BYTES, data=b"{}", content_type=one)
        for one in TYPES
    }
    assert found == TYPES


class Broken(BytesIO):
    """A connection that drops in the middle of a body."""

    def read(self, size=-1):
        raise ConnectionResetError

    def readinto(self, buffer):
        raise ConnectionResetError


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize(
    ("received", "length"),
    [
        (Broken(), 10),
        (BytesIO(b'{"a": 1}'), 10),
        (BytesIO(b"{}" + b" " * (MAX_BYTES - 2)), MAX_BYTES + 1),
    ],
    ids=["broken", "short", "short and too large"],
)
def test_an_incomplete_body_is_rejected(received, length, terminated):
    received.seek(0)
    environ = {"wsgi.input": received}
    if terminated:  # set by gunicorn and, for chunks, by `flask run`
        environ["wsgi.input_terminated"] = True
    assert outcome(
        json_object,
        MAX_BYTES,
        environ_overrides=environ,
        content_type="application/json",
        content_length=length,
    ) == (400, "The body is incomplete.")


def test_a_smaller_limit_of_the_app_applies():
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 10
    app.add_url_rule(
        "/", view_func=lambda: json_object(MAX_BYTES), methods=["POST"]
    )
    client = app.test_client()
    assert client.post("/", json={"a": 1}).status_code == 200
    assert client.post("/", json={"a": "x" * 10}).status_code == 413


def is_refused(headers: dict[str, str], method: str = "GET") -> bool:
    headers = {"Host": "app.test"} | headers
    found = outcome(same_origin_only, headers=headers, method=method)
    return found == (403, checks.FOREIGN)


BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101"
PAGES = {
    "curl": ({}, False),
    "our page": ({"Sec-Fetch-Site": "same-origin"}, False),
    "another site": ({"Sec-Fetch-Site": "cross-site"}, True),
    "another port or subdomain": ({"Sec-Fetch-Site": "same-site"}, True),
    "a browser over plain HTTP": ({"User-Agent": BROWSER}, True),
    "our page over plain HTTP": (
        {"User-Agent": BROWSER, "Referer": "http://app.test/page?a=1"},
        False,
    ),
    "another page over plain HTTP": (
        {"User-Agent": BROWSER, "Referer": "http://app.test.other.test/"},
        True,
    ),
    "another page over plain HTTP that mentions ours": (
        {"User-Agent": BROWSER, "Referer": "http://x/http://app.test/"},
        True,
    ),
    "a referer that is no URL": (
        {"User-Agent": BROWSER, "Referer": "http://app.test@other.test/"},
        True,
    ),
    "our page that hides its URL": (
        {"User-Agent": BROWSER, "Sec-Fetch-Site": "same-origin"},
        False,
    ),
    "our POST over plain HTTP": (
        {"User-Agent": BROWSER, "Origin": "http://app.test"},
        False,
    ),
    "a user's own navigation": ({"Sec-Fetch-Site": "none"}, True),
    "an empty Sec-Fetch-Site": ({"Sec-Fetch-Site": ""}, True),
    "a prefetch of ours": (
        {"Sec-Fetch-Site": "same-origin", "Sec-Purpose": "prefetch"},
        True,
    ),
    "a prefetch on plain HTTP": ({"Sec-Purpose": "prefetch"}, True),
    "a prerender": (
        {"Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch;prerender"},
        True,
    ),
    "our origin": ({"Origin": "http://app.test"}, False),
    "our origin behind TLS": ({"Origin": "https://app.test"}, False),
    "our page, by both headers": (
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://app.test"},
        False,
    ),
    "our origin with its default port": (
        {"Origin": "http://app.test", "Host": "app.test:80"},
        False,
    ),
    "another origin": ({"Origin": "http://other.test"}, True),
    "a longer host name": ({"Origin": "http://app.test.other.test"}, True),
    "another port": ({"Origin": "http://app.test:8000"}, True),
    "our port": (
        {"Origin": "http://app.test:8000", "Host": "app.test:8000"},
        False,
    ),
    "IPv6": ({"Origin": "http://[::1]:8000", "Host": "[::1]:8000"}, False),
    "IPv6, another port": (
        {"Origin": "http://[::1]:8001", "Host": "[::1]:8000"},
        True,
    ),
    "another scheme": ({"Origin": "ftp://app.test"}, True),
    "a browser extension": ({"Origin": "moz-extension://app.test"}, True),
    "a sandboxed frame": ({"Origin": "null"}, True),
    "an empty origin": ({"Origin": ""}, True),
    "no scheme": ({"Origin": "app.test"}, True),
    "no URL": ({"Origin": "http://["}, True),
    "two headers that disagree": (
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://other.test"},
        True,
    ),
    "a host that Werkzeug rejects": ({"Host": "a_b.test"}, True),
    "the same host as the origin": (
        {"Host": "a_b.test", "Origin": "http://a_b.test"},
        True,
    ),
}


def test_only_our_own_pages_and_api_clients_are_accepted():
    found = {name: is_refused(headers) for name, (headers, _) in PAGES.items()}
    assert found == {name: refused for name, (_, refused) in PAGES.items()}


def test_an_api_client_that_looks_like_a_browser_may_post():
    agent = "Mozilla/5.0 (Windows NT; Windows NT 10.0) WindowsPowerShell/5.1"
    assert not is_refused({"User-Agent": agent}, "POST")
