"""The SELECT of one page of a user's rows, newest first. Knows no table."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, func, select, tuple_

from todo.db.connections import UtcInstant, octets
from todo.db.ownership import Owned, owned_by

#: How many rows may be read without a look at their size in bytes.
FEW = 101


def page_of(
    model: type[Owned], columns: Sequence[Any], *criteria: ColumnElement[bool], is_continued: bool, is_long: bool
) -> Select[Any]:
    """Return the statement for at most `limit` rows of the user that meet the criteria.

    is_continued: only those after the place (`before_created_at`, `before_id`). is_long: only up to the row with which
    the texts reach `size` bytes. The four names are parameters of the statement, beside `user_id`.
    """
    created_at, row_id = (getattr(model, name) for name in ("created_at", "id"))
    newest_first = (created_at.desc(), row_id.desc())
    page = owned_by(model, select(*columns)).where(*criteria).order_by(*newest_first)
    if is_continued:
        # A comparison of rows, which an index answers from the place on.
        place = tuple_(bindparam("before_created_at", type_=UtcInstant), bindparam("before_id"))
        page = page.where(tuple_(created_at, row_id) < place)
    page = page.limit(bindparam("limit"))
    if not is_long:
        return page
    first, *others = (octets(column) for column in columns if isinstance(column.type, Text))
    size = sum(others, first)
    total = func.sum(size).over(order_by=newest_first, rows=(None, 0))
    measured = page.add_columns((total - size).label("before")).subquery()
    fitting = select(*(measured.c[column.key] for column in columns)).where(measured.c.before < bindparam("size"))
    return fitting.order_by(measured.c.created_at.desc(), measured.c.id.desc())
