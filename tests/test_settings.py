import re
import subprocess
import sys
from runpy import run_path

import pytest
from conftest import PROJECT

import background
import language_model
import sse
from app import create_app
from demos import relay
from redis_broker import RedisBroker
from website.settings import SETTINGS, has_upstream, read_settings

BASE_URL = (
    "OPENAI_BASE_URL must be an http or https URL without a query "
    "or password, such as http://localhost:11434/v1."
)
REDIS_URL = (
    "REDIS_URL must be a redis, rediss or unix URL without a query, "
    "such as redis://localhost:6379/0."
)
TRUSTED_HOSTS = (
    "FLASK_TRUSTED_HOSTS must contain host names without ports or underscores, "
    "such as example.org,.example.org (a leading dot adds all subdomains)."
)
API_KEY = "OPENAI_API_KEY must be ASCII, without spaces."
WRONG = {
    ("FLASK_MAX_STREAMS", "x"): (
        "FLASK_MAX_STREAMS must be an integer from 1 to 100000, got 'x'."
    ),
    ("FLASK_MAX_STREAMS", "0"): (
        "FLASK_MAX_STREAMS must be an integer from 1 to 100000, got '0'."
    ),
    ("FLASK_KEEP_ALIVE_SECONDS", "nan"): (
        "FLASK_KEEP_ALIVE_SECONDS must be a number from 0.1 to 25.0, got 'nan'."
    ),
    ("FLASK_KEEP_ALIVE_SECONDS", "60"): (
        "FLASK_KEEP_ALIVE_SECONDS must be a number from 0.1 to 25.0, got '60'."
    ),
    ("FLASK_RUN_PORT", "99999"): (
        "FLASK_RUN_PORT must be an integer from 1 to 65535, got '99999'."
    ),
    ("OPENAI_API_KEY", "sk-two words"): API_KEY,
    ("OPENAI_API_KEY", "sk-geheim-é"): API_KEY,
    ("OPENAI_API_KEY", "sk-a\nb"): API_KEY,
}
WRONG |= {
    ("FLASK_TRUSTED_HOSTS", names): TRUSTED_HOSTS
    for names in (
        "a.example:80",
        "http://a.example",
        "*",
        "a..example",
        ".",
        "my_app",
    )
}
WRONG |= {
    ("OPENAI_BASE_URL", url): BASE_URL
    for url in (
        "localhost:11434",
        "http://two words/v1",
        "http://localhost:0/v1",
        "http://localhost:99999/v1",
        "http://localhost/v1?key=sk-geheim",
        "http://localhost/v1#a",
        "http://user:sk-geheim@localhost/v1",
        "http://sk-geheim@localhost/v1",
        "http:///v1",
        "ftp://localhost/v1",
    )
}
WRONG |= {
    ("REDIS_URL", url): REDIS_URL
    for url in (
        "localhost:6379",
        "http://localhost:6379",
        "redis://",
        "redis:///0",
        "redis://two words",
        "redis://localhost:0",
        "redis://localhost:99999",
        "redis://localhost:port",
        "redis://localhost/name",
        "redis://localhost/0?timeout=1",
        "redis://localhost/0#a",
        "redis://[::1",
        "unix://",
        "unix://redis.sock",
        "REDIS://localhost",
        " redis://localhost",
        "unix:/redis.sock",
        f"redis://{'a' * 64}.example",
        " ",
    )
}
REDIS_URLS = (
    "redis://localhost",
    "redis://localhost/",
    "redis://localhost:6379/0",
    "redis://:word@10.0.0.1:1/15",
    "redis://user:word@[::1]:65535/0",
    "rediss://redis.example:6380",
    "unix:///run/redis.sock",
)


def test_defaults_are_within_their_limits():
    values = read_settings({"SECRET_KEY": "k"})
    assert values == {"TRUSTED_HOSTS": [], "SECRET_KEY": "k"} | {
        name: default for name, (default, _, _) in SETTINGS.items()
    }


def test_reads_the_environment_as_flask_does():
    values = read_settings({"FLASK_MAX_STREAMS": "3", "MAX_STREAMS": "9"})
    assert values["MAX_STREAMS"] == 3


def test_a_secret_key_may_have_the_name_that_flask_reads(caplog):
    environ = {"FLASK_SECRET_KEY": "123", "SECRET_KEY": ""}
    assert read_settings(environ)["SECRET_KEY"] == "123"
    assert caplog.messages == []


RANDOM_KEY = "SECRET_KEY is not set, so a random key is used."


def test_a_missing_secret_key_is_random_and_inherited(caplog):
    environs = {}, {}
    keys = {read_settings(environ)["SECRET_KEY"] for environ in environs}
    assert keys == {environ["SECRET_KEY"] for environ in environs}
    assert [len(key) for key in keys] == [64, 64]
    assert caplog.messages == [RANDOM_KEY] * 2
    read_settings(environs[0])  # as a worker does
    assert len(caplog.messages) == 2


def test_a_random_key_is_reported_once_and_never_shown(server):
    assert server.logged("SECRET_KEY") == [RANDOM_KEY]
    assert server.logged("[0-9a-f]{32}") == []


def refusal(name: str, value: str) -> str | None:
    try:
        read_settings({name: value})
    except SystemExit as stop:
        return str(stop)
    return None


def test_the_error_says_what_is_allowed():
    assert {one: refusal(*one) for one in WRONG} == WRONG


def test_a_redis_url_that_redis_py_can_use_is_accepted():
    for url in REDIS_URLS:
        read_settings({"REDIS_URL": url})
        RedisBroker(url)


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("flask run", "FLASK_MAX_STREAMS", "x"),
        ("gunicorn app:app", "REDIS_URL", "http://localhost:6379"),
    ],
)
def test_an_invalid_value_stops_the_server_with_one_line(
    command, name, value, monkeypatch
):
    monkeypatch.setenv(name, value)
    ended = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr == WRONG[name, value] + "\n"


def test_answers_may_cost_money_if_a_key_or_a_base_url_is_set():
    assert has_upstream({"OPENAI_API_KEY": "sk-1"})
    assert has_upstream({"OPENAI_BASE_URL": "http://localhost:11434/v1"})
    assert not has_upstream({"OPENAI_MODEL": "m", "OPENAI_API_KEY": ""})


def test_readme_lists_every_setting_with_its_default():
    readme = (PROJECT / "README.md").read_text("utf-8")
    rows = dict(
        re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", readme, re.MULTILINE)
    )
    for name, (default, _, _) in SETTINGS.items():
        assert float(rows[f"FLASK_{name}"]) == default


PARTS = {
    "KEEP_ALIVE_SECONDS": (sse, "KEEP_ALIVE_SECONDS"),
    "UPSTREAM_SILENCE_SECONDS": (language_model, "SILENCE_SECONDS"),
    "JOB_LOST_SECONDS": (background, "LOST_SECONDS"),
    "RELAY_MAX_BYTES": (relay, "MAX_BODY_BYTES"),
    "RELAY_MAX_CHOICES": (relay, "MAX_CHOICES"),
    "RELAY_MAX_TOKENS": (relay, "MAX_TOKENS"),
}
"""The constant that each setting changes."""


def test_defaults_match_those_of_copied_parts():
    for name, (part, constant) in PARTS.items():
        assert run_path(part.__file__)[constant] == SETTINGS[name][0]


@pytest.fixture
def _reset_parts():
    yield
    create_app()


@pytest.mark.usefixtures("_reset_parts")
def test_settings_take_effect_in_the_parts():
    settings = {name: 5000 + number for number, name in enumerate(PARTS)}
    create_app(settings)
    for name, (part, constant) in PARTS.items():
        assert getattr(part, constant) == settings[name], constant
