"""What the schemas of all features share. Imports marshmallow alone, like them: knows no database and no HTTP."""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, pre_load, validate

# Patterns of the OpenAPI document say \x00, not \u0000: some generators decode \uXXXX, and a NUL or a line separator in
# generated code does not compile.
#: What `storable` lets pass, as a pattern of JSON Schema: there are no lone surrogates in JSON that is UTF-8.
STORABLE = r"^[^\x00]*$"
LARGEST_ID = 2**63 - 1
#: Rows on a page at most.
PAGE_LIMIT = 1000
INSTANT = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$"

# What PostgreSQL cannot store, or UTF-8 not express (RFC 3629 section 3).
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NATURAL_NUMBER = re.compile("[1-9][0-9]{0,18}")


class Input(Schema):
    """A schema for what comes in: output-only (dump_only) fields are ignored, unknown fields are refused by name.

    Its ValidationError has a list of sentences in order: on its fields as they are declared, on the whole, then on
    the refused fields in the order they came.
    """

    class Meta:
        unknown = RAISE

    unknown_message = "Unknown field: {}"
    #: Sentences for unknown fields that the resource has, but this call does not take.
    refusals: ClassVar[Mapping[str, str]] = {}

    @pre_load
    def drop_output_only(self, data: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        """Drop the output-only fields without a look at their values (Google AIP-203)."""
        output_only = self.fields.keys() - self.load_fields.keys()
        return {name: value for name, value in data.items() if name not in output_only} if output_only else data

    def handle_error(self, error: ValidationError, data: Mapping[str, Any], **_: Any) -> None:
        """Put the messages in order, and name in each what marshmallow calls an unknown field."""
        found = cast("dict[str, list[str]]", error.messages)
        known = [message for name in self.load_fields for message in found.get(name, ())]
        # A field that somebody calls _schema meets marshmallow's own name for the whole.
        whole = [message for message in found.get("_schema", ()) if message != self.error_messages["unknown"]]
        unknown = [name for name in data if name not in self.fields]
        refused = [self.refusals.get(name) or self.unknown_message.format(name) for name in unknown]
        error.messages = [*known, *whole, *refused]


class NoQuerySchema(Input):
    """The query string of a call that takes no parameters."""

    unknown_message = "Unknown query parameter: {}"


class HeaderSchema(Schema):
    """Headers of a request. Other headers are no concern of it."""

    class Meta:
        unknown = EXCLUDE

    def handle_error(self, error: ValidationError, data: Mapping[str, Any], **_: Any) -> None:
        """Replace the messages by a list, in the order of the fields."""
        found = cast("dict[str, list[str]]", error.messages)
        error.messages = [message for messages in found.values() for message in messages]


class NaturalNumber(fields.Integer):
    """A number from 1 up, in ASCII digits without sign, blank or leading zero."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not _NATURAL_NUMBER.fullmatch(value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class Output(Schema):
    """A schema for answers. The document allows more members in them: a generated client must survive a new field."""

    class Meta:
        unknown = EXCLUDE


class RowSchema(Output):
    """A schema for rows that go out as they are: a plain field for each field of the row, in the same order.

    Such a row is already what marshmallow would make of it, field by field: it is left to the JSON encoder
    (todo/web/app.py), and a list costs a fraction. Raises TypeError for a field of another kind.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, field in self.dump_fields.items():
            is_plain = type(field) in (fields.String, fields.Integer, fields.Boolean)
            if not is_plain or field.data_key or field.attribute or getattr(field, "as_string", False):
                raise TypeError(f"{name} is not a plain field")

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """The list of rows as it is; of one row what the schema names, since a row may know more by itself.

        Raises TypeError for a list of rows whose fields are not those of the schema, AttributeError for one row that
        lacks some.
        """
        if not (self.many if many is None else many):
            return {name: getattr(obj, name) for name in self.dump_fields}
        for row in obj[:1]:
            if row.__struct_fields__ != tuple(self.dump_fields):
                raise TypeError(f"{type(row).__name__} has not the fields of {type(self).__name__}")
        return obj


def output_only(row: type[RowSchema]) -> dict[str, fields.Field[Any]]:
    """The row's output-only fields, for `Meta.include` of an Input that ignores them."""
    metadata = {"description": "Ignored: the service sets it."}
    names = [name for name, field in row().fields.items() if field.dump_only]
    return {name: fields.Raw(dump_only=True, metadata=metadata) for name in names}


def row_id_field() -> fields.Integer:
    """The id of a row, in a response."""
    return fields.Integer(
        required=True,
        dump_only=True,
        metadata={"format": "int64", "minimum": 1, "maximum": LARGEST_ID, "examples": [1]},
    )


def user_id_field() -> fields.String:
    """The owner of a row, in a response."""
    return fields.String(
        required=True, dump_only=True, metadata={"minLength": 1, "maxLength": 255, "examples": ["alice"]}
    )


def instant_field() -> fields.String:
    """When something happened to the resource (RFC 3339), in UTC."""
    return fields.String(
        required=True,
        dump_only=True,
        metadata={"format": "date-time", "pattern": INSTANT, "examples": ["2025-01-09T12:34:56.123456Z"]},
    )


def id_field(noun: str) -> NaturalNumber:
    """The id of a row, in a path."""
    message = f"Invalid {noun} ID"
    return NaturalNumber(
        required=True,
        validate=validate.Range(min=1, max=LARGEST_ID, error=message),
        error_messages={"invalid": message},
        metadata={"description": f"The id of the {noun}.", "format": "int64", "examples": [1]},
    )


def limit_field() -> NaturalNumber:
    """How many rows a page has at most, in a query string."""
    message = f"Limit must be a whole number from 1 to {PAGE_LIMIT}"
    return NaturalNumber(
        validate=validate.Range(min=1, max=PAGE_LIMIT, error=message),
        error_messages={"invalid": message},
        metadata={"description": f"Rows on a page; {PAGE_LIMIT} if omitted. A page also ends after 1 MiB."},
    )


def cursor_field() -> fields.String:
    """Where a list goes on, in a query string."""
    return fields.String(
        metadata={"description": "Where the page starts, from the `Link` header. Valid only with the same filters."}
    )


def example_of(schema: type[Schema], **values: Any) -> dict[str, Any]:
    """Return an object of the examples of the schema's fields, with these values in their place."""
    described = {name: field.metadata for name, field in schema().fields.items()}
    return {name: metadata["examples"][0] for name, metadata in described.items() if "examples" in metadata} | values


def storable(name: str) -> Callable[[str], None]:
    """A validator that refuses NUL and lone surrogates, in the name of the field."""

    def refuse_unstorable(value: str) -> None:
        if _UNSTORABLE.search(value):
            raise ValidationError(f"{name} must not contain NUL or lone surrogates")

    return refuse_unstorable
