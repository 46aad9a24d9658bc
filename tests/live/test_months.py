"""Weeks of use without any job: the tables that note what was done do not grow."""

import pytest
from sqlalchemy import URL

from tests.support import Caller, sql
from tests.tasks.test_sync import deleted_before
from tests.test_idempotency import age, create, keys_of
from todo.db.deletions import KEPT_FOR

pytestmark = pytest.mark.sql

#: Each day so many tasks are created under keys, and deleted. After so many days more nothing grows any more.
A_DAY, DAYS_MORE = 3, 5


def test_keys_of_a_day_and_deletions_of_thirty_are_left(alice: Caller, url: URL) -> None:
    keys, deletions = [], []
    for day in range(KEPT_FOR + DAYS_MORE):
        for number in range(A_DAY):
            alice("DELETE", f"/{create(alice, f'{day} {number}').get_json()['id']}")
        keys.append(len(keys_of(url)))
        ((count,),) = sql(url, "SELECT count(*) FROM deletions")
        deletions.append(count)
        age(url, "%", 24.5)
        deleted_before(url, "alice", 1.001)
    assert set(keys) == {A_DAY}
    assert deletions == [A_DAY * min(day, KEPT_FOR) for day in range(1, len(deletions) + 1)]
