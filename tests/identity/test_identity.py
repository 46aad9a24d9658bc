"""The Identity value: which user ids can be, which emails are kept, and that nobody changes it."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from todo.identity import Identity, InvalidIdentity

CONTROL_CHARACTERS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
LONE_SURROGATES = [chr(code) for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)]

#: Strings that can be a user id.
POSSIBLE = ["a", "alice", "0", "null", " ", "a b", "...", ".alice", "%2F", "\\", "~", "\xa0", "jos\xe9", "jose\u0301"]
POSSIBLE += ["\u200b", "\u2028", "\u202e", "\ud7ff", "\ue000", "\ufffc", "\ufffe", "\U0010ffff", "a" * 255]
POSSIBLE += ["\U0001f600" * 255]
#: What cannot be one.
IMPOSSIBLE = [None, 0, 1, 1.5, True, b"alice", ["alice"], {"alice": 1}, "", ".", "..", "/", "a/b", *LONE_SURROGATES]
IMPOSSIBLE += ["a\ud83d", "\ufffd", "a\ufffdb", "a" * 256, "\U0001f600" * 256]


@pytest.mark.parametrize("user_id", POSSIBLE, ids=ascii)
def test_a_user_id_is_kept_as_it_came(user_id: str) -> None:
    assert Identity(user_id).user_id == user_id


@pytest.mark.parametrize("user_id", IMPOSSIBLE, ids=ascii)
def test_what_cannot_be_a_user_id_is_refused(user_id: Any) -> None:
    with pytest.raises(InvalidIdentity):
        Identity(user_id)


@pytest.mark.parametrize("form", ["{}", "a{}", "{}a", "a{}b"])
def test_nowhere_in_a_user_id_is_a_control_character(form: str) -> None:
    for character in CONTROL_CHARACTERS:
        with pytest.raises(InvalidIdentity):
            Identity(form.format(character))


@pytest.mark.parametrize("email", ["a@example.com", "x", "jos\xe9@example.com", "a" * 320], ids=ascii)
def test_a_usable_email_is_kept(email: str) -> None:
    assert Identity("alice", email).email == email


@pytest.mark.parametrize(
    "email", ["", "a" * 321, "a\0b", "\ud800", None, 5, True, b"a@example.com", ["a@example.com"], {}], ids=ascii
)
def test_an_unusable_email_becomes_none(email: Any) -> None:
    assert Identity("alice", email).email is None


@pytest.mark.parametrize("name", ["user_id", "email", "claims"])
def test_no_field_can_be_changed(name: str) -> None:
    identity = Identity("alice", "a@example.com", {"role": "reader"})
    with pytest.raises(FrozenInstanceError):
        setattr(identity, name, "bob")
    with pytest.raises(FrozenInstanceError):
        delattr(identity, name)
    assert identity == Identity("alice", "a@example.com", {"role": "reader"})


def test_claims_cannot_be_changed() -> None:
    claims: Any = Identity("alice", claims={"role": "reader"}).claims
    with pytest.raises(TypeError):
        claims["role"] = "admin"
    with pytest.raises(TypeError):
        del claims["role"]
    assert claims == {"role": "reader"}


def test_claims_are_a_copy() -> None:
    given = {"role": "reader"}
    identity = Identity("alice", claims=given)
    given["role"] = "admin"
    assert identity.claims == {"role": "reader"}


def test_there_are_no_claims_by_default() -> None:
    assert Identity("alice").claims == {}
