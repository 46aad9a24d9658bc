"""Measure how many bytes a task takes, among a million of a thousand users: `python -m benchmarks.room`.

The tasks are those of benchmarks/scale.py, in a PostgreSQL of their own. They were changed at scattered instants, so
that each index grows at places all over it.
"""

from benchmarks.scale import Table, fill, room
from tests.support import close, migrated_app, postgresql_database, quick_server

MILLION = Table("room", {1_000: 1_000})


def main() -> None:
    """Measure, and print MiB and bytes a task."""
    with quick_server() as server, postgresql_database(server) as url:
        close(migrated_app(url))
        fill(MILLION, url)
        print("\n".join(["| | MiB | bytes a task |", "|---|--:|--:|", *room(MILLION, url)]))


if __name__ == "__main__":
    main()
