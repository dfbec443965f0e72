"""The DecisionEngine: a decision's life on every database, two at once, crashes, undo, real trainings, and the autonomous mode."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from waiting import until

import helios.challengers
from helios.ab_test import ABTest
from helios.archive import Registry
from helios.autonomy import DecisionEngine, rehearse, tally
from helios.challengers import Challengers, DecisionError
from helios.decision_actions import AUTONOMOUS, KINDS, champion_of, context_of, put_context, trial_of
from helios.draws import simulate
from helios.fitting import PRESETS
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.net import PowerballNet
from helios.tables import decisions as table
from helios.trained_model import draws_fingerprint
from helios.utility import weigh
from helios.weights import save_model

FOLLOWING = simulate(n=420, seed=1, follow=0.3)
FAIR = simulate(n=420, seed=2)


@pytest.fixture
def engine():
    with MemoryStore(":memory:") as store:
        yield DecisionEngine(store)


def done(engine, draws, action):
    """A decision for an action, proposed, approved and executed."""
    return engine.execute(engine.approve(engine.propose(draws)["id"], action)["id"], draws)


def option(row, action):
    return next(o for o in row["options"] if o["action"] == action)


def test_a_decision_from_proposal_to_undoing(address):
    """The same on SQLite in memory, in a file, and on PostgreSQL."""
    with MemoryStore(address) as store:
        engine = DecisionEngine(store, seed=3)
        row = engine.propose(FOLLOWING[:400])
        assert set(row) >= {"id", "kind", "options", "choice", "confidence", "rationale", "reversible", "status", "expected"}
        assert all(set(o["parts"]) == {"expected_gain", "probability", "cost", "risk", "goal_bonus"} for o in row["options"])
        for o in row["options"]:
            part = o["parts"]
            assert o["utility"] == pytest.approx(part["expected_gain"] - part["cost"] - part["risk"] + part["goal_bonus"])
        engine.approve(row["id"], "strategy:steps")
        tried = engine.execute(row["id"], FOLLOWING[:400])
        history = Challengers(store, FOLLOWING).history
        assert trial_of(store, history)["name"] == "steps" and tried["outcome"]["cpu_s"] > 0
        checked = engine.verify(row["id"], FOLLOWING[:410])
        assert checked["status"] == "verified" and checked["outcome"]["draws"] == 10 and trial_of(store, history) is None

        promoted = done(engine, FOLLOWING[:410], "promote:steps")
        assert champion_of(store, history)["name"] == "steps" and promoted["kind"] == "promote"
        assert engine.verify(promoted["id"], FOLLOWING[:412])["waits"] == "2 of 5 draws have come"
        assert engine.undo(promoted["id"])["status"] == "undone"
        assert context_of(store, "forecaster", "champion") is None  # exactly what was before: nothing
        assert [r["id"] for r in engine.history()] == [promoted["id"], row["id"]]
        assert engine.status()["decisions"] == {"undone": 1, "verified": 1}
        engine.start_autonomous()
        assert engine.step(FOLLOWING[:415])["did"] == "acted" and len(engine.story()) == 3 < len(engine.story(everything=True))


def test_the_same_state_and_seed_give_the_same_decision():
    rows = []
    for _ in range(2):
        with MemoryStore(":memory:") as store:
            engine = DecisionEngine(store, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC), seed=7)
            rows.append([engine.propose(FAIR) for _ in range(3)])
    keep = ("choice", "confidence", "options", "rationale")
    assert [[r[k] for k in keep] for r in rows[0]] == [[r[k] for k in keep] for r in rows[1]]
    state = rows[0][0]["state"]  # a decision can be worked out again from its row
    options, choice, confidence = weigh(state)
    assert (options[choice].action, confidence) == (rows[0][0]["choice"], rows[0][0]["confidence"])


def test_nobody_promotes_on_luck(engine):
    """Neither the engine nor a person: an option behind the gate cannot be approved, and a gate that closes stops the act."""
    done(engine, FAIR[:400], "strategy:frequency")
    row = engine.propose(FAIR[:400])
    assert not any(o["kind"] == "promote" for o in row["options"])
    with pytest.raises(DecisionError, match="has no option 'promote:frequency'"):
        engine.approve(row["id"], "promote:frequency")
    with engine.store._transaction("write") as conn:  # a row that was tampered with
        conn.execute(table.update().where(table.c.id == row["id"]).values(choice="promote:frequency", kind="promote", status="approved"))
    with pytest.raises(DecisionError, match="it is not promoted on luck"):
        engine.execute(row["id"], FAIR[:400])
    assert engine.get(row["id"])["status"] == "failed" and context_of(engine.store, "forecaster", "champion") is None


def test_a_blocked_option_cannot_be_approved(engine):
    done(engine, FOLLOWING[:400], "strategy:steps")
    row = engine.propose(FOLLOWING[:400])
    assert row["choice"] == "promote:steps" and option(row, "strategy:repeats")["blocked"] == "steps is on trial"
    with pytest.raises(DecisionError, match="cannot be chosen: steps is on trial"):
        engine.approve(row["id"], "strategy:repeats")


def test_undo_refuses_where_somebody_moved_it_since(engine):
    done(engine, FOLLOWING[:400], "strategy:steps")
    promoted = done(engine, FOLLOWING[:400], "promote:steps")
    now = context_of(engine.store, "forecaster", "champion")
    put_context(engine.store, "forecaster", "champion", now | {"name": "frequency"})
    with pytest.raises(DecisionError, match="champion was moved since"):
        engine.undo(promoted["id"])
    assert engine.get(promoted["id"])["status"] == "executed"
    put_context(engine.store, "forecaster", "champion", now)
    engine.undo(promoted["id"])


def test_a_champion_that_fails_is_rolled_back_on_evidence():
    """The powerball follows for 300 draws and then no more: what was promoted loses, and uniform earns its place back."""
    followed, fair = simulate(n=300, seed=1, follow=0.5), simulate(n=700, seed=3)
    draws = fair.assign(powerball=np.r_[followed.powerball, fair.powerball[300:]])
    draws.attrs["simulated"] = True
    engine, rounds = rehearse(draws, rounds=25, arriving=16)
    acts = [each["decision"]["choice"] for each in rounds if each["did"] == "acted"]
    assert acts.index("promote:steps") < acts.index("rollback:uniform") and engine.status()["champion"] == "uniform"


def test_of_two_who_execute_one_does(tmp_path, monkeypatch):
    with MemoryStore(tmp_path / "helios.db") as store:
        engine, calls, answers = DecisionEngine(store), [], []
        real = helios.challengers.scores
        monkeypatch.setattr(helios.challengers, "scores", lambda name, *rest: (calls.append(name), real(name, *rest))[1])
        id = engine.approve(engine.propose(FAIR)["id"], "strategy:steps")["id"]

        def execute():
            try:
                answers.append(DecisionEngine(store).execute(id, FAIR)["status"])
            except DecisionError as e:
                answers.append(str(e))

        threads = [threading.Thread(target=execute) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.count("executed") == 1 and calls == ["steps"]
        assert all("not approved" in answer for answer in answers if answer != "executed")


CRASH = """
import os, sys
import helios.challengers
from helios.autonomy import DecisionEngine
from helios.draws import simulate
from helios.memory_store import MemoryStore
helios.challengers.scores = lambda *rest: os._exit(9)
with MemoryStore(sys.argv[1]) as store:
    engine = DecisionEngine(store)
    draws = simulate(n=420, seed=2)
    engine.start_autonomous(budget_s=50)
    engine._charge(2.5)
    engine.execute(engine.approve(engine.propose(draws)["id"], "strategy:steps")["id"], draws)
"""


def test_what_a_crash_left_is_settled_and_what_was_spent_stays_spent(tmp_path):
    assert subprocess.run([sys.executable, "-c", CRASH, str(tmp_path / "helios.db")]).returncode == 9
    with MemoryStore(tmp_path / "helios.db") as store:
        engine = DecisionEngine(store)
        (left,) = engine.history("executing")
        mode = engine.status()["autonomous"]
        assert mode["on"] and mode["spent_s"] == 2.5
        assert [row["status"] for row in engine.recover()] == ["failed"]
        assert "its process ended" in engine.get(left["id"])["outcome"]["error"] and trial_of(store, Challengers(store, FAIR).history) is None
        found = engine.step(FAIR)  # it goes on from the row
        assert found["did"] in ("acted", "abstained") and engine.status()["autonomous"]["spent_s"] > 2.5


def test_a_decision_that_another_process_executes_is_left_alone(engine):
    row = engine.approve(engine.propose(FAIR)["id"], "strategy:steps")
    from helios.decisions import _me

    engine._set(row["id"], ("approved",), "executing", undo={"by": _me()})
    assert engine.recover() == [] and engine.get(row["id"])["status"] == "executing"


STOP = """
import sys
from helios.autonomy import DecisionEngine
from helios.memory_store import MemoryStore
with MemoryStore(sys.argv[1]) as store: DecisionEngine(store).stop_autonomous("another process said so")
"""


def test_one_call_from_another_process_stops_it_before_the_next_act(tmp_path, monkeypatch):
    """Also between the proposal and its act, which is the last moment at which it can."""
    with MemoryStore(tmp_path / "helios.db") as store:
        engine = DecisionEngine(store)
        engine.start_autonomous()
        real = DecisionEngine.propose

        def proposed(self, *given, **how):
            row = real(self, *given, **how)
            subprocess.run([sys.executable, "-c", STOP, str(tmp_path / "helios.db")], check=True)
            return row

        monkeypatch.setattr(DecisionEngine, "propose", proposed)
        found = engine.step(FAIR)
        assert found["did"] == "off" and found["decision"]["status"] == "rejected"
        assert engine._acted() == [] and engine.step(FAIR)["did"] == "off"
        assert engine.status()["autonomous"]["why"] == "another process said so"
        assert engine.status()["autonomous"]["spent_s"] > 0  # charging did not turn it on again


def test_alone_it_does_nothing_irreversible_and_raises_no_budget(engine):
    """Whatever is in the state: over many seeds no such option is chosen, while a person is offered it."""
    engine.start_autonomous(budget_s=5)
    state = engine.state(FAIR) | {"behind": 50, "old_rows": 10**7}
    state["trainings"] = {"quick": state["arms"]["steps"] | {"mean": 1.0, "weight": 1e4, "last_s": 60.0}}
    for seed in range(40):
        options, choice, _ = weigh(state | {"seed": seed}, alone=True)
        assert KINDS[options[choice].kind].reversible and KINDS[options[choice].kind].alone
    assert {o.kind for o in options if "person's approval" in o.blocked} == {"fetch", "compact", "budget"}
    open_ = {o.kind for o in weigh(state | {"budget_left_s": 5.0})[0] if not o.blocked}
    assert {"fetch", "compact", "budget", "retrain"} <= open_


def test_the_budget_ends_the_mode(engine):
    engine.start_autonomous(budget_s=0.001)
    seen = [engine.step(FAIR[: 400 + 5 * k])["did"] for k in range(3)]
    assert seen[-1] in ("off", "spent") and not engine.status()["autonomous"]["on"]
    assert engine.status()["autonomous"]["why"] == "its budget is spent"
    engine.start_autonomous(budget_s=10)  # a new grant is a person's act
    assert engine.status()["autonomous"]["spent_s"] == 0.0


def test_actions_an_hour_are_counted_over_restarts(tmp_path):
    clock, acts = [datetime(2026, 8, 1, 14, tzinfo=UTC)], []
    for minute in range(0, 120, 10):
        clock[0] = datetime(2026, 8, 1, 14, tzinfo=UTC) + timedelta(minutes=minute)
        with MemoryStore(tmp_path / "helios.db") as store:
            engine = DecisionEngine(store, clock=lambda: clock[0], seed=5)
            if minute == 0:
                engine.start_autonomous(actions_per_hour=1)
            if engine.step(FAIR[: 360 + minute // 2])["did"] == "acted":
                acts.append(minute)
    assert acts and all(later - earlier >= 60 for earlier, later in zip(acts, acts[1:], strict=False))


def test_without_news_it_does_not_ask_again(engine):
    frugal = DecisionEngine(engine.store, prices={"change": 100, "cpu_s": 10})
    frugal.start_autonomous()
    assert [frugal.step(FAIR)["did"] for _ in range(3)] == ["abstained", "idle", "idle"]
    assert len(frugal.history()) == 1


def version(registry, draws, seed=0):
    """A registered version that was trained, so it says, on these draws."""
    torch.manual_seed(seed)
    config = asdict(PRESETS["quick"]) | {"hidden": 16, "sequence_length": 10}
    number, path = registry.next_file("powerball")
    net = PowerballNet(hidden=16, layers=1, heads=4, sequence_length=10)
    about = {"name": "powerball", "version": number, "era": draws.era.iloc[-1], "shrink": {"white": 0.0, "powerball": 0.0}}
    return registry.register(save_model(net, path, about), name="powerball", version=number, config=config, data=draws_fingerprint(draws))


def test_a_version_that_is_promoted_takes_the_alias_along(tmp_path, monkeypatch):
    real = helios.challengers.scores
    gain = 0.1  # as if the second version saw something
    monkeypatch.setattr(helios.challengers, "scores", lambda name, draws, start, registry=None: (
        np.full(len(draws) - start, gain) if name == "powerball@2" else real(name, draws, start, registry)))
    with MemoryStore(tmp_path / "helios.db") as store:
        registry = Registry(store, tmp_path)
        for seed in (1, 2):
            version(registry, FAIR[:300], seed)
        engine = DecisionEngine(store, registry)
        assert "powerball@1" in engine.state(FAIR)["arms"]
        record, _ = Challengers(store, FAIR, registry).catch_up("powerball@1")
        assert (record.start, record.upto) == (300 - round(290 * 0.2), 420) and not record.skills.any()  # shrunk to uniform
        done(engine, FAIR, "strategy:powerball@2")
        promoted = done(engine, FAIR, "promote:powerball@2")
        assert registry.aliases("powerball") == {"champion": 2}
        assert engine.state(FAIR)["champion"]["name"] == "powerball@2"

        registry.set_alias("powerball", "champion", 1, "somebody else")
        with pytest.raises(DecisionError, match="alias powerball was moved since"):
            engine.undo(promoted["id"])
        registry.set_alias("powerball", "champion", 2)
        engine.undo(promoted["id"])
        assert registry.aliases("powerball") == {"champion": 1} and context_of(store, "forecaster", "champion") is None


def test_a_version_of_another_history_is_no_strategy(tmp_path):
    with MemoryStore(tmp_path / "helios.db") as store:
        registry = Registry(store, tmp_path)
        version(registry, FOLLOWING[:300])
        assert "powerball@1" not in DecisionEngine(store, registry).state(FAIR)["arms"]
        with pytest.raises(DecisionError, match="it was not trained on this history"):
            helios.challengers.scores("powerball@1", FAIR, 350, registry)


OWN = """
import numpy as np
from helios.forecasters import Forecaster
class Lucky(Forecaster, name="lucky"):
    about = "made with the past in view"
    def logits(self, past, start):
        n, white = len(past) + 1 - start, np.zeros((len(past) + 1 - start, past.era.whites))
        white[:, {balls}] = 0.25
        return white, np.zeros((n, past.era.powerballs))
"""


def test_a_forecaster_made_with_the_past_in_view_is_judged_on_coming_draws(home):
    """Its balls are those that came most often; on the past it would be the champion at once."""
    counts = np.bincount(FAIR.iloc[:400].filter(like="white_").to_numpy().ravel(), minlength=70)
    home.mkdir(parents=True)
    (home / "forecasters.py").write_text(OWN.format(balls=[int(ball) - 1 for ball in np.argsort(-counts)[:12]]))
    try:
        with MemoryStore(":memory:") as store:
            engine, here = DecisionEngine(store), Challengers(store, FAIR[:400])
            assert helios.challengers.scores("lucky", FAIR[:400], 200).sum() > 2
            done(engine, FAIR[:400], "strategy:lucky")
            assert (here.record("lucky").start, here.record("lucky").upto) == (400, 400)
            assert not engine.state(FAIR[:400])["arms"]["lucky"]["open"]
            assert engine.verify(1, FAIR)["outcome"]["draws"] == 20 == len(here.record("lucky").skills)
    finally:
        helios.challengers.FORECASTERS.pop("lucky", None)


@pytest.mark.slow
def test_a_training_is_a_real_job_and_can_be_undone(home):
    """Parameters that were adjusted are used by it; its version and its alias go when it is undone."""
    with MemoryStore(home / "helios.db") as store:
        registry, jobs = Registry(store, home), Jobs(store, home)
        engine = DecisionEngine(store, registry, jobs, home)
        for name, value in {"epochs": 1, "hidden": 16, "heads": 2, "sequence_length": 10}.items():
            put_context(store, "parameter", name, {"value": value})
        draws = FAIR[:120]
        row = done(engine, draws, "retrain:quick")
        job = jobs.wait(row["outcome"]["job_id"], 60)
        assert job["status"] == "completed" and job["params"]["config"]["epochs"] == 1
        assert option(engine.propose(draws), "retrain:quick")["blocked"] == f"decision {row['id']} is training"
        checked = engine.verify(row["id"], draws)
        assert checked["status"] == "verified" and checked["outcome"]["n"] == 22 and checked["outcome"]["cpu_s"] > 0
        assert registry.aliases("powerball") == {"champion": 1}
        state = engine.state(draws)
        assert state["trainings"]["quick"]["last_s"] == checked["outcome"]["cpu_s"] and state["trainings"]["quick"]["weight"] > 25

        adjusted = done(engine, draws, next(iter(state["adjustments"])).join(("adjust:", "")))
        assert context_of(store, "parameter", "learning_rate")["value"] == 0.001
        assert engine.verify(adjusted["id"], draws)["waits"] == "no training has used it yet"
        engine.undo(adjusted["id"])
        assert context_of(store, "parameter", "learning_rate") is None

        engine.undo(row["id"])
        assert registry.versions("powerball") == [] and registry.aliases("powerball") == {}


def test_a_training_that_fails_is_said_and_charged(home):
    with MemoryStore(home / "helios.db") as store:
        jobs = Jobs(store, home)
        engine = DecisionEngine(store, Registry(store, home), jobs, home)
        for name, value in {"epochs": 100_000, "early_stopping_patience": 0}.items():
            put_context(store, "parameter", name, {"value": value})
        row = done(engine, FAIR[:150], "retrain:quick")
        until(lambda: jobs.get(row["outcome"]["job_id"])["status"] == "running", "the job to begin")
        with pytest.raises(DecisionError, match="only what was executed"):
            engine.verify(engine.reject(engine.propose(FAIR[:150])["id"])["id"], FAIR[:150])
        jobs.cancel(row["outcome"]["job_id"])
        jobs.wait(row["outcome"]["job_id"], 60)
        failed = engine.verify(row["id"], FAIR[:150])
        assert failed["status"] == "failed" and "cancelled" in failed["outcome"]["error"] and failed["outcome"]["cpu_s"] > 0
        assert option(engine.propose(FAIR[:150]), "retrain:quick")["blocked"].startswith("it failed on these draws")


def test_a_comparison_is_a_row_that_undoing_cancels(engine):
    row = done(engine, FAIR, option(engine.propose(FAIR), "ab:frequency")["action"])
    kept, name = ABTest(engine.store), f"ab-{row['id']}"
    state = kept.get(name)
    assert (state.a, state.b, state.status, kept.config(name)["since"]) == ("frequency", "uniform", "running", str(FAIR.draw_date.iloc[-1].date()))
    assert engine.verify(row["id"], FAIR)["waits"] == f"experiment {name} is running"
    kept.observe(name, ["2030-01-02"], [0.1], [0.0], [-1.0], [1.0])  # those who take in its draws can
    engine.undo(row["id"])
    assert kept.get(name).status == "stopped" and kept.get(name).n == 1


def test_what_is_irreversible_is_not_undone(engine):
    engine.store.log_event("x")
    row = engine.propose(FAIR)
    with engine.store._transaction("write") as conn:
        conn.execute(table.update().where(table.c.id == row["id"]).values(choice="compact", kind="compact", reversible=False, status="approved"))
    done_ = engine.execute(row["id"], FAIR)
    assert "archived_journal_entries" in done_["outcome"]["counts"]
    with pytest.raises(DecisionError, match="is irreversible"):
        engine.undo(row["id"])


def test_goals_add_to_what_may_reach_them(engine):
    before = option(engine.propose(FAIR), "strategy:steps")["parts"]["goal_bonus"]
    engine.goals.add("see", "skill_nats", 0.02, priority=1)
    assert before == 0.0 < option(engine.propose(FAIR), "strategy:steps")["parts"]["goal_bonus"]
    assert engine.state(FAIR)["goals"][0] | {"weight": None} == {
        "name": "see", "metric": "skill_nats", "target": 0.02, "value": 0.0, "reached": False, "missed": False, "weight": None}


def test_the_story_can_be_read_back():
    engine, _ = rehearse(FOLLOWING, rounds=25, arriving=4)
    told = engine.story()
    assert told == sorted(told, key=lambda line: line[:16]) and told[0].endswith("actions an hour.")
    everything = " ".join(told)
    for words in ("Try steps", "is executed: try steps", "is verified: try steps", "Make steps the champion", "is executed: make steps", "abstained", "the rehearsal is over"):
        assert words in everything
    json.dumps(engine.history(limit=100))


def test_records_of_histories_do_not_mix(engine):
    done(engine, FOLLOWING[:400], "strategy:steps")
    done(engine, FOLLOWING[:400], "promote:steps")
    other = engine.state(FAIR)
    assert other["champion"]["name"] == "uniform" and other["arms"]["steps"]["draws"] == 0 and other["trial"] is None
    assert context_of(engine.store, *AUTONOMOUS) is None


@pytest.mark.slow
def test_on_fair_draws_it_ends_up_doing_nothing():
    """200 decisions on each of two fair histories.

    A promotion has a chance of at most 5% a history, so one in both at most 0.3%.
    """
    found = [tally(rehearse(simulate(n=1300, seed=100 + seed), seed=seed)[1]) for seed in range(2)]
    assert sum(bool(each["promoted"]) for each in found) <= 1
    assert np.mean([each["abstained_last_50"] for each in found]) >= 0.95
    assert min(each["abstained_last_50"] for each in found) >= 0.9
    assert np.mean([each["cpu_s_by_quarter"][-1] for each in found]) < 0.5 * np.mean([each["cpu_s_by_quarter"][0] for each in found])


@pytest.mark.slow
@pytest.mark.parametrize(("bias", "sees"), [
    ({"follow": 0.1}, {"steps", "markov", "mixture"}), ({"white_weights": {7: 2.5}}, {"frequency", "recency", "mixture"})])
def test_where_something_is_planted_it_finds_and_promotes_what_sees_it(bias, sees):
    engine, done_ = rehearse(simulate(n=1300, seed=100, **bias))
    assert engine.status()["champion"] in sees and set(tally(done_)["promoted"]) <= sees
