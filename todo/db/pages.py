"""The SELECT of one page of a user's rows, newest first. Knows no table."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, func, select, tuple_

from todo.db.ownership import Owned, owned_by
from todo.db.statements import Names
from todo.db.types import UtcInstant, octets

#: Up to this many rows are read without measuring their size in bytes.
FEW = 101


def page_of(
    model: type[Owned], columns: Sequence[Any], filters: Mapping[str, ColumnElement[bool]], names: Names
) -> Select[Any]:
    """Write the statement. names: of its parameters, which are page_parameters() and values for some of the filters."""
    created_at, row_id = (getattr(model, name) for name in ("created_at", "id"))
    newest_first = (created_at.desc(), row_id.desc())
    criteria = [criterion for name, criterion in filters.items() if name in names]
    page = owned_by(model, select(*columns)).where(*criteria).order_by(*newest_first)
    if "before_id" in names:
        # A comparison of rows, which an index answers from that place on.
        place = tuple_(bindparam("before_created_at", type_=UtcInstant), bindparam("before_id"))
        page = page.where(tuple_(created_at, row_id) < place)
    page = page.limit(bindparam("limit"))
    if "size" not in names:
        return page
    first, *others = (octets(column) for column in columns if isinstance(column.type, Text))
    size = sum(others, first)
    total = func.sum(size).over(order_by=newest_first, rows=(None, 0))
    measured = page.add_columns((total - size).label("before")).subquery()
    fitting = select(*(measured.c[column.key] for column in columns)).where(measured.c.before < bindparam("size"))
    return fitting.order_by(measured.c.created_at.desc(), measured.c.id.desc())


def page_parameters(before: tuple[str, int] | None, limit: int, size: int) -> dict[str, Any]:
    """Return the parameters for at most `limit` rows, after the row `before` (created_at, id) if there is one.

    If the limit is more than FEW, the page also ends with the row at which the texts reach `size` bytes.
    """
    place = {} if before is None else dict(zip(("before_created_at", "before_id"), before, strict=True))
    return {**place, "limit": limit} | ({"size": size} if limit > FEW else {})
