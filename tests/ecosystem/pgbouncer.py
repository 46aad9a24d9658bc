"""PgBouncer in transaction mode before a PostgreSQL server: what Neon's pooled address is."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.ecosystem.programs import program
from tests.live import free_port
from tests.support import PATIENCE

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

LIST = "PgBouncer lets in whom its list names, not a role that the test makes"
OPTIONS = "PgBouncer refuses options of a session, as Neon's pooler does"
RETRY = "PgBouncer holds everybody back for a while after PostgreSQL has refused it"
OLDER = "PgBouncer's sessions are older than the new default for sessions"
SETTINGS = "The settings of a role and of the environment are those of PgBouncer's own sessions"
#: What cannot pass by way of PgBouncer, and why.
DIRECT_ALONE = {
    "test_a_change_that_waited_for_another_is_503_under_a_setting_that_fails_some_calls": SETTINGS,
    "test_a_session_that_began_read_only_is_left_once_a_write_has_shown_it": OLDER,
    "test_a_setting_that_breaks_calls_is_named": SETTINGS,
    "test_a_setting_that_fails_some_calls_is_named_in_the_log": SETTINGS,
    "test_any_user_id_reaches_the_policies_as_it_is": OPTIONS,
    "test_instants_are_in_utc_whatever_the_servers_time_zone_and_style": OPTIONS,
    "test_lost_connections_are_not_in_use_nor_fewer_than_none": RETRY,
    "test_the_service_says_that_its_role_bypasses_the_policies": LIST,
}


def goes_through(test: pytest.Item) -> bool:
    """Whether the test says something about a pooler: it touches SQL, and has an app on the suite's PostgreSQL.

    A pooler does not see whether the tasks are in partitions.
    """
    if not isinstance(test, pytest.Function) or "server" not in test.fixturenames or not test.get_closest_marker("sql"):
        return False
    parameters = test.callspec.params.values() if hasattr(test, "callspec") else ()
    return not {"sqlite", "partitioned"} & {*map(str, parameters)} and test.originalname not in DIRECT_ALONE


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
