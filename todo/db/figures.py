"""What /metrics says about the content of the database. No request waits for it. Must not know any table."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flask import Flask
from sqlalchemy import select

from todo.db import db
from todo.db.connections import budget, limited_to
from todo.db.failures import DATABASE_ERRORS
from todo.db.readiness import REVISIONS

#: Seconds that each of the statements may take.
LIMIT = 1.0


class Figures(NamedTuple):
    """What was found. None: it was not."""

    #: The number of the last migration; 0 if there is none.
    revision: int | None = None
    #: For each table, how many rows `flask prune` would delete.
    prunable: Mapping[str, int] | None = None


def find_figures(app: Flask, count_prunable: Callable[[], Mapping[str, int]]) -> Figures:
    """Ask the database, outside of a request and within its time limits. Raises nothing if the database fails."""
    found = Figures()
    with app.app_context(), budget(), limited_to(LIMIT):
        try:
            found = Figures(number_of(db.session.connection().scalar(select(REVISIONS))))
            return found._replace(prunable=count_prunable())
        except DATABASE_ERRORS:
            # Requests and readiness log what is wrong.
            return found


def number_of(revision: str | None) -> int:
    """Return the number of a revision: revisions are numbered. 0 if there is none, or it is not a number."""
    return max((int(name) for name in (revision or "").split(",") if name.isdecimal()), default=0)
