"""fold_case() for every character of Unicode, and for every letter with marks."""

from unicodedata import category, normalize

from flask import Flask
from sqlalchemy import text

from todo.db import db
from todo.db.search import fold_case

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


def test_every_character_and_marked_letter_folds_like_its_other_forms() -> None:
    assert_forms_fold_alike([*KNOWN, *MARKED, *WORDS])


def test_both_databases_fold_every_character_alike(apps: dict[str, Flask]) -> None:
    texts = [*KNOWN, *MARKED, *WORDS, *(normalize("NFD", word) for word in WORDS), *(f"é{one}Σ" for one in KNOWN)]
    assert len(texts) > 300_000
    assert_databases_fold_alike(apps["postgresql"], texts)
