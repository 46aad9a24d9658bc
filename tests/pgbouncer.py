"""PgBouncer in transaction mode before a PostgreSQL server: what Neon's pooled address is."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from tests.live import PATIENCE, free_port
from tests.programs import program

CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
; By default PgBouncer refuses all for 15 seconds after PostgreSQL has once refused it.
server_login_retry = 1
"""


@contextmanager
def pgbouncer(server: URL, pool_size: int, *others: URL) -> Iterator[URL]:
    """PgBouncer with so many connections to each database, for the users of these URLs; the first by way of it."""
    with tempfile.TemporaryDirectory(prefix="pgbouncer") as name:
        folder, port = Path(name), free_port()
        users = {url.username: url.password or "" for url in (server, *others)}
        (folder / "users").write_text("".join(f'"{user}" "{password}"\n' for user, password in users.items()))
        host = server.query.get("host") or server.host
        address = {"host": host, "port": server.port or 5432}
        configuration = CONFIGURATION.format(folder=folder, listen_port=port, pool_size=pool_size, **address)
        (folder / "pgbouncer.ini").write_text(configuration)
        # It refuses to be root, as PostgreSQL does, whose socket it is to reach.
        user = None if os.geteuid() else Path(str(host)).owner() if str(host).startswith("/") else "nobody"
        folder.chmod(0o755)
        process = subprocess.Popen(
            [program("pgbouncer"), "--quiet", folder / "pgbouncer.ini"],
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield server.set(host="127.0.0.1", port=port, query={})
        finally:
            process.terminate()
            process.wait(PATIENCE)
