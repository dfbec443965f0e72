"""Migrations: every row of an old database arrives, whoever is killed or comes at the same time; made and migrated tables are equal."""

import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import helios
from helios import migrations
from helios.backups import damage, list_backups, revision_in
from helios.migrations import (
    FIRST,
    HEAD,
    REVISIONS,
    VERSIONS,
    back_up_server,
    migrate,
    own_engine,
    prepare,
    restore_server,
    revision_of,
    server_name,
)
from helios.tables import schema
from helios.values import StoreError

ROWS, FEW = 3000, 100  # of each table
TEXTS = ("plain", "réseau 代 \U0001f3b1", 'quotes \' " ` \\ %s :x ?', "line\nbreak\ttab", "[1, 2]", "x" * 3000)
JSONS = ("{}", "null", '{"a": [1, 2.5, null, true], "lone": "\\ud800"}', '"text"', "[" * 50 + "]" * 50)


# Databases of the first revision, full of rows


def value_for(table: str, column: dict, n: int, chance: random.Random):
    name, kind = column["name"], column["type"]
    if isinstance(kind, sa.Boolean):
        return chance.random() < 0.5
    if name == "id":
        return 1 + 2 * n  # with gaps
    if name == "job_id":
        return f"job {n}"
    if (table, name) in {("models", "name"), ("context_storage", "context_key")}:
        return f"{chance.choice(TEXTS)} {n}"
    if column["nullable"] and chance.random() < 0.3:
        return None
    if isinstance(kind, sa.Integer):
        return chance.choice((0, 1, 2**31 - 1, n))
    if isinstance(kind, sa.Float):
        return chance.choice((0.0, -0.0, 1 / 3, 5e-324, -1.7e308, float(n)))
    return chance.choice(JSONS if name in ("metadata", "config", "metrics", "event_data", "content", "context_data") else TEXTS)


def fill(conn: sa.Connection, n_rows: int = ROWS) -> None:
    """Rows in every table there is, children after parents, and identifiers given out past the last row."""
    chance, there = random.Random(4), sa.inspect(conn)
    for name in FIRST:
        columns = there.get_columns(name)
        table = sa.table(name, *(sa.column(column["name"]) for column in columns))
        rows = [{c["name"]: value_for(name, c, n, chance) for c in columns} for n in range(n_rows)]
        conn.execute(table.insert(), rows)
        if conn.dialect.name == "postgresql" and "id" in rows[0]:
            conn.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {2 * n_rows + 100})")
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql(f"UPDATE sqlite_sequence SET seq = {2 * n_rows + 100}")


def contents(conn: sa.Connection) -> dict:
    """All rows of the first tables, in the columns of the first revision."""
    columns = {name: [c.name for c in schema.tables[name].columns if c.name not in ("entry", "content_hash")] for name in FIRST}
    tables = {name: sa.table(name, *map(sa.column, columns[name])) for name in FIRST}
    return {name: [tuple(row) for row in conn.execute(tables[name].select().order_by(sa.column(columns[name][0])))] for name in FIRST}


def file_contents(path) -> dict:
    with own_engine(path) as engine, engine.connect() as conn:
        found = contents(conn)
    return {name: [tuple(map(plain, row)) for row in rows] for name, rows in found.items()}


def plain(value):
    return int(value) if isinstance(value, bool) else value


def make_first(path: Path, n_rows: int = ROWS) -> Path:
    """A file as the first Helios left it: ten tables, no number, no auto_vacuum."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode=WAL")
    with own_engine(path) as engine, engine.begin() as conn:
        migrate(conn, "0001")
        conn.exec_driver_sql(f"DROP TABLE {VERSIONS}")
        fill(conn, n_rows)
    return path


@pytest.fixture(scope="session")
def first_file(tmp_path_factory):
    return make_first(tmp_path_factory.mktemp("first") / "first.db", FEW)


@pytest.fixture
def old(first_file, tmp_path):
    return Path(shutil.copy(first_file, tmp_path / "memory.db"))


@pytest.fixture
def full(tmp_path):
    return make_first(tmp_path / "memory.db", ROWS)


@pytest.fixture
def server(postgres_url, home):
    engine = sa.create_engine(postgres_url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def make_first_server(server, n_rows: int):
    with server.begin() as conn:
        migrate(conn, "0001")
        conn.exec_driver_sql(f"DROP TABLE {VERSIONS}")
        fill(conn, n_rows)
    return server


@pytest.fixture
def old_server(server):
    return make_first_server(server, FEW)


def prepare_file(path: Path):
    with own_engine(path) as engine:
        return prepare(engine, str(path))


# Made and migrated are the same


def normal(sql: str) -> str:
    return re.sub(r"\s+", " ", sql.replace('"', "")).replace("( ", "(").replace(" )", ")").replace(" ,", ",")


def sqlite_shape(conn) -> dict:
    return {name: normal(sql) for name, sql in conn.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")}


def postgres_shape(conn) -> list:
    here = "table_schema = current_schema()"
    return [
        conn.exec_driver_sql(sql).all()
        for sql in (
            "SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default "
            f"FROM information_schema.columns WHERE {here} ORDER BY 1, 2",
            "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1, 2",
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = current_schema()::regnamespace ORDER BY 1, 2",
        )
    ]


def differences(conn) -> list:
    context = MigrationContext.configure(conn, opts={"version_table": VERSIONS, "compare_type": True, "compare_server_default": True})
    return compare_metadata(context, schema)


def test_a_file_migrated_from_nothing_equals_one_that_was_made(tmp_path):
    assert prepare_file(tmp_path / "made.db") is None
    with own_engine(tmp_path / "migrated.db") as engine, engine.begin() as conn:
        migrate(conn)
        assert differences(conn) == []
        migrated = sqlite_shape(conn)
    with own_engine(tmp_path / "made.db") as engine, engine.connect() as conn:
        assert differences(conn) == []
        assert migrated == sqlite_shape(conn)
        assert conn.exec_driver_sql(f"SELECT version_num FROM {VERSIONS}").all() == [(HEAD,)]


def test_a_server_migrated_from_nothing_equals_one_that_was_made(server):
    assert prepare(server, "server") is None
    with server.begin() as conn:
        assert differences(conn) == []
        made = postgres_shape(conn)
        migrate(conn, "base", back=True)
        assert [name for name in sa.inspect(conn).get_table_names()] == [VERSIONS]
        migrate(conn)
        assert differences(conn) == []
        assert postgres_shape(conn) == made


def test_the_check_sees_a_difference(tmp_path):
    with own_engine(tmp_path / "a.db") as engine, engine.begin() as conn:
        migrate(conn)
        conn.exec_driver_sql("DROP INDEX idx_jobs_status")
        conn.exec_driver_sql("ALTER TABLE jobs ADD COLUMN more TEXT")
        assert len(differences(conn)) == 2


def test_each_step_can_be_taken_back(old):
    before = file_contents(old)
    with own_engine(old) as engine, engine.begin() as conn:
        migrations._stamp(conn, "0001")
        shape = sqlite_shape(conn)
        migrate(conn)
        migrate(conn, "0001", back=True)
        assert sqlite_shape(conn) == shape
    assert file_contents(old) == before


def test_the_list_of_revisions_is_that_of_the_files():
    config = Config()
    config.set_main_option("script_location", str(Path(helios.__file__).parent / "revisions"))
    found = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in reversed(list(found.walk_revisions()))) == REVISIONS
    assert found.get_heads() == [HEAD]


def test_the_files_of_the_revisions_travel_with_the_package():
    from setuptools import find_packages

    assert {"helios.revisions", "helios.revisions.versions"} <= set(find_packages(str(Path(helios.__file__).parents[1])))


# A database of the first revision, full of rows


def test_a_full_file_is_migrated_with_every_row(full):
    before = file_contents(full)
    assert all(len(rows) == ROWS for rows in before.values())
    assert prepare_file(full) is None
    assert file_contents(full) == before
    assert damage(full, full=True) is None
    assert revision_in(full) == HEAD
    with closing(sqlite3.connect(full)) as conn:
        assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        conn.execute("INSERT INTO system_events (event_type, level, timestamp) VALUES ('new', 'INFO', '2026')")
        assert conn.execute("SELECT max(id) FROM system_events").fetchone() == (2 * ROWS + 101,)
    (backup,) = list_backups(full.parent / "backups", full.name)
    assert (backup["revision"], backup["automatic"]) == ("0001", True)
    assert file_contents(backup["file"]) == before
    assert prepare_file(full) is None
    assert len(list_backups(full.parent / "backups")) == 1


def test_a_session_left_open_by_an_earlier_version_is_closed(old):
    """It has no job, so nothing would ever find it dead."""
    with closing(sqlite3.connect(old)) as conn, conn:
        conn.execute("UPDATE training_sessions SET status = 'running', end_time = NULL, error_message = NULL, updated_at = '2020' WHERE id = 1")
        conn.execute("UPDATE training_sessions SET status = 'completed', end_time = '2021' WHERE id = 3")
    assert prepare_file(old) is None
    with closing(sqlite3.connect(old)) as conn:
        (open_, done) = conn.execute("SELECT status, end_time, error_message FROM training_sessions WHERE id IN (1, 3) ORDER BY id")
    assert open_[:2] == ("interrupted", "2020") and "revision 0002" in open_[2] and done[:2] == ("completed", "2021")


def test_a_full_server_is_migrated_with_every_row(server, home):
    old_server = make_first_server(server, ROWS)
    with old_server.connect() as conn:
        before = contents(conn)
    assert all(len(rows) == ROWS for rows in before.values())
    assert prepare(old_server, "server") is None
    with old_server.begin() as conn:
        assert contents(conn) == before
        assert differences(conn) == []
        assert revision_of(conn, "server") == HEAD
        new = "INSERT INTO system_events (event_type, level, timestamp) VALUES ('new', 'INFO', '2026') RETURNING id"
        assert conn.exec_driver_sql(new).scalar_one() == 2 * ROWS + 101
    (backup,) = list_backups(home / "backups", server_name(old_server.url))
    assert (backup["revision"], backup["automatic"]) == ("0001", True)
    assert file_contents(backup["file"]) == {name: [tuple(map(plain, row)) for row in rows] for name, rows in before.items()}
    assert damage(Path(backup["file"]), full=True) is None


def test_the_tables_of_others_stay(old):
    with closing(sqlite3.connect(old)) as conn, conn:
        conn.execute("CREATE TABLE alembic_version (version_num TEXT)")  # Optuna's
        conn.execute("INSERT INTO alembic_version VALUES ('v3.2.0.a')")
    assert prepare_file(old) is None
    with closing(sqlite3.connect(old)) as conn:
        assert conn.execute("SELECT * FROM alembic_version").fetchall() == [("v3.2.0.a",)]


# Killed, failing, two at once


KILLED_AT = """
import os, signal, sys
import sqlalchemy as sa
from helios.migrations import own_engine, prepare
at, place = int(sys.argv[1]), sys.argv[2]
seen = []
@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def count(conn, cursor, statement, parameters, context, many):
    if "sqlite" in str(conn.engine.url) and "://" in place: return       # the backup
    seen.append(statement)
    if sum(s.lstrip().startswith(("CREATE", "ALTER", "DELETE FROM helios", "UPDATE helios")) for s in seen) == at > 0: os.kill(os.getpid(), signal.SIGKILL)
if "://" in place: prepare(sa.create_engine(place), "server")
else:
    with own_engine(place) as engine: prepare(engine, place)
print("done", sum(s.lstrip().startswith(("CREATE", "ALTER")) for s in seen))
"""


@pytest.mark.parametrize("at", [1, 2, 4, 7, 11, 12])
def test_a_file_whose_migration_was_killed_is_as_it_was(old, at):
    before = file_contents(old)
    child = subprocess.run([sys.executable, "-c", KILLED_AT, str(at), str(old)], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stdout + child.stderr
    assert damage(old, full=True) is None
    assert revision_in(old) == "0001"
    assert prepare_file(old) is None
    assert file_contents(old) == before
    assert revision_in(old) == HEAD


@pytest.mark.slow
def test_a_file_killed_at_random_moments(old, tmp_path):
    """Also while the backup is taken and the file rewritten."""
    before, chance = file_contents(old), random.Random(1)
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", KILLED_AT, "0", str(old)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            child.wait(0.4 + 0.6 * chance.random())
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()
        assert damage(old, full=True) is None
        assert file_contents(old) == before
        assert all(damage(Path(backup["file"])) is None for backup in list_backups(old.parent / "backups"))
    assert prepare_file(old) is None
    assert file_contents(old) == before


@pytest.mark.parametrize("at", [1, 6, 11])
def test_a_server_whose_migration_was_killed_is_as_it_was(old_server, at):
    with old_server.connect() as conn:
        before = contents(conn)
    place = old_server.url.render_as_string(hide_password=False)
    child = subprocess.run([sys.executable, "-c", KILLED_AT, str(at), place], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stdout + child.stderr
    assert prepare(old_server, "server") is None
    with old_server.connect() as conn:
        assert contents(conn) == before
        assert differences(conn) == []


def at_once(n: int, place: str) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", KILLED_AT, "0", place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(n)
    ]
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * n, told


def test_processes_that_open_at_once_migrate_a_file_once(old):
    before = file_contents(old)
    at_once(4, str(old))
    assert file_contents(old) == before
    assert len(list_backups(old.parent / "backups")) == 1
    assert damage(old, full=True) is None


def test_processes_that_open_at_once_migrate_a_server_once(old_server, home):
    with old_server.connect() as conn:
        before = contents(conn)
    at_once(3, old_server.url.render_as_string(hide_password=False))
    with old_server.connect() as conn:
        assert contents(conn) == before
        assert differences(conn) == []
    assert len(list_backups(home / "backups")) == 1


def test_processes_that_open_at_once_make_a_database_once(tmp_path, server):
    at_once(4, str(tmp_path / "new.db"))
    at_once(3, server.url.render_as_string(hide_password=False))
    assert revision_in(tmp_path / "new.db") == HEAD
    assert not (tmp_path / "backups").exists()


@pytest.fixture
def failing(monkeypatch):
    def fail(conn, *args, real=migrations.migrate):
        if args:
            return real(conn, *args)
        real(conn)
        conn.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    monkeypatch.setattr(migrations, "migrate", fail)


def test_a_file_whose_migration_failed_is_as_it_was(old, failing):
    before = file_contents(old)
    with pytest.raises(StoreError, match=r"migrating revision 0001 to 0004 failed \(no such table: nowhere\); it is as it was, a backup is .*: mend"):
        prepare_file(old)
    assert file_contents(old) == before
    assert revision_in(old) == "0001"


def test_a_server_whose_migration_failed_is_as_it_was(old_server, failing, home):
    with old_server.connect() as conn:
        before = contents(conn)
    with pytest.raises(StoreError, match="migrating revision 0001 to 0004 failed .* it is as it was") as caught:
        prepare(old_server, "server")
    assert "\n" not in str(caught.value)
    with old_server.connect() as conn:
        assert contents(conn) == before
        assert revision_of(conn, "server") == "0001"


def test_without_a_backup_nothing_is_migrated(old):
    (old.parent / "backups").write_text("in the way")
    before = file_contents(old)
    with pytest.raises(StoreError, match="backups.*cannot be written"):
        prepare_file(old)
    assert file_contents(old) == before
    assert revision_in(old) == "0001"


def test_only_the_newest_automatic_backups_stay(old, failing):
    for _ in range(7):
        with pytest.raises(StoreError):
            prepare_file(old)
    assert len(list_backups(old.parent / "backups")) == 5


# What cannot be migrated


def test_a_newer_database_is_only_read(old, server):
    assert prepare_file(old) is None
    with closing(sqlite3.connect(old)) as conn, conn:
        conn.execute(f"UPDATE {VERSIONS} SET version_num = '0099'")
        conn.execute("DROP TABLE job_events")
    before = old.read_bytes()
    assert re.search("is of revision 0099, made by a newer Helios; .* only reads it", prepare_file(old))
    assert old.read_bytes() == before
    prepare(server, "server")
    with server.begin() as conn:
        conn.exec_driver_sql(f"UPDATE {VERSIONS} SET version_num = '0099'")
    assert "newer Helios" in prepare(server, "server")


def test_tables_of_another_program_are_not_touched(tmp_path, server):
    path = tmp_path / "zoo.db"
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("CREATE TABLE predictions (animal TEXT)")
    with pytest.raises(StoreError, match="has a table predictions but none called models; another program or version made its tables"):
        prepare_file(path)
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    with server.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE predictions (animal TEXT)")
    with pytest.raises(StoreError, match="another program or version made its tables"):
        prepare(server, "server")


def test_what_cannot_be_written_says_so(old, tmp_path):
    with own_engine(old) as engine, pytest.raises(StoreError, match="cannot be written; make it writable once"):
        prepare(engine, str(old), read_only=True)
    assert revision_in(old) == "0001"


def test_a_sound_database_is_opened_without_alembic(tmp_path):
    prepare_file(tmp_path / "a.db")
    code = (
        "import sys; from pathlib import Path; from helios.migrations import own_engine, prepare\n"
        "for name in sys.argv[1:]:\n"
        "    with own_engine(Path(name)) as engine: prepare(engine, name)\n"
        "print([m for m in sys.modules if m.startswith(('alembic', 'psutil', 'torch', 'pandas'))])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.db", tmp_path / "new.db"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Between files and servers


def rows_of(conn) -> dict:
    """All rows of all tables, JSON as text."""
    found = {}
    for table in schema.sorted_tables:
        query = sa.table(table.name, *(sa.column(c.name) for c in table.columns)).select().order_by(sa.column(next(iter(table.primary_key)).name))
        found[table.name] = [tuple(map(plain, row)) for row in conn.execute(query)]
    return found


def test_a_file_moves_to_a_server_and_back(old, server, tmp_path):
    before = file_contents(old)
    first = restore_server(server, old)  # of revision 0001, which the file stays
    assert (first["rows"], first["saved"], revision_in(old)) == (10 * FEW, None, "0001")
    with server.begin() as conn:
        moved = rows_of(conn)
        assert {name: [tuple(map(plain, row)) for row in rows] for name, rows in contents(conn).items()} == before
        new = "INSERT INTO predictions (model_name, prediction_data, confidence, created_at) VALUES ('a', '1', 0.5, '2026') RETURNING id"
        assert conn.exec_driver_sql(new).scalar_one() == 2 * FEW + 101
        conn.exec_driver_sql("DELETE FROM predictions WHERE model_name = 'a'")
    back = back_up_server(server, tmp_path / "back.db")
    assert damage(back, full=True) is None
    with own_engine(back) as engine, engine.begin() as conn:
        assert rows_of(conn) == moved
        assert differences(conn) == []
        conn.exec_driver_sql("INSERT INTO predictions (model_name, prediction_data, confidence, created_at) VALUES ('b', '1', 0.5, '2026')")
        assert conn.exec_driver_sql("SELECT max(id) FROM predictions").scalar_one() == 2 * FEW + 102  # 101 was given out once
    assert prepare_file(back) is None


def test_rows_on_a_server_are_replaced_only_if_that_is_said(old, server, home, tmp_path):
    restore_server(server, old)
    with server.begin() as conn:
        conn.exec_driver_sql("DELETE FROM system_events")
        before = rows_of(conn)
    with pytest.raises(StoreError, match="holds rows in .*give --replace"):
        restore_server(server, old)
    with server.connect() as conn:
        assert rows_of(conn) == before
    done = restore_server(server, old, replace=True)
    with server.connect() as conn:
        assert len(rows_of(conn)["system_events"]) == FEW
    with own_engine(Path(done["saved"])) as engine, engine.connect() as conn:
        assert rows_of(conn) == before
    assert Path(done["saved"]).parent == home / "backups"


def test_a_server_that_refuses_a_row_is_as_it_was(old, server):
    with closing(sqlite3.connect(old)) as conn, conn:
        conn.execute("UPDATE predictions SET model_name = 'nul' || char(0) || 'byte' WHERE id = (SELECT max(id) FROM predictions)")
    prepare(server, "server")
    with pytest.raises(StoreError, match="nothing was restored"):
        restore_server(server, old)
    with server.connect() as conn:
        assert set(map(len, rows_of(conn).values())) == {0}


def test_a_backup_of_a_server_is_one_moment(server, tmp_path):
    """Rows written in pairs while the copy is made: never one without the other."""
    import threading

    prepare(server, "server")
    stop = threading.Event()

    def write():
        with server.connect() as conn:
            while not stop.is_set():
                for table in ("system_events", "memory_operations"):
                    columns = "event_type, level" if table == "system_events" else "operation, items_affected"
                    conn.exec_driver_sql(f"INSERT INTO {table} ({columns}, timestamp) VALUES ('x', '0', '2026')")
                conn.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(3):
            back_up_server(server, tmp_path / f"{n}.db")
    finally:
        stop.set()
        writer.join()
    for n in range(3):
        with closing(sqlite3.connect(tmp_path / f"{n}.db")) as conn:
            pair = [conn.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("system_events", "memory_operations")]
        assert pair[0] == pair[1]


def test_a_restored_server_reads_as_json(server, old):
    restore_server(server, old)
    with server.connect() as conn:
        for row in conn.execute(schema.tables["models"].select().where(schema.tables["models"].c.metadata.is_not(None)).limit(20)):
            json.dumps(row.metadata)
