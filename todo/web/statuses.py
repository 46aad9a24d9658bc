"""What each status stands for, in the OpenAPI document and for what Werkzeug and Flask refuse."""

from collections.abc import Iterator, Mapping
from functools import cache

from todo.errors import TodoError


@cache
def by_status() -> Mapping[int, type[TodoError]]:
    """Return, for each status, the first failure in todo/errors.py that has it."""
    return {failure.status: failure for failure in reversed([*_subclasses(TodoError)])}


def _subclasses(failure: type[TodoError]) -> Iterator[type[TodoError]]:
    for kind in failure.__subclasses__():
        yield kind
        yield from _subclasses(kind)
