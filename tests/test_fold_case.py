"""fold_case(): the same for all that a search takes for the same, alike on both databases, and after a restore."""

from unicodedata import category, normalize

import pytest
from flask import Flask
from sqlalchemy import URL, text

from tests.support import Caller, Make, migrate, sql
from todo.db import db
from todo.db.search import fold_case

pytestmark = pytest.mark.sql

#: Every character that Python's Unicode knows.
KNOWN = [chr(point) for point in range(1, 0x110000) if category(chr(point)) not in ("Cn", "Cs")]
CASED = [character for character in KNOWN if character.lower() != character.upper()]
MARKS = "\u0300\u0301\u0304\u0307\u0308\u030a\u0323\u0331\u0345"
#: Marks after every letter that has a case, in both orders, which are canonically equivalent for some.
MARKED = [
    letter + marks
    for letter in CASED
    for marks in (*MARKS, "\u0301\u0323", "\u0323\u0301", "\u0308\u0301", "\u0345\u0301")
]
WORDS = [
    "ΟΔΟΣ οδος",
    "Ὀδυσσεύς",
    "GROẞ straße",
    "ﬀ ﬃ ﬅ",
    "\u1100\u1161\u11a8 한글",
    "İstanbul \u0131s\u0131",
    "naïve 🥛",
    "Ꭰꭰ Აა",
    "",
]
#: Letters that got their upper case in Unicode 16, which PostgreSQL 18 knows.
NEW_LETTERS = "ƛɤ"
#: tests/live/test_fold_case.py tries all.
SOME = [*CASED, *KNOWN[::50], *MARKED[::20], *WORDS]


def assert_forms_fold_alike(texts: list[str]) -> None:
    """Each text folds like what is canonically equivalent to it, and like its other cases."""
    for written in texts:
        composed, decomposed = normalize("NFC", written), normalize("NFD", written)
        folded = fold_case(written)
        forms = [composed, decomposed, composed.lower(), decomposed.lower(), decomposed.upper(), str(folded)]
        if len(written) == 1 or "\u0345" not in decomposed:
            # The upper case of an iota subscript is a letter of its own, which takes over the marks that follow.
            forms += [composed.upper(), composed.title(), composed.casefold()]
        assert {fold_case(form) for form in forms} == {folded}, ascii(written)


def assert_databases_fold_alike(postgresql: Flask, texts: list[str]) -> None:
    """PostgreSQL's function and Python's say the same of each text."""
    with postgresql.app_context():
        statement = text(
            "SELECT fold_case(word) FROM unnest(CAST(:words AS text[])) WITH ORDINALITY AS w (word, n) ORDER BY n"
        )
        folded = list(db.session.execute(statement, {"words": texts}).scalars())
    unlike = {word for word, fold in zip(texts, folded, strict=True) if fold != fold_case(word)}
    assert {word for word in unlike if not set(word) & set(NEW_LETTERS)} == set()


def test_a_text_folds_like_its_other_forms() -> None:
    assert_forms_fold_alike(SOME)


def test_both_databases_fold_alike(apps: dict[str, Flask]) -> None:
    # Once more between letters that take PostgreSQL off its short way for ASCII.
    assert_databases_fold_alike(apps["postgresql"], [*SOME, *(f"é{written}Σ" for written in CASED)])


@pytest.fixture
def restored(postgresql: URL, make: Make) -> URL:
    """A database that was dumped on a server with another collation: pg_restore does not look at what functions do."""
    Caller(make(postgresql), "alice").create("Müsli")
    sql(
        postgresql,
        "SET check_function_bodies = off; CREATE OR REPLACE FUNCTION fold_case(text) RETURNS text LANGUAGE sql"
        """ IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT upper(lower($1 COLLATE "of another server"))'""",
    )
    return postgresql


def test_an_upgrade_mends_the_function_of_a_database_that_was_restored_elsewhere(restored: URL, make: Make) -> None:
    app = make(restored)
    alice = Caller(app, "alice")
    assert alice("GET", query="?q=x").status_code == 500
    migrate(app)
    assert alice.titles("?q=MÜS") == ["Müsli"]


def test_an_upgrade_makes_the_function_that_is_missing(restored: URL, make: Make) -> None:
    sql(restored, "DROP FUNCTION fold_case(text)")
    app = make(restored)
    migrate(app)
    assert Caller(app, "alice").titles("?q=MÜS") == ["Müsli"]


def test_an_upgrade_leaves_a_function_alone_that_works(restored: URL, make: Make) -> None:
    sql(restored, "CREATE OR REPLACE FUNCTION fold_case(text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
    app = make(restored)
    migrate(app)
    assert Caller(app, "alice").titles("?q=MÜS") == []
