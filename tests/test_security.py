"""The headers that protect the reader of a page, and of every stream."""

from conftest import NAMES, media_type, open_stream

from website.security import content_security_policy

NO_CACHE = ("no-cache, no-transform", "no-store, no-transform")


def test_every_stream_has_the_headers_that_it_needs(server):
    for name in NAMES:
        with open_stream(server, name) as client:
            assert client.header("Content-Type") == media_type(name)
            assert client.header("Cache-Control") in NO_CACHE
            assert client.header("X-Accel-Buffering") == "no"
            assert client.header("X-Content-Type-Options") == "nosniff"
            assert client.response.headers.get_all("Connection") in (
                ["close"],
                ["keep-alive"],
            )


def test_the_policy_is_this_and_nothing_else():
    assert content_security_policy([""]) == (
        "default-src 'none'; script-src 'self' "
        "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-src 'self'; "
        "frame-ancestors 'self'"
    )


def test_a_page_allows_its_own_inline_scripts_only(client):
    for path, count in {
        "/": 0,
        "/cheatsheet": 0,
        "/demos/hello": 1,
        "/stream/html": 1,
        "/stream/hello": 0,
    }.items():
        response = client.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert policy.count("sha256-") == count, path
        response.close()


def test_pages_are_not_for_other_sites(client):
    response = client.get("/demos/hello")
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Referrer-Policy"] == "same-origin"
