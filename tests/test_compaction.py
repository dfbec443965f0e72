"""Compaction beside a writer and after a kill, and retention: nothing leaks, and nothing that is referred to is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios import retention
from helios.compaction import MOST_ROWS, compact, give_back, outlook, summarize
from helios.memory_store import MemoryStore
from helios.places import CHECKPOINTS, JOBS, MODELS, SPOOL
from helios.retention import clean_files
from helios.tables import (
    check_row,
    enhanced_journal,
    job_events,
    jobs,
    knowledge_fragments,
    memory_operations,
    model_versions,
    models,
    training_logs,
    training_sessions,
)
from helios.values import StoreError, utc_now, utc_text

LONG_AGO = utc_text("2020-01-01")


@pytest.fixture(params=["file", "memory", "server"])
def store(request, tmp_path):
    place = {"file": str(tmp_path / "memory.db"), "memory": ":memory:"}.get(request.param)
    with MemoryStore(place or request.getfixturevalue("postgres_url")) as store:
        yield store


@pytest.fixture
def file_store(tmp_path):
    with MemoryStore(tmp_path / "memory.db") as store:
        yield store


def put(store, table, rows):
    with store._transaction("write") as conn:
        conn.execute(table.insert(), [check_row(table, row) for row in rows])


def session(store, job_id, n_logs, ended=LONG_AGO, status="completed"):
    put(store, training_sessions, [{"job_id": job_id, "model_name": "net", "status": status, "end_time": ended}])
    logs = [{"job_id": job_id, "epoch": n, "loss": 1 / (1 + n), "metrics": {"skill": n % 7, "note": "x"}} for n in range(n_logs)]
    for first in range(0, n_logs, 1000):
        put(store, training_logs, logs[first : first + 1000])


def count(store, table, *where):
    with store._transaction() as conn:
        return conn.scalar(sa.select(sa.func.count()).select_from(table).where(*where))


def fill(store):
    session(store, "long", 9000)
    for n in range(30):
        session(store, f"short {n}", 20)
    session(store, "empty", 0)
    session(store, "young", 50, ended=utc_now())
    session(store, "open", 50, ended=None, status="running")
    entry = {"model_name": "net", "session_id": "s", "event_type": "x", "event_data": {}}
    put(store, enhanced_journal, [entry | {"timestamp": LONG_AGO}] * 700 + [entry | {"timestamp": utc_now()}] * 3)
    part = {"model_name": "net", "fragment_type": "x", "content": "y", "created_at": LONG_AGO}
    put(store, knowledge_fragments, [part | {"relevance_score": n / 1000} for n in range(1000)])
    job = {"kind": "train", "params": {}, "status": "completed", "queued_at": LONG_AGO}
    put(store, jobs, [job | {"job_id": "over", "ended_at": LONG_AGO}, job | {"job_id": "goes on", "status": "running", "ended_at": None}])
    event = {"kind": "progress", "data": {"epoch": 1}, "timestamp": LONG_AGO}
    put(store, job_events, [event | {"job_id": "over"}] * 500 + [event | {"job_id": "goes on"}] * 7)
    put(store, job_events, [event | {"job_id": "over", "kind": kind} for kind in ("started", "ended")])


def test_what_is_old_goes_and_the_rest_stays(store):
    fill(store)
    expected = outlook(store._transaction)
    counts = compact(store._transaction)
    assert counts == expected == {
        "archived_journal_entries": 700, "deleted_knowledge_fragments": 100, "deleted_job_events": 500, "folded_sessions": 31, "folded_training_logs": 9600,
    }  # fmt: skip
    assert count(store, training_logs) == 100
    assert (count(store, job_events), count(store, job_events, job_events.c.job_id == "over")) == (9, 2), "how it began and ended stays"
    summary = store.get_training_session("long")["log_summary"]
    assert summary["loss"] == summarize([1 / (1 + n) for n in range(9000)])
    assert summary["skill"]["n"] == 9000 and set(summary) == {"loss", "skill"}
    assert all(store.get_training_session(f"short {n}")["log_summary"]["loss"]["n"] == 20 for n in range(30))
    assert [store.get_training_session(job)["log_summary"] for job in ("young", "open", "empty")] == [None] * 3
    assert sum(compact(store._transaction).values()) == 0
    with store._transaction() as conn:
        notes = conn.execute(memory_operations.select().order_by(memory_operations.c.id)).mappings().all()
    assert [note["operation"] for note in notes] == ["fold", "compaction", "compaction"]
    assert notes[1]["items_affected"] == sum(counts.values())
    assert {**counts, "bytes_given_back": notes[1]["details"]["bytes_given_back"]} == notes[1]["details"]
    if store.path:
        assert notes[1]["details"]["bytes_given_back"] > 500_000


def test_the_file_shrinks(file_store):
    fill(file_store)
    file_store.vacuum_database()
    before = file_store.path.stat().st_size
    compact(file_store._transaction)
    assert before - file_store.path.stat().st_size > 500_000
    assert give_back(file_store._transaction) == 0


def test_a_session_that_goes_on_after_it_was_folded_keeps_its_new_logs(store):
    session(store, "job", 3)
    assert compact(store._transaction)["folded_training_logs"] == 3
    store.add_training_log("job", 3, 0.5)
    assert compact(store._transaction)["folded_training_logs"] == 0
    assert [row["epoch"] for row in store.get_training_logs("job")] == [3]
    assert store.get_training_session("job")["log_summary"]["loss"]["n"] == 3


KILLED = """
import sys, os, signal
from helios import compaction
from helios.memory_store import MemoryStore
left = [int(sys.argv[2])]
real = compaction.time.sleep
def pause(s):
    left[0] -= 1
    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
compaction.time.sleep = pause
compaction.MOST_ROWS = 400
with MemoryStore(sys.argv[1]) as store: print(store.compact_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 3, 6, 14, 27])
def test_a_compaction_that_was_killed_is_finished_by_the_next(file_store, slices):
    fill(file_store)
    place = str(file_store.path)
    expected = summarize([1 / (1 + n) for n in range(9000)])
    child = subprocess.run([sys.executable, "-c", KILLED, place, str(slices)], capture_output=True, text=True)
    assert child.returncode == -9, child.stdout + child.stderr
    file_store.add_training_log("long", 9000, 0.25, {"late": 1})  # of a session that goes on
    before = file_store.get_training_session("long")["log_summary"]
    compact(file_store._transaction)
    summary = file_store.get_training_session("long")["log_summary"]
    if before is not None:  # folded by the one that was killed: its row of later stays
        assert summary == before
        assert [row["epoch"] for row in file_store.get_training_logs("long")] == [9000]
        assert summary["loss"] == expected
    else:
        assert summary["loss"]["n"] == 9001 and summary["late"]["n"] == 1
    assert all(file_store.get_training_session(f"short {n}")["log_summary"]["loss"]["n"] == 20 for n in range(30))
    assert count(file_store, enhanced_journal, enhanced_journal.c.archived) == 700
    assert count(file_store, knowledge_fragments) == 900
    with file_store._transaction() as conn:
        notes = conn.scalars(sa.select(memory_operations.c.details).where(memory_operations.c.operation == "fold")).all()
    assert all(note["done"] for note in notes) and len(notes) == 1


def test_the_logs_of_a_session_that_may_be_resumed_stay_longer(store):
    """Summed up, they could not be taken apart again when the job goes on."""
    old, very_old = (utc_text(datetime.now(UTC) - timedelta(days=days)) for days in (40, 400))
    for job_id, ended, status in (("cut off", old, "interrupted"), ("given up", very_old, "interrupted"), ("done", old, "completed")):
        session(store, job_id, 10, ended, status)
        put(store, jobs, [{"job_id": job_id, "kind": "train", "params": {}, "status": status, "queued_at": ended, "ended_at": ended}])
    assert outlook(store._transaction)["folded_sessions"] == compact(store._transaction)["folded_sessions"] == 2
    assert [len(store.get_training_logs(job_id)) for job_id in ("cut off", "given up", "done")] == [10, 0, 0]


def test_two_compactions_at_once_sum_nothing_twice(store):
    fill(store)
    done = []
    threads = [threading.Thread(target=lambda: done.append(compact(store._transaction))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert {key: sum(each[key] for each in done) for key in done[0]} == {
        "archived_journal_entries": 700, "deleted_knowledge_fragments": 100, "deleted_job_events": 500, "folded_sessions": 31, "folded_training_logs": 9600,
    }  # fmt: skip
    assert store.get_training_session("long")["log_summary"]["loss"]["n"] == 9000


def test_a_writer_beside_it_loses_nothing(file_store):
    fill(file_store)
    waits, stop = [], threading.Event()

    def write():
        with MemoryStore(file_store.path) as other:
            while not stop.is_set():
                begun = time.perf_counter()
                other.log_event("beside")
                waits.append(time.perf_counter() - begun)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        compact(file_store._transaction)
    finally:
        stop.set()
        writer.join()
    assert len(file_store.get_recent_events("beside", limit=1_000_000)) == len(waits) > 10
    assert max(waits) < 5  # tests/bench prints how long it was


def test_what_was_used_meanwhile_stays(file_store, monkeypatch):
    fill(file_store)
    used = []

    def pause(_):
        if not used:  # between two slices somebody uses the last fragment
            used.append(file_store.update_knowledge_fragment_usage(100))

    monkeypatch.setattr("helios.compaction.time.sleep", pause)
    assert compact(file_store._transaction)["deleted_knowledge_fragments"] == 99
    assert count(file_store, knowledge_fragments, knowledge_fragments.c.id == 100) == 1


def test_an_error_is_noted_with_what_was_done(file_store, monkeypatch):
    fill(file_store)
    monkeypatch.setattr("helios.compaction._fold_sessions", lambda *args: (_ for _ in ()).throw(StoreError("the disk is gone")))
    with pytest.raises(StoreError, match="the disk is gone"):
        compact(file_store._transaction)
    with file_store._transaction() as conn:
        (note,) = conn.execute(memory_operations.select()).mappings().all()
    assert (note["operation"], note["items_affected"]) == ("compaction", 1300)


def test_slices_stay_small(file_store):
    from helios.compaction import Slices

    slices = Slices(file_store._transaction)
    slices.rows = MOST_ROWS
    with slices.slice():
        time.sleep(0.05)
    assert slices.rows == MOST_ROWS // 2


# Retention


STATES = ("queued", "running", "completed", "failed", "cancelled", "interrupted")
AGES = (0.0, 3.0, 60.0)  # days
MIN_AGE_H, ENDED_DAYS = 24, 30


def touch(path: Path, age_days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 10)
    then = time.time() - 86_400 * age_days
    os.utime(path, (then, then))
    return path


def ago(days: float) -> str:
    return utc_text(time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 86_400 * days)))


def build(store, home: Path, draw) -> tuple[set, set]:
    """A registry and folders by chance; what must stay and what must go."""
    stay, go = set(), set()
    training = set()
    for n in range(draw(st.integers(0, 5))):
        state, ended, age, known = draw(st.sampled_from(STATES)), draw(st.sampled_from(AGES)), draw(st.sampled_from(AGES)), draw(st.booleans())
        job, over = f"job{n}", state in ("completed", "failed", "cancelled")
        name = draw(st.sampled_from(("net", "other", "third")))
        if known:
            values = {"job_id": job, "kind": "train", "params": {"model_name": name}, "status": state, "ended_at": ago(ended) if over else None}
            put(store, jobs, [values])
            if not over:
                training.add(name)
        gone = age > 1 and (over and ended > ENDED_DAYS if known else age > ENDED_DAYS)
        for path in (home / JOBS / job / "deep" / "state.safetensors", home / JOBS / job / "log.txt", home / CHECKPOINTS / f"{job}.safetensors"):
            (go if gone else stay).add(touch(path, age))
        for folder in (home / JOBS / job, home / JOBS / job / "deep"):
            if folder.exists():
                then = time.time() - 86_400 * age
                os.utime(folder, (then, then))
        rows = touch(home / SPOOL / f"{job}.jsonl", age)
        (go if not known and age > ENDED_DAYS else stay).add(rows)
    for name in ("net", "other", "unmet"):
        given_out = 0
        versions = []
        for number in range(1, 1 + draw(st.integers(0, 4))) if name != "unmet" else ():
            versions.append((number, draw(st.sampled_from(("live", "deleted", "purged", "never registered")))))
        for number, state in versions:
            if state != "never registered":
                put(store, model_versions, [{
                    "model_name": name, "version": number, "architecture": "PowerballNet", "file_path": f"{MODELS}/{name}-v{number}.safetensors",
                    "deleted_at": None if state == "live" else ago(1), "purged_at": ago(1) if state == "purged" else None,
                }])  # fmt: skip
        met = any(state != "never registered" for _, state in versions)
        if met:
            given_out = versions[-1][0]
            store.store_context("model_versions", name, {"claimed": given_out})
        for number, state in [*versions, (9, "of another database")]:
            age = draw(st.sampled_from(AGES))
            gone = met and age > 1 and state in ("purged", "never registered") and name not in training
            for suffix in (".safetensors", ".json"):
                (go if gone else stay).add(touch(home / MODELS / f"{name}-v{number}{suffix}", age))
    stay |= {touch(home / MODELS / "notes.txt", 60), touch(home / "draws.csv", 60), touch(home / "backups" / "a.db", 60), touch(home / JOBS / "readme", 60)}
    age = draw(st.sampled_from(AGES))
    (go if age > 1 else stay).add(touch(home / MODELS / ".net-v1.json.77.part", age))
    return stay, go


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_file_leaks_and_none_that_is_referred_to_is_lost(tmp_path_factory, data):
    home = tmp_path_factory.mktemp("home")
    with MemoryStore(home / "helios_memory.db") as store:
        stay, go = build(store, home, data.draw)
        asked = clean_files(store._transaction, home, MIN_AGE_H, ENDED_DAYS, dry_run=True)
        assert all(path.exists() for path in stay | go)
        done = clean_files(store._transaction, home, MIN_AGE_H, ENDED_DAYS)
        assert asked["removed"] == done["removed"] and asked["bytes"] == done["bytes"]
        assert {path for path in stay if not path.exists()} == set()
        assert {path for path in go if path.exists()} == set()
        assert clean_files(store._transaction, home, MIN_AGE_H, ENDED_DAYS)["removed"] == []
        assert not list(home.rglob(".trash-*"))


def test_a_file_registered_between_looking_and_removing_stays(tmp_path):
    home = tmp_path
    with MemoryStore(home / "memory.db") as store:
        version = {"model_name": "net", "version": 2, "architecture": "PowerballNet", "file_path": f"{MODELS}/net-v2.safetensors"}
        put(store, model_versions, [version])
        files = [touch(home / MODELS / f"net-v1{suffix}", 60) for suffix in (".safetensors", ".json")]
        modes = []

        def transaction(mode, **kwargs):
            if mode == "write" and not modes:
                modes.append(mode)
                put(store, model_versions, [version | {"version": 1, "file_path": f"{MODELS}/net-v1.safetensors"}])
            return store._transaction(mode, **kwargs)

        assert len(clean_files(store._transaction, home, dry_run=True)["removed"]) == 2
        assert clean_files(transaction, home)["removed"] == []
        assert modes and all(path.exists() for path in files)


def test_links_are_not_followed(tmp_path):
    outside = touch(tmp_path / "outside" / "state.safetensors", 60)
    home = tmp_path / "home"
    (home / JOBS).mkdir(parents=True)
    (home / JOBS / "gone").symlink_to(outside.parent)
    elsewhere = touch(tmp_path / "disk" / "lost.safetensors", 60)
    (home / CHECKPOINTS).symlink_to(elsewhere.parent)  # the folder as a whole may lie on another disk
    touch(home / JOBS / "old" / "log.txt", 60)
    (home / JOBS / "old" / "link").symlink_to(outside.parent)
    for folder in (home / JOBS / "old",):
        os.utime(folder, (0, 0))
    with MemoryStore(tmp_path / "memory.db") as store:
        clean_files(store._transaction, home, min_age_h=0, ended_days=0)
    assert outside.exists() and not elsewhere.exists()
    assert (home / JOBS / "gone").is_symlink()
    assert not (home / JOBS / "old").exists()


def test_retention_is_noted_and_refuses_wrong_bounds(file_store, tmp_path):
    home = tmp_path / "home"
    path = touch(home / CHECKPOINTS / "lost.safetensors", 60)
    with pytest.raises(StoreError, match="min_age_h is -1"):
        clean_files(file_store._transaction, home, min_age_h=-1)
    assert clean_files(file_store._transaction, home)["bytes"] == 10
    with file_store._transaction() as conn:
        (note,) = conn.execute(memory_operations.select()).mappings().all()
    assert (note["operation"], note["items_affected"], note["details"]) == ("retention", 1, {"bytes": 10, "files": [str(path)]})
    assert json.dumps(clean_files(file_store._transaction, home))


def test_a_removal_that_was_killed_is_finished_by_the_next(file_store, tmp_path, monkeypatch):
    home = tmp_path / "home"
    for n in range(5):
        touch(home / JOBS / f"lost{n}" / "log.txt", 60)
        os.utime(home / JOBS / f"lost{n}", (0, 0))
    chance = random.Random(1)

    def fail(path, real=shutil.rmtree):
        if chance.random() < 0.5:
            raise OSError("stopped")
        real(path)

    monkeypatch.setattr("helios.retention.shutil.rmtree", fail)
    with pytest.raises(OSError, match="stopped"):
        clean_files(file_store._transaction, home)
    monkeypatch.undo()
    clean_files(file_store._transaction, home, min_age_h=0)
    assert list((home / JOBS).iterdir()) == []


def test_nobody_waits_for_a_walk_over_the_folders(file_store, tmp_path, monkeypatch):
    """Under the lock only the things of one slice are asked for, and no folder is walked."""
    home, held, slices = tmp_path / "home", [], []
    for n in range(120):
        touch(home / JOBS / f"over{n}" / "log.txt", 60)
        os.utime(home / JOBS / f"over{n}", (0, 0))
    touch(home / JOBS / "young" / "log.txt", 60)
    put(file_store, jobs, [{"job_id": f"over{n}", "kind": "check", "params": {}, "status": "completed", "ended_at": LONG_AGO} for n in range(120)])

    @contextmanager
    def transaction(mode, **kwargs):
        with file_store._transaction(mode, **kwargs) as conn:
            held.append(mode)
            yield conn
            held.clear()

    walk, ask, move = os.walk, retention.references, os.rename

    def walking(path):
        assert not held, f"{path} is walked within a transaction"
        return walk(path)

    def asking(conn, home, since, of=None, real=None):
        if held == ["write"]:
            assert len(of) <= 2 * retention.SLICE
            slices.append(0)
        return ask(conn, home, since, of, real)

    def moving(old, new):
        if held:
            slices[-1] += 1
        move(old, new)

    monkeypatch.setattr(retention.os, "walk", walking)
    monkeypatch.setattr(retention, "references", asking)
    monkeypatch.setattr(retention.os, "rename", moving)
    done = clean_files(transaction, home)
    assert len(done["removed"]) == 120 and slices == [50, 50, 20]
    assert sorted(path.name for path in (home / JOBS).iterdir()) == ["young"]
    assert count(file_store, memory_operations) == 1


def test_a_few_things_are_asked_for_as_all_of_them(store, tmp_path):
    """What is said of a thing alone is what is said of it among all."""
    fill(store)
    put(store, model_versions, [{"model_name": name, "version": n, "architecture": "PowerballNet", "file_path": f"{MODELS}/{name}-v{n}.safetensors",
                                 "purged_at": LONG_AGO if n == 2 else None} for name in ("net", "a_b", "axb") for n in (1, 2, 3)])  # fmt: skip
    store.store_context("model_versions", "net", {"claimed": 7})
    store.save_model_metadata("older", tmp_path / MODELS / "older-v1.safetensors", "PowerballNet", "1", {})
    since = ago(30)
    with store._transaction() as conn:
        everything = retention.references(conn, tmp_path, since)
        for stem in ("net-v1", "net-v2", "net-v7", "net-v8", "a_b-v1", "axb-v2", "older-v1", "no-v1"):
            alone = retention.references(conn, tmp_path, since, [stem])
            path = touch(tmp_path / MODELS / f"{stem}.safetensors", 60)
            assert retention._why(path, alone, 1e4, 30) == retention._why(path, everything, 1e4, 30), stem
        for job in ("over", "goes on", "long", "young", "open", "nobody"):
            alone = retention.references(conn, tmp_path, since, [job])
            path = touch(tmp_path / CHECKPOINTS / f"{job}.safetensors", 60)
            assert retention._why(path, alone, 1e4, 30) == retention._why(path, everything, 1e4, 30), job
            assert alone.training == everything.training


def test_what_was_purged_goes_also_if_models_still_names_it(file_store, tmp_path):
    """After the last version was purged its row in `models` stays, inactive; a name from before the registry keeps its file."""
    gone = touch(tmp_path / MODELS / "net-v1.safetensors", 60)
    kept = touch(tmp_path / CHECKPOINTS / "old.safetensors", 60)
    put(file_store, model_versions, [{"model_name": "net", "version": 1, "architecture": "PowerballNet", "deleted_at": LONG_AGO, "purged_at": LONG_AGO}])
    for name, path in (("net", gone), ("old", kept)):
        file_store.save_model_metadata(name, path, "PowerballNet", "1", {})
    assert clean_files(file_store._transaction, tmp_path)["removed"] == []
    with file_store._transaction("write") as conn:
        conn.execute(models.update().values(is_active=False))
    assert [row["path"] for row in clean_files(file_store._transaction, tmp_path)["removed"]] == [str(gone)]
    assert kept.exists()
