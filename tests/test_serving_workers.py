"""Several server processes: a stop that breaks nothing off, figures that add up, and a worker that is killed."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from serving_area import all_of, connected, head, read_to, running
from urllib3.exceptions import HTTPError
from waiting import WAIT_S, until

from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.places import DATABASE
from helios.serving import listen

pytestmark = pytest.mark.skipif(os.name != "posix", reason="gunicorn")
THREADS = 4
FOLDERS = Path("/dev/shm")


@pytest.mark.slow
def test_a_stop_ends_streams_finishes_requests_and_leaves_jobs(tmp_path):
    with running(tmp_path / "home", GUNICORN_WORKERS="2", GUNICORN_THREADS=str(THREADS), HELIOS_MAX_STREAMS="2") as server, MemoryStore(server.home / DATABASE) as store:
        background = Jobs(store, server.home)
        folder = next(iter(FOLDERS.glob(f"helios-figures-{server.process.pid}-*")), None)
        assert folder or not FOLDERS.exists()
        job = background.submit("check", {"steps": 100_000, "step_s": 0.02}, job_id="counts")
        stream = connected(server, head("/api/trial/stream"))
        read_to(stream, b"begun\n\n")
        with ThreadPoolExecutor(1) as caller:
            waiting = caller.submit(server.ask, "GET", "/api/trial/until-stop")
            until(lambda: "helios_requests_in_flight 3.0" in server.ask("GET", "/metrics").data.decode(), "the waiting request")
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert all_of(stream).endswith(b"data: ended\n\n\r\n0\r\n\r\n")
            answer = waiting.result(WAIT_S)
        assert (answer.status, answer.json()) == (200, {"finished": True})
        assert server.process.wait(WAIT_S) == 0
        assert not folder or not folder.exists()
        assert time.monotonic() - began < 30
        listen(server.host, server.port).close()      # free at once, though a job still runs
        row = until(lambda: (row := background.get(job["job_id"]))["progress"] and row)
        assert row["status"] == "running" and psutil.pid_exists(row["pid"])
        step = row["progress"]["step"]
        until(lambda: background.get("counts")["progress"]["step"] > step, "the job to go on")
        background.cancel("counts")
        assert background.wait("counts", WAIT_S)["status"] == "cancelled"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with running(tmp_path_factory.mktemp("two"), GUNICORN_WORKERS="2", GUNICORN_THREADS=str(THREADS), HELIOS_MAX_STREAMS="2") as server:
        until(lambda: len({server.ask("GET", "/api/trial/pid").json()["pid"] for _ in range(20)}) == 2, "both workers")
        yield server


def figure(server, name):
    """The figure behind a name with its labels."""
    text = server.ask("GET", "/metrics").data.decode()
    return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(name + " ")), 0.0)


def test_the_figures_of_two_workers_add_up(two):
    name = 'helios_requests_total{method="GET",route="/api/trial/pid",status="200"}'
    before = figure(two, name)
    pids = [two.ask("GET", "/api/trial/pid").json()["pid"] for _ in range(60)]
    assert len(set(pids)) == 2
    until(lambda: figure(two, name) == before + 60, "the last answer to be counted")      # it is when it has been sent
    assert figure(two, 'helios_request_seconds_count{method="GET",route="/api/trial/pid"}') == before + 60
    stream = connected(two, head("/api/trial/stream"))
    read_to(stream, b"begun\n\n")
    assert figure(two, "helios_streams") == 1
    until(lambda: figure(two, "helios_requests_in_flight") == 2, "the stream and the request that asks to be all there is")
    stream.close()
    until(lambda: figure(two, "helios_streams") == 0, "the stream to be noticed")
    for n in range(50):
        two.ask("GET", f"/api/none/{n}")
    routes = {row.split('route="')[1].split('"')[0] for row in two.ask("GET", "/metrics").data.decode().splitlines() if 'route="' in row}
    assert not [route for route in routes if "none/" in route] and "none" in routes


def test_a_killed_worker_loses_no_acknowledged_write(two):
    kept, ended, numbers = [], threading.Event(), iter(range(10**6))
    lock = threading.Lock()
    def write_on():
        while not ended.is_set():
            with lock:
                n = next(numbers)
            try:
                answer = two.ask("POST", "/api/trial/writes", json={"n": n})
            except Exception:      # noqa: BLE001 - the connection went with its worker
                continue
            if answer.status == 201:
                kept.append((answer.json()["id"], n))
    with ThreadPoolExecutor(6) as callers:
        for _ in range(6):
            callers.submit(write_on)
        try:
            for _ in range(2):
                aim = len(kept) + 40
                until(lambda aim=aim: len(kept) >= aim, "writes")
                victim = two.workers()[0]
                os.kill(victim, signal.SIGKILL)
                until(lambda victim=victim: victim not in (now := two.workers()) and len(now) == 2, "another worker")
            aim = len(kept) + 40
            until(lambda: len(kept) >= aim, "writes after the kills")
        finally:
            ended.set()
    with MemoryStore(two.home / DATABASE) as store:
        rows = {row["id"]: row["event_data"]["n"] for row in store.get_recent_events("trial", limit=100_000)}
    assert len(kept) > 100 and [pair for pair in kept if rows.get(pair[0]) != pair[1]] == []
    until(lambda: figure(two, "helios_requests_in_flight") == 1, "nothing to be left of those who were killed")


@pytest.mark.slow
def test_new_code_is_taken_up_and_a_hang_up_loses_no_request(tmp_path):
    """`--reload` for developing, and SIGHUP, which starts the workers anew one after the other."""
    module = tmp_path / "home" / "trial_code.py"
    module.parent.mkdir()
    module.write_text("said = 1\n")
    with running(tmp_path / "home", FLASK_DEBUG="1", TRIAL_MODULE=str(module.parent)) as server:
        def worker():
            return server.ask("GET", "/api/trial/pid").json()["pid"]
        first = worker()
        touched_at = 0.0
        def another():
            nonlocal touched_at
            if time.monotonic() > touched_at + 3:      # the first time may be before the watch has begun
                module.write_text(f"said = {touched_at}\n")
                touched_at = time.monotonic()
            return (now := anew(worker)) != first and now
        second = until(another, "the reload")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: worker() != second, "another worker")      # no request fails on the way
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT_S) == 0


def anew(ask):
    """What is answered; None while the one worker there is starts anew."""
    try:
        return ask()
    except HTTPError:
        return None
