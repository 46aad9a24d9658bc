"""The OpenAPI document: flask-smorest's Api with this service's failures, and changes to what apispec generates."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import flask
import flask_smorest
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask, Response, current_app, request
from marshmallow import fields
from werkzeug.exceptions import HTTPException

from todo.errors import TodoError
from todo.web.app import answer_http_exception
from todo.web.schemas import Output
from todo.web.statuses import by_status

PARAMETER_ORDER = ("path", "query", "header")


def header(description: str, example: str, *, required: bool = True) -> dict[str, Any]:
    """Return an OpenAPI header object. required: every such response has the header."""
    return {"description": description, "required": required, "schema": {"type": "string"}, "example": example}


ETAG = {
    "ETag": header(
        'The entity tag, for `If-Match` and `If-None-Match` (RFC 9110 section 8.8.3): `"{id}@{updated_at}"`.',
        '"1@2025-01-09T12:34:56.123456Z"',
    )
}
PAGE_ETAG = {
    "ETag": header(
        "The entity tag, for `If-None-Match`. It changes with every change of what the user owns.",
        'W/"2025-01-09T12:34:56.123456Z-1a2b3c4d"',
    )
}
#: What the headers of failures say.
FAILURE_HEADERS = {
    "WWW-Authenticate": "The expected authentication scheme (RFC 6750).",
    "Retry-After": "Seconds to wait before the next attempt.",
    "RateLimit-Limit": "Requests allowed in one time window.",
    "RateLimit-Remaining": "Requests left in this window.",
    "RateLimit-Reset": "Seconds until the next window begins.",
}


class ApiErrorSchema(Output):
    """The body of every error. It is not named Error, because generated clients would then hide JavaScript's Error."""

    error = fields.String(required=True, metadata={"description": "One sentence that says what is wrong."})


def document_error(failure: type[TodoError]) -> dict[str, Any]:
    """Return the OpenAPI response object of a failure."""
    headers = {
        name: header(FAILURE_HEADERS[name], example, required=name in failure.headers)
        for name, example in {**failure.headers, **failure.extra_headers}.items()
    }
    body = {"error": failure.example or failure.message}
    content = {"application/json": {"schema": ApiErrorSchema, "example": body}}
    return {"description": failure.description, "content": content} | ({"headers": headers} if headers else {})


class Api(flask_smorest.Api):
    """flask-smorest's Api with this service's errors: their body, their headers, and their part of the document."""

    ERROR_SCHEMA = ApiErrorSchema
    # Each view documents its own failures.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def init_app(self, app: Flask, *, spec_kwargs: Mapping[str, Any] | None = None) -> None:
        """Set up as flask-smorest does, and document the bearer scheme and the failures."""
        super().init_app(app, spec_kwargs={"marshmallow_plugin": SchemaPlugin(), **(spec_kwargs or {})})
        self.spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
        for failure in by_status().values():
            if failure.component:
                self.spec.components.response(failure.component, document_error(failure))
        # flask-smorest adds it for its own pagination, which this service does not use.
        del self.spec.components.schemas["PaginationMetadata"]

    def _openapi_json(self) -> Response:
        # Replaces flask-smorest's view: `servers` also has the path prefix, which only a request knows (WSGI).
        document = {**self.spec.to_dict(), "servers": [{"url": request.script_root or "/"}]}
        return current_app.response_class(
            flask.json.dumps(document, indent=2, sort_keys=False), mimetype="application/json"
        )

    def handle_http_exception(self, error: HTTPException) -> Response:
        """Return the response for a failure that Werkzeug or Flask found."""
        return answer_http_exception(error)


class SchemaConverter(OpenAPIConverter):
    """apispec's converter of schemas and fields, with two additions.

    A schema's `json_schema` adds keywords to the object. A field whose metadata names a `component` is described once,
    in that component, and referenced everywhere.
    """

    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        """Return the JSON Schema of a marshmallow schema."""
        converted = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]  # apispec has few annotations
        return {**converted, **getattr(schema, "json_schema", {})}

    def field2property(self, field: Any) -> dict[str, Any]:
        """Return the JSON Schema of a marshmallow field, or a reference to its component."""
        converted = super().field2property(field)
        name = field.metadata.get("component")
        if name is None:
            return converted
        if name not in self.spec.components.schemas:
            self.spec.components.schema(name, converted)
        return self.spec.components.get_ref("schema", name)


class SchemaPlugin(MarshmallowPlugin):
    """apispec's plugin with SchemaConverter. Each operation lists all its parameters, always in the same order.

    Code generators turn parameters into arguments in this order, and would put those of a path item last.
    """

    Converter = SchemaConverter

    def path_helper(
        self,
        path: str | None = None,
        operations: dict[str, Any] | None = None,
        parameters: list[dict[str, Any]] | None = None,
        **_: Any,
    ) -> None:
        """Move the parameters of a path item into its operations."""
        for operation in (operations or {}).values():
            if all_parameters := [*deepcopy(parameters or []), *operation.get("parameters", [])]:
                operation["parameters"] = all_parameters
        if parameters:
            parameters.clear()

    def operation_helper(
        self, path: str | None = None, operations: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Resolve schemas and sort parameters. A parameter from a schema replaces the route's of the same name."""
        super().operation_helper(path=path, operations=operations, **options)
        for operation in (operations or {}).values():
            if parameters := operation.get("parameters"):
                last = {(parameter["in"], parameter["name"]): parameter for parameter in parameters}
                operation["parameters"] = sorted(last.values(), key=lambda each: PARAMETER_ORDER.index(each["in"]))
                for parameter in operation["parameters"]:
                    # Swagger UI fills a parameter in with its own example. One in a path must have a value.
                    if parameter["in"] == "path" and "examples" in parameter["schema"]:
                        (parameter["example"],) = parameter["schema"].pop("examples")


api = Api()
