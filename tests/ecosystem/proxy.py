"""nginx as deploy/nginx.conf has it, before a live service; only the ports and the folders are others."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.ecosystem.programs import program
from tests.live import Server, free_port, running
from tests.support import ROOT

CONFIGURATION = ROOT / "deploy/nginx.conf"


@contextmanager
def nginx(live: Server, folder: Path, changes: Mapping[str, str] | None = None, prefix: str = "") -> Iterator[Server]:
    """The proxy before that service, with other changes of its file if given; its logs are in the folder."""
    port = free_port()
    text = CONFIGURATION.read_text()
    for mine, theirs in {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "include upstream.conf;": f"server 127.0.0.1:{live.port};",
        "/run/nginx.pid": f"{folder}/pid",
        "/var/log/nginx/": f"{folder}/",
        "/var/lib/nginx/": f"{folder}/",
        **(changes or {}),
    }.items():
        assert mine in text
        text = text.replace(mine, theirs)
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    # A folder of the tests is closed to the user that nginx would change to.
    options = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    command = [program("nginx"), "-c", str(configuration), "-g", options]
    environ = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with running(command, port, environ, folder / "log", ready=f"{prefix}/health/live") as server:
        yield server
