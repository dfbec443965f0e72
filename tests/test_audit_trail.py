"""The audit log: only ever added to, by many at once, and every change to it is found."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from helios.audit_trail import AUDITED, KEPT, AuditError, AuditTrail, chosen, kept, plain
from helios.chain import GENESIS, Chain
from helios.memory_store import MemoryStore
from helios.tables import audit_log


@pytest.fixture
def store(address):
    with MemoryStore(address) as store:
        yield store


@pytest.fixture
def trail(store):
    return AuditTrail(store)


def write(trail, n=5):
    return [trail.add(f"key{i % 2}", "alias.set" if i % 3 else "model.delete", f"model-{i}", {"was": i}, {"is": i + 1}, role="admin", request_id=f"r{i}") for i in range(n)]


def change(store, statement):
    with store._transaction("write") as conn:
        conn.execute(sa.text(statement))


def test_entries_as_they_were_written(store, trail):
    rows = write(trail)
    assert [*trail.entries()] == rows and trail.verify().ok and trail.head() == {"n": 5, "hash": rows[-1]["hash"]}
    assert rows[0]["content"] == {"n": 1, "before": {"was": 0}, "after": {"is": 1}, "role": "admin", "request_id": "r0"}


ALTERED = {"actor": "'nobody'", "action": "'x'", "target": "'y'", "made_at": "'2020-01-01'", "content": "replace(content, '\"was\": 2', '\"was\": 3')",
           "previous": f"'{'b' * 64}'", "hash": f"'{'a' * 64}'"}


@pytest.mark.parametrize("column", ALTERED)
def test_each_altered_column_is_named(store, trail, column):
    ids = [row["id"] for row in write(trail)]
    change(store, f"UPDATE audit_log SET {column} = {ALTERED[column]} WHERE id = {ids[2]}")
    found = trail.verify()
    assert found.first_bad == ids[2] and f"row {ids[2]} was altered" in found.why


def test_removed_and_cut_entries_are_named_and_nothing_is_written_over_them(store, trail):
    ids = [row["id"] for row in write(trail)]
    head = trail.head()["hash"]
    change(store, f"DELETE FROM audit_log WHERE id = {ids[1]}")
    assert "number 2 was removed" in trail.verify().why
    change(store, f"DELETE FROM audit_log WHERE id = {ids[4]}")
    with pytest.raises(AuditError, match="the audit log takes no entries.*GET /api/audit-log/verify says more"):
        trail.add("me", "x", "y")
    change(store, "DELETE FROM audit_log")
    change(store, "DELETE FROM context_storage")
    assert trail.verify().ok and not trail.verify(head).ok  # only a head that stands elsewhere shows that


def test_the_ledger_and_the_log_are_two_chains(store, trail):
    write(trail)
    entry = {"kind": "note", "draw_date": "2026-08-05", "forecaster": "me", "version": "1", "content": {}}
    row, _ = Chain(store).append(lambda conn, made_at: entry)
    assert (row["previous"], row["content"]["n"]) == (GENESIS, 1)
    assert Chain(store).verify().ok and trail.verify().ok and trail.head()["n"] == 5


def test_many_threads_write_one_log(store, trail):
    start = threading.Barrier(6)

    def add(i):
        start.wait()
        for k in range(10):
            AuditTrail(store).add(f"t{i}", "x", str(k))

    with ThreadPoolExecutor(6) as pool:
        [*pool.map(add, range(6))]
    rows = [*trail.entries()]
    assert trail.verify().ok and [row["content"]["n"] for row in rows] == [*range(1, 61)]
    assert all([row["target"] for row in rows if row["actor"] == f"t{i}"] == [str(k) for k in range(10)] for i in range(6))


_WRITER = """
import sys
from helios.audit_trail import AuditTrail
from helios.memory_store import MemoryStore
with MemoryStore(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for k in range(15): AuditTrail(store).add(sys.argv[2], "x", str(k))
"""


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_two_processes_write_one_log(kind, request, path):
    address = request.getfixturevalue("postgres_url") if kind == "postgresql" else str(path)
    MemoryStore(address).close()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, address, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for who in "ab"]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    with MemoryStore(address) as store:
        assert AuditTrail(store).verify().n == AuditTrail(store).head()["n"] == 30 and AuditTrail(store).verify().ok


# What is kept


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20)


@given(JSON)
def test_whatever_is_kept_is_bounded_and_json(value):
    assert len(json.dumps(kept(value), allow_nan=False)) <= KEPT + 100


@given(st.text(), st.text(), st.text(), JSON, JSON)
def test_whatever_a_route_notes_can_be_written(actor, action, target, before, after):
    with MemoryStore(":memory:") as store:
        AuditTrail(store).add(actor, action, target, before, after, path=target)
        assert AuditTrail(store).verify().ok


def test_text_that_postgresql_would_refuse(trail):
    row = trail.add("a\0b", "line\nbreak", "\ud800", {"nul": "\0", "half": "\ud800", "deep": None}, object())
    assert (row["actor"], row["action"], row["target"]) == ("a?b", "line?break", "?")
    assert trail.verify().ok and trail.verify().n == 1


@pytest.mark.parametrize("name", ["token", "secret", "webhook_secret", "password", "api_key", "apiKey", "Authorization", "credentials"])
def test_secrets_are_not_kept(trail, name):
    row = trail.add("me", "x", "y", None, {"deep": [{name: "s3cret"}], "name": "kept"})
    assert "s3cret" not in json.dumps(row) and row["content"]["after"]["name"] == "kept"


def test_what_is_too_long_is_kept_by_its_hash(trail):
    text = "x" * 100_000
    after = trail.add("me", "x", "y", None, text)["content"]["after"]
    assert after["sha256"] == hashlib.sha256(json.dumps(text).encode()).hexdigest() and len(after["shortened"]) < KEPT
    assert len(plain("y" * 1000)) == 200


# Reading


def test_filters(trail):
    write(trail, 7)
    def found(**by):
        return [row["target"] for row in trail.entries(*chosen(**by), page=2)]

    assert found(actor="key1") == ["model-1", "model-3", "model-5"]
    assert found(action="model.delete") == ["model-0", "model-3", "model-6"]
    assert found(actor="key0", action="model.delete") == ["model-0", "model-6"]
    assert found(target="model-4") == ["model-4"] and found(target="' OR 1=1 --") == []
    middle = [*trail.entries()][3]["made_at"][:-6] + "Z"
    assert found(since=middle) == ["model-3", "model-4", "model-5", "model-6"] and found(until=middle) == ["model-0", "model-1", "model-2"]
    assert found(since="2999-01-01") == [] and len(found(since="2020-01-01", until="2999-01-01T00:00")) == 7


@pytest.mark.parametrize("moment", ["yesterday", "2026-8-5", "2026-08-05 03:00", "2026-08-05T03:00+02:00", "2026-08-05'--", "2026-08-05\n"])
def test_what_is_no_moment_is_refused(moment):
    with pytest.raises(AuditError, match="2026-08-05T03:00Z"):
        chosen(since=moment)


def test_reading_ends_at_the_newest_of_its_beginning(trail):
    write(trail)
    seen = []
    for row in trail.entries(page=2):
        seen.append(row["target"])
        trail.add("me", "x", "later")
    assert seen == [f"model-{i}" for i in range(5)]


# Exports


def test_json_lines_can_be_checked_without_helios(trail):
    write(trail)
    trail.add("ünal", "é", "☂", {"x": "☂"})
    previous = "0" * 64
    for row in map(json.loads, "".join(trail.export("jsonl")).splitlines()):
        said = json.dumps({name: row[name] for name in AUDITED}, sort_keys=True, separators=(",", ":"))
        assert row["previous"] == previous and hashlib.sha256(said.encode()).hexdigest() == row["hash"]
        previous = row["hash"]
    assert previous == trail.head()["hash"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://evil.example","x")', 'a,"b"', "plain"])
def test_a_csv_holds_no_formula(trail, text):
    trail.add("me", text, text)
    row = next(csv.DictReader(io.StringIO("".join(trail.export("csv")))))
    assert row["target"] == (text if text[0] not in "=+-@" else f"'{text}")
    assert json.loads(row["content"])["n"] == 1


def test_exports_of_nothing_and_of_another_form(trail):
    assert "".join(trail.export("jsonl")) == "" and "".join(trail.export("csv")).count("\n") == 1
    with pytest.raises(AuditError, match="jsonl or csv"):
        trail.export("xml")


def test_there_is_no_way_to_take_an_entry_away():
    names = {name for name in dir(AuditTrail) if not name.startswith("_")}
    assert names == {"add", "append", "entries", "export", "head", "verify", "table", "hashed", "words", "error"}
    assert audit_log.c.previous.unique and audit_log.c.hash.unique
