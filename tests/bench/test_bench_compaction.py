"""How long the one who writes has to wait while a database of a million log rows is compacted, backed up and cleared."""

import json
import subprocess
import sys
import time

import pytest

from helios.backups import back_up_file, quick_check
from helios.memory_store import MemoryStore
from helios.values import utc_text

LONG_AGO = utc_text("2020-01-01")

# Another process, as a training is one: a row a commit, on the disk when the call returns; the longest wait and how many.
WRITER = """
import sys, time, json
from helios.memory_store import MemoryStore
waits = []
with MemoryStore(sys.argv[1]) as store:
    store.create_training_session("live", "net", {})
    print("ready", flush=True)
    import threading
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    epoch = 0
    while not stop.is_set():
        begun = time.perf_counter()
        store.add_training_log("live", epoch, 1.0, {"skill": 0.1})
        waits.append(time.perf_counter() - begun)
        epoch += 1
        time.sleep(0.002)
waits.sort()
print(json.dumps([len(waits), waits[-1], waits[int(0.999 * len(waits))], waits[len(waits) // 2]]))
"""


def fill(path, n_sessions: int, n_logs: int):
    with MemoryStore(path) as store, store._get_connection() as conn:
        conn.execute("BEGIN IMMEDIATE")
        for job in range(n_sessions):
            conn.execute(
                "INSERT INTO training_sessions (job_id, model_name, status, start_time, end_time, created_at, updated_at) VALUES (?, 'net', 'completed', ?, ?, ?, ?)",
                (f"job{job}", *[LONG_AGO] * 4),
            )
            conn.executemany(
                "INSERT INTO training_logs (job_id, epoch, loss, metrics, timestamp, entry) VALUES (?, ?, ?, ?, ?, ?)",
                ((f"job{job}", n, 19.5 - n / 1e6, json.dumps({"validation_skill": 0.001 * n, "lr": 0.001}), LONG_AGO, f"job{job}/{n}") for n in range(n_logs)),
            )
        conn.execute("COMMIT")


class Writer:
    def __init__(self, path):
        self.child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        assert self.child.stdout.readline() == "ready\n"
        time.sleep(0.5)
        return self

    def __exit__(self, *error):
        out, _ = self.child.communicate("")
        assert self.child.returncode == 0
        self.n, self.longest_s, self.p999_s, self.median_s = json.loads(out)


@pytest.fixture
def full(figure, tmp_path):
    path = tmp_path / "memory.db"
    fill(path, *((100, 10_000) if figure.measuring else (3, 1500)))
    return path


@pytest.mark.benchmark(group="compaction")
def test_compaction_beside_a_writer(benchmark, figure, full):
    rows = 1_000_000 if figure.measuring else 4500
    before = full.stat().st_size
    with MemoryStore(full) as store:
        with Writer(full) as alone:
            time.sleep(10 if figure.measuring else 0.5)
        with store._get_connection() as conn:
            conn.execute("DELETE FROM training_logs WHERE job_id = 'live'")
            conn.execute("DELETE FROM training_sessions WHERE job_id = 'live'")
        begun = time.perf_counter()
        with Writer(full) as writer:
            counts = benchmark.pedantic(store.compact_memory, rounds=1)
        took = time.perf_counter() - begun
        assert counts["folded_training_logs"] == rows
        assert len(store.get_training_logs("live")) == writer.n
    figure("longest wait of a writer while 1 million logs are compacted", 1000 * writer.longest_s, "ms", at_most=100)
    figure("... of a writer alone on this disk", 1000 * alone.longest_s, "ms")
    figure("... median wait beside compaction", 1000 * writer.median_s, "ms")
    figure("time to compact 1 million logs", took, "s")
    figure("file after it", full.stat().st_size / before, "of before")


@pytest.mark.benchmark(group="backup")
def test_backup_beside_a_writer(benchmark, figure, full):
    with Writer(full) as writer:
        made = [benchmark.pedantic(back_up_file, (full,), rounds=1)]
        made += [back_up_file(full) for _ in range(4 if figure.measuring else 1)]
    assert all(map(quick_check, made))
    figure("longest wait of a writer while 1 million logs are backed up", 1000 * writer.longest_s, "ms", at_most=100)
    figure("time to back up 1 million logs, checked", benchmark.stats.stats.mean if figure.measuring else 0, "s")


@pytest.mark.benchmark(group="backup")
def test_a_look_at_the_start(benchmark, figure, full):
    benchmark.pedantic(quick_check, (full, 0.1), rounds=5)
    figure("look at a file of 1 million logs before it is opened", 1000 * benchmark.stats.stats.mean if figure.measuring else 0, "ms")
