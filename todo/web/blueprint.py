"""flask-smorest's Blueprint with the decorators that the views of this service share."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

import flask_smorest
from flask import request
from marshmallow import fields

from todo.errors import TodoError
from todo.web.conditions import expected_of, revalidated
from todo.web.openapi import ETAG, document_error
from todo.web.parsing import Parser
from todo.web.schemas import HeaderSchema, NoQuerySchema
from todo.web.statuses import by_status

View = TypeVar("View", bound=Callable[..., Any])

#: The example belongs to the schema, not the parameter: Swagger UI would fill in that of a parameter, and send it.
TAGS: dict[str, Any] = {"examples": ['"1@2025-01-09T12:34:56.123456Z"']}


class IfNoneMatchSchema(HeaderSchema):
    """The condition of a GET, for the document: todo/web/conditions.py reads it."""

    if_none_match = fields.String(
        data_key="If-None-Match",
        metadata={"description": "Entity tags that the caller has. The answer is a 304 if one of them is current."}
        | TAGS,
    )


class IfMatchSchema(HeaderSchema):
    """The condition of a change, for the document."""

    if_match = fields.String(
        data_key="If-Match",
        metadata={"description": "Entity tags. The answer is a 412 if none of them is current."} | TAGS,
    )


class Blueprint(flask_smorest.Blueprint):
    """flask-smorest's Blueprint with this service's parser and decorators."""

    ARGUMENTS_PARSER: ClassVar[Parser] = Parser()

    def no_query(self, view: View) -> View:
        """Refuse all query parameters. Raises InvalidInput."""

        @wraps(view)
        def without_query(*args: Any, **arguments: Any) -> Any:
            if request.query_string:
                self.ARGUMENTS_PARSER.parse(NoQuerySchema(), location="query")
            return view(*args, **arguments)

        return cast(View, without_query)

    def conditional_get(self, view: View, etag: Mapping[str, Any] = ETAG) -> View:
        """Answer 304 if If-None-Match names the entity tag of the response (todo/web/conditions.py).

        etag: describes the tag.
        """

        @wraps(view)
        def with_condition(*args: Any, **arguments: Any) -> Any:
            return revalidated(view(*args, **arguments))

        documented = _only_document(self.arguments(IfNoneMatchSchema(), location="headers"))(cast(View, with_condition))
        not_modified = self.alt_response(
            304, description="Not modified: the caller has the current state.", headers=etag
        )
        return not_modified(documented)

    def conditional_change(self, row_id: str) -> Callable[[View], View]:
        """Pass `expected` to the view: what the request expects of the row. row_id: its path argument."""

        def decorate(view: View) -> View:
            @wraps(view)
            def with_condition(*args: Any, **arguments: Any) -> Any:
                return view(*args, expected=expected_of(arguments[row_id]), **arguments)

            documented = _only_document(self.arguments(IfMatchSchema(), location="headers"))
            return self.fails_with(412)(documented(cast(View, with_condition)))

        return decorate

    def fails_with(self, *failures: int | type[TodoError]) -> Callable[[View], View]:
        """Document the failures of a view, each given as a status or a class. Does not change the view's behaviour."""
        responses: dict[int, Any] = {}
        for failure in failures:
            if isinstance(failure, int):
                responses[failure] = by_status()[failure].component
            else:
                responses[failure.status] = document_error(failure)
        return self.doc(responses=responses)

    def doc(self, **description: Any) -> Callable[[View], View]:
        """Document the view, as flask-smorest does."""
        return _only_document(super().doc(**description))

    def alt_response(self, *arguments: Any, **options: Any) -> Callable[[View], View]:
        """Document another response of the view, as flask-smorest does."""
        return _only_document(super().alt_response(*arguments, **options))


def _only_document(decorate: Callable[[Any], Any]) -> Callable[[View], View]:
    """Return a decorator that documents the view like this one of flask-smorest, without the function around it."""

    def document(view: View) -> View:
        around = vars(decorate(view))
        del around["__wrapped__"]
        vars(view).update(around)
        return view

    return document
