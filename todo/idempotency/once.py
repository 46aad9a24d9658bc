"""An insert that is safe to retry: one transaction inserts the row and its idempotency key."""

from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Generic, TypeVar

from msgspec import Struct, convert, json
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy import cast as sql_cast

from todo.db import db
from todo.db.clock import tick_or_start, unless_taken
from todo.db.commands import transaction
from todo.db.conflicts import refuse_conflict, violated
from todo.db.failures import DATABASE_ERRORS
from todo.db.inserts import insert_in_turn, insert_new, new_values
from todo.db.ownership import ONE_AT_A_TIME, Owned, has_room, limit_of, table_of
from todo.db.statements import INSTANT, Names, Statement, database
from todo.db.types import UtcInstant, instant_text
from todo.errors import KeyLimitReached, KeyReused, LimitReached
from todo.idempotency import queries
from todo.idempotency.models import IdempotencyKey

Row = TypeVar("Row", bound=Struct)

KEYS = table_of(IdempotencyKey)
#: How often a create is tried if another request takes its key at the same moment. The second attempt finds the answer
#: of that request; the third is for a key that was deleted in between.
ATTEMPTS = 3


class Outcome(Struct, frozen=True):
    """The result of one attempt.

    fingerprint: that of an earlier request with the key, if there was one.
    answer: the row in JSON, of the earlier request or new; None if there was no room.
    has_room: whether the user may have one more row.
    """

    fingerprint: str | None
    answer: str | None
    has_room: bool


class InsertOnce(Generic[Row]):
    """Inserts a row under a key, and its owner if there is none yet, like OwnedInsert (todo/db/inserts.py).

    row: the class of the returned row, with a field for each column to return.
    null_if_omitted: columns that the fingerprint counts as null if they are not among the values. Name only
    columns that earlier versions counted so. Any other would change fingerprints, and kept keys would not match.
    """

    def __init__(self, model: type[Owned], row: type[Row], *, null_if_omitted: Collection[str] = ()) -> None:
        self._model = model
        self._kind = model.__name__
        self._table = table_of(model)
        self._row = row
        self._null_if_omitted = null_if_omitted
        self._columns: dict[str, Column[Any]] = {name: self._table.columns[name] for name in row.__struct_fields__}
        self._statement = Statement(self._write_statement, Outcome)
        self._limited = Statement(self._write_statement, Outcome, first=ONE_AT_A_TIME)

    def one(self, user_id: str, email: str | None, key: str, values: Mapping[str, Any]) -> tuple[Row, bool]:
        """Return the row that was inserted under the user's key, and whether an earlier request inserted it.

        An earlier row is returned as it was when it was new. This takes one statement. Of concurrent requests with the
        same key, one inserts; the others wait for it, then return its row.

        Raises KeyReused if the key was used for other values; LimitReached, KeyLimitReached and Conflict; and one of
        DATABASE_ERRORS for any other constraint.
        """
        fingerprint = self._fingerprint(values)
        limit = limit_of(self._table)
        parameters = {"user_id": user_id, "key": key, "fingerprint": fingerprint, **new_values(values)}
        if limit is not None:
            parameters["most"] = limit
        outcome = self._attempt(email, parameters)
        if outcome.answer is None:
            raise KeyLimitReached(limit) if outcome.has_room else LimitReached(limit, self._table.name)
        if outcome.fingerprint not in (None, fingerprint):
            raise KeyReused
        return self._decoded(outcome.answer), outcome.fingerprint is not None

    def _fingerprint(self, values: Mapping[str, Any]) -> str:
        """Return a digest of what the client sent. Null counts as omitted, so that columns can be added at any time."""
        sent = {name: value for name, value in values.items() if value is not None}
        counted = {**dict.fromkeys(self._null_if_omitted), **sent}
        return sha256(json.encode([self._kind, counted], order="deterministic")).hexdigest()

    def _decoded(self, answer: str) -> Row:
        """Return the row of an answer. Columns that are newer than the answer get their defaults."""
        fields: dict[str, Any] = json.decode(answer)
        younger = [column for name, column in self._columns.items() if name not in fields]
        if younger:
            with db.engine.connect() as connection:
                fields |= connection.execute(select(*map(_default, younger))).mappings().one()
        return convert(fields, self._row)

    def _attempt(self, email: str | None, parameters: Mapping[str, Any], others: int = ATTEMPTS - 1) -> Outcome:
        attempt = self._insert if database() == "postgresql" else self._insert_in_turn
        try:
            return unless_taken(email, lambda email: attempt({**parameters, "owner_email": email}))
        except DATABASE_ERRORS as error:
            if not others or violated(error) is not KEYS.primary_key:
                raise
        # This request waited for another one with the same key, which came first.
        return self._attempt(email, parameters, others - 1)

    def _insert(self, parameters: Mapping[str, Any]) -> Outcome:
        (outcome,) = (self._limited if "most" in parameters else self._statement).all(**parameters)
        return outcome

    def _write_statement(self, names: Names) -> Select[*tuple[Any, ...]]:
        before = queries.FIND.cte("before")
        for_row, for_key = (has_room(self._model), queries.HAS_ROOM) if "most" in names else (true(), true())
        room = select(for_row.label("for_row"), for_key.label("for_key")).cte("room")
        is_allowed = select(room.c.for_row & room.c.for_key).scalar_subquery()
        is_first = ~select(before.c.answer).exists()
        clock = tick_or_start(is_allowed, is_first).cte("clock")
        made = insert_new(self._table, names, clock).returning(*self._columns.values())
        shown = select(*map(_shown, made.cte("made").c)).subquery("shown")
        answer = sql_cast(func.row_to_json(literal_column("shown")), Text)
        key = [bindparam(name, type_=Text) for name in ("user_id", "key", "fingerprint")]
        values = select(*key, answer).select_from(shown)
        kept = insert(KEYS).from_select([*(part.key for part in key), "answer"], values)
        kept_now = kept.returning(KEYS.c.answer).cte("kept")
        outcome: Select[*tuple[Any, ...]] = select(
            before.c.fingerprint, func.coalesce(before.c.answer, kept_now.c.answer), room.c.for_row
        ).select_from(room.outerjoin(before, true()).outerjoin(kept_now, true()))
        return outcome.add_cte(queries.prune(select(clock.c.id).exists()).cte("pruned"))

    def _insert_in_turn(self, parameters: Mapping[str, Any]) -> Outcome:
        # SQLite has no INSERT within WITH. Citus would send its rows to all machines. The first statement makes this
        # the user's only writer until the end.
        try:
            with transaction() as connection:
                outcome = self._insert_with(connection, parameters)
                if outcome.answer is None or outcome.fingerprint is not None:
                    # Nothing was made, so the clock stays as it was.
                    connection.rollback()
        except DATABASE_ERRORS as error:
            refuse_conflict(error)
            raise
        return outcome

    def _insert_with(self, connection: Connection, parameters: Mapping[str, Any]) -> Outcome:
        now = connection.execute(tick_or_start(), parameters).one().changed_at
        before = connection.execute(queries.FIND, parameters).one_or_none()
        if before is not None:
            return Outcome(before.fingerprint, before.answer, True)
        connection.execute(queries.prune(), parameters)
        if "most" in parameters:
            for_row, for_key = connection.execute(select(has_room(self._model), queries.HAS_ROOM), parameters).one()
            if not (for_row and for_key):
                return Outcome(None, None, for_row)
        new = insert_in_turn(self._table, frozenset(parameters)).returning(*self._columns.values())
        answer = json.encode(self._row(*connection.execute(new, {**parameters, INSTANT: now}).one())).decode()
        key = {name: parameters[name] for name in ("user_id", "key", "fingerprint")}
        connection.execute(insert(KEYS).values(**key, answer=answer))
        return Outcome(None, answer, True)


def _shown(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return SQL for the column's value in an answer. SQLAlchemy converts only the columns of the outermost select."""
    return instant_text(column).label(column.key) if isinstance(column.type, UtcInstant) else column


def _default(column: Column[Any]) -> ColumnElement[Any]:
    """Return SQL for the column's default, or NULL."""
    default: Any = column.server_default
    return sql_cast(null() if default is None else default.arg, column.type).label(column.key)
