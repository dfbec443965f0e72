"""What the trainer promises: equal seeds, planted biases found, nothing claimed on fair draws, a whole record."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helios.draws import balls, draw_table, read_draws, simulate
from helios.fitting import PRESETS, TrainError, TrainingConfig, Windows, fit, make_windows
from helios.jobs import Jobs
from helios.memory_store import MemoryStore, StoreError
from helios.net import PowerballNet
from helios.registry import Registry
from helios.tables import jobs
from helios.trained_model import draws_fingerprint
from helios.trainer import ModelTrainer, TrainedModel, train_job
from helios.weights import ModelError, load_state

SMALL = replace(PRESETS["quick"], hidden=16, heads=4, epochs=3, sequence_length=10)
FIVE_HEAVY = {ball: 2 for ball in (3, 17, 29, 44, 60)}


@pytest.fixture
def store():
    with MemoryStore(":memory:") as store:
        yield store


TRAIN_ONCE = """
import sys
from helios.draws import simulate
from helios.fitting import config_from
from helios.memory_store import MemoryStore, StoreError
from helios.trainer import ModelTrainer
config = config_from(dict(hidden=16, heads=4, epochs=3, sequence_length=10, seed=int(sys.argv[2])), "quick")
with MemoryStore(":memory:") as store:
    print(ModelTrainer(store, sys.argv[1]).train(simulate(n=300, seed=5, powerball_weights={3: 9}), config).model.file.sha256)
"""


@pytest.mark.slow
def test_the_same_seed_gives_equal_weights_in_two_processes(tmp_path):
    def train_in_a_process(seed: int) -> str:
        command = [sys.executable, "-c", TRAIN_ONCE, str(tmp_path), str(seed)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert train_in_a_process(1) == train_in_a_process(1) != train_in_a_process(2)


def test_training_leaves_the_callers_randomness_alone(tmp_path, store):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), SMALL)
    assert torch.equal(torch.rand(4), expected)


def test_five_balls_at_weight_2_are_found(tmp_path, store):
    """Oracle skill is 0.116 nats a draw; the quick preset recovered 0.03 to 0.08 on the seeds tried."""
    draws = simulate(n=1390, seed=102, white_weights=FIVE_HEAVY)
    result = ModelTrainer(store, tmp_path).train(draws, replace(PRESETS["quick"], epochs=4))
    assert result.evaluation.has_evidence
    assert result.evaluation.as_dict()["skill_nats"] > 0.03
    likeliest = result.model.next_forecast(draws)[0].white_inclusion[0].argsort(descending=True)[:10] + 1
    assert len(set(likeliest.tolist()) & set(FIVE_HEAVY)) >= 4


@pytest.mark.slow
def test_nothing_is_claimed_on_fair_draws(tmp_path, store):
    """The e-process alarms on at most 5% of fair histories, so each of these three fixed seeds fails with chance 5%."""
    for seed in (200, 201, 202):
        result = ModelTrainer(store, tmp_path).train(simulate(n=700, seed=seed), replace(PRESETS["quick"], epochs=4))
        assert not result.evaluation.has_evidence
        assert result.evaluation.verdict.startswith("no skill")


def test_no_window_holds_its_own_target():
    """The leak of most public predictors: targets that stand in the input, or draws of the future."""
    n = 120
    whites = torch.arange(n)[:, None].expand(n, 5)
    windows = Windows(whites, torch.arange(n), 20)
    index = torch.arange(len(windows))
    (seen, seen_powerballs), target, target_powerball = windows.batch(index)
    assert (seen.amax((1, 2)) < target[:, 0]).all()
    assert (seen_powerballs.amax(1) < target_powerball).all()
    assert torch.equal(target_powerball, torch.arange(20, n))


@pytest.mark.parametrize(("n", "validation", "test"), [(300, 0.2, 0.2), (90, 0.0, 0.3), (90, 0.5, 0.0), (1390, 0.2, 0.2)])
def test_parts_follow_each_other_in_time_and_cover_everything(n, validation, test):
    config = TrainingConfig(sequence_length=20, validation_split=validation, test_split=test)
    windows, split = make_windows(simulate(n=n, seed=1), config)
    assert torch.cat([split.train, split.validation, split.test]).tolist() == list(range(len(windows)))
    assert len(split.test) == round(len(windows) * test)


def test_the_test_part_cannot_change_the_weights(tmp_path, store):
    """Other draws in the test part: the same weights and the same shrinkage."""
    draws = simulate(n=300, seed=7, powerball_weights={3: 9})
    n_test = round((300 - 10) * 0.2)
    whites, powerballs = balls(draws)
    other = draws.copy()
    other.loc[300 - n_test:, "powerball"] = powerballs[300 - n_test:][::-1]
    results = [ModelTrainer(store, tmp_path).train(table, SMALL) for table in (draws, other)]
    assert results[0].model.file.sha256 == results[1].model.file.sha256
    assert results[0].model.shrink == results[1].model.shrink
    assert not np.array_equal(results[0].evaluation.skill.total, results[1].evaluation.skill.total)


def test_the_best_weights_are_kept():
    config = replace(SMALL, epochs=6, early_stopping_patience=0)
    windows, split = make_windows(simulate(n=300, seed=5, powerball_weights={3: 9}), config)
    torch.manual_seed(0)
    net, states = PowerballNet(hidden=16, layers=1, heads=4, sequence_length=10), []
    reports = fit(net, windows, split, config, lambda _: states.append({k: v.clone() for k, v in net.state_dict().items()}))
    best = max(reports, key=lambda r: r.validation_skill).epoch
    assert reports[-1].best_epoch == best and len(reports) == 7
    assert all(torch.equal(net.state_dict()[name], value) for name, value in states[best].items())


def test_patience_ends_a_run():
    config = replace(SMALL, epochs=50, early_stopping_patience=2)
    windows, split = make_windows(simulate(n=300, seed=1), config)
    reports = fit(PowerballNet(hidden=16, layers=1, heads=4, sequence_length=10), windows, split, config)
    assert reports[-1].epoch == reports[-1].best_epoch + 2 < 50


def test_the_record_is_whole(tmp_path, store):
    seen = []
    result = ModelTrainer(store, tmp_path).train(simulate(n=300, seed=1), SMALL, "demo", "job", seen.append)
    session, logs = store.get_training_session("job"), store.get_training_logs("job")
    assert (session["status"], session["progress"], session["config"]["hidden"]) == ("completed", 100, 16)
    assert [log["epoch"] for log in logs] == [r.epoch for r in seen if r.epoch]
    assert all(math.isclose(log["loss"], r.loss) for log, r in zip(logs, seen[1:], strict=True))
    assert {"white_loss", "powerball_loss", "frequency_loss", "confidence_loss", "validation_skill"} <= set(logs[0]["metrics"])
    assert store.get_model_metadata("demo")["file_path"] == str(result.model.file.path)
    sidecar = json.loads(result.model.file.path.with_suffix(".json").read_text())
    assert sidecar["weights"]["sha256"] == result.model.file.sha256
    assert sidecar["data"]["n"] == 300 and sidecar["data"]["simulated"]


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_interrupted_run_leaves_only_whole_models(tmp_path, store, epoch):
    def stop(report):
        if report.epoch == epoch:
            raise KeyboardInterrupt

    draws = simulate(n=300, seed=5, powerball_weights={3: 25})
    with pytest.raises(KeyboardInterrupt):
        ModelTrainer(store, tmp_path).train(draws, replace(SMALL, learning_rate=0.01), job_id="job", on_epoch=stop)
    assert store.get_training_session("job")["status"] == "interrupted"
    assert not list(tmp_path.glob("models/*")) and not list(tmp_path.rglob("*.part"))


def test_a_failed_run_is_recorded_as_failed(tmp_path, store):
    def fail(report):
        raise RuntimeError("the callback broke")

    with pytest.raises(RuntimeError):
        ModelTrainer(store, tmp_path).train(simulate(n=300, seed=1), SMALL, job_id="job", on_epoch=fail)
    session = store.get_training_session("job")
    assert (session["status"], session["error_message"]) == ("failed", "RuntimeError: the callback broke")


def test_a_model_refuses_draws_of_another_era(tmp_path, store):
    result = ModelTrainer(store, tmp_path).train(simulate(n=300, seed=1), SMALL)
    older = simulate(n=300, seed=1, first=simulate(n=1, seed=0).draw_date[0].date().replace(year=2012, month=2))
    with pytest.raises(TrainError, match="train a new one"):
        result.model.next_forecast(older)


def test_a_loaded_model_forecasts_the_same(tmp_path, store):
    draws = simulate(n=300, seed=5, powerball_weights={3: 25})
    result = ModelTrainer(store, tmp_path).train(draws, replace(SMALL, learning_rate=0.01, epochs=6))
    loaded = TrainedModel.load(result.model.file.path)
    assert any(loaded.shrink)
    for mine, theirs in zip(loaded.next_forecast(draws), result.model.next_forecast(draws), strict=True):
        if isinstance(mine, float):
            assert mine == theirs
        else:
            assert torch.equal(mine.white_logits, theirs.white_logits)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, store):
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="set HELIOS_HOME"):
        ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), replace(SMALL, epochs=1))


def test_too_short_a_history_opens_no_session(tmp_path, store):
    with pytest.raises(TrainError, match="10 is the least"):
        ModelTrainer(store, tmp_path).train(simulate(n=15, seed=1), SMALL, job_id="job")
    with pytest.raises(ValueError, match="there are no draws"):
        ModelTrainer(store, tmp_path).train(draw_table([]), SMALL, job_id="job")
    assert store.get_training_session("job") is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_a_claimed_version_without_a_model_does_not_stay(tmp_path, store, monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr("helios.trained_model.save_model", stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), replace(SMALL, epochs=1, model_checkpoint=False))
    assert list((tmp_path / "models").iterdir()) == []


# A run as a job

def rows_of(store, job_id="job"):
    return [row["epoch"] for row in sorted(store.get_training_logs(job_id), key=lambda row: row["id"])]


def stop_at(epoch, error=KeyboardInterrupt):
    def stop(report):
        if report.epoch == epoch:
            raise error
    return stop


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_an_interrupted_run_goes_on_under_its_name(tmp_path, store, epoch):
    draws = simulate(n=300, seed=5, powerball_weights={3: 25})
    expected = ModelTrainer(store, tmp_path / "other").train(draws, SMALL).model.file.sha256
    trainer = ModelTrainer(store, tmp_path)
    with pytest.raises(KeyboardInterrupt) as e:
        trainer.train(draws, SMALL, "demo", "job", stop_at(epoch))
    assert e.value.__notes__ == ["helios jobs resume job goes on where this run stopped"]
    assert not list(tmp_path.glob("models/*"))
    result = trainer.train(draws, SMALL, "demo", "job")
    assert result.model.file.sha256 == expected and result.version["ref"] == "demo@1"
    assert rows_of(store) == [1, 2, 3]
    assert (store.get_training_session("job")["status"], Jobs(store, tmp_path).get("job")["token"]) == ("completed", 2)
    assert not (tmp_path / "jobs" / "job" / "state.safetensors").exists()


def test_ctrl_c_is_heard_between_steps_and_loses_none(tmp_path, store, monkeypatch):
    """A signal in the middle of a batch: the state that is saved is that of the batch's end."""
    draws, config, moments = simulate(n=300, seed=5), replace(SMALL, epochs=20, early_stopping_patience=0), (10, 25, 60)
    expected = ModelTrainer(store, tmp_path / "other").train(draws, config).model.file.sha256
    trainer, losses, begun = ModelTrainer(store, tmp_path), PowerballNet.losses, []

    def pressed(net, *args):
        begun.append(1)
        if len(begun) in moments:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(net, *args)

    monkeypatch.setattr(PowerballNet, "losses", pressed)
    batches = -(-len(make_windows(draws, config)[1].train) // config.batch_size)
    for moment in moments:
        with pytest.raises(KeyboardInterrupt):
            trainer.train(draws, config, "demo", "job")
        facts = load_state(tmp_path / "jobs" / "job" / "state.safetensors")[1]
        assert (facts["epoch"] - 1) * batches + facts["batch"] == moment
        assert Jobs(store, tmp_path).get("job")["status"] == "interrupted"
    result = trainer.train(draws, config, "demo", "job")
    assert len(begun) == 20 * batches > max(moments)
    assert result.model.file.sha256 == expected and rows_of(store) == list(range(1, 21))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_run_cannot_take_up_a_job(tmp_path, store):
    draws, trainer = simulate(n=300, seed=5), ModelTrainer(store, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(draws, replace(SMALL, epochs=60, early_stopping_patience=0), "demo", "job", stop_after_a_checkpoint(tmp_path))
    with pytest.raises(ModelError, match="is of another run .epochs 60 there, 61 here"):
        trainer.train(draws, replace(SMALL, epochs=61, early_stopping_patience=0), "demo", "job")
    with pytest.raises(ModelError, match="is of another run .the draws differ"):
        trainer.train(simulate(n=300, seed=6), replace(SMALL, epochs=60, early_stopping_patience=0), "demo", "job")


def stop_after_a_checkpoint(home):
    def stop(report):
        if (home / "jobs" / "job" / "state.safetensors").exists():
            raise KeyboardInterrupt
    return stop


DIES = """
import os, sys
from pathlib import Path
import helios.trained_model as trained_model
from helios.draws import simulate
from helios.memory_store import MemoryStore
from helios.trainer import ModelTrainer
sys.path.insert(0, {tests!r})
from test_trainer import SMALL
home, where = Path(sys.argv[1]), sys.argv[2]

def die_before(module, name):
    setattr(module, name, lambda *args, **rest: os._exit(9))

def die_after(module, name):
    act = getattr(module, name)
    def acted(*args, **rest):
        act(*args, **rest)
        os._exit(9)
    setattr(module, name, acted)

registry = trained_model.Registry
places = {{
    "before the number": lambda: die_before(registry, "next_file"),
    "after the number": lambda: die_after(registry, "next_file"),
    "after the claim": lambda: die_after(trained_model, "write_atomic"),
    "after the files": lambda: die_after(trained_model, "save_model"),
    "after the row": lambda: die_after(registry, "register"),
    "before the journal": lambda: die_before(MemoryStore, "store_enhanced_journal_entry"),
    "after the journal": lambda: die_after(MemoryStore, "store_enhanced_journal_entry"),
    "nowhere": lambda: None}}
places[where]()
with MemoryStore(home / "helios_memory.db") as store:
    ModelTrainer(store, home).train(simulate(n=150, seed=1), SMALL, "demo", "job")
"""
PLACES = ["before the number", "after the number", "after the claim", "after the files", "after the row", "before the journal",
          "after the journal"]


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
def test_a_run_that_dies_at_its_end_becomes_one_version(tmp_path, where):
    def run(where):
        command = [sys.executable, "-c", DIES.format(tests=str(Path(__file__).parent)), str(tmp_path), where]
        return subprocess.run(command, capture_output=True, text=True)

    died = run(where)
    assert died.returncode == 9, died.stderr
    with MemoryStore(tmp_path / "helios_memory.db") as store:
        assert Jobs(store, tmp_path).get("job")["status"] == "interrupted"
        if where == "after the files":
            Registry(store, tmp_path).search()                     # adopts the file that has no row
    done = run("nowhere")
    assert done.returncode == 0, done.stderr
    with MemoryStore(tmp_path / "helios_memory.db") as store:
        registry = Registry(store, tmp_path)
        (version,) = registry.versions("demo", deleted=True)
        assert version["job_id"] == "job" and version["metrics"]["skill_nats"] == version["evaluation"]["skill_nats"]
        assert registry.get("demo@champion")["ref"] == version["ref"]
        assert registry.load("demo")[1].sha256 == version["sha256"]
        entries = store.get_enhanced_journal_entries("demo", "training_completed")
        assert len(entries) == 1 and rows_of(store) == [1, 2, 3]
        assert Jobs(store, tmp_path).get("job")["status"] == "completed"
    files = [p for p in (tmp_path / "models").glob("*.safetensors") if p.stat().st_size]
    assert len(files) == 1 and not (tmp_path / "jobs" / "job" / "state.safetensors").exists()


def test_a_job_that_was_registered_has_nothing_left_to_do(tmp_path, store):
    """Killed after its version was registered and before its row said completed."""
    result = ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), SMALL, "demo", "job")
    with store._transaction("write") as conn:
        conn.execute(jobs.update().values(status="interrupted"))
    own = Jobs(store, tmp_path)
    params = own.get("job")["params"]
    with own.here("train", params, "job") as context:
        context.result = train_job(context)
    assert own.get("job")["result"] == result.as_dict() and len(Registry(store, tmp_path).versions("demo")) == 1


class Killed(BaseException):
    """Ends a run at once, as kill -9 would."""


def test_a_job_killed_after_its_version_was_registered_notes_it_once_when_resumed(tmp_path, store, monkeypatch):
    trainer, own = ModelTrainer(store, tmp_path), Jobs(store, tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(MemoryStore, "store_enhanced_journal_entry", lambda self, *args, **rest: (_ for _ in ()).throw(Killed))
        trainer.train(simulate(n=150, seed=1), SMALL, "demo", "job")
    assert len(Registry(store, tmp_path).versions("demo")) == 1 and not store.get_performance_metrics("demo", "skill_nats")
    with store._transaction("write") as conn:
        conn.execute(jobs.update().values(status="interrupted"))
    for _ in range(2):
        with own.here("train", own.get("job")["params"], "job") as context:
            context.result = train_job(context)
        with store._transaction("write") as conn:
            conn.execute(jobs.update().values(status="interrupted"))
        assert len(store.get_performance_metrics("demo", "skill_nats")) == len(store.get_enhanced_journal_entries("demo", "training_completed")) == 1
    assert store.get_training_session("job")["progress"] == 100 and not (tmp_path / "jobs" / "job" / "state.safetensors").exists()


def test_the_store_is_away_when_the_model_is_ready(tmp_path, monkeypatch, caplog):
    """The file is locked by another program for two seconds; the run waits and registers."""
    register = Registry.register
    calls = []

    def away_twice(self, *args, **rest):
        calls.append(1)
        if len(calls) <= 2:
            raise StoreError("locked")
        return register(self, *args, **rest)

    monkeypatch.setattr(Registry, "register", away_twice)
    monkeypatch.setattr("helios.trainer._answers", lambda context: False)
    with MemoryStore(tmp_path / "s.db") as store:
        result = ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), SMALL, "demo", "job")
        assert result.version["ref"] == "demo@1" and len(calls) == 3
    assert sum("waits for the store" in record.getMessage() for record in caplog.records) == 1


def test_a_store_that_stays_away_costs_a_resume_and_no_training(tmp_path, monkeypatch):
    draws, trained = simulate(n=150, seed=1), []
    monkeypatch.setattr("helios.trainer._answers", lambda context: False)
    monkeypatch.setattr("helios.trainer.PATIENCE_S", 0.0)
    with MemoryStore(tmp_path / "s.db") as store:
        with monkeypatch.context() as away:
            away.setattr(Registry, "next_file", lambda self, name: (_ for _ in ()).throw(StoreError("locked")))
            with pytest.raises(StoreError) as e:
                ModelTrainer(store, tmp_path).train(draws, SMALL, "demo", "job")
        assert "helios jobs resume job registers it" in e.value.__notes__[0]
        result = ModelTrainer(store, tmp_path).train(draws, SMALL, "demo", "job", trained.append)
        assert result.version["ref"] == "demo@1"


@pytest.mark.parametrize("where", ["white", "frequency"])
def test_a_run_that_diverges_fails_and_says_so(tmp_path, store, monkeypatch, where):
    """Whether the forecast breaks or only a side loss."""
    losses = PowerballNet.losses

    def diverging(self, *args):
        found = losses(self, *args)
        return found._replace(**{where: getattr(found, where) * float("nan" if where == "white" else "inf")})

    monkeypatch.setattr(PowerballNet, "losses", diverging)
    with pytest.raises(TrainError, match="the run has diverged in epoch 1 .*a lower learning_rate than 0.002 would do"):
        ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), SMALL, job_id="job")
    assert store.get_training_session("job")["status"] == "failed" and rows_of(store) == []


def test_a_child_is_never_worse_than_its_parent(tmp_path, store):
    draws, trainer = simulate(n=700, seed=5, powerball_weights={3: 25}), ModelTrainer(store, tmp_path)
    parent = trainer.train(draws, replace(SMALL, learning_rate=0.01, epochs=6), "demo")
    child = trainer.train(draws, replace(SMALL, epochs=1, learning_rate=1e-7), "demo", parent="demo@champion")
    best = max(report.validation_skill for report in parent.reports)
    assert child.reports[0].validation_skill == best > 0 and child.version["parent"] == "demo@1"
    assert trainer.load("demo").file.sha256 == parent.model.file.sha256          # the alias did not move
    assert trainer.load("demo@latest").file.sidecar["parent"] == "demo@1"


@pytest.mark.parametrize("setting", [{"hidden": 24, "heads": 6}, {"layers": 2}, {"sequence_length": 7}, {"batch_size": 1, "epochs": 1},
                                     {"dropout": 0.0}, {"epochs": 0}, {"validation_split": 0.0}, {"test_split": 0.0}])
def test_any_configuration_is_trained_and_loaded(tmp_path, store, setting):
    config = replace(SMALL, **({"epochs": 1} | setting))
    result = ModelTrainer(store, tmp_path).train(simulate(n=60, seed=1), config, "any")
    loaded = ModelTrainer(store, tmp_path).load("any@1")
    assert loaded.file.sidecar["config"] == asdict(config)
    assert loaded.net.shape["hidden"] == config.hidden and loaded.shrink == result.model.shrink


def test_progress_says_where_a_run_is(tmp_path, store):
    rows = []
    with Jobs(store, tmp_path).here("train", {}) as context:
        context.progress = lambda **row: rows.append((time.monotonic(), row))
        ModelTrainer(store, tmp_path).train(simulate(n=300, seed=1), replace(SMALL, epochs=12, early_stopping_patience=0), context=context)
    times, rows = zip(*rows, strict=True)
    assert min(b - a for a, b in zip(times[:-2], times[1:-1], strict=True)) > 0.24           # the last one is always said
    assert set(rows[0]) == {"epoch", "epochs", "batch", "batches", "loss", "validation_skill", "samples_per_s", "left_s", "best_epoch"}
    assert rows[-1]["epoch"] == 12 and rows[-1]["left_s"] == 0.0 and rows[-1]["batch"] == rows[-1]["batches"] == 6
    places = [(row["epoch"], row["batch"]) for row in rows]
    assert places == sorted(places)
    done = [row["left_s"] for row in rows if row["left_s"] is not None]
    assert done[0] > done[-1] >= 0


def test_the_draws_of_a_job_are_those_it_was_given(tmp_path, store):
    """Through the file in its folder: the same windows, and the same fingerprint."""
    draws = simulate(n=300, seed=1)
    result = ModelTrainer(store, tmp_path).train(draws, SMALL, "demo", "job")
    again = read_draws(tmp_path / "jobs" / "job" / "draws.csv", strict=True)[0]
    assert draws_fingerprint(again) == draws_fingerprint(draws) == result.version["data"]
