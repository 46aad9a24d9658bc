"""Programs that no Python package brings: found, or the test fails and says what it needs."""

import os
import shutil


def program(name: str) -> str:
    """The path of a program. Raises AssertionError where it is not installed."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert path, f"This test needs {name}: the package of that name in Debian"
    return path
