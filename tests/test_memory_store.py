"""MemoryStore beyond its notebook: reopening, many writers, foreign files, random values, compaction."""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from importlib.util import find_spec

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios import database
from helios.memory_store import ENDED, HALF_LIFE_DAYS, MemoryStore, StoreError
from helios.tables import schema
from helios.values import to_json, utc_hours_ago, utc_text

LONG_AGO = utc_text("2020-01-01")


@pytest.fixture
def memory_store(address):
    with MemoryStore(address) as store:
        yield store


def run(store, sql, **values):
    with store._transaction("write") as conn:
        result = conn.execute(sa.text(sql), values)
        return result.all() if result.returns_rows else None


def set_column(store, table, column, value):
    run(store, f"UPDATE {table} SET {column} = :value", value=value)


def fill(store):
    store.save_model_metadata("net", "net.safetensors", "PowerballNet", metadata={"hidden": 256})
    store.create_training_session("job", "net", {"epochs": 2})
    store.add_training_log("job", 0, 19.5, {"accuracy": 0.1})
    prediction = store.save_prediction("net", {"whites": [1, 2, 3, 4, 5]}, 0.5, date(2026, 1, 31))
    store.update_prediction_outcome(prediction, {"powerball": 7})
    store.store_context("page", "theme", "dark")
    store.log_event("start", {"port": 5001})
    store.store_enhanced_journal_entry("net", "job", "training_start", {"a": 1}, 0.5, -2.5, "hash")
    store.update_knowledge_fragment_usage(store.store_knowledge_fragment("net", "pattern", ["none"]))
    store.store_performance_metric("net", "skill_nats", -0.01, {"draws": 200})


def contents(store):
    return [
        store.list_models(),
        store.get_training_session("job"),
        store.get_training_logs("job"),
        store.get_model_predictions("net"),
        store.get_context("page", "theme"),
        store.get_recent_events(),
        store.get_enhanced_journal_entries(),
        store.get_knowledge_fragments(),
        store.get_performance_metrics(),
    ]


class TestMemoryStore:
    def test_create_training_session(self, memory_store):
        job_id = "test_job_123"
        config = {"epochs": 10, "lr": 0.01}
        session_id = memory_store.create_training_session(job_id=job_id, model_name="test_model", config=config)
        assert session_id > 0
        session = memory_store.get_training_session(job_id)
        assert session["job_id"] == job_id
        assert session["status"] == "started"
        assert session["config"]["epochs"] == 10


# The tables


def test_tables_columns_and_indexes(memory_store):
    wanted = {
        "models": "name file_path architecture version created_at updated_at metadata is_active",
        "training_sessions": "id job_id model_name status start_time end_time progress config error_message created_at "
        "updated_at",
        "training_logs": "id job_id epoch loss metrics timestamp",
        "enhanced_journal": "id model_name session_id event_type event_data confidence_score success_metric "
        "context_hash timestamp archived",
        "knowledge_fragments": "id model_name fragment_type content relevance_score usage_count created_at last_accessed",
        "performance_metrics": "model_name metric_name metric_value context timestamp",
        "predictions": "id model_name prediction_data confidence draw_date created_at outcome outcome_at",
        "context_storage": "context_type context_key context_data created_at expires_at",
        "system_events": "event_type event_data level timestamp",
        "memory_operations": "operation details timestamp",
    }
    with memory_store._transaction() as conn:
        found = sa.inspect(conn)
        for table, columns in wanted.items():
            have = {column["name"] for column in found.get_columns(table)}
            assert set(columns.split()) <= have, table
        indexes = {index["name"]: table for table in wanted for index in found.get_indexes(table)}
    assert indexes.items() >= {
        "idx_training_sessions_status": "training_sessions",
        "idx_training_logs_job_id": "training_logs",
        "idx_enhanced_journal_model": "enhanced_journal",
        "idx_performance_metrics_timestamp": "performance_metrics",
    }.items()


def test_one_error_for_store_and_database():
    assert StoreError is database.StoreError


def test_import_is_light():
    code = "import sys, helios.memory_store; print([m for m in ('pandas', 'numpy', 'torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Opening and closing


def test_reopened_file_holds_everything(path):
    with MemoryStore(path) as store:
        fill(store)
        before = contents(store)
    with MemoryStore(f"sqlite:///{path}") as store:
        assert contents(store) == before
        assert all(before)
        assert store.get_memory_statistics()["total_rows"] == 9


def test_what_was_acknowledged_survives_a_killed_process(path):
    code = f"""
import os
from helios.memory_store import MemoryStore
store = MemoryStore({str(path)!r})
for i in range(20): store.log_event("tick", i)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    with MemoryStore(path) as store:
        assert [event["event_data"] for event in store.get_recent_events()] == list(range(19, -1, -1))


def test_file_connections_are_set_up(path):
    with MemoryStore(path) as store, store._get_connection() as conn:
        assert isinstance(conn, sqlite3.Connection)
        found = [conn.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "foreign_keys", "busy_timeout")]
        assert found == ["wal", 1, 30_000]
        assert conn.execute("PRAGMA synchronous").fetchone()[0] == 2


@pytest.mark.parametrize("address", [":memory:", "sqlite://", "sqlite:///:memory:"])
def test_memory_addresses(address):
    with MemoryStore(address) as store:
        fill(store)
        assert all(contents(store))


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with MemoryStore("helios.db") as store:
        store.log_event("here")
        monkeypatch.chdir(tmp_path / "elsewhere")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: store.log_event("there", i), range(8)))
        assert len(store.get_recent_events()) == 9
    assert os.listdir(tmp_path / "elsewhere") == []


def test_use_after_close(path):
    store = MemoryStore(path)
    store.close()
    store.close()
    for call in (store.list_models, store.vacuum_database, lambda: store.log_event("late")):
        with pytest.raises(StoreError, match="is closed; open a new MemoryStore"):
            call()
    with pytest.raises(StoreError, match="is closed"), store._get_connection():
        pass


def test_places_where_no_store_can_be(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "text.db").write_text("no database " * 200)
    cases = {
        tmp_path: "is a folder; name a file in it",
        tmp_path / "file" / "helios.db": "name another place",
        tmp_path / "text.db": "file is not a database; name another file",
        "mysql://root:secret@db/helios": "use sqlite or postgresql",
        "nonsense://": "use sqlite or postgresql",
        "a://b:c:d/e": "no URL|use sqlite or postgresql",
        "": "db_path is ''",
        "a\0b": "db_path is",
        7: "db_path is 7",
    }
    for place, message in cases.items():
        with pytest.raises(StoreError, match=message) as caught:
            MemoryStore(place)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="check that its folder exists and may be written to"):
        MemoryStore(tmp_path / "helios.db")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody may write to")
def test_folder_where_nobody_may_write():
    with pytest.raises(StoreError, match="unable to open database file; check that its folder"):
        MemoryStore("/proc/helios.db")


@pytest.mark.skipif(find_spec("psycopg") is not None, reason="the driver is installed")
def test_missing_driver():
    with pytest.raises(StoreError, match=r"needs psycopg; in a checkout: pip install -e '.\[postgres\]'"):
        MemoryStore("postgresql://user:secret@localhost/helios")


def test_file_of_another_program(path):
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE models (id INTEGER, name TEXT)")
    conn.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program or version made its tables"):
        MemoryStore(path)
    assert path.read_bytes() == before


def test_a_locked_file_is_one_line(path):
    with MemoryStore(path, wait_s=0.1) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; another program holds it") as caught:
            store.log_event("blocked")
        assert "\n" not in str(caught.value)
        assert store.get_recent_events() == []  # readers are not held up
        other.execute("ROLLBACK")
        other.close()
        assert store.log_event("free") > 0


def test_a_row_that_is_no_json(memory_store):
    memory_store.log_event("start", {"a": 1})
    set_column(memory_store, "system_events", "event_data", "{broken")
    with pytest.raises(StoreError, match="a row holds '{broken', which is no JSON; mend or delete it"):
        memory_store.get_recent_events()


# The driver's connection


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_driver_connection_commits_or_rolls_back(kind, path):
    with MemoryStore(":memory:" if kind == "memory" else path) as store:
        store.log_event("one")
        with store._get_connection() as conn:
            conn.execute("BEGIN")
            conn.execute("UPDATE system_events SET level = 'ERROR'")
        assert store.get_recent_events()[0]["level"] == "ERROR"
        with pytest.raises(ZeroDivisionError), store._get_connection() as conn:
            conn.execute("BEGIN")
            conn.execute("DELETE FROM system_events")
            1 / 0  # noqa: B018
        assert len(store.get_recent_events()) == 1
        with store._get_connection() as conn:  # a call of the store fits inside
            conn.execute("SELECT 1").fetchone()
            store.log_event("two")
        assert len(store.get_recent_events()) == 2


# Many writers


def write_rows(store, worker, n_rows):
    job = f"job-{worker}"
    store.create_training_session(job, "net", {"worker": worker})
    for row in range(n_rows):
        store.add_training_log(job, row, 19.5, {"worker": worker})
        store.store_context("page", "shared", [worker, row])
        store.get_training_session(job)
        store.update_training_session(job, "running", row)


def write_in_process(address, worker, n_rows):
    with MemoryStore(address) as store:
        write_rows(store, worker, n_rows)


def test_eight_threads(address):
    with MemoryStore(address) as store:
        together = threading.Barrier(8)

        def work(worker):
            together.wait()
            write_rows(store, worker, 15)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        stats = store.get_memory_statistics()
        assert [stats[f"{t}_count"] for t in ("training_sessions", "training_logs", "context_storage")] == [8, 120, 1]
        for worker in range(8):
            logs = store.get_training_logs(f"job-{worker}")
            assert [(log["epoch"], log["metrics"]["worker"]) for log in logs] == [(row, worker) for row in range(15)]


def test_equal_content_is_one_fragment(memory_store):
    first = memory_store.store_knowledge_fragment("net", "pattern", {"ball": 7, "p": [0.5, None]}, 0.9)
    assert memory_store.update_knowledge_fragment_usage(first)
    assert memory_store.store_knowledge_fragment("net", "pattern", {"p": [0.5, None], "ball": 7}, 0.4) == first
    others = [("other", "pattern", {"ball": 7}), ("net", "hunch", {"ball": 7}), ("net", "pattern", {"ball": 8}), ("net", "pattern", "7")]
    ids = {memory_store.store_knowledge_fragment(*other) for other in others}
    assert len(ids | {first}) == 5
    row = next(row for row in memory_store.get_knowledge_fragments() if row["id"] == first)
    assert (row["relevance_score"], row["usage_count"], len(row["content_hash"])) == (0.4, 1, 64)


def test_threads_that_learn_the_same_leave_one_fragment(memory_store):
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: memory_store.store_knowledge_fragment("net", "pattern", {"x": [1]}), range(40)))
    assert len(ids) == 1 and memory_store.get_memory_statistics()["knowledge_fragments_count"] == 1


@pytest.mark.parametrize(("days", "share"), [(0, 1.0), (HALF_LIFE_DAYS, 0.5), (2 * HALF_LIFE_DAYS, 0.25)])
def test_relevance_fades_until_it_is_met_with_again(memory_store, days, share):
    fragment = memory_store.store_knowledge_fragment("net", "pattern", "x", 0.8)
    set_column(memory_store, "knowledge_fragments", "created_at", utc_hours_ago(24 * days))
    row = memory_store.get_knowledge_fragments()[0]
    assert row["relevance_score"] == 0.8 and row["current_relevance"] == pytest.approx(0.8 * share, rel=1e-4)
    memory_store.update_knowledge_fragment_usage(fragment)
    assert memory_store.get_knowledge_fragments()[0]["current_relevance"] == pytest.approx(0.8, rel=1e-4)


def test_usage_counts_of_threads_add_up(memory_store):
    fragment = memory_store.store_knowledge_fragment("net", "pattern", "x")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: memory_store.update_knowledge_fragment_usage(fragment), range(80)))
    assert memory_store.get_knowledge_fragments()[0]["usage_count"] == 80


def test_one_of_eight_threads_gets_the_job(memory_store):
    def create(worker):
        try:
            return memory_store.create_training_session("job", "net", {"worker": worker}) > 0
        except StoreError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


@pytest.mark.parametrize("address", ["file", "postgresql"], indirect=True)
def test_two_processes_on_a_new_database(address):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=write_in_process, args=(address, worker, 20)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    with MemoryStore(address) as store:
        assert [len(store.get_training_logs(f"job-{worker}")) for worker in range(2)] == [20, 20]


# Values

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_json_comes_back_as_it_went_in(memory_store, value):
    memory_store.store_context("any", "value", value)
    assert memory_store.get_context("any", "value")["context_data"] == value
    prediction = memory_store.save_prediction("net", value, 1)
    assert memory_store.update_prediction_outcome(prediction, value)
    assert memory_store.update_prediction_outcome(prediction, value)
    row = memory_store.get_model_predictions("net", limit=1)[0]
    assert (row["prediction_data"], row["outcome"]) == (value, value)


@given(st.datetimes(timezones=st.none() | st.timezones()), st.datetimes(timezones=st.none() | st.timezones()))
def test_times_sort_as_text(one, other):
    try:
        texts = utc_text(one), utc_text(other)
    except StoreError:  # beyond the calendar once in UTC
        return
    moments = [datetime.fromisoformat(text) for text in texts]
    assert (texts[0] < texts[1]) == (moments[0] < moments[1])
    assert {len(text) for text in texts} == {32}


def test_json_that_is_refused():
    loop = []
    loop.append(loop)
    deep = value = []
    for _ in range(150):
        value.append([])
        value = value[0]
    cases = [
        ({"a": {"b": object()}}, r"config\.a\.b is a object"),
        ({"a": [0, {"when": datetime(2026, 1, 1)}]}, r"config\.a\.1\.when is a datetime"),
        ({"a": b"bytes"}, r"config\.a is a bytes"),
        ({"a": float("nan")}, r"config\.a is nan"),
        ({None: 1}, "config has the key None"),
        (loop, "holds itself"),
        (deep, "nested past 100 levels"),
        (10**5000, "too long to print"),
    ]
    for value, message in cases:
        with pytest.raises(StoreError, match=message):
            to_json("config", value)


def test_refused_json_leaves_nothing_behind(memory_store):
    with pytest.raises(StoreError, match=r"config\.seeds is a set"):
        memory_store.create_training_session("job", "net", {"seeds": {1, 2}})
    assert memory_store.get_training_session("job") is None
    assert memory_store.create_training_session("job", "net", {"seeds": [1, 2]}) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", True, None, 10**400, [1]])
def test_numbers_that_are_refused(memory_store, value):
    memory_store.create_training_session("job", "net", {})
    with pytest.raises(StoreError, match="loss is .*; give a finite number"):
        memory_store.add_training_log("job", 0, value)
    with pytest.raises(StoreError, match="metric_value is"):
        memory_store.store_performance_metric("net", "loss", value)
    assert memory_store.get_training_logs("job") == memory_store.get_performance_metrics() == []


def test_other_refusals(memory_store):
    store = memory_store
    store.create_training_session("job", "net", {})
    cases = [
        (lambda: store.update_training_session("job", progress=50.5), "progress is 50.5; give an integer 0..100"),
        (lambda: store.update_training_session("job", progress=-1), "progress is -1"),
        (lambda: store.update_training_session("job", status="COMPLETED"), "use one of queued, started, running"),
        (lambda: store.create_training_session("", "net", {}), "job_id is ''"),
        (lambda: store.create_training_session(7, "net", {}), "job_id is 7"),
        (lambda: store.add_training_log("job", -1, 1.0), "epoch is -1; give an integer 0.."),
        (lambda: store.add_training_log("job", 2**70, 1.0), "epoch is"),
        (lambda: store.add_training_log("other", 1, 1.0), "no training session has job_id 'other'"),
        (lambda: store.save_model_metadata("net\0", "f", "a"), "name is 'net"),
        (lambda: store.save_model_metadata("\ud800", "f", "a"), "name is"),
        (lambda: store.save_prediction("net", {}, 1.01), "confidence is 1.01; give a finite number 0..1"),
        (lambda: store.save_prediction("net", {}, None), "confidence is None"),
        (lambda: store.save_prediction("net", {}, 0.5, "2026-02-30"), "draw_date is '2026-02-30'"),
        (lambda: store.update_prediction_outcome("1", {}), "prediction_id is '1'; give an integer"),
        (lambda: store.update_prediction_outcome(2**80, {}), "prediction_id is"),
        (lambda: store.store_context("a", "b", 1, expires_at="soon"), "'soon' is no time"),
        (lambda: store.store_context("a", "b", 1, expires_at=date(2026, 1, 1)), "is no time"),
        (lambda: store.store_knowledge_fragment("net", "pattern", "x", 2), "relevance_score is 2"),
        (lambda: store.get_knowledge_fragments(min_relevance=-1), "min_relevance is -1"),
        (lambda: store.get_recent_events(hours=-1), "hours is -1; give a finite number 0..876000"),
        (lambda: store.get_recent_events(hours=1e300), "hours is 1e"),
        (lambda: store.get_performance_metrics(hours=float("nan")), "hours is nan"),
        (lambda: store.get_model_predictions("net", limit=0), "limit is 0; give an integer 1.."),
        (lambda: store.get_enhanced_journal_entries(limit="all"), "limit is 'all'"),
        (lambda: store.get_training_session("\ud800"), "surrogates not allowed"),
        (lambda: store.get_training_session(object()), "type 'object'"),
        (lambda: store.compact_memory(archive_days=-1), "archive_days is -1"),
        (lambda: store.compact_memory(relevance_threshold=2), "relevance_threshold is 2"),
    ]
    for call, message in cases:
        with pytest.raises(StoreError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_text_stays_text(memory_store):
    memory_store.save_model_metadata("Robert'); DROP TABLE models;--", "ünï/代.bin", "net", metadata={"é": "\0"})
    row = memory_store.list_models()[0]
    assert (row["name"], row["file_path"], row["metadata"]) == ("Robert'); DROP TABLE models;--", "ünï/代.bin", {"é": "\0"})


# Sessions, predictions, context


@pytest.mark.parametrize("status", ENDED)
def test_an_ended_session_keeps_its_first_end(memory_store, status):
    memory_store.create_training_session("job", "net", {})
    assert memory_store.get_training_session("job")["end_time"] is None
    memory_store.update_training_session("job", status, 80)
    row = memory_store.get_training_session("job")
    assert (row["status"], row["progress"]) == (status, 80)
    assert row["start_time"] <= row["end_time"] == row["updated_at"]
    memory_store.update_training_session("job", "failed", error_message="odd \0 \ud800 text")
    again = memory_store.get_training_session("job")
    assert again["end_time"] == row["end_time"] and again["error_message"] == "odd  \\ud800 text"
    memory_store.update_training_session("job", "running")
    assert memory_store.get_training_session("job")["end_time"] is None


def test_a_touch_moves_only_updated_at(memory_store):
    memory_store.create_training_session("job", "net", {})
    before = memory_store.get_training_session("job")
    assert memory_store.update_training_session("job") is True
    after = memory_store.get_training_session("job")
    assert after.pop("updated_at") > before.pop("updated_at")
    assert after == before
    assert memory_store.update_training_session("nobody") is False


def test_models_newest_first(memory_store):
    for name in ("a", "b", "c"):
        memory_store.save_model_metadata(name, f"{name}.bin", "net")
    memory_store.save_model_metadata("a", "again.bin", "net")
    assert [row["name"] for row in memory_store.list_models()] == ["c", "b", "a"]
    row = memory_store.get_model_metadata("a")
    assert row["created_at"] < row["updated_at"] and row["file_path"] == "again.bin"


def test_predictions_newest_first_and_by_model(memory_store):
    ids = [memory_store.save_prediction(f"net-{i % 2}", [i], 0.5, datetime(2026, 1, 31, 23)) for i in range(6)]
    assert [row["id"] for row in memory_store.get_model_predictions("net-1")] == ids[:0:-2]
    assert [row["id"] for row in memory_store.get_model_predictions("net-0", limit=1)] == ids[4:5]
    row = memory_store.get_model_predictions("net-0")[0]
    assert (row["draw_date"], row["outcome"], row["outcome_at"]) == ("2026-01-31", None, None)


def test_a_refused_outcome_changes_nothing(memory_store):
    prediction = memory_store.save_prediction("net", [], 0.5)
    memory_store.update_prediction_outcome(prediction, None)
    with pytest.raises(StoreError, match="has the outcome None, not 1"):
        memory_store.update_prediction_outcome(prediction, 1)
    assert memory_store.get_model_predictions("net")[0]["outcome"] is None


def test_context_expiry(memory_store):
    east = timezone(timedelta(hours=5))
    now = datetime.now(UTC)
    for key, hours, zone in (("past", -1, east), ("future", 1, east), ("utc", 1, UTC)):
        memory_store.store_context("c", key, key, (now + timedelta(hours=hours)).astimezone(zone))
    naive = (now + timedelta(hours=1)).replace(tzinfo=None)
    memory_store.store_context("c", "naive", 1, naive)
    memory_store.store_context("c", "text", 1, "2020-01-01T00:00:00+01:00")
    alive = [key for key in ("past", "future", "utc", "naive", "text") if memory_store.get_context("c", key)]
    assert alive == ["future", "utc", "naive"]
    memory_store.store_context("c", "past", "revived")
    assert memory_store.get_context("c", "past")["expires_at"] is None
    assert [memory_store.cleanup_expired_context(), memory_store.cleanup_expired_context()] == [1, 0]
    assert memory_store.get_memory_statistics()["context_storage_count"] == 4


# Compaction


def test_compaction_takes_the_old_and_leaves_the_rest(memory_store):
    store = memory_store
    fill(store)
    for job, status in (("old", "completed"), ("running", "running"), ("recent", "failed")):
        store.create_training_session(job, "net", {})
        for epoch in range(101):
            store.add_training_log(job, epoch, 100.0 - epoch, {"accuracy": epoch, "note": "text", "flag": True})
        store.update_training_session(job, status)
    run(store, "UPDATE training_sessions SET start_time = :t, created_at = :t", t=LONG_AGO)
    run(store, "UPDATE training_sessions SET end_time = :t WHERE job_id = 'old'", t=LONG_AGO)
    set_column(store, "enhanced_journal", "timestamp", LONG_AGO)
    store.store_enhanced_journal_entry("net", "s", "fresh", {})
    kept = [store.store_knowledge_fragment("net", "kind", "x", score) for score in (0.1, 0.5)]
    used = store.store_knowledge_fragment("net", "kind", "used", 0.05)
    store.update_knowledge_fragment_usage(used)
    store.store_knowledge_fragment("net", "kind", "useless", 0.05)
    set_column(store, "knowledge_fragments", "created_at", LONG_AGO)
    young = store.store_knowledge_fragment("net", "kind", "young", 0.05)

    counts = store.compact_memory()
    assert counts == {
        "archived_journal_entries": 1,
        "deleted_knowledge_fragments": 1,
        "deleted_job_events": 0,
        "folded_sessions": 1,
        "folded_training_logs": 101,
    }
    assert [row["event_type"] for row in store.get_enhanced_journal_entries()] == ["fresh"]
    assert len(store.get_enhanced_journal_entries(include_archived=True)) == 2
    assert {row["id"] for row in store.get_knowledge_fragments()} >= {*kept, used, young}
    assert [len(store.get_training_logs(job)) for job in ("old", "running", "recent")] == [0, 101, 101]

    summary = store.get_training_session("old")["log_summary"]
    assert set(summary) == {"loss", "accuracy"}
    assert summary["loss"] == {
        "n": 101, "first": 100.0, "last": 0.0, "min": 0.0, "max": 100.0,
        "quantiles": {"0.05": 5.0, "0.25": 25.0, "0.5": 50.0, "0.75": 75.0, "0.95": 95.0},
    }  # fmt: skip
    assert summary["accuracy"]["last"] == 100
    rows = run(store, "SELECT operation, items_affected, details FROM memory_operations")
    (name, items, details) = rows[0]
    assert (len(rows), name, items) == (1, "compaction", 104)
    assert json.loads(details).items() >= counts.items()
    assert set(store.compact_memory().values()) == {0}
    assert len(store.get_model_predictions("net")) == len(store.get_performance_metrics()) == 1


@pytest.mark.parametrize(("age_days", "archive_days", "stays"), [(29, 30, True), (31, 30, False), (1, 0.5, False)])
def test_only_old_fragments_are_dropped(memory_store, age_days, archive_days, stays):
    fragment = memory_store.store_knowledge_fragment("net", "hunch", "x", 0.0)
    born = utc_text(datetime.now(UTC) - timedelta(days=age_days))
    set_column(memory_store, "knowledge_fragments", "created_at", born)
    counts = memory_store.compact_memory(archive_days, relevance_threshold=1)
    assert counts["deleted_knowledge_fragments"] == (not stays)
    assert [row["id"] for row in memory_store.get_knowledge_fragments()] == [fragment] * stays


def test_a_session_is_folded_once(memory_store):
    memory_store.create_training_session("job", "net", {})
    for loss in (3.0, 2.0):
        memory_store.add_training_log("job", 1, loss)
        memory_store.update_training_session("job", "interrupted")
        memory_store.compact_memory(archive_days=0)
    assert memory_store.get_training_session("job")["log_summary"]["loss"]["n"] == 1
    assert [log["loss"] for log in memory_store.get_training_logs("job")] == [2.0]


def test_vacuum_gives_room_back(path):
    with MemoryStore(path) as store:
        store.store_context("big", "value", "x" * 1_000_000, expires_at=LONG_AGO)
        full = store.get_memory_statistics()
        assert store.cleanup_expired_context() == 1
        given_back = store.vacuum_database()
        assert given_back > 900_000
        lean = store.get_memory_statistics()
        with store._get_connection() as conn:
            noted = conn.execute("SELECT operation, items_affected, details FROM memory_operations").fetchall()
    assert full["database_size_bytes"] - lean["database_size_bytes"] > 900_000
    assert full["context_storage_count"] - lean["context_storage_count"] == 1
    assert [(name, items, json.loads(details)) for name, items, details in noted] == [
        ("vacuum", 0, {"bytes_given_back": given_back})
    ]
    assert {f"{table}_count" for table in schema.tables} < set(lean)
    assert path.stat().st_size == lean["database_size_bytes"]


def test_a_vacuum_that_failed_is_not_noted(path):
    with MemoryStore(path, wait_s=0.1) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; another program holds it"):
            store.vacuum_database()
        other.execute("ROLLBACK")
        other.close()
        assert store.get_memory_statistics()["memory_operations_count"] == 0
