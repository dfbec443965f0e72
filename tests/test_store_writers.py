"""Many writers of one memory store: threads, processes, forks, fences, batches, buffers."""

import gc
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from helios.memory_store import FencedError, MemoryStore, StoreError
from helios.tables import check_row, jobs, system_events, training_logs

METRICS = {"accuracy": 0.1, "note": "text"}


@pytest.fixture
def store(address):
    with MemoryStore(address) as store:
        store.create_training_session("job", "net", {})
        yield store


def add_job(store, job_id="job", token=1):
    with store._transaction("write") as conn:
        row = {"job_id": job_id, "kind": "train", "params": {}, "status": "running", "token": token}
        conn.execute(jobs.insert().values(check_row(jobs, row)))


def count(store, table=training_logs):
    return store.get_memory_statistics()[f"{table.name}_count"]


# Fences


WRITES = {
    "add_training_log": lambda store: store.add_training_log("job", 0, 19.5),
    "add_training_logs": lambda store: store.add_training_logs("job", [{"epoch": 0, "loss": 19.5}] * 3),
    "store_performance_metric": lambda store: store.store_performance_metric("net", "loss", 1.0),
    "store_performance_metrics": lambda store: store.store_performance_metrics(
        [{"model_name": "net", "metric_name": "loss", "metric_value": 1.0}] * 2
    ),
    "update_training_session": lambda store: store.update_training_session("job", "running", 50),
    "create_training_session": lambda store: store.create_training_session("other", "net", {}),
    "save_model_metadata": lambda store: store.save_model_metadata("net", "net.bin", "PowerballNet"),
    "delete_model": lambda store: store.delete_model("net"),
    "save_prediction": lambda store: store.save_prediction("net", {}, 0.5),
    "store_context": lambda store: store.store_context("page", "theme", "dark"),
    "cleanup_expired_context": lambda store: store.cleanup_expired_context(),
    "log_event": lambda store: store.log_event("start"),
    "store_enhanced_journal_entry": lambda store: store.store_enhanced_journal_entry("net", "s", "e", {}),
    "store_knowledge_fragment": lambda store: store.store_knowledge_fragment("net", "kind", "x"),
    "compact_memory": lambda store: store.compact_memory(),
    "transaction": lambda store: store._transaction("write").__enter__(),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_fenced_write_passes_and_an_overtaken_one_does_not(store, write):
    add_job(store)
    view = store.fenced("job", 1)
    if write != "transaction":
        WRITES[write](view)
    with store._transaction("write") as conn:
        conn.execute(jobs.update().values(token=2))
    before = store.get_memory_statistics()
    before.pop("database_size_bytes")
    with pytest.raises(FencedError, match=r"job 'job' was taken up again \(token 2\); this process has token 1") as caught:
        WRITES[write](view)
    assert isinstance(caught.value, StoreError) and "\n" not in str(caught.value)
    after = store.get_memory_statistics()
    assert after.items() >= before.items()
    assert view.get_training_session("job")["job_id"] == "job"  # it may still read


def test_a_fence_without_a_row(store):
    with pytest.raises(FencedError, match="job 'nobody' has no row; this process has token 0"):
        store.fenced("nobody", 0).log_event("x")
    for wrong in (("", 1), ("job", -1), ("job", "1")):
        with pytest.raises(StoreError, match="job_id is ''|token is"):
            store.fenced(*wrong)


def test_closing_a_view_leaves_the_store_open(store):
    add_job(store)
    with store.fenced("job", 1) as view:
        view.log_event("inside")
    assert store.log_event("after") > 0
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        view.log_event("late")


def test_fenced_and_free_writers_share_a_transaction_and_not_their_fate(path):
    """Threads whose rows are written together: the overtaken one hears of it, the others' rows are there."""
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        add_job(store, token=2)
        old, failed = store.fenced("job", 1), []

        def write(i):
            try:
                (old if i % 3 == 0 else store).add_training_log("job", i, 19.5)
            except FencedError:
                failed.append(i)

        with ThreadPoolExecutor(12) as pool:
            with store._transaction("write"):  # they all wait for this one
                done = [pool.submit(write, i) for i in range(12)]
                while len(store._database._turns._waiting) < 12:
                    time.sleep(0.005)
            assert [future.result() for future in done] == [None] * 12
        assert sorted(failed) == [0, 3, 6, 9]
        assert sorted(row["epoch"] for row in store.get_training_logs("job")) == [1, 2, 4, 5, 7, 8, 10, 11]


# Batches and rows that are sent twice


def test_a_batch_is_there_wholly_or_not_at_all(store):
    rows = [{"epoch": epoch, "loss": 19.5, "metrics": METRICS, "entry": f"e{epoch}"} for epoch in range(1500)]
    store.add_training_logs("job", iter(rows))
    logs = store.get_training_logs("job")
    assert [(log["epoch"], log["metrics"], log["entry"]) for log in logs] == [(i, METRICS, f"e{i}") for i in range(1500)]
    cases = [
        ([{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": float("nan")}], "loss is nan"),
        ([{"epoch": 0, "loss": 1.0}, {"epoch": True, "loss": 1.0}], "epoch is True"),
        ([{"epoch": 0, "loss": 1.0}, {"epoch": 2**31, "loss": 1.0}], "epoch is 2147483648; give an integer 0.."),
        ([{"epoch": 0, "loss": 1.0}, {"epoch": 1}], "a row has no 'loss'; each needs epoch, loss"),
        ([{"epoch": 0, "loss": 1.0, "step": 1}], "a row has 'step'; use epoch, loss, metrics, entry, timestamp"),
        ([{"epoch": 0, "loss": 1.0, "metrics": {"a": [0, {1}]}}], "metrics.a.1 is a set"),
        ([{"epoch": 0, "loss": 1.0, "metrics": {"a": float("inf")}}], "metrics.a is inf"),
        ([{"epoch": 0, "loss": 1.0, "metrics": {7: 1}}], "metrics has the key 7"),
        ([{"epoch": 0, "loss": 1.0, "entry": "a\0"}], "entry is 'a"),
        ([{"epoch": 0, "loss": 1.0, "timestamp": "soon"}], "'soon' is no time"),
    ]
    for batch, message in cases:
        with pytest.raises(StoreError) as caught:
            store.add_training_logs("job", batch)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="no training session has job_id 'nobody'"):
        store.add_training_logs("nobody", [{"epoch": 0, "loss": 1.0}] * 2)
    store.add_training_logs("job", [])
    assert count(store) == 1500


def test_an_entry_is_there_once_and_stays_as_it_was(store):
    store.add_training_log("job", 0, 1.0, entry="a")
    store.add_training_log("job", 9, 9.0, entry="a")
    store.add_training_logs("job", [{"epoch": 1, "loss": 2.0, "entry": e} for e in ("b", "a", "b", None, None)])
    rows = [(log["epoch"], log["loss"], log["entry"]) for log in store.get_training_logs("job")]
    assert rows == [(0, 1.0, "a"), (1, 2.0, "b"), (1, 2.0, None), (1, 2.0, None)]


def test_eight_threads_that_send_the_same_rows(store):
    rows = [{"epoch": epoch, "loss": 19.5, "entry": f"e{epoch}"} for epoch in range(40)]

    def send(worker):
        for start in range(0, 40, 10):
            store.add_training_logs("job", rows[start : start + 10])
            store.add_training_log("job", start, 19.5, entry=f"e{start}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    assert [log["epoch"] for log in store.get_training_logs("job")] == list(range(40))


def test_metrics_in_a_batch(store):
    rows = [{"model_name": "net", "metric_name": "loss", "metric_value": i, "context": i and [i]} for i in range(3)]
    rows[0]["timestamp"] = "2026-01-01T00:00:00Z"
    store.store_performance_metrics(rows)
    found = store.get_performance_metrics(hours=876_000)
    assert [(row["metric_value"], row["context"]) for row in found] == [(2.0, [2]), (1.0, [1]), (0.0, 0)]
    assert found[2]["timestamp"] == "2026-01-01T00:00:00.000000+00:00"
    with pytest.raises(StoreError, match="metric_value is None"):
        store.store_performance_metrics([{"model_name": "net", "metric_name": "loss", "metric_value": None}])


# Sessions by pages


def test_pages_of_sessions(store):
    for i in range(20):
        store.create_training_session(f"job-{i}", f"net-{i % 2}", {"i": i})
        store.update_training_session(f"job-{i}", ("running", "failed")[i % 2], i * 5)
    ids = lambda **options: [row["job_id"] for row in store.list_training_sessions(**options)]  # noqa: E731
    assert ids(limit=3) == ["job-19", "job-18", "job-17"]
    assert ids(limit=3, offset=18) == ["job-1", "job-0", "job"]
    assert ids(sort="oldest", limit=2) == ["job", "job-0"]
    assert ids(sort="progress", status="running", limit=2) == ["job-18", "job-16"]
    assert ids(sort="model", limit=2) == ["job", "job-18"]
    assert ids(sort="updated", limit=1) == ["job-19"]
    assert len(ids(model_name="net-1")) == 10 and ids(model_name="nobody") == []
    assert store.list_training_sessions(limit=1)[0]["config"] == {"i": 19}
    for options, message in (
        ({"sort": "id; DROP TABLE jobs"}, "sort is 'id; DROP"),
        ({"status": "done"}, "status is 'done'"),
        ({"limit": 0}, "limit is 0"),
        ({"offset": -1}, "offset is -1"),
    ):
        with pytest.raises(StoreError, match=message):
            store.list_training_sessions(**options)


# Transactions within transactions


def test_calls_within_a_transaction_belong_to_it(store):
    with pytest.raises(ZeroDivisionError), store._transaction("write"):
        store.log_event("inside")
        store.add_training_logs("job", [{"epoch": 0, "loss": 1.0}] * 2)
        store.update_training_session("job", "running")
        assert count(store) == 2  # and are seen there
        1 / 0  # noqa: B018
    assert count(store) == count(store, system_events) == 0
    assert store.get_training_session("job")["status"] == "started"
    with store._transaction("write"):
        store.log_event("kept")
        with pytest.raises(StoreError, match="no training session"):
            store.add_training_log("nobody", 0, 1.0)
        with pytest.raises(StoreError, match="no training session"):
            store.add_training_logs("nobody", [{"epoch": 0, "loss": 1.0}] * 2)
        store.add_training_log("job", 1, 1.0)
    assert count(store) == count(store, system_events) == 1


def test_what_cannot_begin_within_a_transaction(store):
    with store._transaction() as conn:
        conn.execute(sa.select(training_logs)).all()
        with pytest.raises(StoreError, match="a write within a read of the same thread"):
            store.log_event("late")
        assert store.get_training_logs("job") == []
    with store._transaction("write"), pytest.raises(StoreError, match="end that first"):
        store.vacuum_database()
    assert store.log_event("after") > 0


# Connections


def connections(path):
    """How often this process has a database file open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}") == str(path)
        except OSError:
            pass
    return found


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_proc
def test_no_connection_outlives_its_thread(path):
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        for start in range(0, 100, 10):
            threads = [threading.Thread(target=store.add_training_log, args=("job", start + i, 1.0)) for i in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert count(store) == 100
        assert len(store._database._seats) == 1  # this thread's
        assert connections(path) <= 11  # SQLite keeps closed files of one inode for reuse while it holds a lock
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: (store.get_training_session("job"), time.sleep(0.02)), range(8)))
            assert 2 <= len(store._database._seats) <= 5
            store.close()
            assert connections(path) == 0


@needs_proc
def test_a_store_that_nobody_closed(path):
    store = MemoryStore(path)
    store.log_event("x")
    del store
    gc.collect()
    assert connections(path) == 0


def test_settings_of_a_connection(path):
    with MemoryStore(path) as store:
        def settings(durable):
            with store._transaction("write", durable=durable) as conn:
                return conn.exec_driver_sql("PRAGMA synchronous").scalar()

        assert [settings(True), settings(False), settings(True)] == [2, 1, 2]
        with store._get_connection() as conn:
            conn.execute("PRAGMA synchronous=OFF")  # whatever is done there is set right again
            conn.execute("PRAGMA busy_timeout=7")
        assert settings(True) == 2
        with store._get_connection() as conn:
            names = ("journal_mode", "auto_vacuum", "foreign_keys", "busy_timeout", "synchronous")
            found = {name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    assert found == {"journal_mode": "wal", "auto_vacuum": 2, "foreign_keys": 1, "busy_timeout": 30_000, "synchronous": 2}


@needs_fork
@pytest.mark.parametrize("address", ["file", "postgresql"], indirect=True)
def test_a_fork_opens_its_own_connections(store):
    """Children born while other threads write; parent and children go on with the same store object."""
    stop, failed = threading.Event(), []

    def write(worker):
        n = 0
        while not stop.is_set():
            try:
                store.add_training_log("job", n, 1.0, entry=f"parent-{worker}-{n}")
            except StoreError as e:
                failed.append(e)
            n += 1
        return n

    with ThreadPoolExecutor(3) as pool:
        written = [pool.submit(write, worker) for worker in range(3)]
        children = []
        for child in range(6):
            time.sleep(0.02)
            if (pid := os.fork()) == 0:
                code = 1
                try:
                    for n in range(20):
                        store.add_training_log("job", n, 1.0, entry=f"child-{child}-{n}")
                    with ThreadPoolExecutor(2) as inner:
                        list(inner.map(lambda n: store.add_training_log("job", n, 1.0, entry=f"thread-{child}-{n}"), range(4)))  # noqa: B023
                    code = 0 if len(store.get_training_logs("job")) >= 24 else 2
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitpid(pid, 0)[1] for pid in children]
        stop.set()
        total = sum(future.result() for future in written)
    assert (codes, failed) == ([0] * 6, [])
    entries = [log["entry"] for log in store.get_training_logs("job")]
    assert len(set(entries)) == len(entries) == total + 6 * 24
    if store.path:
        with store._get_connection() as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


@needs_fork
def test_a_child_that_ends_like_a_program_closes_nothing_of_its_parent(path):
    """Also an interpreter that is torn down in the child leaves the parent's file alone."""
    code = f"""
import os, sys
from helios.memory_store import MemoryStore
store = MemoryStore({str(path)!r})
store.log_event("parent")
if os.fork() == 0: sys.exit()
os.wait()
store.log_event("parent")
if os.fork() == 0:
    store.log_event("child")
    sys.exit()
os.wait()
print(len(store.get_recent_events()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


@needs_fork
def test_a_store_in_memory_does_not_cross_a_fork():
    with MemoryStore(":memory:") as store:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                store.log_event("x")
            except StoreError as e:
                code = 0 if "open it again in this one" in str(e) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert store.log_event("x") > 0


# Turns


def test_threads_get_their_turn_in_order(path):
    """Eight threads that only write: in the same time each comes to about the same number of rows."""
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        until, counts = time.monotonic() + 1.0, [0] * 8

        def write(worker):
            while time.monotonic() < until:
                if worker % 2:
                    store.add_training_log("job", counts[worker], 1.0)
                else:
                    store.update_training_session("job", progress=worker)
                counts[worker] += 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        assert min(counts) >= sum(counts) / 8 / 5
        assert count(store) == sum(counts[1::2])


def write_for_a_while(path, process, n_threads, n_rows, barrier):
    with MemoryStore(path) as store:
        barrier.wait()

        def write(worker):
            for n in range(n_rows):
                store.add_training_log("job", n, 1.0, entry=f"{process}-{worker}-{n}")
                if n % 10 == 0:
                    store.log_event("tick", [process, worker, n])

        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(write, range(n_threads)))


def test_eight_threads_in_each_of_four_processes(path):
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        spawn = multiprocessing.get_context("spawn")
        barrier = spawn.Barrier(4)
        workers = [spawn.Process(target=write_for_a_while, args=(str(path), i, 8, 30, barrier)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert (count(store), count(store, system_events)) == (4 * 8 * 30, 4 * 8 * 3)


def test_a_writer_gives_up_after_its_time_and_the_others_do_not_notice(path):
    with MemoryStore(path, wait_s=0.2) as store:
        store.create_training_session("job", "net", {})
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        with ThreadPoolExecutor(6) as pool:
            failed = list(pool.map(lambda i: pytest.raises(StoreError, store.add_training_log, "job", i, 1.0), range(6)))
        assert time.monotonic() - begun < 5
        assert all("database is locked" in str(e.value) or "no turn to write within 0.2 s" in str(e.value) for e in failed)
        assert not store._database._turns._waiting and store._database._turns._owner is None
        other.execute("ROLLBACK")
        other.close()
        store.add_training_log("job", 0, 1.0)
        assert count(store) == 1


def test_two_stores_on_one_file_share_a_queue(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with MemoryStore(path) as one, MemoryStore("helios.db") as other:
        assert one._database._turns is other._database._turns
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: (one, other)[i % 2].log_event("tick", i), range(100)))
        assert count(one, system_events) == count(other, system_events) == 100


# Buffers


def test_a_buffered_writer_keeps_order_times_and_entries(store):
    with store.buffered(rows=7, wait_s=60) as writer:
        for epoch in range(20):
            writer.add_training_log("job", epoch, 19.5, {"a": epoch}, entry=f"e{epoch % 15}")
            writer.store_performance_metric("net", "loss", epoch, [epoch])
        assert "up to 7 rows, or what came within 60 s" in writer.may_lose
        assert 0 < writer.pending < 7
        with pytest.raises(StoreError, match="loss is nan"):
            writer.add_training_log("job", 20, float("nan"))
    logs = store.get_training_logs("job")
    assert [log["epoch"] for log in logs] == list(range(15))
    assert [log["timestamp"] for log in logs] == sorted({log["timestamp"] for log in logs})  # each its own
    assert [row["context"] for row in store.get_performance_metrics()] == [[i] for i in range(19, -1, -1)]


def test_a_buffered_writer_whose_job_is_not_there(store):
    writer = store.buffered(rows=2, wait_s=60)
    writer.add_training_log("nobody", 0, 1.0)
    with pytest.raises(StoreError, match="no training session has job_id 'nobody'"):
        writer.store_performance_metric("net", "loss", 1.0)
    with pytest.raises(StoreError, match="2 buffered rows were not written: no training session"):
        writer.close()
    assert store.get_performance_metrics() == []
    store.create_training_session("nobody", "net", {})
    writer.close()
    assert count(store) == len(store.get_performance_metrics()) == 1


def test_a_fenced_buffer_is_turned_away(store):
    add_job(store)
    writer = store.fenced("job", 1).buffered(wait_s=60)
    writer.add_training_log("job", 0, 1.0)
    with store._transaction("write") as conn:
        conn.execute(jobs.update().values(token=2))
    with pytest.raises(FencedError, match="taken up again"):
        writer.flush()
    with pytest.raises(StoreError, match="1 buffered rows were not written"):
        writer.close()
    assert count(store) == 0


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0"])
def test_a_buffer_is_flushed_when_the_interpreter_ends(path, end):
    code = f"""
import sys
from helios.memory_store import MemoryStore
store = MemoryStore({str(path)!r})
store.create_training_session("job", "net", {{}})
writer = store.buffered(wait_s=60)
for epoch in range(5): writer.add_training_log("job", epoch, 1.0)
{end}
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    with MemoryStore(path) as store:
        assert count(store) == 5


def test_a_lone_row_does_not_wait_for_company(store):
    with store.buffered(wait_s=0.05) as writer:
        writer.add_training_log("job", 0, 1.0)
        until = time.monotonic() + 20
        while writer.pending and time.monotonic() < until:
            time.sleep(0.01)
        assert count(store) == 1


# Many kinds of writes at once


def test_a_mixed_crowd(address):
    """Batches, single rows, statuses, reads, compaction and a fence, from twelve threads; nothing is lost."""
    with MemoryStore(address) as store:
        add_job(store)
        for worker in range(12):
            store.create_training_session(f"job-{worker}", "net", {})

        def work(worker):
            source, view = random.Random(worker), store.fenced("job", 1)
            for n in range(12):
                mine = view if worker % 2 else store
                mine.add_training_logs(f"job-{worker}", [{"epoch": 3 * n + i, "loss": 1.0, "metrics": METRICS} for i in range(2)])
                mine.add_training_log(f"job-{worker}", 3 * n + 2, 1.0)
                mine.update_training_session(f"job-{worker}", "running", n)
                if source.random() < 0.2:
                    store.get_memory_statistics()
                if worker == 0 and n % 4 == 0:
                    store.compact_memory()

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
        for worker in range(12):
            assert [log["epoch"] for log in store.get_training_logs(f"job-{worker}")] == list(range(36))
