"""The allowed hosts, and the headers of pages and streams."""

from conftest import NAMES, media_type, open_stream
from upstream import KEY

from app import create_app
from website.security import content_security_policy

NO_CACHE = ("no-cache, no-transform", "no-store, no-transform")


def test_every_stream_has_all_required_headers(server):
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


def test_no_page_contains_the_key(online_app):
    client = online_app.test_client()
    for path in ("/", "/faq", *(f"/demos/{name}" for name in NAMES), "/nope"):
        response = client.get(path)
        assert response.status_code == (404 if path == "/nope" else 200)
        assert KEY not in f"{response.headers}{response.text}", path


def test_the_content_security_policy():
    assert content_security_policy([""]) == (
        "default-src 'none'; script-src 'self' "
        "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-src 'self'; "
        "frame-ancestors 'self'"
    )


def test_a_page_allows_only_its_own_inline_scripts(client):
    for path, count in {
        "/": 0,
        "/cheatsheet": 0,
        "/faq": 0,
        "/demos/hello": 1,
        "/stream/html": 1,
        "/stream/hello": 0,
    }.items():
        response = client.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert policy.count("sha256-") == count, path
        response.close()


def test_other_sites_cannot_read_pages(client):
    response = client.get("/demos/hello")
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Referrer-Policy"] == "same-origin"


HOSTS = {
    "localhost": True,
    "LOCALHOST:5000": True,
    "app.localhost:5000": True,
    "127.0.0.1": True,
    "192.168.0.7:5000": True,
    "[::1]:5000": True,
    "ours.example": True,
    "ours.example:8443": True,
    "all.example": True,
    "any.all.example": True,
    "any.ours.example": False,
    "other.example": False,
    "other.example:5000": False,
    "127.0.0.1.other.example": False,
    "localhost.other.example": False,
    "notall.example": False,
    "a_b.example": False,
    "user@localhost": False,
    "other.example#.localhost": False,
    "2130706433": False,  # 127.0.0.1, to some resolvers
    "": False,
}


def test_only_our_own_hosts_are_allowed(monkeypatch):
    monkeypatch.setenv("FLASK_TRUSTED_HOSTS", "ours.example, .ALL.example")
    client = create_app().test_client()
    for path in ("/", "/static/style.css", "/nowhere", "/completion?prompt=a"):
        found = {}
        for host in HOSTS:
            response = client.get(path, headers={"Host": host})
            found[host] = response.status_code != 400
            if not found[host]:
                assert response.json == {
                    "error": f"The host {host!r} is not in FLASK_TRUSTED_HOSTS."
                }
            response.close()
        assert found == HOSTS, path
