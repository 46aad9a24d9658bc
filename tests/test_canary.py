"""No message about a setting repeats a secret. Each contains the canary. For the log: tests/live/test_canary.py."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigurationError, load_settings
from tests.support import token
from todo import create_app

CANARY = "kanarienvogel"
SECRET = f"{CANARY}-secret-of-32-bytes-or-more"
PASSWORD = f"{CANARY}-password"


def traces(text: str, *tokens: str) -> list[str]:
    """The lines in which the canary shows: as it is, in base64 from whatever place, or as a part of a token."""
    signs = {CANARY, *(part for bearer_token in tokens for part in bearer_token.split("."))}
    for shift in range(3):
        # Without the letters at both ends, which contain bits of the neighbours.
        signs.add(base64.b64encode(b" " * shift + CANARY.encode()).decode()[4:-4])
    return [line for line in text.splitlines() if any(sign in line for sign in signs)]


@pytest.mark.parametrize("shift", range(3))
def test_the_canary_is_recognised(shift: int) -> None:
    encoded = base64.b64encode(b"x" * shift + PASSWORD.encode()).decode()
    for line in (f"password={PASSWORD}", encoded, token(key=SECRET)):
        assert traces(f"nothing\n{line}\nnothing", token(key=SECRET)) == [line]


@given(pieces=st.lists(st.sampled_from([CANARY, "1", *"@:/?#[]%&=+ ,;"]), max_size=8))
def test_no_part_of_a_password_becomes_anything_else(pieces: list[str]) -> None:
    """Whatever characters it has that should have been escaped."""
    environ = GOOD | {"JWT_SECRET": SECRET, "DATABASE_URL": f"postgresql://todo:{''.join(pieces)}{CANARY}@db/todo"}
    said = ""
    try:
        url = load_settings(environ).database_url
    except ConfigurationError as error:
        said = str(error)
    else:
        assert (url.username, url.host, url.port, url.database, url.query) == ("todo", "db", None, "todo", {})
    assert traces(said) == []


GOOD = {"DATABASE_URL": "postgresql://db/todo", "IDENTITY_PROVIDER": "jwt"}


@pytest.mark.parametrize(
    "changes",
    [
        {"DATABASE_URL": f"postgresql://todo:{CANARY}@b:c@db:5432/todo"},
        {"DATABASE_URL": f"postgresql://todo:{CANARY}@db/todo?sslmode={CANARY}"},
        {"DATABASE_URL": f"postgresql://to/do:{CANARY}@db/todo"},
        {"JWT_JWKS_URL": f"https://issuer.example/keys?key= {CANARY}"},
        {"JWT_JWKS_URL": f"https://todo:pass/{CANARY}@issuer.example/keys"},
        {"JWT_SECRET": f"{SECRET}\n"},
        {"RATE_LIMIT_STORAGE": f"redis://todo:pass/{CANARY}@redis.example"},
        {"METRICS_TOKEN": f"{CANARY} {CANARY}"},
        {"DATABASE_URL": f"{CANARY}"},
        {"JWT_SECRET": CANARY},
        {"JWT_SECRET": f"-----BEGIN PUBLIC KEY-----\n{CANARY}\n-----END PUBLIC KEY-----"},
        {"JWT_PUBLIC_KEY": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----"},
        {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": SECRET},
        {"JWT_JWKS_URL": f"https://todo:{CANARY}@issuer.example/keys"},
        {"JWT_SECRET": SECRET, "JWT_ALGORITHMS": CANARY},
    ],
    ids="-".join,
)
def test_a_start_that_is_refused_does_not_say_what_was_set(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_app(
            load_settings(
                GOOD | ({} if any(name.startswith("JWT_") for name in changes) else {"JWT_SECRET": SECRET}) | changes
            )
        )
    assert traces(str(caught.value)) == []
