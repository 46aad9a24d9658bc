"""The documentation in the browser, as far as it shows without one; tests/ecosystem/test_docs.py has the rest."""

import re
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.support import Make, statements_of
from todo.web.swagger import OURS, SWAGGER_UI

FILES = [f"/docs/{name}" for name in OURS + SWAGGER_UI]
NOTHING_LOADED = "default-src 'none'; frame-ancestors 'none'"


class Nobody(FlaskClient):
    """A caller without identity, who reads each answer to its end, so that its file is closed."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        return super().open(*args, buffered=True, **options)


@pytest.fixture
def nobody(apps: dict[str, Flask]) -> FlaskClient:
    """A caller without identity."""
    return Nobody(apps["sqlite"], Response)


def directives(response: TestResponse) -> dict[str, str]:
    """The content security policy, by directive."""
    (policy,) = response.headers.getlist("Content-Security-Policy")
    return dict(directive.strip().split(" ", 1) for directive in policy.split(";"))


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_page_is_everybodys_under_both_spellings(apps: dict[str, Flask], nobody: FlaskClient, path: str) -> None:
    with statements_of(apps["sqlite"]) as statements:
        response = nobody.get(path)
    assert (response.status_code, response.mimetype) == (200, "text/html")
    assert f"<title>{nobody.get('/openapi.json').get_json()['info']['title']}</title>" in response.text
    assert statements == []


def test_the_page_may_run_and_show_what_comes_from_the_service_alone(nobody: FlaskClient) -> None:
    policy = directives(nobody.get("/docs"))
    assert policy.pop("img-src") == "'self' data:"
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(policy.values()) == {"'none'"}


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/docs/nothing", *FILES])
def test_no_other_answer_may(nobody: FlaskClient, path: str) -> None:
    assert nobody.get(path).headers.getlist("Content-Security-Policy") == [NOTHING_LOADED]


def test_all_that_the_page_asks_for_is_there(nobody: FlaskClient) -> None:
    page = nobody.get("/docs").text
    assert set(re.findall(r'(?:src|href|data-document)="([^"]+)"', page)) == {"/openapi.json", *FILES}
    # Nothing that the policy would forbid.
    assert not re.findall(r"<script>|<style|style=|\son\w+=", page)


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_under_a_path_the_page_asks_there(nobody: FlaskClient, path: str) -> None:
    page = nobody.get(path, base_url="http://localhost/apps/todo")
    asked = set(re.findall(r'(?:src|href|data-document)="([^"]+)"', page.text))
    assert asked == {f"/apps/todo{path}" for path in ("/openapi.json", *FILES)}
    assert page.headers["ETag"] != nobody.get(path).headers["ETag"]
    root = nobody.get("/", base_url="http://localhost/apps/todo")
    assert (root.status_code, root.headers["Location"]) == (302, "/apps/todo/docs")


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_what_its_name_says(nobody: FlaskClient, path: str) -> None:
    response = nobody.get(path)
    kinds = {"js": {"text/javascript", "application/javascript"}, "css": {"text/css"}, "png": {"image/png"}}
    assert response.status_code == 200
    assert response.mimetype in kinds[path.rpartition(".")[2]]
    assert len(response.data) == response.content_length > 0
    assert nobody.get(f"{path}/").data == response.data


@pytest.mark.parametrize("path", ["/docs", *FILES])
def test_it_is_kept_and_asked_for_again(nobody: FlaskClient, path: str) -> None:
    first = nobody.get(path)
    assert first.headers.getlist("Cache-Control") == ["no-cache"]
    again = nobody.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    # A browser takes the headers of the 304 for those of what it kept.
    assert directives(again) == directives(first)
    assert nobody.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    failed = nobody.get(path, headers={"If-Match": '"other"'})
    assert (failed.status_code, failed.get_json()) == (412, {"error": "Precondition Failed"})


@pytest.mark.parametrize(
    "path",
    [
        *("/docs/index.html", "/docs/__init__.py", "/docs/../config.py", "/docs/..%2f__init__.py"),
        *("/docs/start.js%00", "/static/start.js"),
    ],
)
def test_no_other_file_is_to_be_had(nobody: FlaskClient, path: str) -> None:
    response = nobody.get(path)
    assert (response.status_code, response.get_json()) == (404, {"error": "Unknown route"})


def test_it_can_be_turned_off(make: Make, apps: dict[str, Flask]) -> None:
    app = make(apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"], is_docs_on=False)
    nobody = Nobody(app, Response)
    for path in ("/", "/docs", "/docs/", *FILES):
        response = nobody.get(path)
        assert (response.status_code, response.get_json()) == (404, {"error": "Unknown route"}), path
    assert nobody.get("/openapi.json").status_code == 200
    assert not [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("docs.")]
