"""Takes the picture of the documentation that README shows: `make screenshot`."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect

from tests.ecosystem.browser import CALLS, chromium, visiting
from tests.live import gunicorn
from tests.support import close, migrated_app, sqlite_database


def main(picture: str) -> None:
    """Write the picture of the page, as `make run` shows it, to that file."""
    with tempfile.TemporaryDirectory() as folder, sqlite_database() as url:
        close(migrated_app(url))
        with (
            gunicorn(url, Path(folder) / "log", IDENTITY_PROVIDER="development") as server,
            chromium() as browser,
            visiting(browser) as visit,
        ):
            visit.page.goto(f"http://127.0.0.1:{server.port}/docs")
            expect(visit.page.locator(".opblock")).to_have_count(CALLS)
            visit.page.screenshot(path=picture)


if __name__ == "__main__":
    main(sys.argv[1])
