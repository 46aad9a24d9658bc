"""What docs/sync.md shows: compiled, and run by two clients of one user, against a live service on PostgreSQL."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.ecosystem.front_end import files_of, front_end, succeed, succeed_in_node
from tests.live import Server, gunicorn
from tests.support import ROOT, token

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/sync.md").read_text()
FRONT_ENDS = files_of((ROOT / "docs/front-ends.md").read_text())
#: Instead of Better Auth, which tests/ecosystem/test_clients.py has.
AUTH = 'export const authClient = { token: async () => ({ data: { token: process.env["TOKEN"] } }) };\n'
FILES = {
    **{path: FRONT_ENDS[path] for path in ("lib/todo.ts", "lib/tasks.ts")},
    "lib/auth-client.ts": AUTH,
    **files_of(PAGE),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page and the end-to-end script, compiled."""
    folder = front_end(tmp_path_factory.mktemp("sync"), FILES, ("network.ts", "sync.ts"))
    succeed("tsc", "--project", ".", cwd=folder)
    return folder


@pytest.fixture
def service(postgresql: URL, tmp_path: Path) -> Iterator[Server]:
    """A gunicorn on PostgreSQL."""
    with gunicorn(postgresql, tmp_path / "log") as server:
        yield server


def test_every_block_of_the_page_is_compiled() -> None:
    assert len(files_of(PAGE)) == PAGE.count("```ts") == 2


def test_two_clients_do_what_the_page_says(compiled: Path, service: Server, postgresql: URL) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "NEXT_PUBLIC_TODO_URL": f"http://127.0.0.1:{service.port}",
        "TOKEN": token("alice"),
        "PYTHON": sys.executable,
        "ROOT": str(ROOT),
        "DATABASE_URL": postgresql.render_as_string(hide_password=False),
    }
    succeed_in_node("built/sync.js", compiled, environ, service.log)


def test_it_compiles_as_a_bundler_has_it(compiled: Path) -> None:
    """As Next.js has TypeScript resolve modules."""
    succeed("tsc", "--project", ".", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler", cwd=compiled)
