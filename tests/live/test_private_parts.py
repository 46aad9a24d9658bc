"""The private or undocumented parts of libraries that this service uses: an upgrade may take them away."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from tempfile import TemporaryDirectory
from typing import Any, cast

import flask_smorest
import pytest
from flask import Flask
from flask.json.provider import DefaultJSONProvider
from gunicorn.arbiter import Arbiter
from gunicorn.workers import base, gthread
from prometheus_client.mmap_dict import MmapedDict
from sqlalchemy import bindparam, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine
from werkzeug.local import LocalProxy

from tests.support import ROOT

MODULES = [*(ROOT / "todo").rglob("*.py"), ROOT / "gunicorn.conf.py"]


def components() -> Iterable[str]:
    """What flask-smorest adds to a document."""
    app = Flask(__name__)
    app.config.update(API_TITLE="x", API_VERSION="1", OPENAPI_VERSION="3.1.0")
    return list[str](flask_smorest.Api(app).spec.components.schemas)


def documented() -> Iterable[str]:
    """The attributes of a view that flask-smorest has documented."""
    return list(vars(cast(Any, flask_smorest.Blueprint)("x", __name__).doc(x=1)(lambda: None)))


def compiled() -> Iterable[str]:
    """The attributes of a compiled statement."""
    return dir(select(bindparam("x")).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


def mapped() -> Iterable[str]:
    """The attributes of a file of prometheus_client."""
    with TemporaryDirectory() as folder, closing(MmapedDict(f"{folder}/counter_1.db")) as file:
        return dir(file)


def words(part: Any) -> Callable[[], Iterable[str]]:
    """What the code consists of."""
    return lambda: inspect.getsource(part).split()


PARTS: list[tuple[Callable[[], Iterable[str]], set[str]]] = [
    (lambda: dir(DefaultJSONProvider), {"_prepare_response_obj"}),
    (lambda: dir(LocalProxy), {"_get_current_object"}),
    (lambda: dir(flask_smorest.Api), {"_openapi_json"}),
    (components, {"PaginationMetadata"}),
    (documented, {"__wrapped__"}),
    (compiled, {"bind_names"}),
    (lambda: dir(TypeEngine), {"dialect_impl"}),
    (mapped, {"_f", "_m", "_capacity", "_used", "_positions", "_init_value"}),
    (lambda: dir(Arbiter), {"handle_int", "handle_term", "reap_workers", "reload", "setup", "signal", "WORKERS"}),
    (words(Arbiter.init_signals), {"self.signal)"}),
    (words(Arbiter.reload), {"self.reap_workers()"}),
    (lambda: dir(gthread.ThreadWorker), {"accept", "load_wsgi", "notify"}),
    (words(gthread.ThreadWorker), {"self.nr_conns", "self.alive"}),
    (lambda: re.findall("Invalid request from ", inspect.getsource(base)), {"Invalid request from "}),
]


@pytest.mark.parametrize(("found", "names"), PARTS, ids=[" ".join(sorted(names)) for _, names in PARTS])
def test_the_installed_library_has_it(found: Callable[[], Iterable[str]], names: set[str]) -> None:
    assert names - {*found()} == set()


def test_no_other_private_attribute_is_used() -> None:
    used: set[str] = set()
    # That of a NamedTuple is documented, and that of os.
    ours = {"_replace", "_exit"}
    for node in (node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                used.add(name)
            case ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name):
                ours.add(name)
    private = {name for name in used - ours if name.startswith("_") and not name.endswith("__")}
    assert private <= {name for _, names in PARTS for name in names}
