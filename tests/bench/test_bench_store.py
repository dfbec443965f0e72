"""The memory store beside raw sqlite3: same table, same journal mode, same `synchronous`, same values, in one run.

Raw is what a careful hand would write with the driver alone: the finished statement, `json.dumps` for the metrics, one
timestamp. Both sides run in turns within one test, and the ratio is that of the medians, so that a busy machine slows
both. What the bounds are is said beside each figure; `-s` shows the table.
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
N_WRITERS, SECONDS = 8, 3.0


def say(text: str) -> None:
    print(f"\n  {text}", end="")


def raw_connection(path, synchronous="NORMAL"):
    conn = sqlite3.connect(path, isolation_level=None, timeout=30)
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"synchronous={synchronous}"):
        conn.execute(f"PRAGMA {pragma}")
    return conn


def medians(one, other, rounds=9):
    """Seconds that each took, by turns, the first round thrown away."""
    times = ([], [])
    for _ in range(rounds):
        for call, seconds in zip((one, other), times, strict=True):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
    return [statistics.median(seconds[1:]) for seconds in times]


@pytest.fixture
def pair(tmp_path):
    """A store, and the driver on a file of the same making."""
    for name in ("raw.db", "store.db"):
        with MemoryStore(tmp_path / name) as store:
            store.create_training_session("job", "net", {})
    with MemoryStore(tmp_path / "store.db") as store:
        yield store, tmp_path / "raw.db"


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
def test_one_row_a_commit(pair, synchronous):
    store, path = pair
    conn = raw_connection(path, synchronous)

    def ours():
        for epoch in range(200):
            if synchronous == "FULL":
                store.log_event("epoch", METRICS)
            else:
                store.add_training_log("job", epoch, 19.4, METRICS)

    event = "INSERT INTO system_events (event_type, event_data, level, timestamp) VALUES (?, ?, ?, ?)"

    def raw():
        for epoch in range(200):
            if synchronous == "FULL":
                conn.execute(event, ("epoch", json.dumps(METRICS), "INFO", "2026-01-01T00:00:00.000000+00:00"))
            else:
                conn.execute(INSERT, ("job", epoch, 19.4, json.dumps(METRICS), "2026-01-01T00:00:00.000000+00:00"))

    mine, theirs = medians(ours, raw)
    conn.close()
    say(f"one row a commit, {synchronous}: {mine / 200 * 1e6:.0f} us, raw {theirs / 200 * 1e6:.0f} us, {theirs / mine:.2f} of raw (bound 0.25)")
    assert theirs / mine >= 0.25


def test_batches(pair):
    store, path = pair
    conn = raw_connection(path)
    rows = [{"epoch": epoch, "loss": 19.4 - epoch / 1e4, "metrics": METRICS | {"epoch": epoch}} for epoch in range(1000)]

    def ours():
        store.add_training_logs("job", rows)

    def raw():
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(INSERT, [("job", row["epoch"], row["loss"], json.dumps(row["metrics"]), "2026-01-01") for row in rows])
        conn.execute("COMMIT")

    mine, theirs = medians(ours, raw, 21)
    conn.close()
    say(f"batches of 1,000: {mine * 1e3:.1f} ms, raw {theirs * 1e3:.1f} ms, {theirs / mine:.2f} of raw (bound 0.6)")
    assert theirs / mine >= 0.6


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A million log rows of a hundred jobs whose epochs came by turns, and ten thousand sessions."""
    path = tmp_path_factory.mktemp("bench") / "full.db"
    with MemoryStore(path) as store:
        with store._transaction("write") as conn:
            insert = "INSERT INTO training_sessions (job_id, model_name, status, start_time, progress, config, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            states = ("completed", "running", "failed", "queued")
            times = [f"2026-01-01T00:00:00.{i:06d}+00:00" for i in range(10_000)]
            config = json.dumps({"learning_rate": 0.001, "epochs": 100, "hidden": 256, "seed": 7})
            conn.exec_driver_sql(insert, [(f"job-{i}", f"net-{i % 20}", states[i % 4], t, i % 101, config, t, t) for i, t in enumerate(times)])
        metrics = json.dumps(METRICS)
        for start in range(0, 1_000_000, 100_000):
            with store._transaction("write", durable=False) as conn:
                conn.exec_driver_sql(INSERT, [(f"job-{i % 100}", i // 100, 19.4, metrics, times[0]) for i in range(start, start + 100_000)])
        yield store


def test_history(full):
    conn = raw_connection(full.path)

    def raw():
        rows = conn.execute("SELECT * FROM training_logs WHERE job_id = 'job-7' ORDER BY epoch, id").fetchall()
        assert len(rows) == 10_000

    def decoded():
        rows = conn.execute("SELECT * FROM training_logs WHERE job_id = 'job-7' ORDER BY epoch, id")
        names = [column[0] for column in rows.description]
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for row in found:
            row["metrics"] = json.loads(row["metrics"])

    mine, theirs = medians(lambda: full.get_training_logs("job-7"), raw)
    _, same = medians(lambda: None, decoded)
    conn.close()
    say(f"10,000 epochs of 1,000,000 rows: {mine * 1e3:.0f} ms, raw tuples {theirs * 1e3:.0f} ms ({mine / theirs:.1f} times, bound 6), raw dicts with json.loads {same * 1e3:.0f} ms")
    assert mine / theirs <= 6


def test_sessions(full):
    conn = raw_connection(full.path)

    def raw():
        conn.execute("SELECT * FROM training_sessions ORDER BY id DESC LIMIT 50").fetchall()

    newest, theirs = medians(full.list_training_sessions, raw, 41)
    filtered, sought = medians(
        lambda: full.list_training_sessions(status="running", sort="progress"),
        lambda: conn.execute("SELECT * FROM training_sessions WHERE status = 'running' ORDER BY progress DESC, id DESC LIMIT 50").fetchall(),
        41,
    )
    conn.close()
    say(f"newest 50 of 10,000 sessions: {newest * 1e3:.2f} ms, raw {theirs * 1e3:.2f} ms (bound 5 ms)")
    say(f"filtered and sorted 50: {filtered * 1e3:.2f} ms, raw {sought * 1e3:.2f} ms (bound 30 ms)")
    assert newest < 0.005 and filtered < 0.03


def test_import_and_open(tmp_path):
    """In a fresh interpreter, whose own start (and that of `site`) is not counted."""
    code = (
        "import time; t, cpu = time.perf_counter(), time.process_time(); from helios.memory_store import MemoryStore; s = MemoryStore({!r}); "
        "print(time.perf_counter() - t, time.process_time() - cpu)"
    )
    seconds = {}
    for name in ("a new file", "an old one"):
        path = str(tmp_path / "open.db")
        runs = []
        for i in range(7):
            place = f"{path}{i}" if name == "a new file" else f"{path}0"
            done = subprocess.run([sys.executable, "-c", code.format(place)], capture_output=True, text=True, check=True)
            runs.append([float(word) for word in done.stdout.split()])
        seconds[name] = [statistics.median(times) for times in zip(*runs, strict=True)]
    for name, (wall, cpu) in seconds.items():
        say(f"import and open {name}: {wall:.3f} s, of these computing {cpu:.3f} s (bound 0.5 s)")
    assert max(cpu for _, cpu in seconds.values()) < 0.5  # what other programs take of the cores is not the store's


# Fairness


def write_until(write, stop, counts, worker, longest):
    n = 0
    while not stop():
        begun = time.perf_counter()
        write(worker, n)
        longest[worker] = max(longest[worker], time.perf_counter() - begun)
        n += 1
    counts[worker] = n


def process_of_writers(kind, path, n_threads, process, start, answers):
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
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put((counts, longest, errors))


@pytest.mark.parametrize("layout", ["8 threads in each of 4 processes", "8 threads and 4 processes"])
@pytest.mark.parametrize("kind", ["raw", "store"])
def test_fairness(tmp_path, kind, layout):
    threads = [8] * 4 if "each" in layout else [8, 1, 1, 1, 1]
    path = tmp_path / "shared.db"
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        spawn = multiprocessing.get_context("spawn")
        answers, start = spawn.Queue(), spawn.Barrier(len(threads))
        workers = [spawn.Process(target=process_of_writers, args=(kind, str(path), n, i, start, answers)) for i, n in enumerate(threads)]
        for worker in workers:
            worker.start()
        found = [answers.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
        counts = [n for process, _, _ in found for n in process]
        errors = [error for _, _, failed in found for error in failed]
        mean = statistics.mean(counts)
        kept = store.get_memory_statistics()["training_logs_count"]
    say(f"{layout}, {kind}: {sum(counts) / SECONDS:.0f} rows/s, least {min(counts) / mean:.2f} of the mean (bound 0.2), most {max(counts) / mean:.2f}, "
        f"longest call {max(max(longest) for _, longest, _ in found):.2f} s, {len(errors)} errors, {sum(counts) - kept} rows lost")
    if kind == "store":
        assert not errors and kept == sum(counts) and min(counts) / mean >= 0.2
