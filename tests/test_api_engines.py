"""The engines over HTTP: they say what the library says, a GET writes nothing, what takes long is kept, bounded or a job."""

import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
from waiting import until

from helios.ab_test import ABTest
from helios.analytics import CrossModelAnalytics, scores
from helios.autonomy import DecisionEngine
from helios.challengers import DecisionError
from helios.decision_actions import context_of, put_context
from helios.decision_jobs import ROUND, Pilot, decision_job, look, start_pilot, stop_pilot
from helios.draws import simulate, write_draws
from helios.fitting import TrainingConfig
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.metacognition import MetacognitiveEngine
from helios.places import HISTORY
from helios.results import Results, plain
from helios.server import create_app
from helios.settings import Settings
from helios.tables import decisions, jobs, schema
from helios.trainer import ModelTrainer

DRAWS = simulate(n=320, seed=4)
TINY = TrainingConfig(hidden=16, layers=1, heads=2, sequence_length=10, epochs=1, learning_rate=0.02, batch_size=64, threads=1)


@pytest.fixture
def app(home):
    home.mkdir()
    write_draws(DRAWS[:300], home / HISTORY)
    made = create_app(Settings())
    yield made
    if pilot := made.extensions["helios"].parts.get("pilot"):
        stop_pilot(pilot)
    made.extensions["helios"].store.close()


@pytest.fixture
def client(app):
    return app.test_client()


def found(app):
    return app.extensions["helios"]


def rows_in(store):
    """How many rows each table has, and what may be altered in place."""
    with store._transaction() as conn:
        return {name: conn.scalar(sa.select(sa.func.count()).select_from(table)) for name, table in schema.tables.items()} | {
            "used": conn.scalar(sa.select(sa.func.sum(schema.tables["knowledge_fragments"].c.usage_count)))}


# Nothing is written by looking


GETS = ["/forecasters", "/ledger", "/ledger/standings", "/ledger/verify", "/ledger/export", "/metacognitive/assessment?model=steps", "/metacognitive/patterns?model=steps",
        "/metacognitive/patterns?model=steps&over=records", "/metacognitive/assessments", "/decisions/history", "/decisions/status", "/decisions/story?everything=true",
        "/decisions/1", "/goals?progress=true", "/goals/reach?progress=true", "/analytics/cross-model", "/analytics/models/steps/performance", "/analytics/trends", "/ab-tests",
        "/ab-tests/duel", "/memory/stats", "/memory/operations", "/knowledge", "/performance-metrics", "/journal", "/events/history", "/predictions", "/exports", "/exports/decisions"]
QUESTIONS = ["/forecasters/steps/forecast", "/metacognitive/recommendations", "/analytics/compare", "/analytics/performance-matrix", "/analytics/ensemble/recommendations"]


def test_looking_writes_nothing(app, client):
    client.post("/api/goals", json={"name": "reach", "metric": "skill_nats", "target": 0.1})
    client.post("/api/ab-tests", json={"name": "duel", "a": "steps", "b": "uniform"})
    client.post("/api/metacognitive/assessment", json={"model": "steps"})
    client.post("/api/decisions/make")
    client.post("/api/ledger", json={"forecaster": "steps"})
    before = rows_in(found(app).store)
    asked = {"models": ["steps", "uniform"]}
    answers = {path: client.get(f"/api{path}").status_code for path in GETS}
    answers |= {path: client.post(f"/api{path}", json={"model": "steps"} if "meta" in path else asked if "analytics" in path else {}).status_code for path in QUESTIONS}
    assert set(answers.values()) == {200}, answers
    assert rows_in(found(app).store) == before


def test_every_change_is_told_to_the_audit_log(app, client):
    from flask import g

    told = []
    app.after_request(lambda answer: [told.extend(g.get("changes", [])), answer][1])
    client.post("/api/goals", json={"name": "reach", "metric": "skill_nats", "target": 0.1})
    client.post("/api/goals/reach/done"), client.delete("/api/goals/reach")
    id = client.post("/api/decisions/make").json["id"]
    client.post(f"/api/decisions/{id}/reject")
    client.post("/api/decisions/autonomous/start"), client.post("/api/decisions/autonomous/stop")
    client.post("/api/ab-tests", json={"name": "duel", "a": "steps", "b": "uniform"}), client.post("/api/ab-tests/duel/stop")
    client.post("/api/ledger", json={"forecaster": "steps"}), client.post("/api/memory/compact")
    assert [change["action"] for change in told] == ["goal.set", "goal.done", "goal.remove", "decision.make", "decision.reject", "autonomous.start", "autonomous.stop",
                                                     "ab_test.start", "ab_test.stop", "ledger.enter", "memory.compact"]
    assert told[1]["before"]["status"] == "open" and told[1]["after"]["status"] == "done"


# Metacognition


def test_an_assessment_is_the_librarys(app, client):
    said = client.get("/api/metacognitive/assessment?model=frequency&today=2026-08-05").json
    with MemoryStore(":memory:") as store:
        from datetime import date

        own = MetacognitiveEngine(store).assess("frequency", DRAWS[:300], today=date(2026, 8, 5)).as_dict()
    assert said == plain(own)


def test_a_post_without_a_body_answers_and_remembers(app, client, home):
    write_draws(DRAWS[:60], home / HISTORY)  # the mixture costs a dozen forecasts of each
    answer = client.post("/api/metacognitive/assessment")
    assert answer.status_code == 200 and answer.json["model"] == "mixture"
    assert client.get("/api/metacognitive/assessments").json["items"][0]["name"] == "mixture"
    client.post("/api/metacognitive/assessment", json={"record": False})
    assert client.get("/api/metacognitive/assessments").json["total"] == 1


def test_a_look_is_taken_once_and_the_memory_is_read_anew(app, client, home, monkeypatch):
    looks, real = [], MetacognitiveEngine._look
    monkeypatch.setattr(MetacognitiveEngine, "_look", lambda self, *rest: [looks.append(rest[0]), real(self, *rest)][1])
    one = client.get("/api/metacognitive/assessment?model=steps").json
    assert client.get("/api/metacognitive/assessment?model=steps").json == one and looks == ["steps"]
    client.post("/api/metacognitive/assessment", json={"model": "steps"})
    client.post("/api/metacognitive/assessment", json={"model": "hot"})
    two = client.get("/api/metacognitive/assessment?model=steps").json
    assert looks == ["steps", "hot"] and [e["ref"] for e in two["same_draws"]] == ["hot"] and two["knowledge"] and one["same_draws"] == []
    write_draws(DRAWS[:310], home / HISTORY)
    assert client.get("/api/metacognitive/assessment?model=steps").json["draws"]["n"] == 310 and looks == ["steps", "hot", "steps"]


def test_the_champion_is_assessed_unless_it_cannot_be(app, client, home):
    write_draws(DRAWS[:60], home / HISTORY)
    ModelTrainer(found(app).store, home).train(DRAWS[:60], TINY, "net")
    found(app).registry.set_alias("net", "champion", 1)
    said = client.get("/api/metacognitive/assessment").json
    assert (said["model"], said["version"], said["notices"][1:]) == ("net@1", 1, [])
    write_draws(simulate(n=60, seed=99), home / HISTORY)  # another history: of these draws it has no test part
    said = client.get("/api/metacognitive/assessment").json
    assert said["model"] == "mixture" and "net@1, cannot be asked" in said["notices"][0]
    assert client.get("/api/metacognitive/assessment?model=net@champion").status_code == 409


@pytest.mark.parametrize(("query", "status"), [("model=nobody", 404), ("model=net@7", 404), ("model=PowerballNet", 422), ("start=299", 200), ("start=300", 409), ("level=0.5", 422),
                                               ("prior=1", 422), ("bias=nan", 422), ("today=2026-02-30", 422), ("model=../x", 422), ("model=%00", 422)])
def test_what_can_be_asked(client, query, status):
    answer = client.get(f"/api/metacognitive/assessment?{query if 'model' in query else query + '&model=uniform'}")
    assert answer.status_code == status and (status == 200 or answer.content_type == "application/problem+json")


def test_patterns_and_recommendations_agree_with_the_assessment(client):
    said = client.get("/api/metacognitive/assessment?model=hot").json
    assert client.get("/api/metacognitive/patterns?model=hot").json["tests"] == said["patterns"]["tests"]
    advice = client.post("/api/metacognitive/recommendations", json={"model": "hot"}).json
    assert advice["strategy"] == said["strategy"] and advice["reasons"] == said["reasons"]


def test_who_comes_while_all_seats_are_taken_is_told_to_come_again(app, client):
    results = found(app).parts["results"] = Results(waiting=0)
    with results._seats:
        answer = client.get("/api/metacognitive/assessment?model=uniform")
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
        assert client.get("/api/health").status_code in (200, 503) and client.get("/api/forecasters").status_code == 200
    assert client.get("/api/metacognitive/assessment?model=uniform").status_code == 200


# Decisions


def option(row, kind):
    return next(o["action"] for o in row["options"] if o["kind"] == kind and not o["blocked"])


def test_a_proposal_says_what_was_asked_for(client):
    row = client.post("/api/decisions/make").json
    assert {"options", "choice", "confidence", "rationale", "reversible", "status"} <= set(row)
    assert all(o["utility"] == pytest.approx(o["parts"]["expected_gain"] - o["parts"]["cost"] - o["parts"]["risk"] + o["parts"]["goal_bonus"]) for o in row["options"])
    assert client.get(f"/api/decisions/{row['id']}").json == row
    summary = client.get("/api/decisions/history?model=powerball").json["items"][0]
    assert summary == {key: row[key] for key in summary} and "state" not in summary


def test_steps_that_do_not_stand(client):
    row = client.post("/api/decisions/make", json={"seed": 3}).json
    at = f"/api/decisions/{row['id']}"
    assert [client.post(f"{at}/{step}").status_code for step in ("execute", "verify", "undo")] == [409] * 3
    assert client.post(f"{at}/approve", json={"choice": "strategy:nobody"}).status_code == 409
    assert client.post(f"{at}/reject", json={"why": "not now"}).json["status"] == "rejected"
    assert client.post(f"{at}/approve").status_code == 409
    assert [client.post(f"/api/decisions/{id}/approve").status_code for id in (99, 2**80, "x", 0)] == [404] * 4
    assert client.post("/api/decisions/make", json={"goal": "none"}).status_code == 404
    assert "not now" in client.get("/api/decisions/story?everything=true").json["story"][-1]


def test_what_only_moves_a_row_is_done_at_once(client):
    row = client.post("/api/decisions/make").json
    at = f"/api/decisions/{row['id']}"
    client.post(f"{at}/approve", json={"choice": option(row, "ab")})
    assert client.post(f"{at}/execute").json["status"] == "executed"
    assert client.get("/api/ab-tests").json["items"][0]["name"] == f"ab-{row['id']}"
    assert client.post(f"{at}/verify").json["waits"] == f"experiment ab-{row['id']} is running"
    assert client.post(f"{at}/undo").json["status"] == "undone"


def test_what_takes_work_is_a_job(app, client):
    row = client.post("/api/decisions/make").json
    at = f"/api/decisions/{row['id']}"
    client.post(f"{at}/approve", json={"choice": option(row, "strategy")})
    answer = client.post(f"{at}/execute")
    assert answer.status_code == 202 and answer.headers["Location"] == f"/api/jobs/{answer.json['job_id']}"
    again = client.post(f"{at}/execute")
    assert again.status_code == 409 or client.get(at).json["status"] == "executed"
    job = found(app).jobs.wait(answer.json["job_id"], 60)
    assert job["status"] == "completed" and job["result"]["status"] == "executed"
    after = client.get(at).json
    assert after["status"] == "executed" and after["outcome"]["cpu_s"] > 0
    assert client.get("/api/decisions/status").json["trial"] == after["choice"].partition(":")[2]
    assert client.post(f"{at}/verify").json["waits"].startswith("0 of")


def test_a_job_says_what_refused_it(app, home):
    class Hand:
        store, params = found(app).store, {"do": "execute", "decision": 5}

    Hand.home = home
    with pytest.raises(DecisionError, match="no decision 5"):
        decision_job(Hand())
    Hand.params = {"do": "dance"}
    with pytest.raises(DecisionError, match="do is 'dance'"):
        decision_job(Hand())


# The autonomous mode


def pilots(app, n=2):
    return [Pilot(found(app).store, found(app).registry, found(app).jobs, lambda: found(app).parts["draws"].get().draws) for _ in range(n)]


def test_off_by_default(app, client):
    assert client.get("/api/decisions/status").json["autonomous"]["on"] is False
    assert [look(pilot) for pilot in pilots(app)] == ["off", "off"]
    assert client.post("/api/decisions/autonomous/start", json={"budget_s": -1}).status_code == 422
    assert client.post("/api/decisions/autonomous/stop").json["autonomous"]["on"] is False


@pytest.mark.slow
def test_rounds_follow_until_nothing_is_left_to_do(app, client, monkeypatch):
    """Real jobs, each a process: it acts or abstains, and then rests until a draw comes."""
    monkeypatch.setattr("helios.decision_jobs.LOOK_S", 3600)
    client.post("/api/decisions/autonomous/start", json={"budget_s": 60, "actions_per_hour": 1})
    (pilot,) = pilots(app, 1)
    for _ in range(6):
        said = look(pilot)
        if said == "idle":
            break
        assert found(app).jobs.wait(said, 60)["status"] == "completed", found(app).jobs.get(said)
    assert said == "idle"
    status = client.get("/api/decisions/status").json
    assert status["autonomous"]["spent_s"] > 0 and status["round"]["number"] <= 4 and client.get("/api/decisions/story").json["story"]
    rows = found(app).store._rows(decisions.select())
    assert sum(row["autonomous"] and row["kind"] != "abstain" for row in rows) <= 1
    client.post("/api/decisions/autonomous/stop")
    assert look(pilot) == "off"


class Noted:
    """Jobs that are never run."""

    def __init__(self, store):
        self.store, self.begun = store, []

    def submit(self, kind, params, job_id, **rest):
        self.begun.append(job_id)
        self.store._insert(jobs, f"job_id {job_id} is taken", job_id=job_id, kind=kind, params=params, status="queued", token=1)
        return {"job_id": job_id}

    def get(self, job_id):
        return self.store._rows(jobs.select().where(jobs.c.job_id == job_id))[0]


@pytest.fixture
def looking(address):
    """Pilots of four workers over one store, on SQLite and PostgreSQL."""
    with MemoryStore(address) as store:
        noted = Noted(store)
        yield store, noted, [Pilot(store, None, noted, lambda: DRAWS) for _ in range(4)]


def test_workers_that_look_at_once_begin_one_round(looking):
    store, noted, workers = looking
    DecisionEngine(store).start_autonomous()
    gate, said = threading.Barrier(4), []

    def run(pilot):
        gate.wait()
        said.append(look(pilot))

    threads = [threading.Thread(target=run, args=(pilot,)) for pilot in workers]
    [t.start() for t in threads], [t.join(60) for t in threads]
    assert len(noted.begun) == 1 and said.count(*noted.begun) == 1
    assert len(said) == 4 and set(said) <= {*noted.begun, "busy", "idle"}   # idle: the round is claimed and its job not yet there


def test_a_pilot_that_dies_between_claim_and_job_holds_nobody_up(looking):
    store, noted, (one, two, *_) = looking
    engine = DecisionEngine(store)
    engine.start_autonomous()
    noted.submit = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        look(one)
    del noted.submit
    assert look(two) == "idle" and noted.begun == []  # the claim stands for an hour, or until something changes
    last = context_of(store, *ROUND)
    put_context(store, *ROUND, last | {"at": "2026-01-01T00:00:00.000000+00:00"})
    assert look(two).startswith("round-2-") and len(noted.begun) == 1
    engine.stop_autonomous()
    engine.start_autonomous()
    assert look(one).startswith("round-3-")  # another session does not wait for the last one's job


def test_a_pilot_outlives_a_store_that_is_away(tmp_path, caplog):
    store = MemoryStore(tmp_path / "helios.db")
    store.close()
    pilot = Pilot(store, None, Noted(store), lambda: DRAWS, every_s=0.01)
    start_pilot(pilot), start_pilot(pilot)
    until(lambda: sum("no round" in r.message for r in caplog.records) >= 2)
    assert pilot.flies and sum(t.name == "helios-pilot" for t in threading.enumerate()) == 1
    stop_pilot(pilot)
    assert not pilot.flies


KILLED = """
import os, sys
from helios.decision_jobs import Pilot, start_pilot
from helios.memory_store import MemoryStore
from helios.jobs import Jobs
from helios.archive import Registry
from helios.draws import load_draws
store = MemoryStore(sys.argv[1])
draws, _ = load_draws()
pilot = Pilot(store, Registry(store), Jobs(store), lambda: draws, every_s=0.05)
from helios.autonomy import DecisionEngine
DecisionEngine(store).start_autonomous(budget_s=60)
start_pilot(pilot)
import time
while not store.get_context("autonomous", "round"): time.sleep(0.01)
os._exit(9)
"""


@pytest.mark.slow
def test_the_mode_goes_on_after_the_server_was_killed(home):
    home.mkdir()
    write_draws(DRAWS[:300], home / HISTORY)
    assert subprocess.run([sys.executable, "-c", KILLED, str(home / "helios_memory.db")], timeout=60).returncode == 9
    app = create_app(Settings())
    status = app.test_client().get("/api/decisions/status").json
    assert status["autonomous"]["on"] and status["round"]["number"] == 1
    rows = found(app).store._rows(jobs.select().where(jobs.c.job_id == status["round"]["job_id"]))
    if rows:  # the job outlives who began it
        assert Jobs(found(app).store).wait(rows[0]["job_id"], 60)["status"] == "completed"
    put_context(found(app).store, *ROUND, context_of(found(app).store, *ROUND) | {"seen": []})
    (pilot,) = pilots(app, 1)
    assert look(pilot).startswith("round-2-")
    app.test_client().post("/api/decisions/autonomous/stop")
    found(app).jobs.wait(context_of(found(app).store, *ROUND)["job_id"], 60)
    found(app).store.close()


# Goals


def test_goals(client):
    asked = {"name": "skill by spring", "metric": "skill_nats", "target": 0.01, "deadline": "2027-03-01", "priority": 2}
    made = client.post("/api/goals", json=asked)
    assert made.status_code == 201 and client.get(made.headers["Location"]).json == made.json
    assert client.post("/api/goals", json=asked).status_code == 409
    client.post("/api/goals", json={"name": "tidy", "metric": "old_rows", "target": 0, "priority": 1, "model": "other"})
    assert [row["name"] for row in client.get("/api/goals").json["items"]] == ["tidy", "skill by spring"]
    assert [row["name"] for row in client.get("/api/goals?model=powerball&progress=true").json["items"]] == ["skill by spring"]
    assert client.get("/api/goals/skill by spring?progress=true").json["progress"] == {"value": 0.0, "reached": False, "missed": False, "weight": pytest.approx(8 / 9)}
    row = client.post("/api/decisions/make", json={"goal": "tidy"}).json
    assert row["model_name"] == "other" and [goal["name"] for goal in row["state"]["goals"]] == ["tidy", "skill by spring"]
    assert client.post("/api/goals/tidy/done").json["status"] == "done" and client.get("/api/goals?status=open").json["total"] == 1
    assert client.delete("/api/goals/tidy").status_code == 200
    assert [client.get(f"/api/goals/{name}").status_code for name in ("tidy", "a%00b", "%ff", "x" * 5000)] == [404] * 4


@pytest.mark.parametrize("bad", [{"metric": "luck"}, {"target": 1e300}, {"target": "much"}, {"deadline": "2026-02-30"}, {"deadline": 5}, {"priority": 0}, {"priority": 10}, {"name": ""},
                                 {"name": " x"}, {"name": "x" * 101}, {"name": "a/b"}, {"name": "\ud800"}, {"model": "a b"}, {"extra": 1}])
def test_what_is_no_goal(client, bad):
    assert client.post("/api/goals", json={"name": "x", "metric": "skill_nats", "target": 0.1} | bad).status_code == 422


# Analytics


def test_a_comparison_is_the_librarys(app, client):
    names = ["uniform", "steps", "hot"]
    said = client.post("/api/analytics/compare", json={"models": names, "start": 200, "seed": 3}).json
    own = plain(CrossModelAnalytics(found(app).store).compare(names, DRAWS[:300], 200, seed=3).as_dict())
    timed = {"seconds", "nats_per_s", "nats_per_s_low", "nats_per_s_high"}

    def untimed(rows):
        return [{key: value for key, value in row.items() if key not in timed} for row in rows]

    assert untimed(said.pop("matrix")) == untimed(own.pop("matrix")) and said == own
    matrix = client.post("/api/analytics/performance-matrix", json={"models": names, "start": str(DRAWS.draw_date[200].date())}).json
    assert (matrix["names"], matrix["n"], matrix["periods"]) == (names, 100, said["periods"])
    assert client.post("/api/analytics/ensemble/recommendations", json={"models": names, "start": 200}).json["names"][-1] == "uniform"


def test_scores_are_made_once_for_all_questions(client, monkeypatch):
    made, real = [], scores
    monkeypatch.setattr("helios.analytics_api.scores", lambda *rest: [made.append(rest[0]), real(*rest)][1])
    asked = {"models": ["uniform", "steps"]}
    for path in ("compare", "performance-matrix", "ensemble/recommendations", "compare"):
        assert client.post(f"/api/analytics/{path}", json=asked).status_code == 200
    assert made == [["uniform", "steps"]]


def test_versions_are_compared_on_draws_that_they_have_not_seen(app, client, home):
    trainer = ModelTrainer(found(app).store, home)
    for seed in (1, 2):
        trainer.train(DRAWS[:300], TrainingConfig(**vars(TINY) | {"seed": seed}), "net")
    found(app).registry.set_alias("net", "champion", 2)
    said = client.post("/api/analytics/compare", json={"models": ["net", "net@1", "steps"]}).json
    assert said["names"] == ["net@2", "net@1", "steps"] and said["n"] == 58
    assert client.post("/api/analytics/compare", json={"models": ["net@1"], "start": 5}).status_code == 409
    assert client.post("/api/analytics/compare", json={"models": ["net", "net@2"]}).status_code == 409
    glance = client.get("/api/analytics/cross-model").json
    assert (glance["n_versions"], [row["ref"] for row in glance["versions"]]) == (2, ["net@2", "net@1"])
    known = client.get("/api/analytics/models/net/performance").json
    assert len(known["versions"]) == 2 and {series["metric"] for series in known["metrics"]} >= {"skill_nats"}
    assert client.get("/api/analytics/trends?model=net").json["series"] == known["metrics"]
    assert [client.get(f"/api/analytics/models/{name}/performance").status_code for name in ("nobody", "a%00b", "..", "a b")] == [404] * 4


def test_an_ab_test(app, client, home):
    day = str(DRAWS.draw_date[289].date())
    made = client.post("/api/ab-tests", json={"name": "duel", "a": "frequency", "b": "uniform", "since": day})
    assert made.status_code == 201 and client.get(made.headers["Location"]).json == made.json
    assert client.post("/api/ab-tests/duel/observe").json["n"] == 10
    write_draws(DRAWS[:320], home / HISTORY)
    state = client.post("/api/ab-tests/duel/observe").json
    assert state["n"] == 30 and state == plain(ABTest(found(app).store).get("duel").as_dict())
    assert [client.post("/api/ab-tests", json={"name": name, "a": "steps", "b": b}).status_code for name, b in (("duel", "hot"), ("self", "steps"), ("x", "nobody"), ("y", "PowerballNet"))] == [409, 409, 404, 422]
    assert client.post("/api/ab-tests/duel/stop", json={"why": "enough"}).json["status"] == "stopped"
    assert client.get("/api/ab-tests?status=running").json["total"] == 0
    assert [client.get(f"/api/ab-tests/{name}").status_code for name in ("none", "a%00b")] == [404, 404]
