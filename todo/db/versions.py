"""Versions of rows: each change increments the row's version, and can be limited to some versions. Knows no HTTP."""

from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Delete, Update, bindparam, or_, text
from sqlalchemy.orm import Mapped, mapped_column

from todo.db.statements import Names
from todo.db.types import IntegerList, is_among
from todo.expected import Expected

Change = TypeVar("Change", Update, Delete)

#: The parameters of a statement that is limited to some versions: the fields of Expected.
EXPECTATION = ("wanted", "unwanted")


class Versioned:
    """A model whose rows count their changes, from 1."""

    version: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))


def expectation(expected: Expected | None) -> dict[str, Any]:
    """Return the parameters for as_expected(); none if any version is accepted."""
    return {} if expected is None else asdict(expected)


def as_expected(model: type[Versioned], statement: Change, names: Names) -> Change:
    """Narrow the statement to rows of an expected version, if the names of its parameters include EXPECTATION.

    The database decides: if several changes expect the same version, only one succeeds.
    """
    if names.isdisjoint(EXPECTATION):
        return statement
    wanted, unwanted = (bindparam(name, type_=IntegerList) for name in EXPECTATION)
    return statement.where(or_(wanted.is_(None), is_among(model.version, wanted)), ~is_among(model.version, unwanted))
