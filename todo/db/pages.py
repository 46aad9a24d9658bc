"""The SELECT of one page of a user's rows: of a list, newest first, or of the change feed, in the order of changes.

The first row of the answer is the user's clock (todo/db/clock.py). Knows no table but that of the deletions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    null,
    select,
    tuple_,
    union_all,
)

from todo.db import db
from todo.db.clock import header_of, is_news
from todo.db.deletions import Deletion, is_of
from todo.db.ownership import owned_by
from todo.db.statements import Names
from todo.db.types import UtcInstant, octets
from todo.pages import PageWanted

#: Up to this many rows are read without measuring their size in bytes.
FEW = 101


def page_of(
    model: type[Any], columns: Sequence[Any], filters: Mapping[str, ColumnElement[bool]], names: Names
) -> CompoundSelect[Any]:
    """Write the statement of a list. names: of page_parameters(), and of values for some of the filters."""
    criteria = [criterion for name, criterion in filters.items() if name in names]
    page = owned_by(model, select(*columns)).where(*criteria)
    if "after_id" in names:
        # A comparison of rows, which an index answers from that place on.
        page = page.where(tuple_(model.created_at, model.id) < _place("after"))
    page = _limited(page.order_by(model.created_at.desc(), model.id.desc()), names)
    return _with_header(columns, page, names, lambda rows: (rows.c.created_at.desc(), rows.c.id.desc()))


def changes_of(model: type[Any], columns: Sequence[Any], names: Names) -> CompoundSelect[Any]:
    """Write the statement of the change feed. names: of page_parameters().

    A row that was deleted has its id, its owner, the instant in updated_at, and NULL in all other columns.
    """
    changed = owned_by(model, select(*columns))
    if "after_id" in names:
        changed = changed.where(tuple_(model.updated_at, model.id) > _place("after"))
    changed = _limited(changed.order_by(model.updated_at, model.id), names)
    page: Select[Any] = changed
    if "deletions_after_id" in names:
        known = {"id": Deletion.row_id, "user_id": Deletion.user_id, "updated_at": Deletion.deleted_at}
        marks = [
            (known[column.key] if column.key in known else cast(null(), column.type)).label(column.key)
            for column in columns
        ]
        deleted = owned_by(Deletion, select(*marks)).where(
            is_of(model),
            tuple_(Deletion.deleted_at, Deletion.row_id) > _place("deletions_after"),
        )
        deleted = _limited(deleted.order_by(Deletion.deleted_at, Deletion.row_id), names)
        # SQLite accepts a limit within UNION ALL only in a sub-select.
        merged = union_all(*(select(*part.subquery().c) for part in (changed, deleted))).subquery("merged")
        page = select(*merged.c).order_by(merged.c.updated_at, merged.c.id).limit(bindparam("limit"))
    return _with_header(columns, page, names, lambda rows: (rows.c.updated_at, rows.c.id))


def page_parameters(wanted: PageWanted) -> dict[str, Any]:
    """Return the parameters of a page; without those that it does not need."""
    places = {"after": wanted.after, "deletions_after": wanted.deletions_after}
    parameters: dict[str, Any] = {"limit": wanted.limit + 1}
    for name, place in places.items():
        if place is not None:
            parameters |= dict(zip((f"{name}_at", f"{name}_id"), place, strict=True))
    if wanted.known is not None:
        parameters["known"] = wanted.known
    if parameters["limit"] > FEW:
        parameters["size"] = wanted.size
    return parameters


def _limited(rows: Select[Any], names: Names) -> Select[Any]:
    """Limit the rows. If the clock is the parameter `known`, no row is read."""
    limit: ColumnElement[int] = bindparam("limit")
    if "known" not in names:
        return rows.limit(limit)
    if db.engine.name == "sqlite":
        # SQLite would compare the clock for each row of the user. It evaluates a limit once.
        return rows.limit(case((is_news(), limit), else_=0))
    return rows.where(is_news()).limit(limit)


def _place(name: str) -> Any:
    return tuple_(bindparam(f"{name}_at", type_=UtcInstant), bindparam(f"{name}_id"))


def _with_header(columns: Sequence[Any], page: Select[Any], names: Names, order: Any) -> CompoundSelect[Any]:
    """Put the clock before the page. With a `size`, end the page with the row at which the texts reach it."""
    rows = page.subquery("page")
    shown = select(*rows.c)
    if "size" in names:
        first, *others = (octets(column) for column in rows.c if isinstance(column.type, Text))
        size = sum(others, first)
        total = func.sum(size).over(order_by=order(rows), rows=(None, 0))
        measured = select(*rows.c, (total - size).label("before")).subquery("measured")
        shown = select(*(measured.c[column.key] for column in columns))
        shown = shown.where(measured.c.before < bindparam("size")).order_by(*order(measured))
        rows = shown.subquery("shown")
        shown = select(*rows.c)
    return union_all(header_of(columns), shown)
