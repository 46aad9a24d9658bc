"""What `make fuzz` runs: the trials of test_schemathesis.py and test_state_machine.py, longer and from another seed.

It prints how much was tried and how much of it failed, and exits with 1 where anything did.
"""

import os
import random
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import URL

from tests.fuzz.test_schemathesis import try_by_document
from tests.fuzz.test_state_machine import Story, tell
from tests.support import close, migrated_app, postgresql_database, postgresql_server, sqlite_database

STEPS = 100


def try_document(url: URL, seed: int, examples: int) -> tuple[str, int]:
    """What was tried by the OpenAPI document, and how many failures were found."""
    with tempfile.TemporaryDirectory() as folder:
        trial = try_by_document(url, Path(folder), seed=seed, examples=examples)
    cases = trial.report["test_cases"]
    if trial.report["exit_code"]:
        print(trial.output)
    return f"{cases['generated']} cases", cases["unique_failures"] or trial.report["exit_code"]


def try_dictionary(url: URL, seed: int, examples: int) -> tuple[str, int]:
    """What was tried beside the dictionary, and how many failures were found: the search ends with the first."""
    app = migrated_app(url)
    failures = Story.told = Story.requests = 0
    try:
        tell(app, seed=seed, stories=examples, steps=STEPS, shorten=True)
    except Exception:  # noqa: BLE001 (whatever goes wrong is what is looked for)
        traceback.print_exc()
        failures = 1
    close(app)
    return f"{Story.told} stories, {Story.requests} requests", failures


def main() -> int:
    """Both trials on both databases."""
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    examples = int(os.environ.get("EXAMPLES") or 500)
    print(f"SEED={seed} EXAMPLES={examples}", flush=True)
    found = 0
    with ExitStack() as stack:
        server = stack.enter_context(postgresql_server())
        for name, trial in (("by its document", try_document), ("beside a dictionary", try_dictionary)):
            urls = (stack.enter_context(sqlite_database()), stack.enter_context(postgresql_database(server)))
            for url in urls:
                begun = time.monotonic()
                tried, failures = trial(url, seed, examples)
                seconds = time.monotonic() - begun
                database = url.get_backend_name()
                print(f"{name:20} {database:11} {tried}, {failures} failures ({seconds:.0f} s)", flush=True)
                found += failures
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
