"""Backups: a copy of one moment under a live writer, killed at any time, and the way back from a damaged file."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios import backups
from helios.backups import (
    back_up_file,
    backup_name,
    backups_folder,
    copy_file,
    damage,
    list_backups,
    newest_good,
    quick_check,
    restore_file,
    revision_in,
    users_of,
)
from helios.values import StoreError

WRITER = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
conn.execute("PRAGMA journal_mode=WAL")
n = conn.execute("SELECT coalesce(max(id), 0) FROM training_sessions").fetchone()[0]
print("ready", flush=True)
while True:
    conn.execute("BEGIN IMMEDIATE")
    for table in ("training_sessions", "training_logs"): conn.execute(f"INSERT INTO {table} (text) VALUES (?)", ("x" * 100,))
    conn.execute("COMMIT")
"""


def make(path: Path, n_rows: int = 2000) -> Path:
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("PRAGMA journal_mode=WAL")
        for table in ("training_sessions", "training_logs"):
            conn.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, text)")
            conn.executemany(f"INSERT INTO {table} (text) VALUES (?)", [(f"row {n} " + "x" * 100,) for n in range(n_rows)])
    return path


def counts(path) -> list:
    with closing(sqlite3.connect(path)) as conn:
        return [conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("training_sessions", "training_logs")]


def spoil(path: Path, page: int = 3) -> Path:
    with open(path, "r+b") as f:
        f.seek(4096 * page)
        f.write(b"\xa5" * 4096)
    return path


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "memory.db")


@pytest.fixture
def writer(path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    yield child
    child.kill()
    child.communicate()


def test_a_backup_under_a_writer_is_one_moment(path, writer):
    taken = [back_up_file(path) for _ in range(8)]
    writer.kill()
    writer.wait()
    found = [counts(each) for each in taken]
    assert all(sessions == logs for sessions, logs in found)  # both rows of a transaction or neither
    assert found == sorted(found) and found[-1][0] > 2000
    assert [damage(each, full=True) for each in taken] == [None] * 8
    assert sorted(os.listdir(path.parent / "backups")) == sorted([".lock", *(each.name for each in taken)])  # one file each


def test_a_killed_backup_leaves_the_earlier_ones_and_is_tidied(path):
    code = "import sys; from pathlib import Path; from helios.backups import back_up_file\nwhile True: back_up_file(Path(sys.argv[1]), automatic=True)"
    chance = random.Random(3)
    for _ in range(10):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        time.sleep(0.25 + 0.2 * chance.random())
        child.send_signal(signal.SIGKILL)
        child.wait()
    found = list_backups(path.parent / "backups")
    assert 1 <= len(found) <= backups.KEEP + 1
    assert all(damage(Path(each["file"]), full=True) is None for each in found)
    for part in (path.parent / "backups").glob(".*.part*"):
        os.utime(part, (0, 0))
    back_up_file(path, automatic=True)
    assert not list((path.parent / "backups").glob(".*.part*"))


def test_backups_that_were_asked_for_stay(path):
    asked = [back_up_file(path) for _ in range(3)]
    for _ in range(8):
        back_up_file(path, automatic=True, keep=2)
    assert [each.exists() for each in asked] == [True] * 3
    assert sum(entry["automatic"] for entry in list_backups(path.parent / "backups", path.name)) == 2


def test_two_databases_in_a_folder_keep_their_backups_apart(path):
    other = make(path.parent / "memory.sqlite", 10)
    mine, its = back_up_file(path), back_up_file(other)
    folder = backups_folder(path)
    assert [newest_good(folder, name)["file"] for name in (path.name, other.name)] == [str(mine), str(its)]


def test_a_backup_goes_where_it_is_told_and_never_over_a_file(path, tmp_path):
    target = tmp_path / "new" / "folder" / "copy.db"
    assert back_up_file(path, target) == target
    with pytest.raises(StoreError, match="is there already; name a new file"):
        back_up_file(path, target)
    with pytest.raises(StoreError, match="is not there; nothing to back up"):
        back_up_file(tmp_path / "none.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        back_up_file(path, tmp_path / "file" / "copy.db")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_and_leaves_nothing(path, tmp_path, monkeypatch):
    real = sqlite3.connect

    def small(name, *args, **kwargs):
        conn = real(name, *args, **kwargs)
        if str(name).endswith(".part"):
            conn.execute("PRAGMA max_page_count=10")  # what SQLite says then is what it says of a full disk
        return conn

    monkeypatch.setattr(backups.sqlite3, "connect", small)
    with pytest.raises(StoreError, match="full.*make room or name another place"):
        back_up_file(path, tmp_path / "out" / "copy.db")
    assert os.listdir(tmp_path / "out") == []


# Damage


def test_damage_names_the_newest_good_backup_and_the_way_back(path):
    old, good, bad = (back_up_file(path) for _ in range(3))
    spoil(bad)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        quick_check(path)
    told = str(caught.value)
    assert str(good) in told and f"helios db restore --database {path} {good}" in told
    assert "\n" not in told and str(old) not in told
    assert path.read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_damage_is_written_to(tmp_path_factory, data):
    """Bytes at random: the file is found damaged or reads as sound, and is not changed either way."""
    path = make(tmp_path_factory.mktemp("damage") / "a.db", 200)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    path.write_bytes(raw)
    try:
        quick_check(path)
    except StoreError as e:
        assert "\n" not in str(e)
    try:
        back_up_file(path)
    except StoreError as e:
        assert "\n" not in str(e)
    assert path.read_bytes() == bytes(raw)
    assert all(damage(Path(entry["file"])) is None for entry in list_backups(path.parent / "backups"))


def test_a_large_file_is_looked_at_as_far_as_time_allows(path, monkeypatch):
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("CREATE TABLE models (text)")
        conn.executemany("INSERT INTO models VALUES (?)", [("x" * 500,) for _ in range(50)])
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'models'").fetchone()
        conn.commit()
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    monkeypatch.setattr(backups, "BYTES_A_SECOND", 1.0)
    monkeypatch.setattr(backups, "ROWS_A_SECOND", 100.0)
    assert quick_check(path, within_s=1) is False
    assert quick_check(path) is True
    spoil(path, page - 1)
    with pytest.raises(StoreError, match="name another file, or move this one away"):
        quick_check(path, within_s=1)


def test_what_is_no_damage_is_not_called_so(path, tmp_path):
    assert quick_check(tmp_path / "none.db") and quick_check(Path(shutil.copy("/dev/null", tmp_path / "empty.db")))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode=DELETE")
        conn.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            backups.open_read_only(path, 0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_can_be_read(path):
    os.chmod(path.parent, 0o500)
    try:
        assert damage(path) is None
    finally:
        os.chmod(path.parent, 0o700)


def test_rows_in_the_wal_are_in_the_backup(path, writer):
    """A writer that was killed leaves its newest rows in the -wal."""
    time.sleep(0.3)
    writer.kill()
    writer.wait()
    assert Path(f"{path}-wal").stat().st_size
    copy = back_up_file(path)
    assert counts(copy) == counts(path) and counts(copy)[0] > 2000


# The way back


def test_restore_keeps_what_was_there(path, writer):
    backup = back_up_file(path)
    saved = counts(backup)
    with pytest.raises(StoreError, match=f"is open in process {writer.pid} .*end that first"):
        restore_file(path, backup)
    time.sleep(0.2)
    writer.kill()
    writer.wait()
    assert Path(f"{path}-wal").stat().st_size
    raw = path.read_bytes()
    spoilt = counts(shutil.copytree(path.parent, path.parent.with_name("copy"), ignore=shutil.ignore_patterns("backups")) / path.name)
    done = restore_file(path, backup)
    assert counts(path) == saved
    assert Path(done["moved_aside"][0]).read_bytes() == raw
    assert counts(done["moved_aside"][0]) == spoilt  # with the rows of the -wal
    assert backup.exists() and revision_in(path) == "0001"
    assert damage(path, full=True) is None


def test_restore_changes_nothing_when_the_backup_is_bad(path, tmp_path):
    backup = back_up_file(path)
    before = path.read_bytes()
    for bad, words in (
        (spoil(Path(shutil.copy(backup, tmp_path / "bad.db"))), "name another backup"),
        (tmp_path / "none.db", "is not there"),
        (path, "is the database itself"),
    ):
        with pytest.raises(StoreError, match=words):
            restore_file(path, bad)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.replaced-*"))


def test_restore_of_a_missing_database(path, tmp_path):
    backup = back_up_file(path)
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    assert restore_file(path, backup)["moved_aside"] == []
    assert counts(path) == [2000, 2000]
    assert restore_file(tmp_path / "new.db", backup)["moved_aside"] == []


def test_a_restore_that_was_killed_can_be_repeated(path):
    backup = back_up_file(path)
    code = "import sys; from pathlib import Path; from helios.backups import restore_file\nwhile True: restore_file(*map(Path, sys.argv[1:]))"
    chance = random.Random(5)
    for _ in range(10):
        child = subprocess.Popen([sys.executable, "-c", code, str(path), str(backup)])
        time.sleep(0.3 + 0.2 * chance.random())
        child.kill()
        child.wait()
        assert damage(backup) is None
    assert restore_file(path, backup)["restored"] == str(path)
    assert counts(path) == [2000, 2000]
    assert all(counts(each) == [2000, 2000] for each in path.parent.glob("*.replaced-*Z"))


def test_who_uses_a_file(path, writer):
    assert [user.split()[0] for user in users_of(path)] == [str(writer.pid)]


def test_names_hold_no_surprises(tmp_path):
    name = backup_name("../we ird;rm -rf.db", "0002", True)
    assert "/" not in name and " " not in name and ";" not in name
    (tmp_path / name).touch()
    (tmp_path / "other.db").touch()
    (tmp_path / "a-20269999T999999000000Z-r0002.db").touch()
    (entry,) = list_backups(tmp_path)
    assert (entry["revision"], entry["automatic"]) == ("0002", True)


def test_copying_takes_no_room_when_it_fails(path, tmp_path):
    spoil(path, 1)
    with pytest.raises(StoreError):
        copy_file(path, tmp_path / "out" / "copy.db")
    assert os.listdir(tmp_path / "out") == []


# A restore that is cut off


@pytest.fixture
def with_wal(tmp_path):
    """A database that a killed process left, its newest rows in the -wal, and a file to put in its place."""
    path, fresh = make(tmp_path / "memory.db", 10), make(tmp_path / "fresh.db", 3)
    code = "import sys, sqlite3, os; conn = sqlite3.connect(sys.argv[1]); [conn.execute(f'INSERT INTO {t} (text) VALUES (1)') for t in ('training_sessions', 'training_logs')]; conn.commit(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert Path(f"{path}-wal").stat().st_size
    return path, fresh


def whole(path: Path) -> list[list]:
    """The counts of what stands under the old name and under the new one, looked at in copies."""
    copies = Path(shutil.copytree(path.parent, path.parent.with_name("looked at"), dirs_exist_ok=False))
    try:
        return [counts(each) for each in (copies / path.name, *copies.glob("*.replaced-*Z")) if each.exists()]
    finally:
        shutil.rmtree(copies)


class Stop(BaseException):
    """A kill: nothing of the code under test answers to it."""


CALLS = [("shutil", "copyfile"), ("os", "rename"), ("os", "replace"), ("os", "unlink")]


def interrupt(monkeypatch, at: int, error: BaseException, times: int = 1) -> list:
    """Let the `at`-th call that changes a name or copies a file do half of its work and fail, and `times - 1` after it."""
    done = []
    for module, name in CALLS:
        real = getattr(getattr(backups, module), name)

        def call(*args, real=real, name=name):
            done.append(name)
            if at <= len(done) < at + times:
                if name == "copyfile":
                    Path(args[1]).write_bytes(b"half")
                raise error
            return real(*args)

        monkeypatch.setattr(getattr(backups, module), name, call)
    return done


def test_a_kill_at_any_step_of_a_restore_loses_no_row(with_wal, monkeypatch):
    path, fresh = with_wal
    kept, seen = shutil.copytree(path.parent, path.parent.with_name("kept")), []
    for at in range(1, 20):
        with monkeypatch.context() as patched:
            interrupt(patched, at, Stop())
            try:
                backups._change_places(fresh, path)
            except Stop:
                seen.append(at)
        assert [11, 11] in whole(path), at  # with the rows of the -wal, under one name or the other
        shutil.rmtree(path.parent)
        shutil.copytree(kept, path.parent)
    assert seen == [1, 2, 3, 4, 5]  # copy, rename, replace, unlink of the -shm, replace; then it is done


@pytest.mark.parametrize("at", range(1, 6))
def test_a_restore_that_fails_changes_nothing(with_wal, monkeypatch, at):
    path, fresh = with_wal
    with monkeypatch.context() as patched:
        interrupt(patched, at, PermissionError(13, "Permission denied"))
        with pytest.raises(StoreError, match="cannot be moved aside .Permission denied.; nothing was changed"):
            backups._change_places(fresh, path)
    assert not list(path.parent.glob("*.replaced-*"))
    assert counts(path) == [11, 11]


def test_a_restore_that_cannot_be_undone_says_where_what_stands(with_wal, monkeypatch):
    path, fresh = with_wal
    with monkeypatch.context() as patched:
        interrupt(patched, 3, PermissionError(13, "Permission denied"), times=9)  # after the file was moved
        with pytest.raises(StoreError, match="nor can it be put back") as caught:
            backups._change_places(fresh, path)
    (aside,) = path.parent.glob("*.replaced-*Z")
    assert f"{aside}, {aside}-wal" in str(caught.value)
    assert counts(aside) == [11, 11]


def test_a_failed_restore_throws_its_copy_away(path, monkeypatch):
    backup = back_up_file(path)
    monkeypatch.setattr(backups, "_change_places", lambda *args: (_ for _ in ()).throw(StoreError("no")))
    with pytest.raises(StoreError, match="no"):
        restore_file(path, backup)
    assert not list(path.parent.glob(".*restored*")) and counts(path) == [2000, 2000]


def test_a_connection_to_look_with_may_go_to_another_thread(path):
    said = []
    with closing(backups.open_read_only(path)) as conn:
        thread = threading.Thread(target=lambda: said.extend(conn.execute("SELECT count(*) FROM training_logs")))
        thread.start()
        thread.join()
    assert said == [(2000,)]
