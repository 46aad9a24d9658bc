"""What a process makes of the environment: commands read it, and a server with bad settings does not start."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from config import load_settings
from tests.support import ROOT, SECRET, token
from tests.test_config import CHOICES_FAULTS, KEY_FAULT, POSTGRESQL, UNREAD_FAULT

GUNICORN = ["-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0"]


def run(command: list[str], stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """That command of Python, in that environment, ended within seconds."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "IDENTITY_PROVIDER": "jwt", **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (GUNICORN, {}, KEY_FAULT),
        (["-m", "flask", "run", "--port", "0"], {}, KEY_FAULT),
        (["-c", "import wsgi"], {}, KEY_FAULT),
        (GUNICORN, {"JWT_PUBLIC_KEY": "nonsense"}, "JWT_PUBLIC_KEY is not a public key in PEM"),
        (GUNICORN, {"JWT_SECRET": SECRET, "LOG_LEVEL": "loud"}, CHOICES_FAULTS["LOG_LEVEL"]),
    ],
    ids=["gunicorn", "flask run", "import", "a bad key", "a bad level"],
)
def test_with_bad_settings_nothing_starts_and_one_line_says_why(
    command: list[str], changes: Mapping[str, str], message: str
) -> None:
    result = run(command, DATABASE_URL=POSTGRESQL, **changes)
    assert result.returncode != 0
    assert result.stderr == f"todo: {message}\n"


def test_without_its_own_settings_gunicorn_says_so_in_one_line() -> None:
    result = run([*GUNICORN, "--config", "/dev/null"], DATABASE_URL=POSTGRESQL)
    assert result.returncode != 0
    # Between lines of gunicorn, and from both workers.
    assert f"todo: {KEY_FAULT}; {UNREAD_FAULT}" in result.stderr.splitlines()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("audience", "status"), [("todo", 0), ("x", 1)])
def test_token_check_reads_stdin_and_the_settings_of_the_environment(audience: str, status: int) -> None:
    command = ["-m", "flask", "token", "check"]
    result = run(command, f"Bearer {token(aud=audience)}\n", JWT_SECRET=SECRET, JWT_AUDIENCE="todo")
    assert (result.returncode, len(result.stdout.splitlines()), result.stderr) == (status, 1, "")


def test_a_variable_that_flask_sets_is_no_setting_that_can_be_wrong() -> None:
    environ = {"IDENTITY_PROVIDER": "development", "DATABASE_URL": "sqlite:///x", "FLASK_RUN_FROM_CLI": ""}
    assert not load_settings(environ).is_flask_command
