"""One user who sends the same request over many connections, as fast as the answers come, and never waits.

A process of its own, so that it takes no time from those whose answers are measured.
"""

import http.client
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from threading import Thread

from tests.live import Server
from tests.support import ROOT, token

CONNECTIONS = 24


def main(port: int, authorization: str, method: str, path: str, *, is_polite: bool) -> None:
    """Attack until stdin ends; print how often each status was the answer."""
    statuses: Counter[str] = Counter()
    over: list[bool] = []

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not over:
            try:
                connection.request(method, path, headers={"Authorization": authorization})
                response = connection.getresponse()
                response.read()
                statuses[str(response.status)] += 1
                if response.status == 429 and is_polite:
                    time.sleep(float(response.headers["Retry-After"]))
            except (OSError, http.client.HTTPException):
                connection.close()
                statuses["broken"] += 1

    threads = [Thread(target=call) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    over.append(True)
    for thread in threads:
        thread.join()
    print(json.dumps(statuses))


@contextmanager
def attack(
    server: Server, path: str, method: str = "GET", *, user_id: str = "mallory", is_polite: bool = False
) -> Iterator[Counter[str]]:
    """The attack, going on within; its answers by status, once it has ended."""
    statuses: Counter[str] = Counter()
    authorization = f"Bearer {token(user_id, exp=int(time.time()) + 3600)}"
    arguments = [str(server.port), authorization, method, path, "polite" * is_polite]
    process = Popen([sys.executable, "-m", __name__, *arguments], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    try:
        yield statuses
    finally:
        statuses.update(json.loads(process.communicate()[0]))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:5], is_polite=sys.argv[5] == "polite")
