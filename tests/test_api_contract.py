"""Every endpoint answers what its description says, whatever is sent: the whole of it under schemathesis, all checks."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from serving import served

from helios.draws import simulate, write_draws
from helios.fitting import TrainingConfig
from helios.job_rows import JobError
from helios.places import HISTORY
from helios.server import create_app
from helios.settings import Settings
from helios.trainer import ModelTrainer

TINY = TrainingConfig(hidden=8, layers=1, heads=1, sequence_length=10, epochs=1, threads=1)
KEY = "a-key-that-only-this-test-knows-and-long-enough"
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A server that asks for keys, with a little of everything in its store."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("contract")
        patch.setenv("HELIOS_HOME", str(home))
        patch.setattr("helios.jobs.start_queued", lambda *args, **rest: None)      # jobs are queued and none begins
        patch.setattr("helios.callers.TRIES", [])      # schemathesis tries thousands of keys that are not good
        draws = simulate(n=150, seed=1)
        write_draws(draws, home / HISTORY)
        made = create_app(Settings(rate_limit="", draws_max_age_days=36500, log_level="ERROR", require_keys=True, admin_key=KEY,
                                   gemini_api_key="none", gemini_base_url="http://127.0.0.1:9"))      # without a key its 501 would count as an error
        made.extensions["helios"].parts["stopping"] = stopping = threading.Event()
        stopping.set()      # so that streams end
        store = made.extensions["helios"].store
        for seed in range(2):
            ModelTrainer(store).train(draws, TrainingConfig(**TINY.__dict__ | {"seed": seed}), "powerball")
        yield made
        for row in made.extensions["helios"].jobs.list(limit=1000):
            with suppress(JobError):      # it has ended
                made.extensions["helios"].jobs.cancel(row["job_id"])
        store.close()


def schemathesis(url: str, *options: str) -> subprocess.CompletedProcess:
    st = shutil.which("st", path=Path(sys.executable).parent)
    return subprocess.run([st, "--no-color", "--config-file", CONFIG, "run", f"{url}/api/openapi.json", "--seed", "1",
                           "--header", f"Authorization: Bearer {KEY}", *options],
                          capture_output=True, text=True, timeout=1200)


def test_every_route_is_described(app):
    """Each rule under /api is in the description, with a summary, a role and a shape for its answer."""
    spec = app.test_client().get("/api/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json
    described = {(path, method.upper()) for path, item in spec["paths"].items() for method in item}
    rules = {(rule.rule.replace("<int:", "<").replace("<path:", "<").replace("<", "{").replace(">", "}"), method)
             for rule in app.url_map.iter_rules() if rule.rule.startswith("/api/") for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert rules - described <= {("/api/openapi.json", "GET"), ("/api/docs", "GET"), ("/api/{rest}", "GET")}
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            assert operation["summary"] and "x-helios-role" in operation, (path, method)
            assert any(int(status) < 400 for status in operation["responses"]), (path, method)
    ids = [operation["operationId"] for item in spec["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))
    answers = [answer for item in spec["paths"].values() for operation in item.values() for answer in operation["responses"].values()]
    linked = {link["operationId"] for answer in answers for link in answer.get("links", {}).values()}
    assert linked and linked <= set(ids)
    json.dumps(spec, allow_nan=False)


# Those of the specification, and those that users of the earlier system call
NAMED = """
GET /health | GET /api/health | GET /api/models | POST /api/models {"name": "named"} | POST /api/train {"model_name": "named", "config": {"epochs": 1, "sequence_length": 10, "hidden": 8, "heads": 1}}
GET /api/train/{job} | GET /api/train/status/{job} | GET /api/train/history | POST /api/train/stop/{job} | POST /api/predict | POST /api/models/powerball/predict
POST /api/models/powerball/load | GET /api/models/powerball/info | GET /api/models/powerball/journal | DELETE /api/models/named
GET /api/metacognitive/assessment | POST /api/metacognitive/assessment | GET /api/metacognitive/patterns | POST /api/metacognitive/recommendations
POST /api/decisions/make | GET /api/decisions/history | GET /api/decisions/status | POST /api/decisions/autonomous/start | POST /api/decisions/autonomous/stop
GET /api/goals | POST /api/goals {"name": "better", "metric": "skill_nats", "target": 0.01} | GET /api/memory/stats | POST /api/memory/compact
GET /api/analytics/cross-model | GET /api/analytics/models/powerball/performance | POST /api/analytics/compare | POST /api/analytics/ensemble/recommendations
GET /api/analytics/trends | POST /api/analytics/performance-matrix | GET /api/openapi.json
"""


def test_each_endpoint_of_the_specification_answers(app):
    client, job = app.test_client(), None
    for line in NAMED.strip().replace("\n", " | ").split(" | "):
        method, path, *body = line.split(" ", 2)
        sent = {"json": json.loads(body[0])} if body else {}
        answer = client.open(path.replace("{job}", job or ""), method=method, headers={"Authorization": f"Bearer {KEY}"}, **sent)
        assert answer.status_code in (200, 201, 202), (line, answer.json)
        assert answer.is_json, line
        job = answer.json["job_id"] if path == "/api/train" else job


def test_health_has_the_fields_that_the_specification_shows(app):
    said = app.test_client().get("/health").json
    assert said["status"] == "healthy" and said["service"] == "helios-backend" and said["ml_dependencies"] is True
    assert {"version", "database_status", "timestamp"} <= set(said)
    assert {"memory_store", "model_trainer", "metacognitive_engine"} <= set(said["components"])


@pytest.mark.slow
def test_schemathesis_finds_nothing(app):
    with served(app) as url:
        done = schemathesis(url, "--max-examples", "12")
    assert done.returncode == 0, done.stdout[-20_000:]
