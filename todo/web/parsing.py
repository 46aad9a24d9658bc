"""The strict parser of bodies and query strings. Its error is one sentence that says what is wrong."""

import json
from typing import Any, NoReturn, cast
from urllib.parse import parse_qsl

from flask import Request, request
from marshmallow import Schema, ValidationError
from webargs.core import is_json
from webargs.flaskparser import FlaskParser

from todo.errors import InvalidInput, LengthRequired, UnsupportedMediaType


class Parser(FlaskParser):
    """webargs' parser for this service. Each schema decides which unknown names it refuses."""

    DEFAULT_VALIDATION_STATUS = 400

    def parse(self, argmap: Any, req: Request | None = None, *, location: str | None = None, **_: Any) -> Any:
        """Return what the schema loads from the body ("json"), or from query, path or headers. Raises InvalidInput.

        Returns {} if there is no body and the schema allows that, and if there is none of its headers. Replaces the
        method of webargs, which takes twice as long: it is made for more kinds of schemas and locations.
        """
        sender: Request = request._get_current_object() if req is None else req  # type: ignore[attr-defined]
        sent: Any
        if location == "headers":
            if not argmap.is_in(sender.headers):
                return {}
            sent = self.load_headers(sender, argmap)
        elif location == "path":
            sent = sender.view_args
        elif location == "query":
            sent = self.load_querystring(sender, argmap)
        elif getattr(argmap, "is_body_optional", False) and not _read_body(sender):
            return {}
        else:
            sent = self.load_json(sender, argmap)
        try:
            return argmap.load(sent)
        except ValidationError as error:
            raise InvalidInput("; ".join(cast("list[str]", error.messages))) from error

    def load_json(self, req: Request, schema: Schema) -> dict[str, Any]:
        """Return the body, a JSON object in UTF-8 (RFC 8259).

        Raises InvalidInput, LengthRequired, UnsupportedMediaType, or Werkzeug's RequestEntityTooLarge.
        """
        body = _read_body(req)
        if not body:
            raise InvalidInput("Request body is required")
        if not is_json(req.mimetype):
            raise UnsupportedMediaType
        value = _load(body)
        if not isinstance(value, dict):
            raise InvalidInput("Request body must be a JSON object")
        return value

    def load_querystring(self, req: Request, schema: Schema) -> dict[str, str]:
        """Return the query parameters. Raises InvalidInput if one is given twice or is not UTF-8."""
        try:
            pairs = parse_qsl(req.query_string.decode(), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise InvalidInput("Query string must be UTF-8") from error
        return _unique(pairs, "Query parameter given twice: {}")


def _read_body(req: Request) -> bytes:
    if "Transfer-Encoding" in req.headers:
        raise LengthRequired
    if not req.content_length and req.environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
        # In HTTP/1 there is no body without either header (RFC 9112 section 6.3). In HTTP/2 there may be one.
        return b""
    body = req.get_data()
    if len(body) != (req.content_length or 0):
        # The client disconnected early. Even so, the part that arrived may be valid JSON.
        raise InvalidInput("Request body is shorter than its Content-Length")
    return body


def _load(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=lambda pairs: _unique(pairs, "Key given twice: {}"),
            parse_constant=_refuse_constant,
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("Request body is not valid JSON") from error
    except ValueError as error:
        # Python limits the number of digits of an integer.
        raise InvalidInput("Request body has a number that is too long") from error
    except RecursionError as error:
        raise InvalidInput("Request body is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]], message: str) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise InvalidInput(message.format(name))
        unique[name] = value
    return unique


def _refuse_constant(name: str) -> NoReturn:
    # NaN and Infinity, which Python accepts and JSON does not have.
    raise InvalidInput("Request body is not valid JSON")
