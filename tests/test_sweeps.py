"""Sweeps: the same on one process, on two and on Dask, with workers and coordinators killed; nothing leaks from the test part."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna")

from click.testing import CliRunner
from test_executor import cluster, eventually

import helios.studies
from helios.draws import simulate, write_draws
from helios.executor import get_executor
from helios.fitting import TrainingConfig, make_windows
from helios.job_context import JobContext
from helios.job_rows import JobError
from helios.jobs import Jobs
from helios.legs import material
from helios.memory_store import MemoryStore
from helios.registry import Registry
from helios.search import COMPLETE, FAILED, PRUNED, Plan, SweepError
from helios.studies import Study
from helios.sweep_commands import sweep as sweep_command
from helios.sweeps import SweepResult, SweepStopped, run_plan, submit_sweep, sweep, sweep_here
from helios.tables import jobs as table

TINY = TrainingConfig(hidden=16, layers=1, heads=2, sequence_length=10, epochs=10, learning_rate=0.01, batch_size=64)
PLAN = Plan({"learning_rate": "1e-3..3e-2:log", "dropout": "0.1,0.4", "weight_decay": "0.01..1:log"}, 6, TINY, batch=4)
SCRIPT = """
import sys
from test_sweeps import DRAWS, PLAN, run_plan
from pathlib import Path
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    def said(trial): print(trial.number, flush=True)
    run_plan(DRAWS, PLAN, "local", "killed", f"sqlite:///{folder}/study.db", 1, folder=folder, on_trial=said)
    print("done", flush=True)
"""


DRAWS = simulate(n=400, seed=3, white_weights={3: 6, 17: 6, 29: 6})


def outcome(found: SweepResult) -> list:
    """Everything that must be equal: settings, scores at each rung, ends, losses of each epoch."""
    return [(t.number, t.params, t.values, t.state, [r["loss"] for r in t.facts.get("reports", [])]) for t in found.trials]


@pytest.fixture(scope="module")
def reference() -> list:
    return outcome(run_plan(DRAWS, PLAN, "local", "reference", None, 1))


@pytest.mark.slow
def test_what_a_sweep_finds(reference):
    states = [state for _, _, _, state, _ in reference]
    assert states.count(COMPLETE) + states.count(PRUNED) == 6 and 1 <= states.count(COMPLETE) <= 4
    for _, params, values, state, losses in reference:
        assert 1e-3 <= params["learning_rate"] <= 3e-2 and params["dropout"] in (0.1, 0.4)
        assert [*values] == [5, 10][:1 if state == PRUNED else 2] and [*values.values()] == sorted(values.values())
        assert len(losses) == max(values) + 1
    first = {n: values[5] for n, _, values, _, _ in reference[:4]}
    went_on = {n for n, _, values, _, _ in reference[:4] if 10 in values}
    assert min(first[n] for n in went_on) >= max(first[n] for n in set(first) - went_on)


@pytest.mark.slow
def test_the_number_of_workers_and_the_machine_change_nothing_nor_do_killed_workers(reference, tmp_path):
    pytest.importorskip("distributed")

    def killing(victims):
        def on_trial(trial):
            if victims:
                os.kill(victims.pop(), signal.SIGKILL)
        return on_trial

    with get_executor(workers=2) as pool:
        pool.submit(int).result()
        assert outcome(run_plan(DRAWS, PLAN, pool, "two", None, on_trial=killing([pool.pids[0]]))) == reference
    with cluster(tmp_path) as (address, _, workers):
        assert outcome(run_plan(DRAWS, PLAN, address, "dask", None, on_trial=killing([workers[0].pid]))) == reference
        assert workers[0].wait() == -signal.SIGKILL and workers[1].poll() is None


@pytest.mark.slow
def test_a_killed_coordinator_goes_on_to_the_same_end(reference, tmp_path):
    script, chance, kills = tmp_path / "coordinator.py", random.Random(7), 0
    script.write_text(SCRIPT, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
        eventually((tmp_path / "study.db").exists, 60)
        time.sleep(chance.uniform(1.0, 5.0))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    found = run_plan(DRAWS, PLAN, "local", "killed", f"sqlite:///{tmp_path}/study.db", 2, folder=tmp_path)
    assert kills and outcome(found) == reference
    assert not [*tmp_path.glob("trial-*.state")]


@pytest.mark.slow
def test_stopping_and_going_on_and_a_state_that_was_torn(reference, tmp_path):
    url, seen = f"sqlite:///{tmp_path}/study.db", []

    def stop():
        return "cancelled" if [*tmp_path.glob("trial-*.state")] and len(seen) == 2 else None

    with pytest.raises(SweepStopped, match="cancelled"):
        run_plan(DRAWS, PLAN, "local", "stopped", url, 1, folder=tmp_path, stop=stop, on_trial=seen.append)
    torn = next(tmp_path.glob("trial-*.state"))
    torn.write_bytes(torn.read_bytes()[:-100])
    assert outcome(run_plan(DRAWS, PLAN, "local", "stopped", url, 1, folder=tmp_path)) == reference


@pytest.mark.slow
def test_extending_a_sweep_keeps_what_it_has(reference):
    few = sweep(DRAWS, PLAN.space, 4, base=TINY, batch=4, workers=1)
    assert outcome(few) == reference[:4]


@pytest.mark.slow
def test_the_test_part_is_not_seen(reference):
    _, split = make_windows(DRAWS, TINY)
    seen = material(DRAWS, PLAN)
    assert len(seen.powerballs) == len(DRAWS) - len(split.test) and seen.n_validation == len(split.validation)
    other = DRAWS.copy()
    tail = other.index[-len(split.test):]
    for column in ("white_1", "white_2", "white_3", "white_4", "white_5", "powerball"):
        other.loc[tail, column] = simulate(n=len(tail), seed=99)[column].to_numpy()
    assert not other.equals(DRAWS)
    few = replace(PLAN, n_trials=2)
    values = [t.values[5] for t in run_plan(other, few, "local", "other", None, 1).trials]
    assert values == [trial[2][5] for trial in reference[:2]]


def test_windows_of_several_lengths_are_judged_on_the_same_draws():
    plan = replace(PLAN, space={"sequence_length": "5..40"})
    seen = material(DRAWS, plan)
    for length in (5, 17, 40):
        config = replace(TINY, sequence_length=length)
        windows, split = seen.split(config)
        _, whole = make_windows(DRAWS, config)
        assert int(split.validation[-1]) + length == len(seen.powerballs) - 1
        assert len(split.validation) == seen.n_validation
        assert int(split.validation[-1]) < int(whole.test[0])      # also of the winner's own test part


@pytest.mark.slow
def test_settings_that_cannot_be_trained_end_a_trial_and_not_the_sweep():
    found = sweep(DRAWS, {"heads": "2,3"}, 4, base=TINY, batch=4, workers=1)
    failed = [t for t in found.trials if t.params["heads"] == 3]
    assert failed and all(t.state == FAILED and "NetError" in t.facts["error"] for t in failed)
    assert found.best.params["heads"] == 2 and f"{len(failed)} failed" in found.claim
    none = sweep(DRAWS, {"heads": "3"}, 2, base=TINY, workers=1)
    with pytest.raises(SweepError, match=r"no trial of 2 came through, the first failed with NetError"):
        none.as_dict()


@pytest.mark.slow
def test_on_fair_draws_the_claim_says_that_nothing_was_found():
    fair = simulate(n=300, seed=11)
    found = sweep(fair, {"learning_rate": "1e-5,2e-5,3e-5"}, 4, base=replace(TINY, early_stopping_patience=2), batch=4, workers=1)
    assert [t.value for t in found.trials] == [0.0] * 4
    assert [t.state for t in found.trials] == [COMPLETE, COMPLETE, PRUNED, PRUNED]     # ties do not pass
    assert found.best.number == 0 and "no trial beat uniform" in found.claim
    assert all(t.facts["best_epoch"] == 0 and len(t.facts["reports"]) == 3 for t in found.trials)   # patience ended them


# In the store, as a job

@pytest.mark.slow
def test_the_winner_is_trained_and_judged_once_and_repeats_its_trial(tmp_path, reference):
    with MemoryStore(tmp_path / "store.db") as store:
        jobs, asked = Jobs(store, tmp_path), {"model_name": "swept", "name": "mine", "workers": 2}
        keys = sweep_here(jobs, DRAWS, PLAN, job_id="first", **asked)
        again = sweep_here(jobs, DRAWS, PLAN, **asked)
        json.dumps(keys, allow_nan=False)
        best = keys["best"]
        assert [(t["params"], t["state"], t["validation_skill"]) for t in keys["trials"]] == [
            (params, state, values[max(values)]) for _, params, values, state, _ in reference]
        row = Registry(store, tmp_path).get("swept@champion")
        assert row["tags"] == ["sweep", "sweep mine"] and row["notes"] == f"sweep mine: {keys['claim']}"
        logs = store.get_training_logs(row["job_id"])
        assert max(log["metrics"]["validation_skill"] for log in logs) == best["validation_skill"]     # bit by bit
        assert keys["claim"].startswith(f"trial {best['number']} of 6 tried") and keys["verdict"].startswith(keys["claim"])
        assert "judged once on the test part" in keys["verdict"]
        assert again["winner"] == keys["winner"] and again["test_looks"] == 1
        assert len(Registry(store, tmp_path).versions("swept")) == 1
        for trial in keys["trials"]:
            session = store.get_training_session(f"first-trial-{trial['number']:04}")
            assert session["status"] == {"complete": "completed", "pruned": "cancelled"}[trial["state"]]
            assert len(store.get_training_logs(session["job_id"])) == trial["epochs"]
        kept = store.get_performance_metrics("swept", "sweep_validation_skill")
        assert [(m["metric_value"], m["context"]["n_trials"]) for m in kept] == [(best["validation_skill"], 6)]
        assert [job["status"] for job in jobs.list(kind="sweep")] == ["completed"] * 2
    with MemoryStore(tmp_path / "store.db") as store:      # Optuna's tables in it are no trouble
        assert store.get_training_session("first-trial-0000")["status"] in ("completed", "cancelled")


@pytest.mark.slow
def test_sweeps_of_one_name_in_two_storages_both_keep_their_trials(tmp_path):
    plans = {"a": replace(PLAN, n_trials=2), "b": replace(PLAN, n_trials=2, base=replace(TINY, hidden=8))}
    with MemoryStore(tmp_path / "store.db") as store:
        for job_id, plan in plans.items():
            sweep_here(Jobs(store, tmp_path), DRAWS, plan, job_id=job_id, name="same", model_name="swept", workers=1,
                       storage=f"sqlite:///{tmp_path}/{job_id}.db")
        for job_id, hidden in (("a", 16), ("b", 8)):
            for number in range(2):
                assert store.get_training_session(f"{job_id}-trial-{number:04}")["config"]["hidden"] == hidden


@pytest.mark.parametrize("rung", [5, 10])
@pytest.mark.slow
def test_a_crash_between_a_report_and_its_value(tmp_path, reference, monkeypatch, rung):
    """The study has the epochs of the leg and not yet the value at its rung."""
    from optuna.storages import RDBStorage
    write, left, url = RDBStorage.set_trial_intermediate_value, [True], f"sqlite:///{tmp_path}/study.db"

    def dies(storage, trial_id, step, value):
        if step == rung and left:
            left.clear()
            raise KeyboardInterrupt
        return write(storage, trial_id, step, value)

    with monkeypatch.context() as crash:
        crash.setattr(RDBStorage, "set_trial_intermediate_value", dies)
        with pytest.raises(KeyboardInterrupt):
            run_plan(DRAWS, PLAN, "local", "cut", url, 1, folder=tmp_path)
    assert outcome(run_plan(DRAWS, PLAN, "local", "cut", url, 1, folder=tmp_path)) == reference


@pytest.mark.slow
def test_a_killed_job_is_resumed_to_the_same_result(tmp_path, reference):
    with MemoryStore(tmp_path / "store.db") as store:
        jobs = Jobs(store, tmp_path)
        row = submit_sweep(jobs, DRAWS, PLAN, model_name="swept", workers=1, job_id="s1")
        eventually(lambda: (jobs.get("s1")["progress"] or {}).get("ended", 0) >= 2 or jobs.get("s1")["error_message"], 120)
        row = jobs.get("s1")
        assert row["status"] == "running", row["error_message"]
        os.kill(row["pid"], signal.SIGKILL)
        eventually(lambda: jobs.get("s1")["status"] == "interrupted")
        assert not store.list_training_sessions(status="running")
        jobs.resume("s1")
        ended = jobs.wait("s1", 180)
        assert ended["status"] == "completed", ended["error_message"]
        assert [(t["params"], t["validation_skill"]) for t in ended["result"]["trials"]] == [
            (params, values[max(values)]) for _, params, values, _, _ in reference]
        assert store.get_training_session("s1")["status"] == "completed"


def test_a_cancelled_job_stops_soon(tmp_path):
    with MemoryStore(tmp_path / "store.db") as store:
        jobs = Jobs(store, tmp_path)
        submit_sweep(jobs, DRAWS, replace(PLAN, n_trials=100), model_name="swept", workers=1, job_id="s2")
        eventually(lambda: (jobs.get("s2")["progress"] or {}).get("trials"), 120)
        began = time.monotonic()
        jobs.cancel("s2")
        assert jobs.wait("s2", 60)["status"] == "cancelled"
        print(f"\ncancelled in {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_study_on_postgresql(postgres_url, reference):
    few = replace(PLAN, n_trials=2)
    with MemoryStore(postgres_url) as store:
        found = run_plan(DRAWS, few, "local", "pg", store.url, 1)
        assert [t[:2] for t in outcome(found)] == [t[:2] for t in reference[:2]]
        again = run_plan(DRAWS, few, "local", "pg", store.url, 1)
        assert outcome(again) == outcome(found)


# The record

def test_a_name_belongs_to_one_plan(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    Study(url, "one", PLAN, "draws").close()
    for plan, draws in ((PLAN, "others"), (replace(PLAN, seed=1), "draws"), (replace(PLAN, base=replace(TINY, hidden=32)), "draws")):
        with pytest.raises(SweepError, match="choose another name"):
            Study(url, "one", plan, draws)
    Study(url, "one", replace(PLAN, n_trials=50), "draws").close()


def test_two_coordinators_do_not_share_a_study(tmp_path):
    url, code = f"sqlite:///{tmp_path}/study.db", """
import sys
from test_sweeps import PLAN, Study
study = Study(sys.argv[1], "one", PLAN, "")
with study.at_work():
    print("at work", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)})
    assert process.stdout.readline() == "at work\n"
    study = Study(url, "one", PLAN, "")
    with pytest.raises(SweepError, match=f"is being run by process {process.pid}"), study.at_work():
        pass
    process.kill()
    process.communicate()
    with study.at_work():      # its note is still there, and nobody behind it
        pass
    study.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_replaced_attempt_writes_nothing_into_the_study(tmp_path, request, monkeypatch, kind):
    """Its job was taken up on another machine: the token keeps it out, and without a job the coordinator's note does."""
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else tmp_path / "store.db"
    params = {"learning_rate": 0.002, "dropout": 0.1, "weight_decay": 0.1}
    with MemoryStore(url) as store:
        row = Jobs(store, tmp_path)._enter("sweep", {}, "sw")
        context = JobContext(store, tmp_path, row)
        fenced, noted, new = Study(store.url, "sw", PLAN, "", context.check), Study(store.url, "sw", PLAN, ""), Study(store.url, "sw", PLAN, "")
        with fenced.at_work():
            trial = fenced.add(params)
            with store._transaction("write") as conn:
                conn.execute(table.update().values(token=2))
            for write in (lambda: fenced.add(params), lambda: fenced.report(trial, 5, 0.1, {}), lambda: fenced.finish(trial, FAILED, "x")):
                with pytest.raises(JobError, match="has been replaced"):
                    write()
        with noted.at_work():
            monkeypatch.setattr(helios.studies.socket, "gethostname", lambda: "another-host")
            with new.at_work():
                for write in (lambda: noted.add(params), lambda: noted.report(trial, 5, 0.1, {}), lambda: noted.finish(trial, FAILED, "x")):
                    with pytest.raises(SweepError, match="was taken over by another process"):
                        write()
                new.report(trial, 5, 0.2, {})
        assert [(t.number, t.state, t.values) for t in new.trials()] == [(0, "running", {5: 0.2})]
        assert new._noted() == "null"
        for study in (fenced, noted, new):
            study.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_many_coordinators_at_once_one_is_at_work(tmp_path, request, kind):
    """Eight read the same note before any of them writes; first no note, then an old one."""
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else f"sqlite:///{tmp_path}/study.db"
    studies = [Study(url, "one", PLAN, "") for _ in range(8)]
    for turn in range(2):
        old, barrier, took = studies[0]._noted(), threading.Barrier(len(studies)), []

        def swap(number, old=old, barrier=barrier, took=took, turn=turn):
            barrier.wait()
            if studies[number]._swap(old, json.dumps({"claim": [turn, number]})):     # never what stands there already
                took.append([turn, number])

        threads = [threading.Thread(target=swap, args=(number,)) for number in range(len(studies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(took) == 1 and json.loads(studies[0]._noted()) == {"claim": took[0]}
    for study in studies:
        study.close()


@pytest.mark.parametrize(("url", "said"), [
    ("sqlite:////no/such/folder/x.db", "no study can be kept"), ("nonsense", "no study can be kept"),
    ("postgresql+psycopg://me:secret@127.0.0.1:9/x", "no study can be kept")])
def test_storages_that_are_none(url, said):
    with pytest.raises(SweepError, match=said) as caught:
        Study(url, "one", PLAN, "")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_without_optuna_the_mend_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"pip install -e '\.\[sweeps\]'"):
        sweep(DRAWS, PLAN.space, 1, base=TINY)


# The command

@pytest.mark.slow
def test_the_command(home, tmp_path):
    write_draws(DRAWS, tmp_path / "draws.csv", "SIMULATED for a test")
    words = ["--data", str(tmp_path / "draws.csv"), "--trials", "2", "--space", "learning_rate=0.003,0.01", "--epochs", "2",
             "--workers", "1", "--name", "cli", "--json", str(tmp_path / "out.json")]
    said = CliRunner().invoke(sweep_command, words)
    assert said.exit_code == 0, said.output
    keys = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert keys["n_trials"] == 2 and keys["winner"]["model"]["ref"] == "powerball@1"
    assert f"Verdict    {keys['verdict']}" in said.stdout and "2 of 2 trials" in said.stderr
    other = CliRunner().invoke(sweep_command, [*words, "--seed", "5"])
    assert other.exit_code == 2 and "choose another name" in other.stderr


def test_numbers_of_a_draw_of_the_test_are_real(reference):
    """The reference found something: these draws are heavily biased, so a sweep that finds nothing is broken."""
    assert max(values[max(values)] for _, _, values, _, _ in reference) > 0.1
    assert np.isfinite([v for _, _, values, _, _ in reference for v in values.values()]).all()
