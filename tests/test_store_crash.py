"""kill -9 in the middle of writing: whatever a call returned for is there, once, and the file is sound."""

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time

import pytest

from helios.memory_store import MemoryStore

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


def write_until_killed(path, number, writer):
    """Two threads that write in each way there is, and say into a pipe what they got an answer for."""

    def say(*entries):
        os.write(writer.fileno(), f"{' '.join(entries)}\n".encode())  # whole: shorter than PIPE_BUF

    def work(thread):
        job, source, n = f"job-{number}-{thread}", random.Random(1000 * number + thread), 0
        store.create_training_session(job, "net", {})
        say(f"session:{job}")
        while True:
            n += 1
            names = [f"{number}-{thread}-{n}-{i}" for i in range(5)]
            match source.randrange(5):
                case 0:
                    store.add_training_logs(job, [{"epoch": n, "loss": 1.0, "metrics": {"x": n}, "entry": name} for name in names])
                    say(*(f"log:{name}" for name in names))
                case 1:
                    store.log_event("row", names[0])
                    say(f"event:{names[0]}")
                case 2:
                    with store._transaction("write"):
                        for name in names:
                            store.log_event("row", name)
                    say(*(f"event:{name}" for name in names))
                case _:
                    store.add_training_log(job, n, 1.0, {"x": n}, names[0])
                    say(f"log:{names[0]}")

    with MemoryStore(path) as store:
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def kill_writers(path, n_kills, seed):
    """Start and kill that many writers one after the other on one file; what they were answered, and what is wrong."""
    source, acknowledged = random.Random(seed), []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helios.memory_store"])
    for number in range(n_kills):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=write_until_killed, args=(str(path), number, writer))
        process.start()
        writer.close()
        if source.random() < 0.8:  # else while it opens
            reader.poll(30)
        time.sleep(source.uniform(0, 0.15))
        process.kill()
        process.join()
        with open(os.dup(reader.fileno()), "rb") as answers:
            text = answers.read().decode()
        reader.close()
        acknowledged += text[: text.rfind("\n") + 1].split()
        faults = check(path, acknowledged)
        if faults:
            return acknowledged, f"after kill {number}: {faults}"
    return acknowledged, ""


def check(path, acknowledged):
    if not path.exists():
        return "acknowledged rows and no file" if acknowledged else ""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        (sound,) = conn.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok":
            return sound
        tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master")}
        if "system_events" not in tables:
            return "acknowledged rows and no tables" if acknowledged else ""
        rows = [f"session:{job}" for (job,) in conn.execute("SELECT job_id FROM training_sessions")]
        logs = [name for (name,) in conn.execute("SELECT entry FROM training_logs")]
        rows += [f"log:{name}" for name in logs]
        rows += [f"event:{name}" for (name,) in conn.execute("SELECT json_extract(event_data, '$') FROM system_events")]
    if missing := set(acknowledged) - set(rows):
        return f"lost {sorted(missing)[:3]} and {len(missing)} in all"
    if len(rows) != len(set(rows)):
        return "a row is there twice"
    batches = {}
    for name in logs:
        batches.setdefault(name.rsplit("-", 1)[0], []).append(name)
    if any(len(names) not in (1, 5) for names in batches.values()):
        return "half a batch"
    return ""


def test_killed_writers(tmp_path):
    acknowledged, faults = kill_writers(tmp_path / "helios.db", 8, seed=0)
    assert not faults and len(acknowledged) > 50


@pytest.mark.slow
def test_a_hundred_killed_writers(tmp_path):
    acknowledged, faults = kill_writers(tmp_path / "helios.db", 100, seed=1)
    print(f"\n{len(acknowledged)} acknowledged rows")
    assert not faults and len(acknowledged) > 1000


def test_the_check_sees_what_is_wrong(tmp_path):
    path = tmp_path / "helios.db"
    with MemoryStore(path) as store:
        store.create_training_session("a", "net", {})
        store.add_training_logs("a", [{"epoch": 0, "loss": 1.0, "entry": f"b-{i}"} for i in range(4)])
        store.log_event("row", "c")
    assert check(path, ["event:x"]) == "lost ['event:x'] and 1 in all"
    assert check(path, ["event:c"]) == "half a batch"
    with MemoryStore(path) as store:
        store.log_event("row", "c")
    assert check(path, []) == "a row is there twice"
