"""The document as its readers' tools take it: linters, types, and what docs/front-ends.md shows, on a live service."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.ecosystem.front_end import DOCUMENT, HERE, files_of, front_end, run, succeed, succeed_in_node
from tests.ecosystem.programs import program
from tests.live import Server, free_port, running
from tests.support import ROOT, SECRET, direct, postgresql_database
from todo.tasks.schemas import TITLE

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/front-ends.md").read_text()
FILES = files_of(PAGE)
#: The lines of lib/auth.ts for PostgreSQL.
POSTGRESQL = re.findall(r"```ts\n(import \{ Pool \}.*\n)(  database: .*\n)```", PAGE)
LINTERS = {
    "redocly": ["lint", "--config", str(HERE / "redocly.yaml")],
    "spectral": ["lint", "--ruleset", str(HERE / ".spectral.yaml"), "--fail-severity", "hint"],
}

Document = dict[str, Any]


def whole_front_end(folder: Path, document: Path) -> Path:
    """What docs/front-ends.md has a front end consist of, and the end-to-end script: not compiled yet."""
    return front_end(folder, FILES, ("next.d.ts", "issuer.ts", "browser.ts", "e2e.ts"), document)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The front end, compiled; its accounts are in PostgreSQL."""
    folder = whole_front_end(tmp_path_factory.mktemp("front-end"), DOCUMENT)
    auth = folder / "lib/auth.ts"
    for line in POSTGRESQL[0]:
        (sqlite_line,) = re.findall(rf"^ *{line.split()[0]} .*DatabaseSync.*\n", auth.read_text(), re.MULTILINE)
        auth.write_text(auth.read_text().replace(sqlite_line, line))
    succeed("tsc", "--project", ".", cwd=folder)
    # Where Node.js finds "@/lib/auth", as a bundler would by the paths of tsconfig.json.
    (folder / "built/node_modules").mkdir()
    (folder / "built/node_modules/@").symlink_to(folder / "built")
    return folder


@pytest.fixture
def environ(server: URL) -> Iterator[dict[str, str]]:
    """The environment of the front end's server, with an empty database for its accounts."""
    port = free_port()
    with postgresql_database(server) as database:
        url = direct(database).set(drivername="postgresql").render_as_string(hide_password=False)
        origin = f"http://127.0.0.1:{port}"
        environ = {"PATH": os.environ["PATH"], "BETTER_AUTH_URL": origin, "BETTER_AUTH_SECRET": SECRET}
        yield {**environ, "DATABASE_URL": url}


@pytest.fixture
def better_auth(compiled: Path, environ: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The origin of a front end's Better Auth."""
    origin = environ["BETTER_AUTH_URL"]
    command = [program("node"), "built/issuer.js"]
    port = int(origin.rpartition(":")[2])
    with running(command, port, environ, tmp_path / "issuer.log", cwd=compiled, ready="/api/auth/ok"):
        yield origin


@pytest.fixture
def service(url: URL, better_auth: str, tmp_path: Path) -> Iterator[Server]:
    """The service, with the settings of docs/front-ends.md."""
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "jwt",
        "JWT_JWKS_URL": f"{better_auth}/api/auth/jwks",
        "JWT_ISSUER": better_auth,
        "JWT_AUDIENCE": better_auth,
        "CORS_ORIGINS": better_auth,
    }
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"]
    with running(command, port, environ, tmp_path / "service.log") as server:
        yield server


def test_every_block_of_the_page_is_compiled() -> None:
    assert len(POSTGRESQL) == 1
    assert len(FILES) + len(POSTGRESQL) == PAGE.count("```ts") == 10


def test_the_page_compiles_as_it_stands(tmp_path: Path) -> None:
    succeed("tsc", "--project", ".", "--noEmit", cwd=whole_front_end(tmp_path, DOCUMENT))


def test_a_front_end_does_what_its_page_says(compiled: Path, environ: dict[str, str], service: Server) -> None:
    environ = {**environ, "NEXT_PUBLIC_TODO_URL": f"http://127.0.0.1:{service.port}"}
    succeed_in_node("built/e2e.js", compiled, environ, service.log)


def test_it_compiles_as_a_bundler_has_it(compiled: Path) -> None:
    """As Next.js has TypeScript resolve modules."""
    succeed("tsc", "--project", ".", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", cwd=compiled)


@pytest.mark.parametrize("linter", LINTERS)
def test_linters_find_nothing(linter: str) -> None:
    succeed(linter, *LINTERS[linter], DOCUMENT)


def test_a_pattern_means_in_javascript_what_it_means_in_python() -> None:
    """Title by title: each character by itself, but for surrogates."""
    script = """
        const found = new RegExp(process.argv[1], "u");
        const characters = [...Array(0x110000).keys()].filter((code) => code < 0xd800 || code > 0xdfff);
        console.log(JSON.stringify(characters.filter((code) => !found.test(String.fromCodePoint(code)))));
    """
    command = [program("node"), "--eval", script, TITLE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    codes = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    assert json.loads(result.stdout) == [code for code in codes if not re.search(TITLE, chr(code))]


def without_operation_id(document: Document) -> None:
    del document["paths"]["/api/{user_id}/tasks"]["get"]["operationId"]


def without_parameter(document: Document) -> None:
    del document["paths"]["/api/{user_id}/tasks"]["get"]["parameters"]


@pytest.mark.parametrize("linter", LINTERS)
@pytest.mark.parametrize(
    ("plant", "rule"), [(without_operation_id, "operation-operationId"), (without_parameter, "path-param")]
)
def test_linters_find_a_fault(linter: str, plant: Callable[[Document], None], rule: str, tmp_path: Path) -> None:
    result = run(linter, *LINTERS[linter], planted(tmp_path, plant))
    assert result.returncode == 1
    assert rule in result.stdout


def any_status(document: Document) -> None:
    del document["components"]["schemas"]["TaskStatus"]["enum"]


def no_null(document: Document) -> None:
    document["components"]["schemas"]["Task"]["properties"]["description"]["type"] = "string"


def optional_title(document: Document) -> None:
    document["components"]["schemas"]["Task"]["required"].remove("title")


def changes_without_an_id(document: Document) -> None:
    del document["components"]["schemas"]["TaskChanges"]["properties"]["id"]


def error_without_a_body(document: Document) -> None:
    del document["components"]["responses"]["BadRequest"]["content"]


@pytest.mark.parametrize("plant", [any_status, no_null, optional_title, changes_without_an_id, error_without_a_body])
def test_worse_types_do_not_compile(plant: Callable[[Document], None], tmp_path: Path) -> None:
    folder = whole_front_end(tmp_path, planted(tmp_path, plant))
    result = run("tsc", "--project", ".", "--noEmit", cwd=folder)
    assert result.returncode
    assert "e2e.ts" in result.stdout


def planted(folder: Path, plant: Callable[[Document], None]) -> Path:
    """A copy of the document with that fault."""
    document = json.loads(DOCUMENT.read_text())
    plant(document)
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    return path
