"""The memory store beside raw sqlite3: same table, same journal mode, same `synchronous`, same values, in one run.

Raw is what a careful hand would write with the driver alone: the finished statement, `json.dumps` for the metrics, one
timestamp. Both sides run in turns within one test, and the ratio is that of the medians, so that a busy machine slows
both. What is wanted stands beside each figure in the table; an ordinary run of the tests does the same with small sizes.
"""

import json
import multiprocessing
import sqlite3
import statistics
import subprocess
import sys
import threading
import time

import pytest

from helios.memory_store import MemoryStore

INSERT = "INSERT INTO training_logs (job_id, epoch, loss, metrics, timestamp) VALUES (?, ?, ?, ?, ?)"
METRICS = {"train_loss": 19.4123, "validation_skill": -0.0213, "learning_rate": 0.001, "samples_per_s": 812}


def raw_connection(path, synchronous="NORMAL"):
    conn = sqlite3.connect(path, isolation_level=None, timeout=30)
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"synchronous={synchronous}"):
        conn.execute(f"PRAGMA {pragma}")
    return conn


@pytest.fixture
def pair(tmp_path):
    """A store, and the driver on a file of the same making."""
    for name in ("raw.db", "store.db"):
        with MemoryStore(tmp_path / name) as store:
            store.create_training_session("job", "net", {})
    with MemoryStore(tmp_path / "store.db") as store:
        yield store, tmp_path / "raw.db"


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
def test_one_row_a_commit(figure, pair, synchronous):
    store, path = pair
    conn, rows = raw_connection(path, synchronous), 200 if figure.measuring else 5

    def ours():
        for epoch in range(rows):
            if synchronous == "FULL":
                store.log_event("epoch", METRICS)
            else:
                store.add_training_log("job", epoch, 19.4, METRICS)

    event = "INSERT INTO system_events (event_type, event_data, level, timestamp) VALUES (?, ?, ?, ?)"

    def raw():
        for epoch in range(rows):
            if synchronous == "FULL":
                conn.execute(event, ("epoch", json.dumps(METRICS), "INFO", "2026-01-01T00:00:00.000000+00:00"))
            else:
                conn.execute(INSERT, ("job", epoch, 19.4, json.dumps(METRICS), "2026-01-01T00:00:00.000000+00:00"))

    mine, theirs = figure.medians(ours, raw, 9 if figure.measuring else 2)
    conn.close()
    figure(f"store, one row a commit, {synchronous}: times raw sqlite3's rate", theirs / mine, at_least=0.25)
    figure(f"store, one row a commit, {synchronous}: a row", 1e6 * mine / rows, "us")


def test_batches(figure, pair):
    store, path = pair
    conn, n = raw_connection(path), 1000 if figure.measuring else 20
    rows = [{"epoch": epoch, "loss": 19.4 - epoch / 1e4, "metrics": METRICS | {"epoch": epoch}} for epoch in range(n)]

    def ours():
        store.add_training_logs("job", rows)

    def raw():
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(INSERT, [("job", row["epoch"], row["loss"], json.dumps(row["metrics"]), "2026-01-01") for row in rows])
        conn.execute("COMMIT")

    mine, theirs = figure.medians(ours, raw, 21 if figure.measuring else 2)
    conn.close()
    figure("store, batches of 1,000 rows: times raw sqlite3's rate", theirs / mine, at_least=0.6)
    assert len(store.get_training_logs("job")) == n * (21 if figure.measuring else 2)


@pytest.fixture(scope="module")
def full(request, tmp_path_factory):
    """A million log rows of a hundred jobs whose epochs came by turns, and ten thousand sessions."""
    path, n = tmp_path_factory.mktemp("bench") / "full.db", 1_000_000 if request.config.getoption("benchmark_enable") else 10_000
    with MemoryStore(path) as store:
        with store._transaction("write") as conn:
            insert = "INSERT INTO training_sessions (job_id, model_name, status, start_time, progress, config, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            states = ("completed", "running", "failed", "queued")
            times = [f"2026-01-01T00:00:00.{i:06d}+00:00" for i in range(10_000)]
            config = json.dumps({"learning_rate": 0.001, "epochs": 100, "hidden": 256, "seed": 7})
            conn.exec_driver_sql(insert, [(f"job-{i}", f"net-{i % 20}", states[i % 4], t, i % 101, config, t, t) for i, t in enumerate(times)])
        metrics = json.dumps(METRICS)
        for start in range(0, n, n // 10):
            with store._transaction("write", durable=False) as conn:
                conn.exec_driver_sql(INSERT, [(f"job-{i % 100}", i // 100, 19.4, metrics, times[0]) for i in range(start, start + n // 10)])
        yield store


def test_history(figure, full):
    conn, rounds = raw_connection(full.path), 9 if figure.measuring else 2

    def raw():
        return conn.execute("SELECT * FROM training_logs WHERE job_id = 'job-7' ORDER BY epoch, id").fetchall()

    def decoded():
        rows = conn.execute("SELECT * FROM training_logs WHERE job_id = 'job-7' ORDER BY epoch, id")
        names = [column[0] for column in rows.description]
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for row in found:
            row["metrics"] = json.loads(row["metrics"])
        return found

    assert full.get_training_logs("job-7") == decoded() and len(raw()) == len(decoded())
    mine, theirs = figure.medians(lambda: full.get_training_logs("job-7"), raw, rounds)
    mine_too, same = figure.medians(lambda: full.get_training_logs("job-7"), decoded, rounds)
    conn.close()
    figure("store, 10,000 epochs among 1,000,000 rows: times raw sqlite3's time", mine / theirs, at_most=6)
    figure("store, 10,000 epochs among 1,000,000 rows: times that of raw with dicts and json.loads", mine_too / same)


def test_sessions(figure, full):
    conn, rounds = raw_connection(full.path), 41 if figure.measuring else 2
    wanted = "SELECT job_id FROM training_sessions WHERE status = 'running' ORDER BY progress DESC, id DESC LIMIT 50"
    found = full.list_training_sessions(status="running", sort="progress")
    assert [row["job_id"] for row in found] == [job_id for (job_id,) in conn.execute(wanted)]
    newest, theirs = figure.medians(
        full.list_training_sessions, lambda: conn.execute("SELECT * FROM training_sessions ORDER BY id DESC LIMIT 50").fetchall(), rounds
    )
    filtered, sought = figure.medians(
        lambda: full.list_training_sessions(status="running", sort="progress"),
        lambda: conn.execute(wanted.replace("job_id", "*", 1)).fetchall(),
        rounds,
    )
    conn.close()
    figure("store, newest 50 of 10,000 sessions", 1e3 * newest, "ms", at_most=5)
    figure("store, newest 50 of 10,000 sessions: times raw sqlite3's time", newest / theirs)
    figure("store, filtered and sorted 50 of 10,000 sessions", 1e3 * filtered, "ms", at_most=30)
    figure("store, filtered and sorted 50 of 10,000 sessions: times raw sqlite3's time", filtered / sought)


def test_import_and_open(figure, tmp_path):
    """In a fresh interpreter, whose own start (and that of `site`) is not counted."""
    code = (
        "import time; t, cpu = time.perf_counter(), time.process_time(); from helios.memory_store import MemoryStore; s = MemoryStore({!r}); "
        "print(time.perf_counter() - t, time.process_time() - cpu)"
    )
    for name in ("a new file", "an old one"):
        path = str(tmp_path / "open.db")
        runs = []
        for i in range(7 if figure.measuring else 1):
            place = f"{path}{i}" if name == "a new file" else f"{path}0"
            done = subprocess.run([sys.executable, "-c", code.format(place)], capture_output=True, text=True, check=True)
            runs.append([float(word) for word in done.stdout.split()])
        wall, cpu = (statistics.median(times) for times in zip(*runs, strict=True))
        figure(f"store, import and open {name}", wall, "s", at_most=0.5)
        figure(f"store, import and open {name}: processor time", cpu, "s")
    assert json.loads(done.stdout.split()[0]) > 0


# Fairness


def write_until(write, stop, counts, worker, longest):
    n = 0
    while not stop():
        begun = time.perf_counter()
        write(worker, n)
        longest[worker] = max(longest[worker], time.perf_counter() - begun)
        n += 1
    counts[worker] = n


def process_of_writers(kind, path, n_threads, process, start, answers, seconds):
    """`n_threads` threads that write rows of their own for some seconds, through a store or the driver alone."""
    counts, longest, errors = [0] * n_threads, [0.0] * n_threads, []
    local = threading.local()
    store = MemoryStore(path) if kind == "store" else None

    def write(worker, n):
        if store:
            return store.add_training_log("job", n, float(worker), entry=f"{process}-{worker}-{n}")
        if not hasattr(local, "conn"):
            local.conn = raw_connection(path)
        local.conn.execute(INSERT.replace("timestamp)", "timestamp, entry)").replace("?)", "?, ?)"), ("job", n, float(worker), None, "2026", f"{process}-{worker}-{n}"))

    def work(worker):
        try:
            write_until(write, lambda: time.monotonic() > until, counts, worker, longest)
        except Exception as e:  # noqa: BLE001
            errors.append(f"{type(e).__name__}: {e}")

    start.wait()
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put((counts, longest, errors))


@pytest.mark.parametrize("layout", ["8 threads in each of 4 processes", "8 threads and 4 processes"])
@pytest.mark.parametrize("kind", ["raw", "store"])
def test_fairness(figure, tmp_path, kind, layout):
    threads, lasts = [8] * 4 if "each" in layout else [8, 1, 1, 1, 1], 3.0 if figure.measuring else 0.3
    path = tmp_path / "shared.db"
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        spawn = multiprocessing.get_context("spawn")
        answers, start = spawn.Queue(), spawn.Barrier(len(threads))
        workers = [spawn.Process(target=process_of_writers, args=(kind, str(path), n, i, start, answers, lasts)) for i, n in enumerate(threads)]
        for worker in workers:
            worker.start()
        found = [answers.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
        counts = [n for process, _, _ in found for n in process]
        errors = [error for _, _, failed in found for error in failed]
        mean = statistics.mean(counts)
        kept = store.get_memory_statistics()["training_logs_count"]
    name = f"store, {layout}" if kind == "store" else f"raw sqlite3, {layout}"
    figure(f"{name}: rows of the least thread over the mean", min(counts) / mean, at_least=0.2 if kind == "store" else None)
    figure(f"{name}: rows a second", sum(counts) / lasts)
    figure(f"{name}: longest call", max(max(longest) for _, longest, _ in found), "s")
    if kind == "store":
        figure(f"{name}: errors and lost rows", len(errors) + sum(counts) - kept, at_most=0)
        assert not errors and kept == sum(counts)
