"""`helios db`: honest on a sound, damaged, newer, foreign, missing and locked database, on a file and on a server."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from helios.memory_store import MemoryStore
from helios.places import CHECKPOINTS
from helios.store_commands import db

COMMANDS = ("check", "backup", "restore", "compact", "stats", "migrate")


def run(*words, status: int = 0):
    done = CliRunner().invoke(db, [str(word) for word in words])
    assert done.exit_code == status, done.output + done.stderr + str(done.exception)
    if status:
        assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def keys(*words, status: int = 0) -> dict:
    return json.loads(run(*words, "--json", "-", status=status).stdout)


def line(*words, status: int) -> str:
    said = run(*words, status=status).stderr
    assert said.count("\n") == 1 and said.startswith("helios: "), said
    return said


@pytest.fixture
def path(home):
    home.mkdir()
    with MemoryStore(home / "helios_memory.db") as store:
        store.log_event("kept", {"n": 1})
        store.store_context("big", "value", "x" * 100_000)
    return home / "helios_memory.db"


@pytest.fixture
def server(postgres_url, home, monkeypatch):
    monkeypatch.setenv("HELIOS_DATABASE_URL", postgres_url)
    with MemoryStore(postgres_url) as store:
        store.log_event("kept", {"n": 1})
    return postgres_url


def events(place) -> list:
    with MemoryStore(place) as store:
        return [row["event_type"] for row in store.get_recent_events()]


def spoil(path):
    with open(path, "r+b") as f:
        f.seek(4096)
        f.write(b"\xa5" * 8192)


def renumber(path, revision):
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE helios_schema SET version_num = ?", (revision,))


def test_the_bad_day(path):
    saved = Path(keys("backup")["backup"])
    assert saved.parent == path.parent / "backups"
    with MemoryStore(path) as store:
        store.log_event("later")
    spoil(path)
    before = path.read_bytes()
    found = keys("check", status=1)
    assert found["state"] == "damaged" and found["newest_good_backup"] == str(saved)
    assert f"helios db restore {saved}" in run("check", status=1).output
    for command in ("stats", "compact", "migrate", "backup"):
        assert f"helios db restore {saved}" in line(command, status=1)
    assert path.read_bytes() == before
    done = keys("restore", saved)  # as the message says, with nothing to confirm
    assert Path(done["moved_aside"][0]).read_bytes() == before
    assert events(path) == ["kept"]
    assert keys("check", "--full")["state"] == "current"


def test_a_sound_database_is_replaced_only_if_that_is_said(path):
    saved = keys("backup")["backup"]
    with MemoryStore(path) as store:
        store.log_event("later")
    assert "give --replace" in line("restore", saved, status=2)
    assert events(path) == ["later", "kept"]
    done = run("restore", saved, "--replace")
    assert "Kept " in done.output
    assert events(path) == ["kept"]
    aside = keys("restore", saved, "--replace")["moved_aside"]
    assert aside and all(Path(name).exists() for name in aside)


def test_what_cannot_be_restored(path, tmp_path):
    (tmp_path / "diary.db").write_text("Dear diary, " * 500)
    for file, words in ((tmp_path / "none.db", "is not there"), (tmp_path / "diary.db", "name another backup"), (path, "is the database itself")):
        assert words in line("restore", file, "--replace", status=1)
    assert events(path) == ["kept"]


def test_a_newer_database_is_read_and_not_written(path):
    renumber(path, "0099")
    found = keys("check", status=1)
    assert (found["state"], found["revision"], found["damage"]) == ("newer", "0099", None)
    told = run("stats")
    assert "newer Helios" in told.stderr and "system_events" in told.stdout
    for command in ("compact", "migrate"):
        assert "newer Helios" in line(command, status=1)
    saved = keys("backup")  # a copy needs no understanding
    assert saved["revision"] == "0099"


def test_an_old_database_is_migrated_when_it_is_said(home):
    from helios.migrations import migrate, own_engine

    home.mkdir()
    path = home / "helios_memory.db"
    with own_engine(path) as engine, engine.begin() as conn:
        migrate(conn, "0001")
    assert keys("check")["state"] == "old"
    assert keys("check")["revision"] == "0001"  # looking has changed nothing
    done = keys("migrate")
    assert (done["before"], done["revision"]) == ("0001", "0004") and Path(done["backup"]).exists()
    assert keys("check")["state"] == "current"
    assert keys("migrate") == {"database": str(path), "before": "0004", "revision": "0004", "backup": None}


def test_without_a_database(home):
    found = keys("check")
    assert (found["there"], found["state"]) == (False, "fresh")
    assert not home.exists()
    assert "nothing to back up" in line("backup", status=1)
    assert "nothing to migrate" in line("migrate", status=2)


def test_a_folder_that_would_be_made_is_not_called_read_only(home):
    assert not home.exists()
    assert keys("check")["writable"] is True and not home.exists()
    assert "read-only" not in run("check").output


def test_a_foreign_file(home):
    home.mkdir()
    path = home / "helios_memory.db"
    path.write_text("Dear diary, " * 500)
    assert keys("check", status=1)["damage"] == "file is not a database"
    for command in ("backup", "stats", "compact", "migrate"):
        assert "name another file, or move this one away" in line(command, status=1)
    assert path.read_text() == "Dear diary, " * 500


def test_compact_says_what_it_would_do_and_does_it(path):
    with MemoryStore(path) as store:
        store.store_enhanced_journal_entry("net", "s", "x", {})
        store.create_training_session("job", "net", {})
        for epoch in range(5):
            store.add_training_log("job", epoch, 1.0)
        store.update_training_session("job", "completed")
    lost = path.parent / CHECKPOINTS / "lost.safetensors"
    lost.parent.mkdir()
    lost.write_bytes(b"x" * 10)
    os.utime(lost, (0, 0))
    asked = keys("compact", "--days", 0, "--dry-run")
    assert lost.exists() and asked["dry_run"]
    assert "would be removed" in run("compact", "--days", 0, "--dry-run").output
    assert run("compact", "--days", 0, "--no-files").output.count("Files") == 0
    with MemoryStore(path) as store:
        store.store_enhanced_journal_entry("net", "s", "x", {})
    done = keys("compact", "--days", 0)
    assert (asked["folded_training_logs"], asked["archived_journal_entries"], done["archived_journal_entries"]) == (5, 1, 1)
    assert [row["path"] for row in done["files"]["removed"]] == [str(lost)] and not lost.exists()


def test_stats(path):
    found = keys("stats")
    assert found["system_events_count"] == 1 and found["database"] == str(path)
    assert found["total_rows"] == 2
    assert "system_events" in run("stats").output


def test_other_places(path, tmp_path, monkeypatch):
    other = tmp_path / "other.db"
    monkeypatch.setenv("HELIOS_DATABASE_URL", f"sqlite:///{other}")
    assert keys("stats")["database"] == str(other)
    assert keys("check")["database"] == str(other)
    assert keys("check", "--database", path)["database"] == str(path)
    assert keys("check", "--database", f"sqlite:///{path}")["database"] == str(path)
    for wrong in ("mysql://db/helios", "nonsense://", "sqlite://"):
        assert "helios: " in line("check", "--database", wrong, status=1)
    out = tmp_path / "copy.db"
    assert keys("backup", "--out", out)["backup"] == str(out)
    assert "is there already" in line("backup", "--out", out, status=1)
    assert "name a file" in line("backup", "--out", "-", status=2)


def test_json_goes_to_a_file_and_not_over_a_kept_one(path, tmp_path):
    run("check", "--json", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["state"] == "current"
    assert "Helios keeps for itself" in line("check", "--json", path, status=2)


def test_wrong_words():
    for words in (("compact", "--days", "-1"), ("compact", "--relevance", "2"), ("restore",), ("check", "--nonsense")):
        run(*words, status=2)


def test_help_is_light():
    code = "import sys; from helios.store_commands import db; print([m for m in sys.modules if m.split('.')[0] in ('sqlalchemy', 'torch', 'pandas', 'alembic')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    for command in COMMANDS:
        assert "--json" in run(command, "--help").output


def test_a_locked_file_is_said_in_one_line(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode=DELETE")
        conn.execute("BEGIN EXCLUSIVE")
        assert "close whoever holds it" in line("check", status=1)


def test_a_mistyped_database_is_not_taken_for_a_sound_one(path, tmp_path):
    assert "there is no such file" in line("check", "--database", tmp_path / "nope.db", status=2)
    assert not (tmp_path / "nope.db").exists()


def test_what_is_no_backup_is_said_before_anything_is_asked(path, tmp_path):
    (tmp_path / "text.db").write_text("no database")
    assert "is not there; helios db check lists the backups" in line("restore", tmp_path / "nope", status=1)
    assert "text.db" in (said := line("restore", tmp_path / "text.db", status=1)) and "--replace" not in said


# A server


def test_a_server_is_checked_and_moved_to_a_file_and_back(server, home, tmp_path):
    found = keys("check", "--full")
    assert (found["state"], found["damage"], found["writable"], found["rows_read"]) == ("current", None, True, 1)
    saved = keys("backup")["backup"]
    assert Path(saved).parent == home / "backups"
    assert keys("check")["newest_good_backup"] == saved
    assert "give --replace" in line("restore", saved, status=1)
    with MemoryStore(server) as store:
        store.log_event("later")
    done = keys("restore", saved, "--replace")
    assert events(server) == ["kept"]
    file = tmp_path / "moved.db"
    run("restore", done["saved"], "--database", file)
    assert events(file) == ["later", "kept"]
    assert keys("migrate")["before"] == "0004"
    assert keys("compact", "--days", 0)["folded_sessions"] == 0
    assert keys("stats")["system_events_count"] == 1


def test_a_server_backup_says_that_it_leaves_the_tables_of_sweeps_out(server, home):
    assert keys("backup")["left_out"] is None
    with MemoryStore(server) as store, store._transaction("write") as conn:
        conn.exec_driver_sql("CREATE TABLE studies (study_id INTEGER)")
    assert "Optuna" in keys("backup")["left_out"]


def test_no_password_is_shown(server, home):
    for words in (("check",), ("backup",), ("stats",)):
        done = run(*words)
        assert "secret" not in done.output + done.stderr
    told = line("check", "--database", "postgresql://user:secret@127.0.0.1:9/helios", status=1)
    assert "secret" not in told and "127.0.0.1" in told


def test_a_newer_server_is_not_backed_up_by_guessing(server, home):
    with MemoryStore(server) as store, store._transaction("write") as conn:
        conn.exec_driver_sql("UPDATE helios_schema SET version_num = '0099'")
    assert keys("check", status=1)["state"] == "newer"
    assert "back it up with its own Helios" in line("backup", status=1)


def test_the_files_of_a_home_are_not_cleaned_by_the_word_of_another_database(path, tmp_path, monkeypatch):
    lost, other = path.parent / CHECKPOINTS / "lost.safetensors", tmp_path / "other.db"
    lost.parent.mkdir()
    lost.write_bytes(b"x" * 10)
    os.utime(lost, (0, 0))
    for words in ((), ("--dry-run",)):
        found = keys("compact", "--database", other, *words)
        assert found["files"] is None and found["files_left_alone"] == f"{other} is not the database of this home"
    assert f"Files      left alone: {other} is not the database of this home" in run("compact", "--database", f"sqlite:///{other}").output
    assert "Files" not in run("compact", "--database", other, "--no-files").output
    assert lost.exists()
    monkeypatch.setenv("HELIOS_DATABASE_URL", f"sqlite:///{other}")  # now the file in the home folder is the other one
    assert keys("compact", "--database", path)["files"] is None and lost.exists()
    monkeypatch.delenv("HELIOS_DATABASE_URL")
    (tmp_path / "link").symlink_to(path.parent)
    assert len(keys("compact", "--database", tmp_path / "link" / path.name, "--dry-run")["files"]["removed"]) == 1
    assert len(keys("compact", "--database", f"sqlite:///{path}")["files"]["removed"]) == 1 and not lost.exists()


def test_the_own_server_is_known_by_its_url(server, home):
    from helios.store_commands import is_own

    assert is_own(server) and is_own(server.replace("postgresql://", "postgresql+psycopg://"))
    assert not is_own(server + "_2") and not is_own(str(home / "helios_memory.db"))
