"""What the views of all owned resources share for the calls on one row: id, conditions, Location, Idempotency-Key.

Each decorator is for one kind of call: see Collection, which has those on all rows.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, cast

from flask import url_for
from marshmallow import Schema, fields, validate

from todo.errors import NotFound
from todo.web.app import ROW_ID
from todo.web.blueprint import View
from todo.web.collection import BODY_FAILURES, FAILURES, USER_ID, Collection, OwnedView
from todo.web.conditions import Changing, entity_tag
from todo.web.openapi import ETAG, header
from todo.web.schemas import HeaderSchema, Input, RowSchema, id_field

KEY_LIMIT = 255
REPLAYED = {
    "Idempotency-Replayed": header(
        "`true` if this is the answer to an earlier request with the same `Idempotency-Key`.", "true", required=False
    )
}


class IdempotencyKeySchema(HeaderSchema):
    """The header that makes a create safe to retry."""

    key = fields.String(
        data_key="Idempotency-Key",
        validate=validate.Regexp(
            rf"[\x20-\x7e]{{1,{KEY_LIMIT}}}\Z",
            error=f"Idempotency-Key must be 1 to {KEY_LIMIT} printable ASCII characters",
        ),
        metadata={
            "description": "Makes a retry safe. A second request with the same key and body creates nothing: it "
            "gets the first answer again.",
            "minLength": 1,
            "maxLength": KEY_LIMIT,
            "pattern": "^[ -~]+$",
            "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        },
    )


class Resource(Collection):
    """The blueprint of a resource whose rows belong to users: /api/<user_id>/{name} and below."""

    def __init__(self, name: str, import_name: str, *, noun: str, missing: type[NotFound], description: str) -> None:
        """name, noun: as for Collection. missing: the failure if the user has no row with the id."""
        super().__init__(name, import_name, noun=noun, description=description)
        self._missing = missing
        self._id = f"{self._noun}_id"
        self._path_schema = Input.from_dict({self._id: id_field(self._noun)}, name=f"{self._noun.capitalize()}Path")

    def item(self, view: type[OwnedView]) -> type[OwnedView]:
        """Route one row of a user to the view."""
        route = self.route(f"/<{ROW_ID}:{self._id}>", endpoint="item", parameters=[USER_ID])
        return cast(type[OwnedView], route(view))

    def action(self, name: str) -> Callable[[type[OwnedView]], type[OwnedView]]:
        """Route an action on one row of a user to the view."""
        route = self.route(f"/<{self._id}>/{name}", parameters=[USER_ID])
        return cast(Callable[[type[OwnedView]], type[OwnedView]], route)

    def creates(
        self, schema: type[RowSchema], body: type[Schema], *, example: Mapping[str, Any], new_example: Mapping[str, Any]
    ) -> Callable[[View], View]:
        """Create a row. The view gets the loaded body and the `key`. It returns the row, and whether it is a replay."""
        location = {"Location": header(f"The path of the new {self._noun}.", f"/api/alice/{self.name}/1")}

        def decorate(view: View) -> View:
            @wraps(view)
            def create(
                owned: OwnedView, new: Mapping[str, Any], key: str | None = None
            ) -> tuple[Changing, dict[str, str]]:
                row, is_replayed = view(owned, new, key)
                replayed = {"Idempotency-Replayed": "true"} if is_replayed else {}
                path = url_for(".item", **{"user_id": owned.user_id, self._id: row.id})
                return row, {"Location": path, **entity_tag(row), **replayed}

            created = self.fails_with(*BODY_FAILURES, 409, 422)(cast(View, create))
            created = self.response(201, schema, example=example, headers=location | ETAG | REPLAYED)(created)
            created = self.arguments(body(), example=new_example)(created)
            created = self.arguments(IdempotencyKeySchema(), location="headers", as_kwargs=True)(created)
            return self._named("create", self._noun, self.no_query(created))

        return decorate

    def gets(self, schema: type[RowSchema], *, example: Mapping[str, Any]) -> Callable[[View], View]:
        """Return one row. The view gets its id."""

        def decorate(view: View) -> View:
            got = self.fails_with(*FAILURES)(_tagged(view))
            got = self.conditional_get(self.response(200, schema, example=example, headers=ETAG)(got))
            return self._named("get", self._noun, self._of_one(got))

        return decorate

    def changes(
        self,
        schema: type[RowSchema],
        body: type[Schema],
        *,
        example: Mapping[str, Any],
        changes_example: Mapping[str, Any],
        verb: str = "update",
        is_body_required: bool = True,
    ) -> Callable[[View], View]:
        """Change one row. The view gets the loaded body, and the keyword arguments id and `expected`."""

        def decorate(view: View) -> View:
            changed = self.fails_with(*BODY_FAILURES)(_tagged(view))
            changed = self.response(200, schema, example=example, headers=ETAG)(changed)
            changed = self.arguments(body(), required=is_body_required, example=changes_example)(changed)
            return self._named(verb, self._noun, self._of_one(self.conditional_change(self._id)(changed)))

        return decorate

    def deletes(self, view: View) -> View:
        """Delete one row. The view gets the keyword arguments id and `expected`, and returns None."""
        deleted: View = self.response(204)(self.fails_with(*FAILURES)(view))
        return self._named("delete", self._noun, self._of_one(self.conditional_change(self._id)(deleted)))

    def _of_one(self, view: View) -> View:
        view = self.no_query(self.fails_with(self._missing)(view))
        return cast(View, self.arguments(self._path_schema(), location="path", as_kwargs=True)(view))


def _tagged(view: View) -> View:
    """Add the entity tag of the row that the view returns."""

    @wraps(view)
    def tagged(*args: Any, **arguments: Any) -> tuple[Changing, dict[str, str]]:
        row = view(*args, **arguments)
        return row, entity_tag(row)

    return cast(View, tagged)
