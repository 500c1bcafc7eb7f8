import re
import subprocess
import sys

import pytest
from conftest import PROJECT

import language_model
import sse
from settings import SETTINGS, read_settings


def test_defaults_are_within_their_own_limits():
    assert read_settings({}) == {
        name: default for name, (default, _, _) in SETTINGS.items()
    }


def test_reads_the_environment_the_flask_way():
    values = read_settings({"FLASK_MAX_STREAMS": "3", "MAX_STREAMS": "9"})
    assert values["MAX_STREAMS"] == 3


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "FLASK_MAX_STREAMS",
            "x",
            "FLASK_MAX_STREAMS must be an integer from 1 to 100000, not 'x'.",
        ),
        (
            "FLASK_MAX_STREAMS",
            "0",
            "FLASK_MAX_STREAMS must be an integer from 1 to 100000, not '0'.",
        ),
        (
            "FLASK_KEEP_ALIVE_SECONDS",
            "nan",
            "FLASK_KEEP_ALIVE_SECONDS must be a number from 0.1 to 60.0, "
            "not 'nan'.",
        ),
        (
            "OPENAI_BASE_URL",
            "localhost:11434",
            "OPENAI_BASE_URL must be an http or https URL, "
            "such as http://localhost:11434/v1.",
        ),
        (
            "OPENAI_BASE_URL",
            "http://two words/v1",
            "OPENAI_BASE_URL must be an http or https URL, "
            "such as http://localhost:11434/v1.",
        ),
        (
            "FLASK_RUN_PORT",
            "99999",
            "FLASK_RUN_PORT must be an integer from 1 to 65535, not '99999'.",
        ),
        (
            "OPENAI_API_KEY",
            "sk-two words",
            "OPENAI_API_KEY must be ASCII, without spaces.",
        ),
    ],
)
def test_a_bad_value_is_told_with_what_is_allowed(name, value, sentence):
    with pytest.raises(SystemExit) as stop:
        read_settings({name: value})
    assert str(stop.value) == sentence


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("FLASK_MAX_STREAMS", "1 to 100000"), ("FLASK_RUN_PORT", "1 to 65535")],
)
@pytest.mark.parametrize(
    "command", ["flask run", "gunicorn", "gunicorn app:app"]
)
def test_a_bad_value_stops_the_start_with_one_line(
    command, name, allowed, monkeypatch
):
    monkeypatch.setenv(name, "999999")
    ended = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 1
    sentence = f"{name} must be an integer from {allowed}, not '999999'.\n"
    assert ended.stdout + ended.stderr == sentence


@pytest.mark.parametrize("key", ["sk-geheim-é", "sk-a\nb", "sk-a b"])
def test_a_bad_key_is_not_repeated(key):
    with pytest.raises(SystemExit) as stop:
        read_settings({"OPENAI_API_KEY": key})
    assert "sk-" not in str(stop.value)


def test_readme_lists_every_setting_with_its_default():
    readme = (PROJECT / "README.md").read_text("utf-8")
    rows = dict(
        re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", readme, re.MULTILINE)
    )
    for name, (default, _, _) in SETTINGS.items():
        assert float(rows[f"FLASK_{name}"]) == default


def test_defaults_are_those_of_the_modules_that_are_copied():
    defaults = read_settings({})
    assert defaults["KEEP_ALIVE_SECONDS"] == sse.KEEP_ALIVE_SECONDS
    assert (
        defaults["UPSTREAM_SILENCE_SECONDS"] == language_model.SILENCE_SECONDS
    )
    assert defaults["OFFLINE_WORD_SECONDS"] == language_model.WORD_SECONDS
