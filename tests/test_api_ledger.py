"""The ledger over HTTP: entered once, found by its filters, scored when draws arrive, and closed where it was altered."""

import io
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from helios.draws import simulate, write_draws
from helios.draws_at_hand import DrawsAtHand
from helios.fitting import TrainingConfig
from helios.forecasters import FORECASTERS, forecaster_named
from helios.ledger import Ledger
from helios.ledger_api import LedgerIndex, facts
from helios.places import HISTORY
from helios.server import create_app
from helios.settings import Settings
from helios.tables import context_storage, ledger
from helios.trainer import ModelTrainer

DRAWS = simulate(n=312, seed=4)
TINY = TrainingConfig(hidden=16, layers=1, heads=2, sequence_length=10, epochs=1, learning_rate=0.02, batch_size=64, threads=1)


def write(home, n):
    home.mkdir(parents=True, exist_ok=True)
    write_draws(DRAWS[:n], home / HISTORY)


@pytest.fixture
def app(home):
    write(home, 300)
    made = create_app(Settings())
    yield made
    made.extensions["helios"].store.close()


@pytest.fixture
def client(app):
    return app.test_client()


def enter(client, name):
    return client.post("/api/ledger", json={"forecaster": name})


def found(app):
    return app.extensions["helios"]


# Forecasters


def test_the_catalog_is_the_librarys(client):
    page = client.get("/api/forecasters").json
    assert [row["name"] for row in page["items"]] == list(FORECASTERS) and page["pages"] == 1
    kinds = {row["name"]: row["kind"] for row in page["items"]}
    assert (kinds["uniform"], kinds["steps"], kinds["hot"], kinds["mixture"], kinds["PowerballNet"]) == ("baseline", "counts", "players", "mixture", "network")
    assert [row["name"] for row in client.get("/api/forecasters?kind=network").json["items"]] == ["PowerballNet"]
    assert next(row for row in page["items"] if row["name"] == "PowerballNet")["trains"]


def test_a_forecast_is_the_librarys(client):
    said = client.post("/api/forecasters/frequency/forecast", json={"tickets": 3}).json
    forecast = forecaster_named("frequency").fit(DRAWS[:300]).forecast()
    assert said["powerball"] == pytest.approx(forecast.powerball_probs[0].tolist()) and len(said["tickets"]) == 3
    assert said["last_draw"] == str(DRAWS.draw_date[299].date()) and said["simulated"]
    assert client.get("/api/ledger").json["total"] == 0  # nothing is put on record by asking


def test_a_forecast_follows_the_draws(client, home):
    before = client.post("/api/forecasters/steps/forecast").json
    write(home, 305)
    assert client.post("/api/forecasters/steps/forecast").json["draw_date"] > before["draw_date"]


def test_who_trains_a_network_is_refused_with_the_way(client):
    for answer in (client.post("/api/forecasters/PowerballNet/forecast"), enter(client, "PowerballNet")):
        assert answer.status_code == 422 and "POST /api/train" in answer.json["detail"]


OWN = """
from helios.forecasters import Forecaster
class Mine(Forecaster, name="mine"):
    about = "it fails"
    def logits(self, past, start): raise RuntimeError("no idea")
    def settings(self): raise KeyError("none")
"""


def test_a_forecaster_of_the_users_own_may_fail(client, home):
    (home / "forecasters.py").write_text(OWN)
    try:
        row = client.get("/api/forecasters?kind=own").json["items"][0]
        assert row["name"] == "mine" and "KeyError" in row["settings"]["error"]
        answer = client.post("/api/forecasters/mine/forecast")
        assert answer.status_code == 422 and "mine, a forecaster of your own, failed: RuntimeError: no idea" in answer.json["detail"]
        assert client.post("/api/metacognitive/recommendations", json={"model": "mine"}).status_code == 422
        assert client.post("/api/analytics/compare", json={"models": ["mine", "uniform"]}).status_code == 422
        (home / "forecasters.py").write_text("1 +")
        assert client.get("/api/forecasters").status_code == 422
    finally:
        (home / "forecasters.py").unlink()
        assert client.get("/api/forecasters?kind=own").json["total"] == 0


# Entries


def test_an_entry_is_made_once(client):
    first, again = enter(client, "steps"), enter(client, "steps")
    assert (first.status_code, again.status_code) == (201, 200) and first.json == again.json
    shown = client.get(first.headers["Location"]).json
    assert {key: shown[key] for key in first.json} == first.json and "white_logits" in shown["forecast"]
    assert first.json["state"] == "open" and first.json["score"] is None and first.json["simulated"]


def test_two_who_enter_at_once_make_one_entry(app):
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda _: enter(app.test_client(), "steps"), range(4))]
    assert {a.status_code for a in answers} <= {200, 201} and len({a.json["id"] for a in answers}) == 1
    assert app.test_client().get("/api/ledger").json["total"] == 1


@pytest.mark.parametrize(("body", "status"), [
    ({"forecaster": "nobody"}, 404), ({"forecaster": "nobody@3"}, 404), ({"forecaster": "../x"}, 422), ({}, 422), ({"forecaster": 3}, 422),
    ({"forecaster": "steps", "version": "1"}, 422), ({"forecaster": "steps\x00"}, 422), ({"forecaster": "\ud800"}, 422)])
def test_what_is_no_entry(client, body, status):
    answer = client.post("/api/ledger", json=body)
    assert answer.status_code == status and answer.content_type == "application/problem+json"
    assert client.get("/api/ledger").json["total"] == 0


def test_a_version_is_entered_with_its_weights(app, client, home):
    ModelTrainer(found(app).store, home).train(DRAWS[:300], TINY, "net")
    entry = enter(client, "net@1").json
    assert (entry["forecaster"], entry["version"], entry["about"]["ref"]) == ("net", "1", "net@1")
    assert entry["about"]["sha256"] == found(app).registry.get("net@1")["sha256"]
    assert enter(client, "net@2").status_code == 404


def test_scores_come_when_draws_arrive(client, home):
    ids = [enter(client, name).json["id"] for name in ("steps", "uniform")]
    write(home, 301)
    settled = client.post("/api/ledger/settle").json
    assert settled["n"] == 2 and {entry["id"] for entry in settled["scored"]} == {*ids}
    score = client.get(f"/api/ledger/{ids[0]}").json["score"]
    assert score["powerball"] == int(DRAWS.powerball[300]) and not score["corrected"]
    skill = forecaster_named("steps").fit(DRAWS[:300]).forecast().skill(DRAWS.loc[300:300, [f"white_{i}" for i in range(1, 6)]].to_numpy(), DRAWS.powerball[300:301].to_numpy())
    assert score["white_nats"] + score["powerball_nats"] == pytest.approx(float(skill.total[0]))
    assert client.post("/api/ledger/settle").json == {"n": 0, "scored": []}
    standing = client.get("/api/ledger/standings?forecaster=steps").json["items"]
    assert len(standing) == 1 and standing[0]["n"] == 1 and standing[0]["skill_nats"] == pytest.approx(float(skill.total[0]))


def test_filters_sorting_and_pages(client, home):
    for name in ("steps", "uniform"):
        enter(client, name)
    write(home, 301)
    for name in ("steps", "frequency", "hot"):  # entering scores what has come first
        enter(client, name)
    def listed(query):
        return [(row["forecaster"], row["state"]) for row in client.get(f"/api/ledger?{query}").json["items"]]
    assert listed("state=scored&sort=id") == [("steps", "scored"), ("uniform", "scored")]
    assert listed("state=open&sort=-forecaster") == [("steps", "open"), ("hot", "open"), ("frequency", "open")]
    assert listed("forecaster=steps") == [("steps", "open"), ("steps", "scored")]
    assert listed(f"since={DRAWS.draw_date[301].date()}&sort=forecaster") == [("frequency", "open"), ("hot", "open"), ("steps", "open")]
    assert listed("simulated=false") == [] and listed("state=late") == []
    page = client.get("/api/ledger?per_page=2&page=3").json
    assert (page["total"], page["pages"], len(page["items"])) == (5, 3, 1)
    assert [client.get(f"/api/ledger?{bad}").status_code for bad in ("sort=hash", "state=won", "since=soon", "page=0", "luck=1")] == [422] * 5
    assert [client.get(f"/api/ledger/{id}").status_code for id in (999, 2**80, "x", -1)] == [404] * 4


# A file


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_the_file_holds_what_the_list_says(client, home, format):
    enter(client, "steps")
    write(home, 301)
    enter(client, "frequency")
    file = client.get(f"/api/ledger/export?format={format}")
    assert file.headers["Content-Disposition"] == f'attachment; filename="helios-ledger.{format}"'
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[format](io.BytesIO(file.data))
    rows = client.get("/api/ledger?sort=id").json["items"]
    assert read.forecaster.tolist() == ["steps", "frequency"] and read.hash.tolist() == [row["hash"] for row in rows]
    assert read.white_nats[0] == pytest.approx(rows[0]["score"]["white_nats"]) and read.drawn_whites.isna().tolist() == [False, True]


# Altered


def alter(app, **values):
    with found(app).store._transaction("write") as conn:
        conn.execute(ledger.update().where(ledger.c.id == 1).values(values))


def test_what_was_altered_is_named_and_nothing_is_summed(app, client):
    enter(client, "steps"), enter(client, "hot")
    assert client.get("/api/ledger/verify").json["ok"] and client.get("/api/ledger/standings").status_code == 200
    alter(app, forecaster="mine")
    said = client.get("/api/ledger/verify").json
    assert (said["ok"], said["first_bad"]) == (False, 1) and "altered" in said["why"]
    assert client.get("/api/ledger").status_code == client.get("/api/ledger/1").status_code == 409
    fresh = create_app(Settings()).test_client()  # another process, which never saw the row as it was
    assert [fresh.get(f"/api/ledger{path}").status_code for path in ("", "/1", "/standings", "/export")] == [409] * 4
    assert enter(fresh, "uniform").status_code == 409
    fresh.application.extensions["helios"].store.close()


def test_a_head_that_was_kept_elsewhere(app, client):
    enter(client, "steps")
    head = client.get("/api/ledger/verify").json["head"]
    assert client.get(f"/api/ledger/verify?head={head['hash'][:16]}").json["ok"]
    assert not client.get(f"/api/ledger/verify?head={'0' * 63}1").json["ok"]
    assert client.get("/api/ledger/verify?head=short").status_code == 422


def test_the_index_follows_other_processes_and_backups(app, client):
    store, book = found(app).store, Ledger(found(app).store)
    enter(client, "steps")
    before = book.head()
    forecast = forecaster_named("hot").fit(DRAWS[:300]).forecast()
    book.predict("hot", "9", forecast, DrawsAtHand().get().draws)  # as the command does, past the server
    assert [row["forecaster"] for row in client.get("/api/ledger").json["items"]] == ["hot", "steps"]
    with store._transaction("write") as conn:  # a backup is put back
        conn.execute(ledger.delete().where(ledger.c.id > 1))
        conn.execute(context_storage.delete().where(context_storage.c.context_type == "ledger"))
    store.store_context("ledger", "head", before)
    assert client.get("/api/ledger").json["total"] == 1 and client.get("/api/ledger/verify").json["ok"]
    assert facts(found(app)) == LedgerIndex().look(store)


def test_a_store_that_can_only_be_read(app, client):
    enter(client, "steps")
    store = found(app).store
    store.read_only = store._database.read_only = True
    store.notice = store._database.notice = "the disk can only be read"
    assert client.get("/api/ledger").json["total"] == 1 and client.get("/api/ledger/standings").status_code == 200
    answer = enter(client, "hot")
    assert answer.status_code == 503 and answer.headers["Retry-After"]
