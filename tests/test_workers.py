"""`Workers`: answers in order, work taken only as it is needed, and no process that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from acestep.errors import ACEStepError
from pipelines.workers import Workers
from tests.conftest import ROOT


def slow_for_the_first(number: int) -> tuple[int, int]:
    time.sleep(0.3 if number == 0 else 0)
    return number, os.getpid()


def die(number: int) -> None:
    os._exit(number)


def fail(number: int) -> int:
    raise ACEStepError(f"{number} cannot be")


@pytest.mark.parametrize("count", [1, 2])
def test_answers_come_in_order_and_tasks_are_taken_as_needed(count: int) -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(20):
            taken = number + 1
            yield number

    with Workers(count) as workers:
        answers = workers.map(slow_for_the_first, tasks())
        assert next(answers)[0] == 0
        assert taken <= 2 * count
        rest = list(answers)
    assert [number for number, _ in rest] == list(range(1, 20))
    assert (os.getpid() in {process for _, process in rest}) == (count == 1)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_raised_there_is_raised_here(count: int) -> None:
    with pytest.raises(ACEStepError, match="7 cannot be"), Workers(count) as workers:
        list(workers.map(fail, [7, 8]))


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(ACEStepError, match="died: out of memory, or a script"), Workers(2) as workers:
        list(workers.map(die, [3]))


def test_processes_end_with_their_parent() -> None:
    code = (
        "import time\n"
        "from pipelines.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2) as workers:\n"
        "        list(workers.map(abs, [1, 2, 3]))\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
