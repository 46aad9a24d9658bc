"""What the views of all owned resources share: user_id, id, conditions, Location, Idempotency-Key, pages.

Each decorator is for one kind of call. It checks path and query, then headers and body, calls the view, and adds
headers to the response. All of them combine flask-smorest's own decorators.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any, Protocol, cast

from flask import url_for
from flask.views import MethodView
from marshmallow import Schema, fields, validate

from todo.errors import NotFound, SearchTooSlow
from todo.identity import Identity, current_identity
from todo.web.blueprint import Blueprint, View
from todo.web.conditions import Numbered, entity_tag
from todo.web.openapi import ETAG, header
from todo.web.paging import PAGE_BYTES, decode_cursor, encode_cursor, fit, next_link
from todo.web.places import turn_to_search
from todo.web.schemas import PAGE_LIMIT, HeaderSchema, Input, RowSchema, id_field

KEY_LIMIT = 255
#: The statuses of failures that any call may have, and those of any call with a body.
FAILURES = (400, 401, 403, 429, 500, 503)
BODY_FAILURES = (*FAILURES, 411, 413, 415)
#: The filter that cannot use an index. Searches of one caller run one at a time (todo/web/places.py).
SEARCH = "q"

USER_ID = {
    "in": "path",
    "name": "user_id",
    "description": "The user id of the caller.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "alice",
}
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


class Listed(Protocol):
    """A row of a list."""

    @property
    def id(self) -> int:
        """Its id."""

    @property
    def created_at(self) -> str:
        """When it was created."""


class OwnedView(MethodView):
    """A view of rows that belong to the caller."""

    @property
    def identity(self) -> Identity:
        """The caller."""
        return current_identity()

    @property
    def user_id(self) -> str:
        """The user id of the caller. The identity hook has checked that the path has the same."""
        return current_identity().user_id


class Resource(Blueprint):
    """The blueprint of a resource whose rows belong to users: /api/<user_id>/{name} and below."""

    def __init__(self, name: str, import_name: str, *, missing: type[NotFound], description: str) -> None:
        """name: the plural, as in paths. missing: the failure if the user has no row with the id."""
        super().__init__(name, import_name, url_prefix=f"/api/<user_id>/{name}", description=description)
        self._missing = missing
        self._noun = name.removesuffix("s")
        self._id = f"{self._noun}_id"
        self._path_schema = Input.from_dict({self._id: id_field(self._noun)}, name=f"{self._noun.capitalize()}Path")

    def collection(self, view: type[OwnedView]) -> type[OwnedView]:
        """Route all rows of a user to the view."""
        return cast(type[OwnedView], self.route("", endpoint="collection", parameters=[USER_ID])(view))

    def item(self, view: type[OwnedView]) -> type[OwnedView]:
        """Route one row of a user to the view."""
        route = self.route(f"/<{self._id}>", endpoint="item", parameters=[USER_ID])
        return cast(type[OwnedView], route(view))

    def action(self, name: str) -> Callable[[type[OwnedView]], type[OwnedView]]:
        """Route an action on one row of a user to the view."""
        route = self.route(f"/<{self._id}>/{name}", parameters=[USER_ID])
        return cast(Callable[[type[OwnedView]], type[OwnedView]], route)

    def lists(self, schema: type[RowSchema], query: type[Schema], example: Mapping[str, Any]) -> Callable[[View], View]:
        """Return a page of rows, newest first.

        The view gets the filters, and the keyword arguments `before` (the row before the page), `limit` and `size` (of
        the page in bytes). It returns up to limit + 1 rows. Each query parameter except `limit` and `cursor` is a
        filter. A cursor is valid only for the same filters.
        """
        names = [name for name in query().fields if name not in ("limit", "cursor")]
        link = header(
            f"The path of the next page, if more {self.name} follow (RFC 8288).",
            f'</api/alice/{self.name}?cursor=...>; rel="next"',
            required=False,
        )

        def decorate(view: View) -> View:
            @wraps(view)
            def page(self: OwnedView, parameters: Mapping[str, Any]) -> tuple[Sequence[Listed], dict[str, str]]:
                values = [parameters.get(name) or None for name in names]
                filters = {name: value for name, value in zip(names, values, strict=True) if value is not None}
                cursor, limit = parameters.get("cursor"), parameters.get("limit", PAGE_LIMIT)
                before = None if cursor is None else decode_cursor(self.user_id, values, cursor)
                with turn_to_search() if SEARCH in filters else nullcontext():
                    rows: Sequence[Listed] = view(self, filters, before=before, limit=limit, size=PAGE_BYTES)
                shown = fit(rows, limit)
                if len(shown) == len(rows):
                    return shown, {}
                next_cursor = encode_cursor(self.user_id, values, shown[-1].created_at, shown[-1].id)
                return shown, next_link(".collection", self.user_id, parameters, next_cursor)

            listed = self.fails_with(*([SearchTooSlow] if SEARCH in names else []), *FAILURES)(cast(View, page))
            listed = self.response(200, schema(many=True), example=[example], headers={"Link": link} | ETAG)(listed)
            listed = self.conditional_get(listed)
            listed = self.arguments(query(), location="query")(listed)
            return self._named("list", self.name, listed)

        return decorate

    def creates(
        self, schema: type[RowSchema], body: type[Schema], *, example: Mapping[str, Any], new_example: Mapping[str, Any]
    ) -> Callable[[View], View]:
        """Create a row. The view gets the loaded body and the `key`. It returns the row, and whether it is a replay."""
        location = {"Location": header(f"The path of the new {self._noun}.", f"/api/alice/{self.name}/1")}

        def decorate(view: View) -> View:
            @wraps(view)
            def create(
                owned: OwnedView, new: Mapping[str, Any], key: str | None = None
            ) -> tuple[Numbered, dict[str, str]]:
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
        """Change one row. The view gets the loaded body, and the keyword arguments id and `expected` (versions)."""

        def decorate(view: View) -> View:
            changed = self.fails_with(*BODY_FAILURES)(_tagged(view))
            changed = self.response(200, schema, example=example, headers=ETAG)(changed)
            changed = self.arguments(body(), required=is_body_required, example=changes_example)(changed)
            return self._named(verb, self._noun, self._of_one(self.conditional_change(self._id)(changed)))

        return decorate

    def deletes(self, view: View) -> View:
        """Delete one row. The view gets the keyword arguments id and `expected` (versions), and returns None."""
        deleted: View = self.response(204)(self.fails_with(*FAILURES)(view))
        return self._named("delete", self._noun, self._of_one(self.conditional_change(self._id)(deleted)))

    def _of_one(self, view: View) -> View:
        view = self.no_query(self.fails_with(self._missing)(view))
        return cast(View, self.arguments(self._path_schema(), location="path", as_kwargs=True)(view))

    def _named(self, verb: str, noun: str, view: View) -> View:
        return cast(View, self.doc(operationId=f"{verb}{noun.capitalize()}")(view))


def _tagged(view: View) -> View:
    """Add the entity tag of the row that the view returns."""

    @wraps(view)
    def tagged(*args: Any, **arguments: Any) -> tuple[Numbered, dict[str, str]]:
        row = view(*args, **arguments)
        return row, entity_tag(row)

    return cast(View, tagged)
