"""`make audit` fails rather than skips. Where advisories come from is played here; pip-audit is not."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.live import free_port
from tests.support import ROOT

pytestmark = pytest.mark.faults

Audit = Callable[..., "subprocess.CompletedProcess[str]"]


class Advisories:
    """A server that speaks OSV's protocol, and knows one vulnerability at most."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.vulnerable = ""
        self.status = 200
        advisories = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = json.dumps(advisories.answer(query)).encode()
                self.send_response(advisories.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"

    def answer(self, query: dict[str, Any]) -> dict[str, Any]:
        """What is known of that package in that version."""
        package, version = query["package"], query["version"]
        self.asked.add(f"{package['name']}=={version}")
        if f"{package['name']}=={version}" != self.vulnerable:
            return {}
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
        affected = [{"package": package, "ranges": ranges}]
        return {"vulns": [{"id": "OSV-0000-1", "schema_version": "1.4.0", "summary": "x", "affected": affected}]}


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    """Where advisories come from."""
    advisories = Advisories()
    thread = Thread(target=advisories.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield advisories
    advisories.server.shutdown()
    thread.join()
    advisories.server.server_close()


@pytest.fixture
def audit(advisories: Advisories) -> Audit:
    """Runs `make audit` against them, with these variables of the Makefile."""
    assert shutil.which("make")

    def audit(url: str = advisories.url, **variables: str) -> "subprocess.CompletedProcess[str]":
        environ = {**os.environ, "PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": url}
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
            # Not as a part of the make that runs this.
            environ.pop(name, None)
        command = ["make", "audit", f"PYTHON={sys.executable}", *(f"{name}={it}" for name, it in variables.items())]
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)

    return audit


def names(pins: set[str]) -> set[str]:
    """Those pins, each name written in one way (PEP 503)."""
    return {re.sub("[-_.]+", "-", pin.partition("==")[0]).lower() + "==" + pin.partition("==")[2] for pin in pins}


def test_every_pin_is_asked_about_on_every_platform(
    audit: Audit, advisories: Advisories, record_property: Callable[[str, object], None]
) -> None:
    result = audit()
    assert result.returncode == 0, result.stdout + result.stderr
    pinned: set[str] = set()
    for lock in ROOT.glob("requirements*.txt"):
        pins = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?(==[\w.]+)", lock.read_text(), re.MULTILINE)
        pinned |= {name + version for name, version in pins}
    assert names(advisories.asked) == names(pinned)
    assert any(pin.startswith("colorama==") for pin in pinned), "nothing shows that markers are looked behind"
    record_property("figures", {"packages audited": len(pinned)})


def test_a_vulnerable_package_fails(audit: Audit, advisories: Advisories) -> None:
    advisories.vulnerable = re.findall(r"^werkzeug==[\d.]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[0]
    result = audit()
    assert result.returncode != 0
    assert "OSV-0000-1" in result.stdout


def test_advisories_that_cannot_be_had_fail(audit: Audit) -> None:
    assert audit(f"http://127.0.0.1:{free_port()}/v1/query").returncode != 0


@pytest.mark.parametrize("status", [500, 404, 429])
def test_advisories_that_are_refused_fail(audit: Audit, advisories: Advisories, status: int) -> None:
    advisories.status = status
    assert audit().returncode != 0


@pytest.mark.parametrize("line", ["flask==3.1.3", "flask>=3", "flask"])
def test_a_loose_requirement_fails(audit: Audit, tmp_path: Path, line: str) -> None:
    lock = (ROOT / "requirements.txt").read_text()
    loose = tmp_path / "requirements.txt"
    loose.write_text(re.sub(r"^flask==.*(\n +--hash.*)*", line, lock, flags=re.MULTILINE))
    assert loose.read_text() != lock
    assert audit(AUDITED=str(loose)).returncode != 0
