"""Text search: whether a text contains another, and how long a search may take. Must not know any table."""

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

#: Seconds that a search may take. No index helps it, so it is the only statement whose cost the caller chooses.
SEARCH_LIMIT = 0.5


def init_app(engine: Engine) -> None:
    """Add the function fold_case() to each connection to SQLite."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _add_fold_case)


@contextmanager
def searching() -> Iterator[None]:
    """Limit the time of a search in the block. Raises SearchTooSlow."""
    try:
        with limited_to(SEARCH_LIMIT):
            yield
    except DATABASE_ERRORS as error:
        if is_stopped(error):
            raise SearchTooSlow from error
        raise


class contains_ignoring_case(FunctionElement[bool]):  # noqa: N801
    """SQL: whether the first argument contains the second, after fold_case() of both. There are no wildcards.

    NULL if the first argument is NULL. On PostgreSQL migrations/fold_case.sql creates fold_case(), on SQLite each new
    connection does.
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
    # SQLite's own upper() handles only ASCII. But it is not Python, as fold_case() is, so other threads can run.
    is_ascii = f"length({text}) = length(CAST({text} AS BLOB))"
    return f"instr(CASE WHEN {is_ascii} THEN upper({text}) ELSE fold_case({text}) END, fold_case({part})) > 0"


def fold_case(text: str | None) -> str | None:
    """Return the same text for texts that differ only in letter case or composition (Unicode D145).

    Lower case first: ẞ and ß have the same. Then upper case: lower case depends on the position in the word (the final
    sigma), and a part must fold like the whole. Before both NFD, because upper case turns an iota subscript into a
    letter of its own. NFC at the end, so that `é` does not contain `e`.
    """
    if text is None or text.isascii():
        return text and text.upper()
    return normalize("NFC", normalize("NFD", text).lower().upper())


def _add_fold_case(connection: sqlite3.Connection, _record: object) -> None:
    connection.create_function("fold_case", 1, fold_case, deterministic=True)
