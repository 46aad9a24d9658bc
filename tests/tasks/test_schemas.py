"""What goes out is what marshmallow itself would write, to the byte; what may come in is what the document says."""

import re
import sys
from typing import Any

import pytest
from flask import Flask, jsonify
from marshmallow import Schema, fields
from msgspec import convert
from msgspec.structs import astuple

from todo.tasks.queries import TaskRow
from todo.tasks.schemas import TITLE, NewTaskSchema, TaskSchema
from todo.web.schemas import RowSchema, example_of

INSTANTS = ["2025-01-09T12:34:56.000000Z", "0999-12-31T23:59:59.000007Z"]
TEXTS = ["Buy milk", "söck 🧦 日本", 'quotes " and \\', "\x01\t\n\x7f\u2028", "</script>", "e\u0301\u200b\u202e"]
ROWS = [
    convert(
        example_of(TaskSchema)
        | {"id": 2**63 - 1 - number, "user_id": "jörg", "title": text, "description": description, "status": status}
        | {"created_at": instant, "updated_at": INSTANTS[-number % len(INSTANTS)]},
        TaskRow,
    )
    for number, instant in enumerate(INSTANTS)
    for text in TEXTS
    for description, status in ((None, "incomplete"), ("", "complete"), (text * 3, "complete"))
]


def test_a_row_goes_out_as_marshmallow_dumps_it(app: Flask) -> None:
    schema = TaskSchema()
    with app.app_context():
        for row in ROWS:
            assert jsonify(schema.dump(row)).data == jsonify(Schema.dump(schema, row)).data


def test_a_list_goes_out_as_marshmallow_dumps_it(app: Flask) -> None:
    schema = TaskSchema(many=True)
    with app.app_context():
        assert jsonify(schema.dump(ROWS)).data == jsonify(Schema.dump(schema, ROWS)).data


class OtherRow(TaskRow, frozen=True):
    """A task, and what its schema does not have."""

    version: int


def test_a_row_that_is_not_the_schemas_is_refused() -> None:
    other = OtherRow(*astuple(ROWS[0]), version=7)
    for is_list in (True, False):
        with pytest.raises(TypeError, match="OtherRow does not have the fields of TaskSchema"):
            TaskSchema(many=is_list).dump([other] if is_list else other)


@pytest.mark.parametrize(
    "field",
    [fields.Float(), fields.Nested(TaskSchema), fields.String(data_key="other"), fields.Integer(as_string=True)],
)
def test_a_field_that_is_not_plain_is_refused(field: Any) -> None:
    with pytest.raises(TypeError, match="extra is not a plain field"):
        RowSchema.from_dict({"extra": field})()


def test_a_default_that_would_count_as_sent_is_refused() -> None:
    with pytest.raises(TypeError, match="extra has a load_default: give the column a server_default"):
        NewTaskSchema.from_dict({"extra": fields.String(load_default=None)})()


def test_the_pattern_of_a_title_refuses_what_the_schema_refuses() -> None:
    # Patterns are for text, which has no lone surrogates. No character beyond these is white space.
    characters = [chr(code) for code in range(0x4000)]
    assert not any(chr(code).isspace() for code in range(0x4000, sys.maxunicode + 1))
    refused = [character for character in characters if not re.search(TITLE, character)]
    assert refused == [character for character in characters if character.isspace() or character == "\0"]
    for title in (*refused, " \t\n", "x\0", "\0x", "\n\0"):
        assert NewTaskSchema().validate({"title": title}), ascii(title)
        assert not re.search(TITLE, title), ascii(title)
    for title in ("\nx", " x\n", "\ufeff", "\u200b", "x" * 255):
        assert not NewTaskSchema().validate({"title": title}), ascii(title)
        assert re.search(TITLE, title), ascii(title)
