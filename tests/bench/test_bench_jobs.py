"""How long a background job takes to start, to stop when asked, and to be found dead; and what a foreground job costs.

A start is from `submit` to the first sign of life, so it holds the start of an interpreter with SQLAlchemy. Of each
figure the median and the worst of 20; in an ordinary run of the tests one round shows that the bench works.
"""

import os
import signal
import statistics
import time

import pytest

from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.tables import jobs as table


@pytest.fixture(params=["sqlite", "postgresql"])
def jobs(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'helios.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with MemoryStore(url) as store:
        yield Jobs(store, tmp_path / "home")


def until(jobs, job_id, column):
    """Wait until a column of a job's row is filled, by looks that heal nothing."""
    until = time.monotonic() + 60
    while not jobs._row(job_id)[column]:
        assert time.monotonic() < until
        time.sleep(0.002)


def counting(jobs, job_id):
    """Seconds from asking for a job to its first sign of life."""
    began = time.perf_counter()
    jobs.submit("check", {"steps": 100_000, "step_s": 0.05}, job_id=job_id)
    until(jobs, job_id, "heartbeat_at")
    return time.perf_counter() - began


def tell(figure, jobs, what, seconds, at_most=None):
    figure(f"{what}, {jobs.store.dialect}: median", statistics.median(seconds) * 1e3, "ms")
    figure(f"{what}, {jobs.store.dialect}: worst of {len(seconds)}", max(seconds) * 1e3, "ms", at_most=at_most)


def test_start_and_cancel(jobs, figure):
    started, cancelled = [], []
    for n in range(20 if figure.measuring else 1):
        started.append(counting(jobs, f"job-{n}"))
        until(jobs, f"job-{n}", "progress")
        asked = time.perf_counter()
        jobs.cancel(f"job-{n}")
        until(jobs, f"job-{n}", "ended_at")
        cancelled.append(time.perf_counter() - asked)
        assert jobs.get(f"job-{n}")["status"] == "cancelled"
    tell(figure, jobs, "job: start", started)
    tell(figure, jobs, "job: cancel, state saved", cancelled, at_most=1000)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_death(jobs, figure):
    """From kill -9 to the row that says so, with another job on the machine and nobody looking; and with one look."""
    jobs.limit, found, seen = 2, [], []
    counting(jobs, "lives")
    for n in range(20 if figure.measuring else 1):
        counting(jobs, f"job-{n}")
        os.kill(jobs._row(f"job-{n}")["pid"], signal.SIGKILL)
        killed = time.perf_counter()
        until(jobs, f"job-{n}", "ended_at")
        found.append(time.perf_counter() - killed)
    jobs.cancel("lives")
    jobs.wait("lives")
    for n in range(20 if figure.measuring else 1):
        counting(jobs, f"seen-{n}")
        os.kill(jobs._row(f"seen-{n}")["pid"], signal.SIGKILL)
        killed = time.perf_counter()
        while jobs.get(f"seen-{n}")["status"] == "running":
            pass
        seen.append(time.perf_counter() - killed)
    tell(figure, jobs, "job: death found by another job", found, at_most=5000)
    tell(figure, jobs, "job: death found by a look", seen, at_most=5000)


def test_look(jobs, figure, benchmark):
    """One look at a job among a thousand that have ended."""
    for n in range(1000):
        jobs.store._insert(table, job_id=f"old-{n}", kind="check", params={}, status="completed", token=1)
    assert benchmark(jobs.get, "old-500")["status"] == "completed"
    if figure.measuring:
        figure(f"job: a look, {jobs.store.dialect}: median", benchmark.stats.stats.median * 1e3, "ms")


def foreground(jobs):
    with jobs.here("check", {}):
        pass


def test_foreground(jobs, figure, benchmark):
    """Start and end of the current process as a job."""
    benchmark(foreground, jobs)
    if figure.measuring:
        figure(f"job: the current process as one, {jobs.store.dialect}: median", benchmark.stats.stats.median * 1e3, "ms", at_most=50)


def test_foreground_in_memory(figure, benchmark, tmp_path):
    with MemoryStore(":memory:") as store:
        benchmark(foreground, Jobs(store, tmp_path))
    if figure.measuring:
        figure("job: the current process as one, in memory: median", benchmark.stats.stats.median * 1e3, "ms", at_most=50)
