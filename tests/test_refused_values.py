"""Query values that the lessons refuse, and the errors that they send."""

INTERVALS = (
    *("/sse", "/real-time-updates", "/poll", "/api/sse"),
    *("/stream/client", "/stream/prices"),
)
INTERVAL = "interval must be a number from 0.01 to 10, got {!r}."
QUESTION = "question must be text of 1 to 200 characters."
RETRY = "retry must be an integer from 0 to 60000, got {!r}."
DROP_AFTER = "drop_after must be an integer from 0 to 100, got {!r}."
LAST = "last must be an integer from 0 to 1000000000000000, got {!r}."
STATUS = "status must be one of 200, 204, 301, 307, 401, 404, 500, 503, text."
REFUSED = [
    *((path, "interval", "0.009", INTERVAL) for path in INTERVALS),
    *((path, "interval", "10.1", INTERVAL) for path in INTERVALS),
    ("/sse", "lang", "", "lang must be en or zh, got {!r}."),
    ("/sse", "lang", "EN", "lang must be en or zh, got {!r}."),
    ("/stream/thinking", "question", "", QUESTION),
    ("/stream/thinking", "question", "x" * 201, QUESTION),
    (
        *("/stream/batch", "rate", "10001"),
        "rate must be an integer from 1 to 10000, got {!r}.",
    ),
    (
        *("/stream/batch", "flush", "5001"),
        "flush must be an integer from 0 to 5000, got {!r}.",
    ),
    (
        *("/stream/batch", "flush", "9"),
        "flush must be 0 (no batches), or 10 to 5000.",
    ),
    (
        *("/poll", "after", "-1"),
        "after must be an integer from 0 to 1000000000000000, got {!r}.",
    ),
    ("/stream/reconnect", "retry", "-1", RETRY),
    ("/stream/reconnect", "retry", "60001", RETRY),
    ("/stream/reconnect", "drop_after", "-1", DROP_AFTER),
    ("/stream/reconnect", "drop_after", "101", DROP_AFTER),
    ("/stream/reconnect", "last", "-1", LAST),
    ("/stream/reconnect", "last", "1000000000000001", LAST),
    ("/stream/reconnect", "drop", "", "drop must be one of end, cut, silence."),
    ("/stream/reconnect", "status", "201", STATUS),
    (
        *("/stream/html", "fail", "nope"),
        "fail must be one of trains, weather, mail, got {!r}.",
    ),
]


def test_an_invalid_value_is_refused(client):
    for path, name, value, sentence in REFUSED:
        method = "POST" if path == "/api/sse" else "GET"
        query = {name: value}
        answer = client.open(path, method=method, json={}, query_string=query)
        assert answer.status_code == 400, (path, query)
        assert answer.json == {"error": sentence.format(value)}
