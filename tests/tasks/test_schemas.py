"""What goes out is what marshmallow itself would write, to the byte."""

from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask, jsonify
from marshmallow import Schema, fields

from todo.schemas import RowSchema
from todo.tasks.queries import TaskRow
from todo.tasks.schemas import TaskSchema

INSTANTS = [
    datetime(2025, 1, 9, 12, 34, 56, microsecond, tzinfo=UTC) for microsecond in (0, 1, 100000, 123000, 123456, 999999)
] + [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(999, 12, 31, 23, 59, 59, 7, tzinfo=UTC),
    datetime(9999, 12, 31, tzinfo=UTC),
]
TEXTS = ["Buy milk", "söck 🧦 日本", 'quotes " and \\', "\x01\t\n\x7f\u2028", "</script>", "e\u0301\u200b\u202e"]
ROWS = [
    TaskRow(2**63 - 1 - number, "jörg", text, description, status, instant, INSTANTS[-number % len(INSTANTS)])
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


@pytest.mark.parametrize("field", [fields.Float(), fields.Nested(TaskSchema), fields.String(data_key="other")])
def test_a_field_that_is_not_plain_is_refused(field: Any) -> None:
    with pytest.raises(TypeError, match="extra is not a plain field"):
        RowSchema.from_dict({"extra": field})()
