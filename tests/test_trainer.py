"""What the trainer promises: equal seeds, planted biases found, nothing claimed on fair draws, a whole record."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from helios.draws import balls, draw_table, simulate
from helios.fitting import PRESETS, TrainError, TrainingConfig, Windows, fit, make_windows
from helios.memory_store import MemoryStore
from helios.net import PowerballNet
from helios.trainer import ModelTrainer, TrainedModel
from helios.weights import ModelError, load_model

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
from helios.memory_store import MemoryStore
from helios.trainer import ModelTrainer
config = config_from(dict(hidden=16, heads=4, epochs=3, sequence_length=10, seed=int(sys.argv[2])), "quick")
with MemoryStore(":memory:") as store:
    print(ModelTrainer(store, sys.argv[1]).train(simulate(n=300, seed=5, powerball_weights={3: 9}), config).model.file.sha256)
"""


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
    for checkpoint in tmp_path.glob("checkpoints/*.safetensors"):
        load_model(checkpoint)


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
    with pytest.raises(ModelError, match="set HELIOS_HOME"):
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

    monkeypatch.setattr("helios.trainer.save_model", stop)
    with pytest.raises((KeyboardInterrupt, OSError)):
        ModelTrainer(store, tmp_path).train(simulate(n=150, seed=1), replace(SMALL, epochs=1, model_checkpoint=False))
    assert list((tmp_path / "models").iterdir()) == []
