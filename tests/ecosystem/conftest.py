"""What several of these tests need: a database, a browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from sqlalchemy import URL

from tests.ecosystem.browser import chromium
from tests.support import close, migrated_app, sqlite_database


@pytest.fixture(scope="module")
def database() -> Iterator[URL]:
    """A migrated database of this module's own."""
    with sqlite_database() as url:
        close(migrated_app(url))
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with chromium() as browser:
        yield browser
