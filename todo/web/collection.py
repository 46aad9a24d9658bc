"""What the views of all owned resources share for the calls on all rows of a user: list, change feed, bulk calls.

Each decorator is for one kind of call. It checks the query, then headers and body, calls the view, and adds headers to
the response. All of them combine flask-smorest's own decorators.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from typing import Any, Protocol, cast

from flask.views import MethodView
from marshmallow import Schema
from msgspec import Raw

from todo.errors import SearchTooSlow
from todo.identity import Identity, current_identity
from todo.pages import Page, PageWanted
from todo.web.app import FEED
from todo.web.blueprint import Blueprint, View
from todo.web.conditions import known_clock, page_tag, representation_of
from todo.web.openapi import PAGE_ETAG, header
from todo.web.paging import PAGE_BYTES, decode_cursor, encode_cursor, fit, next_link
from todo.web.places import turn_to_search
from todo.web.schemas import PAGE_LIMIT, BulkChangeSchema, BulkDeletionSchema, FeedQuerySchema, RowSchema
from todo.web.sync import NOTHING, answer_since, decode_token, encode_token, feed_schema, wanted_since

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


class Result(Protocol):
    """The result of a change of many rows."""

    @property
    def count(self) -> int:
        """How many rows were changed."""

    @property
    def has_more(self) -> bool:
        """Whether to call again."""


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


class Collection(Blueprint):
    """The blueprint of all rows of each user: /api/<user_id>/{name}."""

    def __init__(self, name: str, import_name: str, *, noun: str, description: str) -> None:
        """name: the plural, as in paths. noun: the singular, as in operation ids and messages."""
        super().__init__(name, import_name, url_prefix=f"/api/<user_id>/{name}", description=description)
        self._noun = noun

    def collection(self, view: type[OwnedView]) -> type[OwnedView]:
        """Route all rows of a user to the view."""
        return cast(type[OwnedView], self.route("", endpoint="collection", parameters=[USER_ID])(view))

    def feed(self, view: type[OwnedView]) -> type[OwnedView]:
        """Route the change feed of a user to the view."""
        return cast(type[OwnedView], self.route(f"/{FEED}", endpoint="feed", parameters=[USER_ID])(view))

    def lists(self, schema: type[RowSchema], query: type[Schema], example: Mapping[str, Any]) -> Callable[[View], View]:
        """Return a page of rows, newest first.

        The view gets the filters and a PageWanted, and returns a Page. Each query parameter except `limit` and `cursor`
        is a filter. A cursor is valid only for the same filters.
        """
        names = [name for name in query().fields if name not in ("limit", "cursor")]
        rows = schema(many=True)
        representation = representation_of([*rows.fields])
        link = header(
            f"The path of the next page, if more {self.name} follow (RFC 8288).",
            f'</api/alice/{self.name}?cursor=...>; rel="next"',
            required=False,
        )

        def decorate(view: View) -> View:
            @wraps(view)
            def list_rows(owned: OwnedView, parameters: Mapping[str, Any]) -> tuple[Raw, dict[str, str]]:
                given = [parameters.get(name) for name in names]
                # An empty text is no filter, but false and 0 are.
                values = [None if value == "" else value for value in given]
                filters = {name: value for name, value in zip(names, values, strict=True) if value is not None}
                cursor, limit = parameters.get("cursor"), parameters.get("limit", PAGE_LIMIT)
                after = None if cursor is None else decode_cursor(owned.user_id, values, cursor)
                wanted = PageWanted(limit, PAGE_BYTES, known_clock(representation), after)
                with turn_to_search() if SEARCH in filters else nullcontext():
                    page: Page[Any] = view(owned, filters, wanted)
                (count, shown), tag = fit(rows.dump(page.rows), limit), page_tag(page.clock, representation)
                if count == len(page.rows):
                    return shown, tag
                last = page.rows[count - 1]
                next_cursor = encode_cursor(owned.user_id, values, last.created_at, last.id)
                return shown, tag | next_link(".collection", owned.user_id, parameters, next_cursor)

            listed = self.fails_with(*([SearchTooSlow] if SEARCH in names else []), *FAILURES)(cast(View, list_rows))
            listed = self.response(200, rows, example=[example], headers={"Link": link} | PAGE_ETAG)(listed)
            listed = self.conditional_get(listed, PAGE_ETAG)
            listed = self.arguments(query(), location="query")(listed)
            return self._named("list", self.name, listed)

        return decorate

    def lists_changes(self, schema: type[RowSchema], example: Mapping[str, Any]) -> Callable[[View], View]:
        """Return the rows that have changed since a token. The view gets a PageWanted, and returns a Page."""
        representation = representation_of([*schema().fields])
        changes = [{"id": example["id"], self._noun: example}, {"id": example["id"] + 1, self._noun: None}]

        def decorate(view: View) -> View:
            @wraps(view)
            def list_changes(owned: OwnedView, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
                token, limit = parameters.get("since"), parameters.get("limit", PAGE_LIMIT)
                since = NOTHING if token is None else decode_token(owned.user_id, self.name, token)
                page: Page[Any] = view(owned, wanted_since(since, limit, known_clock(representation)))
                answer, then = answer_since(since, page, limit, self._noun)
                answer["next"] = encode_token(owned.user_id, self.name, then)
                # While more follow, the tag is of this page alone: with the URL of the next one it must not be a 304.
                shown = representation_of([representation, answer["next"]]) if answer["more"] else representation
                return answer, page_tag(page.clock, shown)

            listed = self.fails_with(*FAILURES, 410)(cast(View, list_changes))
            listed = self.response(
                200,
                feed_schema(self._noun, schema),
                example={"changes": changes, "next": "AQAGKz...", "more": False},
                headers=PAGE_ETAG,
            )(listed)
            listed = self.conditional_get(listed, PAGE_ETAG)
            listed = self.arguments(FeedQuerySchema(), location="query")(listed)
            return self._named("list", f"{self._noun} changes", listed)

        return decorate

    def changes_all(
        self, query: type[Schema], body: type[Schema], *, changes_example: Mapping[str, Any]
    ) -> Callable[[View], View]:
        """Change all rows that meet the filters of the query. The view gets these and the body, returns a Result."""

        def decorate(view: View) -> View:
            @wraps(view)
            def change(owned: OwnedView, filters: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
                result: Result = view(owned, filters, changes)
                return {"changed": result.count, "more": result.has_more}

            changed = self.fails_with(*BODY_FAILURES)(cast(View, change))
            changed = self.response(200, BulkChangeSchema(), example={"changed": 12, "more": False})(changed)
            changed = self.arguments(body(), example=changes_example)(changed)
            changed = self.arguments(query(), location="query")(changed)
            return self._named("change", self.name, changed)

        return decorate

    def deletes_all(self, query: type[Schema]) -> Callable[[View], View]:
        """Delete all rows that meet the filters of the query. The view gets these, and returns a Result."""

        def decorate(view: View) -> View:
            @wraps(view)
            def delete(owned: OwnedView, filters: Mapping[str, Any]) -> dict[str, Any]:
                result: Result = view(owned, filters)
                return {"deleted": result.count, "more": result.has_more}

            deleted = self.fails_with(*FAILURES)(cast(View, delete))
            deleted = self.response(200, BulkDeletionSchema(), example={"deleted": 12, "more": False})(deleted)
            deleted = self.arguments(query(), location="query")(deleted)
            return self._named("delete", self.name, deleted)

        return decorate

    def _named(self, verb: str, noun: str, view: View) -> View:
        name = verb + "".join(word.capitalize() for word in noun.split())
        return self.doc(operationId=name)(view)
