"""Headless Chromium, Debian's, and all that is to be heard of a page in it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.ecosystem.programs import program
from tests.support import PATIENCE, ROOT

#: How many calls the page shows.
CALLS = sum(map(len, json.loads((ROOT / "docs/openapi.json").read_text())["paths"].values()))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, ended afterwards."""
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        # Playwright itself starts it without a sandbox, which root could not have.
        browser = playwright.chromium.launch(executable_path=program("chromium"))
        yield browser
        browser.close()


class Visit:
    """A page, who it asked, and what it complained of: to the console, or by an error that nobody caught."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", self._note_request)
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def hosts(self) -> set[str]:
        """The hosts that were asked, with their ports."""
        return {urlsplit(url).netloc for url in self.asked}

    def _note_request(self, request: Request) -> None:
        # What a style sheet or a script brings with it asks nobody.
        if not request.url.startswith(("data:", "blob:")):
            self.asked.append(request.url)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@contextmanager
def visiting(browser: Browser) -> Iterator[Visit]:
    """A page of a new profile: nothing is kept from the last one."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    yield Visit(context.new_page())
    context.close()
