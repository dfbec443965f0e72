"""Jobs over HTTP: list, cancel, resume, logs, events; sweeps, backtests and self-tests to their end; and behind the server in priority."""

import json
import os

import psutil
import pytest
from waiting import until
from working import ended, fields, working

from helios.evidence_jobs import EVENT
from helios.forecasters import OWN
from helios.job_process import job_function
from helios.jobs import KINDS


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, working(tmp_path_factory.mktemp("jobs"), patch, n=200) as made:
        yield made


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def background(app):
    return app.extensions["helios"].jobs


def counting(client, background, job_id, steps=100_000):
    """A job that has begun to count."""
    background.submit("check", {"steps": steps, "step_s": 0.02}, job_id=job_id)
    return until(lambda: (job := client.get(f"/api/jobs/{job_id}").json)["progress"] and job, "the first step")


def test_cancelled_and_taken_up_a_job_tells_what_it_did(client, background):
    job = counting(client, background, "counts")
    assert (job["status"], job["kind"], job["attempt"], job["result"]) == ("running", "check", 1, None)
    assert not {"pid", "host", "token"} & set(job)
    assert client.post("/api/jobs/counts/resume", json={}).status_code == 409
    answer = client.post("/api/jobs/counts/cancel")
    assert answer.status_code == 202 and answer.headers["Location"] == "/api/jobs/counts"
    assert ended(client, "counts")["resumable"] and client.post("/api/jobs/counts/cancel").status_code == 409
    assert fields(client.post("/api/jobs/counts/resume", json={"time_s": -1})) == (422, {"time_s"})
    again = client.post("/api/jobs/counts/resume", json={"time_s": 3000, "memory_mb": 4000}).json
    assert (again["attempt"], again["time_s"], again["memory_mb"]) == (2, 3000, 4000)
    client.post("/api/jobs/counts/cancel")
    ended(client, "counts")
    kinds, after = [], 0
    while True:
        page = client.get(f"/api/jobs/counts/events?after={after}&limit=2").json
        kinds += [event["kind"] for event in page["items"]]
        assert all("folder" not in (event["data"] or {}) for event in page["items"])
        after = page["next_after"]
        if not page["more"]:
            break
    assert (kinds[0], kinds[-1], kinds.count("queued"), kinds.count("ended")) == ("queued", "ended", 2, 2)
    assert client.get(f"/api/jobs/counts/events?after={after}").json == {"items": [], "next_after": after, "more": False}


@pytest.mark.skipif(os.name != "posix", reason="nice values")
def test_a_job_runs_behind_the_server(client, background):
    counting(client, background, "nice")
    process = psutil.Process(background._row("nice")["pid"])
    assert process.nice() >= psutil.Process().nice() + 10 or process.nice() == 19
    client.post("/api/jobs/nice/cancel")
    assert ended(client, "nice")["status"] == "cancelled"


def test_what_a_job_said_is_its_last_lines(client, background):
    background.submit("check", {"steps": 1, "fail": "on purpose"}, job_id="fails")
    job = ended(client, "fails")
    assert job["status"] == "failed" and "on purpose" in job["error_message"] and "Traceback" not in job["error_message"]
    log = client.get("/api/jobs/fails/logs?tail=1").json
    assert log["here"] and log["truncated"] and log["lines"] == ["ValueError: failed as asked: on purpose"]
    assert client.get("/api/jobs/fails/logs").json["lines"][0].startswith("Traceback")
    spec = client.get("/api/openapi.json").json
    assert spec["paths"]["/api/jobs/{job_id}/logs"]["get"]["x-helios-role"] == "operator"


def test_lists_are_paged_filtered_and_sorted(client, background):
    for name in ("one", "two"):
        background.submit("check", {"steps": 0}, job_id=name)
        ended(client, name)
    said = client.get("/api/jobs?kind=check&status=completed&sort=created_at&per_page=1").json
    assert (said["total"], said["pages"], [job["job_id"] for job in said["items"]]) == (2, 2, ["one"])
    assert [job["job_id"] for job in client.get("/api/jobs?kind=check&status=completed&per_page=1").json["items"]] == ["two"]
    assert "result" not in said["items"][0] and client.get("/api/jobs/one").json["result"]["steps"] == 0
    assert client.get("/api/jobs?kind=sweep").json["total"] == 0
    for words, field in (("kind=os:system", "kind"), ("status=1%20OR%201=1", "status"), ("sort=params", "sort"), ("per_page=501", "per_page"), ("tail=1", "tail")):
        assert fields(client.get(f"/api/jobs?{words}")) == (422, {field})


@pytest.mark.parametrize("job_id", ["nobody", "%00", "a%00b", "..", "..%2F..%2Fetc", "con", "'; DROP TABLE jobs; --", "\u0661", "a" * 65, "a b"])
def test_an_unknown_job_is_a_404_whatever_it_is_called(client, job_id):
    for path in ("", "/logs", "/events"):
        assert client.get(f"/api/jobs/{job_id}{path}").status_code in (404, 308), path
    for path in ("cancel", "resume"):
        assert client.post(f"/api/jobs/{job_id}/{path}", json={}).status_code == 404
    for area in ("sweeps", "backtests", "selftest"):
        assert client.get(f"/api/{area}/{job_id}").status_code == 404


@pytest.mark.slow
def test_a_killed_backtest_keeps_its_walks(client, background, monkeypatch):
    """Of two forecasters the second one waits for a file; it does not hear the request to stop, so its process is ended."""
    (background.home / OWN).write_text("""
import time
from pathlib import Path
import numpy as np
from helios.forecasting import Forecaster
class Waits(Forecaster, name="waits"):
    def predict(self, past):
        while not (Path(__file__).parent / "go").exists(): time.sleep(0.01)
        return np.zeros(past.era.whites), np.zeros(past.era.powerballs)
""")
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0.3")
    try:
        begun = client.post("/api/backtests", json={"forecasters": ["hot", "waits"]})
        assert begun.status_code == 202 and begun.json["params"] == {"forecasters": ["hot", "waits", "uniform"], "start": 100, "refit": 250, "alpha": 0.05}
        job_id = begun.json["job_id"]
        until(lambda: (client.get(f"/api/jobs/{job_id}").json["progress"] or {}).get("done") == 1, "the first walk")
        client.post(f"/api/jobs/{job_id}/cancel")
        assert ended(client, job_id)["status"] == "cancelled"
        (background.home / "go").touch()
        client.post(f"/api/jobs/{job_id}/resume", json={})
        done = ended(client, job_id, "backtests")
        assert done["status"] == "completed", done["error_message"]
        events = background.events(job_id)
        begun_again = max(event["id"] for event in events if event["kind"] == "started")
        resumed = next(event["data"] for event in events if event["kind"] == "progress" and event["id"] > begun_again)
        assert resumed["done"] >= 1  # the first walk was not walked again
        assert {row["forecaster"] for row in done["result"]["results"]} == {"hot", "waits", "uniform"} and done["result"]["tried"] == 2
        assert done["result"]["draws"]["simulated"] and done["result"]["verdict"].startswith("SIMULATED")
    finally:
        (background.home / OWN).unlink()
    assert client.get("/api/backtests?status=completed").json["items"][0]["job_id"] == job_id
    again = client.post("/api/backtests", json={"forecasters": ["cold"], "start": 150, "refit": None}).json["job_id"]
    assert ended(client, again, "backtests")["result"]["tried"] == 3  # with what was tried before
    assert len(client.application.extensions["helios"].store.get_enhanced_journal_entries(event_type=EVENT)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_job_has_its_function(kind):
    assert callable(job_function(kind))


@pytest.mark.slow
def test_a_sweep_to_its_winner(client):
    pytest.importorskip("optuna")
    begun = client.post("/api/sweeps", json={"model_name": "swept", "n_trials": 2, "epochs": 1, "space": {"hidden": "16,32"}})
    assert begun.status_code == 202, begun.json
    done = ended(client, begun.json["job_id"], "sweeps")
    assert done["status"] == "completed", done["error_message"]
    assert done["result"]["n_trials"] == 2 and done["result"]["winner"]["model"]["ref"] == "swept@1" and done["percent"] == 100
    assert [job["model_name"] for job in client.get("/api/sweeps").json["items"]] == ["swept"]
    assert client.get("/api/train/history?per_page=500").json["total"] >= 2  # trials are sessions
    assert client.get(f"/api/backtests/{begun.json['job_id']}").status_code == 404


@pytest.mark.slow
def test_a_selftest_to_its_verdict(client):
    tiny = {"sizes": [150], "seeds": 1, "net_seeds": 0, "fair": 1, "fair_net": 0}
    begun = client.post("/api/selftest", json=tiny)
    assert begun.status_code == 202 and begun.json["params"]["plan"]["sizes"] == [150]
    done = ended(client, begun.json["job_id"], "selftest")
    assert done["status"] == "completed" and done["progress"] == {"done": 8, "of": 8}, done["error_message"]
    assert {"cases", "false_alarms", "aims", "missed", "passed", "verdict"} == set(done["result"])


@pytest.mark.parametrize(("path", "body", "field"), [
    ("sweeps", {"space": {"seed": "1,2"}}, "space.seed"),
    ("sweeps", {"space": {"hidden": "16;32"}}, "space.hidden"),
    ("sweeps", {"space": {"hidden": "16,16"}}, "space.hidden"),
    ("sweeps", {"n_trials": 0}, "n_trials"),
    ("sweeps", {"name": "a/b"}, "name"),
    ("sweeps", {"storage": "sqlite:////etc/passwd"}, "storage"),
    ("sweeps", {"executor": "dask://10.0.0.1:8786"}, "executor"),
    ("backtests", {"forecasters": ["nobody"]}, "forecasters"),
    ("backtests", {"forecasters": ["nobody@2"]}, "forecasters"),
    ("backtests", {"forecasters": ["../x"]}, "forecasters.0"),
    ("backtests", {"start": 200}, "start"),
    ("backtests", {"alpha": 0.6}, "alpha"),
    ("backtests", {"forecasters": "hot"}, "forecasters"),
    ("selftest", {"sizes": [3]}, "sizes.0"),
    ("selftest", {"quick": "yes"}, "quick"),
])
def test_what_cannot_be_run_is_refused_by_name_and_starts_nothing(client, path, body, field):
    before = client.get("/api/jobs").json["total"]
    assert fields(client.post(f"/api/{path}", json=body)) == (422, {field})
    assert client.get("/api/jobs").json["total"] == before


def test_bodies_are_json(client):
    for path in ("train", "sweeps", "backtests", "selftest"):
        answers = [client.post(f"/api/{path}", data=data, content_type=kind) for data, kind in (("{", "application/json"), ("a=1", "application/x-www-form-urlencoded"),
                                                                                           (json.dumps([1]), "application/json"), ('{"a": NaN}', "application/json"))]
        assert [answer.status_code for answer in answers] == [400, 415, 422, 400]
