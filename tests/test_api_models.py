"""Models and versions over HTTP: a moved alias fails no request, memory is bounded, and a wrong name changes nothing."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from helios.draws import simulate, write_draws
from helios.fitting import TrainingConfig
from helios.model_cache import ModelCache
from helios.places import HISTORY
from helios.server import create_app
from helios.settings import Settings
from helios.trainer import ModelTrainer

TINY = TrainingConfig(hidden=8, layers=1, heads=1, sequence_length=10, epochs=1, threads=1)
DRAWS = simulate(n=150, seed=1)


@pytest.fixture
def app(home):
    home.mkdir()
    write_draws(DRAWS, home / HISTORY)
    made = create_app(Settings(draws_max_age_days=36500, rate_limit=""))
    yield made
    made.extensions["helios"].store.close()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def trained(app):
    """Two versions of "powerball", the first its champion."""
    for seed in range(2):
        ModelTrainer(app.extensions["helios"].store).train(DRAWS, TrainingConfig(**TINY.__dict__ | {"seed": seed}), "powerball")
    return app


def test_a_moved_alias_is_followed_and_fails_no_request(trained):
    """32 clients forecast while the champion changes 40 times: every answer is one version's, whole."""
    registry, stop, answers = trained.extensions["helios"].registry, threading.Event(), []

    def ask():
        client = trained.test_client()
        while not stop.is_set():
            answer = client.post("/api/predict", json={"record": False, "tickets": 1})
            answers.append((answer.status_code, answer.json.get("version")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for n in range(40):
        registry.set_alias("powerball", "champion", 1 + n % 2)
        assert trained.test_client().post("/api/predict", json={"record": False}).json["version"] == f"powerball@{1 + n % 2}"
    stop.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 40
    assert set(answers) == {(200, "powerball@1"), (200, "powerball@2")}


def test_the_cache_keeps_to_its_limit(trained):
    registry = trained.extensions["helios"].registry
    cache = ModelCache(registry, 0.05)     # room for one
    for ref in ("powerball@1", "powerball@2", "powerball@1", "powerball@1"):
        cache.get(ref)
    assert (len(cache), cache.loads) == (1, 3)
    assert cache.bytes <= 0.05 * 2**20


def test_a_file_that_was_changed_is_not_loaded(trained, client):
    services = trained.extensions["helios"]
    path = services.registry.get("powerball@2")["file_path"]
    data = bytearray(open(path, "rb").read())
    data[-1] ^= 1
    open(path, "wb").write(bytes(data))
    answer = client.post("/api/predict", json={"model_name": "powerball@2"})
    assert answer.status_code == 409 and "sha256" in answer.json["detail"]
    assert client.post("/api/predict", json={"model_name": "powerball@1"}).status_code == 200


def test_a_forecast_is_put_on_record_once(trained, client):
    store = trained.extensions["helios"].store
    first, second = (client.post("/api/models/powerball/predict").json for _ in range(2))
    assert first == second and first["prediction_id"] == 1
    assert len(store.get_model_predictions("powerball")) == 1
    assert client.post("/api/predict", json={"record": False}).json["prediction_id"] is None


def at_once(app, n, ask):
    """The answers of n clients that ask at the same moment."""
    gate = threading.Barrier(n)

    def run(_):
        gate.wait()
        return ask(app.test_client())

    with ThreadPoolExecutor(n) as pool:
        return [*pool.map(run, range(n))]


def test_those_who_ask_at_once_put_one_forecast_on_record(trained):
    answers = at_once(trained, 8, lambda client: client.post("/api/predict", json={}))
    assert {(answer.status_code, answer.json["prediction_id"]) for answer in answers} == {(200, 1)}
    assert len(trained.extensions["helios"].store.get_model_predictions("powerball")) == 1


@pytest.mark.parametrize("path,body", [("/api/models", {"name": "race"}), ("/api/goals", {"name": "race", "metric": "skill_nats", "target": 0.1})])
def test_of_those_who_take_a_name_at_once_one_has_it(app, path, body):
    made = at_once(app, 8, lambda client: client.post(path, json=body))
    assert sorted(answer.status_code for answer in made) == [201] + [409] * 7
    gone = at_once(app, 8, lambda client: client.delete(f"{path}/race"))
    said = [answer.status_code for answer in gone]
    assert said.count(200) == 1 and set(said) <= {200, 404, 409}


def test_the_verdict_goes_with_the_forecast(trained, client):
    said = client.post("/api/predict", json={"record": False}).json
    assert "skill" in said["verdict"] and said["verdict"].startswith("SIMULATED")
    sidecar = trained.extensions["helios"].registry.get("powerball@1")["about"]
    assert said["confidence"] == (0.0 if said["is_uniform"] else sidecar["confidence"]["observed"]) and not sidecar["confidence"]["informs"]


def test_the_same_as_the_library_says(trained, client):
    from helios.next_forecast import forecast_of, load_version
    row, model = load_version(trained.extensions["helios"].registry, "powerball")
    expected = forecast_of(row, model, DRAWS, 3)
    said = client.post("/api/predict", json={"tickets": 3}).json
    assert [(tuple(t["white_balls"]), t["powerball"]) for t in said["predictions"]] == [(t.whites, t.powerball) for t in expected.tickets]
    assert said["forecast"]["white_inclusion"] == pytest.approx(expected.as_dict()["white_inclusion"])


@pytest.mark.parametrize("name", ["../etc", "a b", "ä", "", "x" * 65, "-x", "a/b", "a\x00", "a\n", None, 5, ["a"]])
def test_a_name_is_checked_and_never_changed(client, name):
    answer = client.post("/api/models", json={"name": name})
    assert answer.status_code == 422 and answer.json["errors"][0]["field"] == "name"
    assert client.get("/api/models").json["total"] == 0


def test_a_name_before_its_first_version(client):
    made = client.post("/api/models", json={"name": "mine", "config": {"hidden": 16, "epochs": 2}, "description": "to come"})
    assert made.status_code == 201 and made.headers["Location"] == "/api/models/mine"
    assert client.get("/api/models/mine/info").json["config"] == {"hidden": 16, "epochs": 2}
    assert client.post("/api/models/mine/load").status_code == 404
    assert client.post("/api/models/mine/predict").status_code == 404


def test_an_archive_travels(trained, client):
    data = client.get("/api/models/powerball/versions/1/export").data
    sent = client.post("/api/versions/import", data={"file": (io.BytesIO(data), "../../m.helios"), "name": "copy"})
    assert sent.status_code == 201 and sent.json["ref"] == "copy@1" and sent.json["imported"]
    again = client.post("/api/versions/import", data={"file": (io.BytesIO(data), "m.helios"), "name": "copy"})
    assert again.status_code == 201 and not again.json["imported"]
    said = [client.post("/api/predict", json={"model_name": name, "record": False}).json["forecast"] for name in ("powerball@1", "copy@1")]
    assert said[0] == said[1]


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 100, b"HELIOS" * 1000])
def test_what_is_no_archive_is_refused(client, data):
    answer = client.post("/api/versions/import", data={"file": (io.BytesIO(data), "m.helios")})
    assert answer.status_code == 422
    assert client.get("/api/versions").json["total"] == 0


def test_a_large_upload_and_a_large_body_are_refused(home):
    home.mkdir()
    app = create_app(Settings(max_upload_mb=1, max_body_kb=1, rate_limit=""))
    client = app.test_client()
    large = client.post("/api/versions/import", data={"file": (io.BytesIO(b"x" * 2**21), "m.helios")})
    body = client.post("/api/models", json={"name": "a", "description": "x" * 2000})
    fits = client.post("/api/versions/import", data={"file": (io.BytesIO(b"x" * 2**15), "m.helios")})
    app.extensions["helios"].store.close()
    assert [large.status_code, body.status_code, fits.status_code] == [413, 413, 422]
    assert large.mimetype == "application/problem+json"


def test_lists_are_paged_filtered_and_sorted(trained, client):
    page = client.get("/api/versions?per_page=1&page=2&sort=version").json
    assert (page["total"], page["pages"], [row["ref"] for row in page["items"]]) == (2, 2, ["powerball@2"])
    assert [row["ref"] for row in client.get("/api/versions?alias=champion").json["items"]] == ["powerball@1"]
    for query in ("sort=sha256", "page=0", "per_page=501", "nonsense=1", "alias=%00"):
        answer = client.get(f"/api/versions?{query}")
        assert answer.status_code == 422 and answer.json["errors"], query


def test_the_first_training_of_a_name_has_its_configuration(app, client):
    client.post("/api/models", json={"name": "mine", "config": {"hidden": 16, "heads": 1, "epochs": 1, "sequence_length": 10, "threads": 1}})
    job = client.post("/api/train", json={"model_name": "mine", "config": {"layers": 2}}).json
    asked = app.extensions["helios"].jobs.get(job["job_id"])["params"]["config"]
    app.extensions["helios"].jobs.cancel(job["job_id"])
    assert (asked["hidden"], asked["layers"], asked["epochs"]) == (16, 2, 1)


def test_versions_are_mixed(trained, client):
    made = client.post("/api/ensembles", json={"name": "both", "members": ["powerball@1", "powerball@2"], "weights": [0.25, 0.75]})
    assert made.status_code == 201 and made.json["ref"] == "both@1"
    assert client.post("/api/predict", json={"model_name": "both", "record": False}).json["version"] == "both@1"
    wrong = [client.post("/api/ensembles", json={"name": "x"} | sent).status_code for sent in (
        {"members": ["powerball@9"]}, {"members": ["both@1"]}, {"members": ["powerball@1"], "weights": [0.5, 0.5]}, {"members": []})]
    assert wrong == [404, 422, 422, 422]
    assert client.delete("/api/models/powerball/versions/2").status_code == 409      # a member
