"""Trainings over HTTP: real ones, started, watched, stopped, taken up again, and what is refused by name."""

import pytest
from waiting import until
from working import ended, fields, working

from helios.draws import read_draws
from helios.fitting import config_from
from helios.memory_store import MemoryStore
from helios.places import HISTORY
from helios.trainer import ModelTrainer

TINY = {"hidden": 16, "heads": 4, "sequence_length": 10, "dropout": 0.3, "early_stopping_patience": 0}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, working(tmp_path_factory.mktemp("training"), patch) as made:
        yield made


@pytest.fixture
def client(app):
    return app.test_client()


def start(client, epochs, name="powerball", **more):
    answer = client.post("/api/train", json={"model_name": name, "seed": 3, "config": TINY | {"epochs": epochs}} | more)
    assert answer.status_code == 202, answer.json
    assert answer.headers["Location"] == f"/api/jobs/{answer.json['job_id']}"
    return answer.json


@pytest.mark.slow
def test_a_training_from_its_start_to_its_epochs(app, client):
    begun = start(client, 3, "whole")
    assert begun["model_name"] == "whole" and begun["status"] in ("queued", "running") and begun["config"]["hidden"] == 16
    done = ended(client, begun["job_id"], "train")
    assert (done["status"], done["progress"], done["epoch"], done["error_message"]) == ("completed", 100, 3, None)
    assert done["result"]["model"]["ref"] == "whole@1" and done["result"]["draws"]["simulated"] and done["loss"] > 0
    assert client.get(f"/api/train/status/{begun['job_id']}").json == done
    epochs = client.get(f"/api/train/{begun['job_id']}/logs?per_page=2").json
    assert [row["epoch"] for row in epochs["items"]] == [1, 2] and epochs["total"] == 3
    assert "validation_skill" in epochs["items"][0]["metrics"]
    history = client.get("/api/train/history?model_name=whole&status=completed").json
    assert [(row["job_id"], row["progress"]) for row in history["items"]] == [(begun["job_id"], 100)]
    child = start(client, 1, "child", parent="whole@champion", config={"epochs": 1})
    assert child["parent"] == "whole@1" and child["config"]["hidden"] == 16  # what is not given is the parent's
    assert ended(client, child["job_id"], "train")["result"]["model"]["parent"] == "whole@1"


@pytest.mark.slow
def test_stopped_in_the_middle_and_taken_up_it_ends_in_the_same_weights(app, client, tmp_path):
    job_id = start(client, 60, "stopped")["job_id"]
    waiting = start(client, 1, "waiting")
    assert waiting["status"] == "queued" and waiting["progress"] == 0 and waiting["epoch"] is None
    assert client.get(f"/api/train/{waiting['job_id']}/logs").json["total"] == 0
    assert client.post(f"/api/train/stop/{waiting['job_id']}").json["status"] == "cancelled"  # it had not begun
    until(lambda: (client.get(f"/api/train/{job_id}").json["epoch"] or 0) > 1, "the second epoch")
    answer = client.post(f"/api/train/stop/{job_id}")
    assert answer.status_code == 202 and (answer.json["stop_requested"] or answer.json["status"] == "cancelled")
    stopped = ended(client, job_id, "train")
    assert stopped["status"] == "cancelled" and 0 < stopped["progress"] < 100
    assert client.post(f"/api/train/stop/{job_id}").status_code == 409
    assert client.post(f"/api/jobs/{job_id}/resume", json={}).status_code == 202
    done = ended(client, job_id, "train")
    assert (done["status"], done["attempt"]) == ("completed", 2), done["error_message"]
    with MemoryStore(":memory:") as store:
        draws = read_draws(app.extensions["helios"].jobs.home / HISTORY)[0]
        whole = ModelTrainer(store, tmp_path).train(draws, config_from(TINY | {"epochs": 60, "seed": 3}, "quick"))
    assert done["result"]["model"]["sha256"] == whole.model.file.sha256
    assert client.get(f"/api/train/{job_id}/logs?per_page=500").json["total"] == 60


@pytest.mark.parametrize(("body", "field"), [
    ({}, "model_name"),
    ({"model_name": "my model"}, "model_name"),
    ({"model_name": "../up"}, "model_name"),
    ({"model_name": "mod\u00e8le"}, "model_name"),
    ({"model_name": 5}, "model_name"),
    ({"model_name": "a", "epochs": 5}, "epochs"),
    ({"model_name": "a", "config": {"hiden": 5}}, "config.hiden"),
    ({"model_name": "a", "config": {"epochs": "5"}}, "config.epochs"),
    ({"model_name": "a", "config": {"learning_rate": 7}}, "config.learning_rate"),
    ({"model_name": "a", "config": {"hidden": 30}}, "config"),
    ({"model_name": "a", "config": {"sequence_length": 900}}, "config"),
    ({"model_name": "a", "config": {"validation_split": 0.7, "test_split": 0.7}}, "config"),
    ({"model_name": "a", "preset": "slow"}, "preset"),
    ({"model_name": "a", "seed": 1, "config": {"seed": 2}}, "seed"),
    ({"model_name": "a", "parent": "nobody@3"}, "parent"),
    ({"model_name": "a", "parent": "a@99999999999999999999"}, "parent"),
    ({"model_name": "a", "memory_mb": 0}, "memory_mb"),
])
def test_what_cannot_be_trained_is_refused_by_name_and_starts_nothing(client, body, field):
    before = client.get("/api/jobs").json["total"]
    status, named = fields(client.post("/api/train", json=body))
    assert (status, field in named) == (422, True), named
    assert client.get("/api/jobs").json["total"] == before


@pytest.mark.parametrize("path", ["/api/train/nobody", "/api/train/status/nobody", "/api/train/nobody/logs", "/api/train/%00", "/api/train/" + "a" * 300, "/api/train/..%2fetc"])
def test_an_unknown_training_is_a_404(client, path):
    assert client.get(path).status_code == 404


def test_a_job_of_another_kind_is_no_training(client):
    job_id = client.post("/api/selftest", json={}).json["job_id"]
    client.post(f"/api/jobs/{job_id}/cancel")
    assert [client.get(f"/api/train/{job_id}").status_code, client.post(f"/api/train/stop/{job_id}").status_code] == [404, 404]


def test_a_session_without_a_job_is_told(app, client):
    """As of an earlier system, or of a notebook that keeps its own jobs."""
    store = app.extensions["helios"].store
    store.create_training_session("from a notebook", "old", {"epochs": 2})
    store.add_training_log("from a notebook", 1, 4.5)
    said = client.get("/api/train/from%20a%20notebook").json
    assert (said["status"], said["model_name"], said["attempt"], said["config"]) == ("running", "old", None, {"epochs": 2})
    assert client.get("/api/train/from%20a%20notebook/logs").json["items"][0]["loss"] == 4.5
    assert client.post("/api/train/stop/from%20a%20notebook").status_code == 404


@pytest.mark.parametrize(("words", "field"), [("status=done", "status"), ("sort=password", "sort"), ("model_name=a;drop", "model_name"), ("page=0", "page"), ("x=1", "x")])
def test_a_history_is_asked_for_in_documented_words(client, words, field):
    assert fields(client.get(f"/api/train/history?{words}")) == (422, {field})
