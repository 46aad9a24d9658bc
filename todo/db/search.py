"""Searching texts: what contains what, and how long that may take. Must not know any table."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unicodedata import normalize

from sqlalchemy import Boolean, Engine, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from todo.db.connections import limited_to
from todo.db.failures import DATABASE_ERRORS, is_stopped
from todo.errors import SearchTooSlow

#: Seconds that a search may take: no index helps it, so that it is the one statement whose cost its sender chooses.
SEARCH_LIMIT = 0.5


def init_app(engine: Engine) -> None:
    """Give each connection to SQLite its fold_case()."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _add_fold_case)


@contextmanager
def searching() -> Iterator[None]:
    """Limit the time of the search within. Raises SearchTooSlow."""
    try:
        with limited_to(SEARCH_LIMIT):
            yield
    except DATABASE_ERRORS as error:
        if is_stopped(error):
            raise SearchTooSlow from error
        raise


class contains_ignoring_case(FunctionElement[bool]):  # noqa: N801
    """SQL: whether the first argument contains the second, as fold_case() compares; nothing is a wildcard.

    NULL where the first argument is NULL. fold_case() is made by migrations/fold_case.sql on PostgreSQL and by every
    connection on SQLite.
    """

    type = Boolean()
    inherit_cache = True


@compiles(contains_ignoring_case, "postgresql")
def _(element: contains_ignoring_case, compiler: SQLCompiler, **kw: Any) -> str:
    text, part = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"strpos(fold_case({text}), fold_case({part})) > 0"


@compiles(contains_ignoring_case, "sqlite")
def _(element: contains_ignoring_case, compiler: SQLCompiler, **kw: Any) -> str:
    text, part = (compiler.process(clause, **kw) for clause in element.clauses)
    # SQLite's own upper() knows ASCII alone. Unlike fold_case(), which is Python, it leaves the other threads running.
    is_ascii = f"length({text}) = length(CAST({text} AS BLOB))"
    return f"instr(CASE WHEN {is_ascii} THEN upper({text}) ELSE fold_case({text}) END, fold_case({part})) > 0"


def fold_case(text: str | None) -> str | None:
    """Make texts equal that differ only in letter case, or in composed and decomposed letters (Unicode D145).

    Lower case brings together letters that share one (ẞ and ß). Upper case then removes what lower case makes of a
    letter's place in its word (the final sigma), so that a part folds like the whole. Text is decomposed first, since
    an iota subscript becomes a letter of its own, and composed last, so that `e` is no part of `é`.
    """
    if text is None or text.isascii():
        return text and text.upper()
    return normalize("NFC", normalize("NFD", text).lower().upper())


def _add_fold_case(connection: sqlite3.Connection, _record: object) -> None:
    connection.create_function("fold_case", 1, fold_case, deterministic=True)
