"""Health: every part is broken in turn, and the check says so, and says so no more when it is mended."""

import shutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from helios.draws import read_draws, sample_path
from helios.places import DATABASE, HISTORY, JOBS
from helios.server import create_app
from helios.settings import Settings


@pytest.fixture
def client(home):
    app = create_app(Settings())
    yield app.test_client()
    app.extensions["helios"].store.close()


def assert_broken(client, part, said, others=True):
    answer = client.get("/api/health")
    assert answer.status_code == 503 and answer.json["status"] == "unhealthy" and answer.headers["Cache-Control"] == "no-store"
    found = answer.json["checks"][part]
    assert found["status"] == "unhealthy" and said in found["detail"] and "\n" not in found["detail"]
    if others:
        assert {name for name, check in answer.json["checks"].items() if check["status"] != "healthy"} == {part}
    assert client.get("/health").status_code == 503
    return answer.json


def assert_well(client):
    answer = client.get("/api/health")
    assert answer.status_code == 200, answer.json
    assert answer.json["status"] == "healthy" and answer.json["database_status"] == "connected"
    assert all(answer.json["components"].values()) and {check["status"] for check in answer.json["checks"].values()} == {"healthy"}
    assert client.get("/health").json["status"] == "healthy"


def test_all_is_well(client):
    assert_well(client)


def test_a_database_replaced_by_garbage(client, home):
    assert_well(client)
    for path in home.glob(f"{DATABASE}*"):
        path.write_bytes(b"this is no database " * 500)
    found = assert_broken(client, "database", "", others=False)
    assert found["database_status"] == "unavailable" and not found["components"]["memory_store"]


def test_a_database_that_is_gone(client, home):
    assert_well(client)
    shutil.rmtree(home)
    assert_broken(client, "database", "", others=False)


def test_a_database_that_was_closed(client):
    client.application.extensions["helios"].store.close()
    assert_broken(client, "database", "", others=False)


def test_a_database_that_can_only_be_read(client, home):
    with client.application.extensions["helios"].store._transaction("write") as conn:
        conn.exec_driver_sql("UPDATE helios_schema SET version_num = '9999'")      # as a newer Helios leaves it
    with pytest.warns(UserWarning, match="newer Helios"):
        app = create_app(Settings())
    found = assert_broken(app.test_client(), "database", "newer Helios")
    assert found["database_status"] == "read_only" and not found["components"]["memory_store"]
    app.extensions["helios"].store.close()


def test_a_full_disk(client, monkeypatch):
    monkeypatch.setattr("helios.system_api.shutil", SimpleNamespace(disk_usage=lambda _: shutil._ntuple_diskusage(100, 99, 2**20 * 7)))
    assert_broken(client, "disk", "7 MB free")
    monkeypatch.undo()


def own_draws(home, age_days):
    """A history whose last draw is so old."""
    draws, _ = read_draws(sample_path())
    last = datetime.now(UTC).date() - timedelta(days=age_days)
    draws["draw_date"] = draws.draw_date + (last - draws.draw_date.max().date())
    draws = draws.drop(columns=[name for name in draws if name not in ("draw_date", *(f"white_{n}" for n in range(1, 6)), "powerball")])
    draws.to_csv(home / HISTORY, index=False)


def test_old_draws(client, home):
    own_draws(home, 30)
    found = assert_broken(client, "draws", "more than 7 days ago; helios data update")
    assert found["components"]["memory_store"]
    own_draws(home, 2)
    assert_well(client)


def test_a_history_that_is_none(client, home):
    (home / HISTORY).write_text("no draws at all\n")
    assert_broken(client, "draws", "")
    (home / HISTORY).unlink()
    assert_well(client)


def test_a_folder_of_jobs_that_is_none(client, home):
    shutil.rmtree(home / JOBS, ignore_errors=True)
    (home / JOBS).write_text("in the way")
    assert_broken(client, "jobs", JOBS)
    (home / JOBS).unlink()
    assert_well(client)
