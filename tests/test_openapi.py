"""The OpenAPI document: valid, true, and the one that docs/ and specs/ keep for readers."""

import json
import re
from typing import Any

import pytest
import yaml
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support import ROOT, Caller
from tests.test_ownership import MATRIX, PUBLIC

#: What each call can really answer.
READ = {"200", "400", "401", "403", "429", "500", "503"}
BODY = {"411", "413", "415"}
STATUSES = {
    "listTasks": READ | {"304"},
    "createTask": READ - {"200"} | BODY | {"201", "409", "422"},
    "getTask": READ | {"304", "404"},
    "updateTask": READ | BODY | {"404", "412"},
    "deleteTask": READ - {"200"} | {"204", "404", "412"},
    "completeTask": READ | BODY | {"404", "412"},
    "checkLive": {"200"},
    "checkReady": {"200", "500", "503"},
}


@pytest.fixture
def document(apps: dict[str, Flask]) -> dict[str, Any]:
    """What the app says of itself."""
    response = apps["sqlite"].test_client().get("/openapi.json")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    return dict(response.get_json())


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The operations by id."""
    return {
        operation["operationId"]: operation | {"at": (method.upper(), path)}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    }


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")


def test_it_is_the_same_on_all_databases(apps: dict[str, Flask]) -> None:
    assert len({app.test_client().get("/openapi.json").data for app in apps.values()}) == 1


def test_the_kept_copies_are_up_to_date(document: dict[str, Any]) -> None:
    """Where they are not: `make openapi`."""
    assert json.loads((ROOT / "docs/openapi.json").read_text()) == document
    assert yaml.safe_load((ROOT / "specs/001-backend-api/contracts/openapi.yaml").read_text()) == document


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    documented = {operation["at"] for operation in operations(document).values()}
    served = {(method, re.sub("<(.+?)>", r"{\1}", rule)) for method, rule in set(MATRIX) | PUBLIC}
    assert documented == served - {("GET", "/openapi.json")}


def test_every_call_says_all_that_it_can_answer(document: dict[str, Any]) -> None:
    assert {name: set(operation["responses"]) for name, operation in operations(document).items()} == STATUSES


def test_no_parameter_that_may_be_left_out_has_an_example_of_its_own(document: dict[str, Any]) -> None:
    """Documentation in the browser would fill it in: a key that was used before, a tag that does not hold."""
    for name, operation in operations(document).items():
        for parameter in operation.get("parameters", []):
            assert "example" not in parameter, (name, parameter["name"])


def test_422_is_a_reused_key_and_no_bad_input(document: dict[str, Any]) -> None:
    assert [name for name, operation in operations(document).items() if "422" in operation["responses"]] == [
        "createTask"
    ]


def test_every_call_has_a_summary_and_examples(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation["summary"], name
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        for response in operation["responses"].values():
            if "$ref" in response:
                response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
            contents.append(response.get("content", {}))
        for content in contents:
            assert all("example" in media for media in content.values()), name


def test_every_error_is_the_error_schema(document: dict[str, Any]) -> None:
    for response in document["components"]["responses"].values():
        schema = response["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Error"}
    error = document["components"]["schemas"]["Error"]
    assert (list(error["properties"]), error["required"], error["additionalProperties"]) == (
        ["error"],
        ["error"],
        False,
    )


def test_every_task_call_wants_the_bearer_scheme(document: dict[str, Any]) -> None:
    assert document["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    open_calls = [name for name, operation in operations(document).items() if operation.get("security") == []]
    assert open_calls == ["checkLive", "checkReady"]


def test_the_examples_hold(alice: Caller, document: dict[str, Any]) -> None:
    calls = operations(document)

    def body(name: str) -> Any:
        return calls[name]["requestBody"]["content"]["application/json"]["example"]

    created = alice("POST", json=body("createTask"))
    assert created.status_code == 201
    path = f"/{created.get_json()['id']}"
    answers = {
        "createTask": created,
        "listTasks": alice("GET"),
        "getTask": alice("GET", path),
        "updateTask": alice("PUT", path, json=body("updateTask")),
        "completeTask": alice("PATCH", f"{path}/complete", json=body("completeTask")),
    }
    for name, answer in answers.items():
        example = calls[name]["responses"][str(answer.status_code)]["content"]["application/json"]["example"]
        blank = re.compile(r'"(id": \d+|\w+_at": "[^"]+")')
        assert blank.sub("", json.dumps(answer.get_json())) == blank.sub("", json.dumps(example)), name
