"""A resource unlike tasks: its plural is not the singular and an s, and its list has filters that are no texts."""

from collections.abc import Mapping
from typing import Any

import pytest
from flask.testing import FlaskClient
from marshmallow import fields

from todo.errors import NotFound
from todo.pages import Page, PageWanted
from todo.web import app as web
from todo.web.collection import OwnedView
from todo.web.openapi import Api
from todo.web.resource import Resource
from todo.web.schemas import NoQuerySchema, RowSchema, row_id_field


class CategorySchema(RowSchema):
    """A category."""

    id = row_id_field()


class CategoryListQuerySchema(NoQuerySchema):
    """The query string of the list."""

    is_pinned = fields.Boolean()
    level = fields.Integer()
    name = fields.String()


def blueprint(seen: list[Mapping[str, Any]]) -> Resource:
    """The blueprint of categories, whose list notes its filters there."""
    blp = Resource("categories", __name__, noun="category", missing=NotFound, description="Categories.")

    @blp.collection
    class Categories(OwnedView):
        @blp.lists(CategorySchema, CategoryListQuerySchema, {})
        def get(self, filters: Mapping[str, Any], _wanted: PageWanted) -> Page[Any]:
            """List"""
            seen.append(filters)
            return Page([], None)

    @blp.item
    class CategoryById(OwnedView):
        @blp.gets(CategorySchema, example={})
        def get(self, category_id: int) -> None:
            """Get"""

    return blp


@pytest.fixture
def seen() -> list[Mapping[str, Any]]:
    """The filters of each list."""
    return []


@pytest.fixture
def client(seen: list[Mapping[str, Any]]) -> FlaskClient:
    """A client of an app that has categories alone."""
    app = web.App(__name__, static_folder=None)
    app.config.update(API_TITLE="x", API_VERSION="1", OPENAPI_VERSION="3.1.0")
    app.config.update(OPENAPI_URL_PREFIX="/", API_SPEC_OPTIONS={})
    web.init_app(app)

    @app.url_value_preprocessor
    def take_user_id(_endpoint: str | None, values: dict[str, Any] | None) -> None:
        """As the identity hook does."""
        (values or {}).pop("user_id", None)

    Api(app).register_blueprint(blueprint(seen))
    return app.test_client()


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("?is_pinned=false", {"is_pinned": False}),
        ("?is_pinned=true", {"is_pinned": True}),
        ("?level=0", {"level": 0}),
        ("?name=", {}),
        ("", {}),
    ],
)
def test_only_an_empty_text_is_no_filter(
    client: FlaskClient, seen: list[Mapping[str, Any]], query: str, filters: Mapping[str, Any]
) -> None:
    assert client.get(f"/api/alice/categories{query}").status_code == 200
    assert seen == [filters]


def test_its_singular_is_in_paths_operations_and_messages(client: FlaskClient) -> None:
    paths = client.get("/openapi.json").get_json()["paths"]
    operations = {path: calls["get"]["operationId"] for path, calls in paths.items()}
    assert operations == {
        "/api/{user_id}/categories": "listCategories",
        "/api/{user_id}/categories/{category_id}": "getCategory",
    }
    assert client.get("/api/alice/categories/x").get_json() == {"error": "Invalid category ID"}
