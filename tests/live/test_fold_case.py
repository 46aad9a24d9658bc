"""fold_case() for every character of Unicode, and for every letter with marks."""

from unicodedata import normalize

from flask import Flask

from tests.test_fold_case import KNOWN, MARKED, WORDS, assert_databases_fold_alike, assert_forms_fold_alike


def test_every_character_and_marked_letter_folds_like_its_other_forms() -> None:
    assert_forms_fold_alike([*KNOWN, *MARKED, *WORDS])


def test_both_databases_fold_every_character_alike(apps: dict[str, Flask]) -> None:
    texts = [*KNOWN, *MARKED, *WORDS, *(normalize("NFD", word) for word in WORDS), *(f"é{one}Σ" for one in KNOWN)]
    assert len(texts) > 300_000
    assert_databases_fold_alike(apps["postgresql"], texts)
