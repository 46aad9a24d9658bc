"""The OpenAPI document: valid, true, and the one that docs/ and specs/ keep for readers."""

import json
import re
from collections.abc import Iterator
from typing import Any
from unicodedata import category

import pytest
import yaml
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support import OUTPUT_ONLY, ROOT, Caller
from tests.test_ownership import DOCS, routes
from todo.tasks.schemas import TaskListQuerySchema

#: What no part of an operation shows: the calls without a user.
OPEN = {"checkLive": {"200", "400"}, "checkReady": {"200", "400", "429", "500", "503"}}
#: Of JavaScript, in the browser and in Node.
GLOBALS = {"Array", "Date", "Error", "Event", "Function", "Headers", "Map", "Object", "Promise", "Request", "Response"}


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
    }


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    """Each member of each object of the document: its name and its value."""
    members = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in members:
        yield str(name), value
        yield from walk(value)


def schemas_of(document: dict[str, Any], node: Any) -> dict[str, dict[str, Any]]:
    """The schemas that a part of the document refers to, by way of others too, by name."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [node]
    while waiting:
        for _, reference in [pair for pair in walk(waiting.pop()) if pair[0] == "$ref"]:
            _, _, kind, name = reference.split("/")
            if name not in found:
                found[name] = document["components"][kind][name]
                waiting.append(found[name])
    return {name: value for name, value in found.items() if name in document["components"]["schemas"]}


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")


def test_the_kept_copies_are_up_to_date(document: dict[str, Any]) -> None:
    """Where they are not: `make openapi`."""
    assert json.loads((ROOT / "docs/openapi.json").read_text()) == document
    assert yaml.safe_load((ROOT / "specs/001-backend-api/contracts/openapi.yaml").read_text()) == document


def test_every_route_is_documented(apps: dict[str, Flask], document: dict[str, Any]) -> None:
    documented = {operation["at"] for operation in operations(document).values()}
    assert documented == routes(apps["sqlite"]) - DOCS - {("GET", "/openapi.json")}


def statuses_of(operation: dict[str, Any]) -> set[str]:
    """What a call of a user can answer, by its method, path, parameters and body."""
    method, path = operation["at"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    statuses = {"400", "401", "403", "429", "500", "503"}
    statuses |= {"201" if method == "POST" else "204" if method == "DELETE" and path.count("{") > 1 else "200"}
    statuses |= {"411", "413", "415"} if "requestBody" in operation else set()
    statuses |= {"404"} if path.count("{") > 1 else set()
    statuses |= {"304"} if method == "GET" else set()
    statuses |= {"410"} if "since" in names else set()
    statuses |= {"412"} if "If-Match" in names else set()
    statuses |= {"409", "422"} if "Idempotency-Key" in names else set()
    # A search can take too long.
    return statuses | ({"422"} if "q" in names else set())


def test_every_call_says_all_that_it_can_answer(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert set(operation["responses"]) == (OPEN[name] if name in OPEN else statuses_of(operation)), name


def test_no_parameter_that_may_be_left_out_has_an_example_of_its_own(document: dict[str, Any]) -> None:
    """Documentation in the browser would fill it in: a key that was used before, a tag that does not hold."""
    for name, operation in operations(document).items():
        for parameter in operation.get("parameters", []):
            assert parameter.get("required") or "example" not in parameter, (name, parameter["name"])


def test_every_call_names_its_parameters_in_the_order_path_query_header(document: dict[str, Any]) -> None:
    """Generated functions take them in that order; of a path's own parameters some generators put them last."""
    assert not [path for path, methods in document["paths"].items() if "parameters" in methods]
    for name, operation in operations(document).items():
        locations = [parameter["in"] for parameter in operation.get("parameters", [])]
        assert locations == sorted(locations, key=["path", "query", "header"].index), name
    listed = [parameter["name"] for parameter in operations(document)["listTasks"]["parameters"]]
    assert listed == ["user_id", *TaskListQuerySchema().fields, "If-None-Match"]


def test_no_text_holds_or_means_a_character_that_generated_code_cannot(document: dict[str, Any]) -> None:
    """No control character or line separator; in patterns also not as an escape, since some generators decode it."""
    for name, value in walk(document):
        for text in (name, value) if isinstance(value, str) else (name,):
            decoded = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
            found = {character for character in decoded if category(character) in ("Cc", "Cs", "Zl", "Zp")}
            # A description may have lines.
            assert found <= ({"\n"} if name == "description" else set()), text


def test_no_list_of_choices_is_written_twice(document: dict[str, Any]) -> None:
    """Or generators make a type of each, under names such as Status2."""
    choices = [tuple(value) for name, value in walk(document) if name == "enum"]
    assert len(choices) == len(set(choices)) > 0
    references = [value for name, value in walk(document) if name == "$ref"]
    # A task, its changes, its completion and that of all, the filter of the list, and that of all.
    assert references.count("#/components/schemas/TaskStatus") == 6


def test_no_schema_hides_a_name_of_javascript(document: dict[str, Any]) -> None:
    assert not GLOBALS & set(document["components"]["schemas"])


def test_bodies_are_closed_and_answers_are_open(document: dict[str, Any]) -> None:
    """A client that was made from the document must survive a new field of an answer."""
    calls = operations(document).values()
    sent = schemas_of(document, [call.get("requestBody") for call in calls])
    got = schemas_of(document, [call["responses"] for call in calls])
    assert set(sent) | set(got) == set(document["components"]["schemas"])
    assert [name for name, schema in sent.items() if "properties" in schema] == [
        name for name, schema in sent.items() if schema.get("additionalProperties") is False
    ]
    assert not [name for name, value in walk(got) if name == "additionalProperties"]


def test_what_the_service_sets_is_read_only_wherever_it_stands(document: dict[str, Any]) -> None:
    assert OUTPUT_ONLY == ["id", "user_id", "created_at", "updated_at"]
    schemas = document["components"]["schemas"]
    for name in ("Task", "NewTask", "TaskChanges"):
        properties = schemas[name]["properties"]
        assert [field for field in properties if properties[field].get("readOnly")] == OUTPUT_ONLY
    # Whatever its value.
    for name in ("NewTask", "TaskChanges"):
        assert all(set(schemas[name]["properties"][field]) == {"readOnly", "description"} for field in OUTPUT_ONLY)
    assert "status" not in schemas["NewTask"]["properties"]
    assert list(schemas["TaskCompletion"]["properties"]) == ["status"]


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
        assert schema == {"$ref": "#/components/schemas/ApiError"}
    error = document["components"]["schemas"]["ApiError"]
    assert (list(error["properties"]), error["required"]) == (["error"], ["error"])


def test_every_task_call_wants_the_bearer_scheme(document: dict[str, Any]) -> None:
    assert document["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert {name for name, operation in operations(document).items() if operation.get("security") == []} == set(OPEN)


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
