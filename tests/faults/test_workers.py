"""Workers that die, and workers that are replaced."""

import os
import signal
import time

import pytest

from tests.faults.conftest import Judge, Service
from tests.faults.load import load


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.faults)])
def test_a_worker_that_is_killed_loses_and_repeats_no_write(service: Service, judge: Judge, rounds: int) -> None:
    with load(service.live, service.url) as writers:
        for _ in range(rounds):
            for victim in service.live.workers():
                time.sleep(0.4)
                os.kill(victim, signal.SIGKILL)
                writers.fault_ended()
                service.live.wait_for_new_workers({victim})
        time.sleep(0.8)
    account = judge(writers, may_break=True)
    assert account.answers.statuses["broken"], "no request was under way"
    assert not account.answers.statuses["503"]


@pytest.mark.faults
def test_a_rolling_hangup_fails_no_request(service: Service, judge: Judge) -> None:
    with load(service.live, service.url) as writers:
        for _ in range(3):
            time.sleep(0.5)
            old = set(service.live.workers())
            os.kill(service.live.process.pid, signal.SIGHUP)
            service.live.wait_for_new_workers(old)
        writers.fault_ended()
        time.sleep(0.5)
    assert judge(writers).answers.failures == []
