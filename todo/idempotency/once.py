"""The insert that can be sent twice: the row and its idempotency key are made in one transaction, or neither is."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct, json
from sqlalchemy import ColumnElement, Insert, Select, Table, Text, bindparam, func, insert, literal_column, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.exc import IntegrityError

from todo.database import UtcInstant, instant_text
from todo.errors import KeyReused
from todo.extensions import Model, db
from todo.faults import is_unique_violation
from todo.idempotency.models import IdempotencyKey
from todo.idempotency.queries import SAME_KEY, find_key
from todo.ownership import begin, insert_owner, unless_taken

Row = TypeVar("Row", bound=Struct)

# Tables rather than models, here and below: the session has ideas of its own on the insert of a model.
KEYS = cast(Table, IdempotencyKey.__table__)


class InsertOnce(Generic[Row]):
    """The insert of a row under a key, as `row` with a field for each column to return.

    It makes the owner's row too, where need be, like OwnedInsert (todo/ownership.py).
    """

    def __init__(self, model: type[Model], row: type[Row]) -> None:
        self._kind = model.__name__
        self._table = cast(Table, model.__table__)
        self._row = row
        self._names = row.__struct_fields__
        # What is returned into a CTE SQLAlchemy leaves as it is in the table.
        columns = [self._table.columns[name] for name in self._names]
        self._returned = [
            instant_text(column).label(column.key) if isinstance(column.type, UtcInstant) else column
            for column in columns
        ]

    def one(self, user_id: str, email: str | None, key: str, **values: Any) -> tuple[Row, bool]:
        """The row that was inserted under the user's key, now or then, and whether it was then.

        The row of then is as it was, whatever has become of it. One statement to insert, two to find out that it was
        done; of many at once one inserts, and the others wait for it. Raises KeyReused where it was other values that
        were inserted, and one of DATABASE_ERRORS for any other constraint.
        """
        fingerprint = sha256(json.encode([self._kind, values], order="deterministic")).hexdigest()
        parameters = {"user_id": user_id, "key": key, "fingerprint": fingerprint}
        if (inserted := self._inserted(email, parameters, values)) is not None:
            return inserted, False
        if (kept := find_key(user_id, key)) is None:
            # Pruned since: it is a new key again.
            return self.one(user_id, email, key, **values)
        if kept.fingerprint != fingerprint:
            raise KeyReused
        return json.decode(kept.answer, type=self._row), True

    def _inserted(self, email: str | None, parameters: Mapping[str, str], values: Mapping[str, Any]) -> Row | None:
        """The row; None where the key is there already, be it since an instant ago."""
        try:
            return unless_taken(email, lambda email: self._insert(email, parameters, values))
        except IntegrityError as error:
            if not is_unique_violation(error):
                raise
            # Another request with the same key was a moment faster; PostgreSQL let this one wait for it.
            db.session.rollback()
            return None

    def _insert(self, email: str | None, parameters: Mapping[str, str], values: Mapping[str, Any]) -> Row | None:
        owner = insert_owner(parameters["user_id"], email)
        columns = [sql_cast(value, self._table.columns[name].type) for name, value in values.items()]
        new_row = select(*columns, bindparam("user_id", type_=Text)).where(~SAME_KEY.exists())
        new = insert(self._table).from_select([*values, "user_id"], new_row).returning(*self._returned)
        if db.engine.dialect.name == "sqlite":
            return self._insert_in_turn(owner, new, parameters)
        made = new.cte("made")
        named = (bindparam(name, type_=Text) for name in parameters)
        answer = sql_cast(func.row_to_json(literal_column("made")), Text)
        kept = insert(KEYS).from_select([*parameters, "answer"], select(*named, answer).select_from(made))
        names: list[ColumnElement[Any]] = [literal_column(name) for name in self._names]
        whole: Select[*tuple[Any, ...]] = select(*names).select_from(made)
        row = db.session.execute(whole.add_cte(owner.cte("owner"), kept.cte("kept")), parameters).one_or_none()
        # Gives the connection back: the look-up of a kept answer takes one, and there is one for each thread.
        db.session.commit()
        return None if row is None else self._row(*row)

    def _insert_in_turn(self, owner: Insert, new: Insert, parameters: Mapping[str, str]) -> Row | None:
        # SQLite has no INSERT within WITH. The first statement takes the only writer's place: nobody comes between.
        begin()
        db.session.execute(owner)
        row = db.session.execute(new, parameters).one_or_none()
        inserted = None if row is None else self._row(*row)
        if inserted is not None:
            db.session.execute(insert(KEYS).values(**parameters, answer=json.encode(inserted).decode()))
        db.session.commit()
        return inserted
