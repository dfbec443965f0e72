"""Registered versions as forecasters: what they have seen, that they say what they said, and names that are nobody's."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helios.backtest import BacktestError, backtest, settings_of
from helios.draws import balls, era_draws, simulate
from helios.ensembles import register_ensemble
from helios.executor import get_executor
from helios.fitting import PRESETS, make_windows
from helios.forecasters import Forecaster, ForecasterError, Frequency, past_of
from helios.memory_store import MemoryStore
from helios.registered import RegisteredVersion, find_forecaster, first_unseen
from helios.registry import Registry, RegistryError
from helios.trained_model import TrainedModel
from helios.trainer import ModelTrainer
from helios.walks import walk_block

DRAWS = simulate(n=260, seed=2, powerball_weights={4: 30})
TINY = replace(PRESETS["quick"], hidden=16, layers=1, heads=2, epochs=6, sequence_length=20, batch_size=16, learning_rate=0.01, threads=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Two versions of one history (their windows of 20 and of 40), one without a test part, and an ensemble of the first two."""
    home = tmp_path_factory.mktemp("home")
    with MemoryStore(home / "store.db") as store:
        trainer, registry = ModelTrainer(store, home), Registry(store, home)
        results = [trainer.train(DRAWS, replace(TINY, sequence_length=length, seed=length)) for length in (20, 40)]
        trainer.train(DRAWS[:200], replace(TINY, test_split=0.0, epochs=1), "everything")
        register_ensemble(registry, "both", ["powerball@1", "powerball@2"], "fit", DRAWS)
        registry.results = results
        yield registry


def sidecar(shop, ref="powerball@1") -> dict:
    return TrainedModel(*shop.load(ref)).file.sidecar


# What it has seen

@pytest.mark.parametrize("at", [0, 1])
def test_the_test_part_of_its_own_history_is_unseen(shop, at):
    about, result = sidecar(shop, f"powerball@{at + 1}"), shop.results[at]
    assert first_unseen(about, DRAWS) == 260 - len(result.evaluation)
    _, split = make_windows(DRAWS, replace(TINY, sequence_length=(20, 40)[at]))
    assert first_unseen(about, DRAWS) == int(split.test[0]) + (20, 40)[at]


def later(n, seed=9):
    return simulate(n=n, seed=seed, first=(DRAWS.draw_date.iloc[-1] + np.timedelta64(1, "D")).date())


def test_so_is_what_was_drawn_since(shop):
    """A longer table that begins with the one it was trained on: its test part, and all that came after."""
    more = pd.concat([DRAWS, later(40)], ignore_index=True)
    assert first_unseen(sidecar(shop), more) == first_unseen(sidecar(shop), DRAWS) < 260
    assert len(backtest([find_forecaster("powerball@1", more, shop)], more)) == 300 - first_unseen(sidecar(shop), DRAWS)


def altered(draws):
    other = draws.copy()
    other.loc[0, "powerball"] = other.powerball[0] % 26 + 1
    return other


@pytest.mark.parametrize("case, expected", [
    ("another table", 260), ("one ball corrected", 260), ("fewer", 250), ("another that goes on", 260), ("the last part only", 160), ("later ones only", 0)])
def test_of_another_table_all_up_to_that_day_may_have_been_seen(shop, case, expected):
    draws = {"another table": simulate(n=260, seed=3), "one ball corrected": altered(DRAWS), "fewer": DRAWS[:250],
             "another that goes on": simulate(n=300, seed=3), "the last part only": DRAWS[100:].reset_index(drop=True), "later ones only": later(40)}[case]
    assert first_unseen(sidecar(shop), draws) == expected
    shuffled = draws.copy()
    shuffled.attrs = {}
    assert first_unseen(sidecar(shop), shuffled) == expected


def test_earlier_eras_before_it_change_nothing(tmp_path):
    long = simulate(n=330, seed=5, first=simulate(n=1, seed=1).draw_date[0].date().replace(year=2014))
    assert long.era.nunique() == 2 and len(era_draws(long)) > 150
    with MemoryStore(tmp_path / "s.db") as store:
        result = ModelTrainer(store, tmp_path).train(long, replace(TINY, epochs=1))
        version = find_forecaster("powerball", long, Registry(store, tmp_path))
    assert version.unseen == len(era_draws(long)) - len(result.evaluation)


def test_without_a_test_part_nothing_of_its_own_is_left(shop):
    version = find_forecaster("everything", DRAWS[:200], shop)
    assert version.unseen == 200
    with pytest.raises(BacktestError, match="everything@1 has seen all 200 draws; give later ones"):
        backtest([version], DRAWS[:200])
    since = find_forecaster("everything", DRAWS, shop)
    assert since.unseen == 200 and backtest([since, "hot"], DRAWS).start == 200
    with pytest.raises(BacktestError, match="has seen the draws before 200; start there or later"):
        backtest([since, "hot"], DRAWS, 199)


def test_a_table_that_begins_later_leaves_a_window(shop):
    """All draws are unseen, and the first window has to be filled all the same."""
    new = later(60)
    assert find_forecaster("powerball@1", new, shop).unseen == 20 and find_forecaster("both", new, shop).unseen == 40
    assert len(backtest([find_forecaster("both", new, shop)], new)) == 20


# What it says

@pytest.mark.parametrize("at", [0, 1])
def test_it_scores_what_its_training_told(shop, at):
    version, result = find_forecaster(f"powerball@{at + 1}", DRAWS, shop), shop.results[at]
    found = backtest([version], DRAWS)
    np.testing.assert_allclose(found.runs[f"powerball@{at + 1}"].walked.total, result.evaluation.skill.total, rtol=0, atol=1e-4)
    assert found.start == version.unseen and found.tried == (f"powerball@{at + 1}",)


def test_a_bias_that_it_was_trained_on_is_no_reason_to_refuse_it(shop):
    """It knows the heavy powerball from before; shown other draws it still expects it, as it should."""
    found = backtest([find_forecaster("powerball@1", DRAWS, shop)], DRAWS).runs["powerball@1"]
    assert found.walked.total.sum() > 5 and found.has_evidence


def test_an_ensemble_is_the_mixture_of_its_members(shop):
    version = find_forecaster("both", DRAWS, shop)
    members = [find_forecaster(f"powerball@{i}", DRAWS, shop) for i in (1, 2)]
    assert version.unseen == max(m.unseen for m in members) and version.about == "Mixture as registered"
    past, at = past_of(DRAWS), version.unseen
    whole = version.forecasts(past, at)
    weights = version.model.white_weights
    mean = sum(w * m.forecasts(past, at).white_inclusion for w, m in zip(weights, members, strict=False)) + weights[-1] * 5 / 69
    np.testing.assert_allclose(whole.white_inclusion, mean, atol=1e-9)
    assert len(whole) == 260 - at + 1


def test_the_future_changes_nothing_and_nothing_is_learned(shop):
    version, past = find_forecaster("powerball@1", DRAWS, shop), past_of(DRAWS)
    whole = version.forecasts(past, 230).inclusion()[1]
    for t in (230, 241, 259):
        np.testing.assert_allclose(version.forecasts(past.until(t), t).inclusion()[1][0], whole[t - 230], atol=1e-6)
    assert not version.learns and walk_block(version, past, [230], 260).total.tolist() == walk_block(version, past, [230], 260).total.tolist()
    with pytest.raises(ForecasterError, match="a net that reads 20 draws cannot forecast draw 19; start at 20 or later"):
        version.forecasts(past, 19)


def test_it_goes_to_a_worker_and_to_a_folder(shop, tmp_path):
    version, calls = find_forecaster("powerball@1", DRAWS, shop), []
    sent = pickle.loads(pickle.dumps(version))
    assert settings_of(version) == settings_of(sent) and settings_of(find_forecaster("powerball@2", DRAWS, shop)) != settings_of(version)
    here = backtest([version], DRAWS, folder=tmp_path)
    again = backtest([sent], DRAWS, folder=tmp_path, on_progress=lambda **numbers: calls.append(numbers["done"]))
    assert calls == [2] and again.runs["powerball@1"].walked.total.tolist() == here.runs["powerball@1"].walked.total.tolist()


@pytest.mark.slow
def test_a_worker_says_the_same_to_the_bit(shop):
    asked = [find_forecaster(ref, DRAWS, shop) for ref in ("powerball@1", "powerball@2", "both")]
    here = backtest(asked, DRAWS)
    with get_executor(workers=1) as pool:
        there = backtest(asked, DRAWS, executor=pool)
    for name, run in here.runs.items():
        assert run.walked.total.tobytes() == there.runs[name].walked.total.tobytes()


# What is meant

def test_names_and_versions(shop):
    assert isinstance(find_forecaster("frequency", DRAWS), Frequency)
    given = Frequency()
    assert find_forecaster(given, DRAWS, shop) is given
    for which, name in (("powerball@1", "powerball@1"), ("powerball", "powerball@1"), ("powerball@latest", "powerball@2"), ("both", "both@1")):
        version = find_forecaster(which, DRAWS, shop)
        assert isinstance(version, RegisteredVersion) and isinstance(version, Forecaster) and version.name in (name, shop.get(which)["ref"])
        assert version.name == shop.get(which)["ref"] and version.settings() == {"sha256": shop.get(which)["sha256"]}


@pytest.mark.parametrize("which, error, said", [
    ("nobody", ForecasterError, "no forecaster 'nobody'; there are uniform.*and no model of that name is registered"),
    ("nobody@1", RegistryError, "nobody"), ("powerball@9", RegistryError, "9"), ("powerball@", RegistryError, "alias")])
def test_what_is_not_there(shop, which, error, said):
    with pytest.raises(error, match=said) as caught:
        find_forecaster(which, DRAWS, shop)
    assert "\n" not in str(caught.value)
    with pytest.raises(ForecasterError, match="no forecaster"):
        find_forecaster(which, DRAWS)           # without a registry


def test_a_version_of_another_era(shop):
    old = simulate(n=100, seed=1, first=DRAWS.draw_date[0].date().replace(year=2012, month=3, day=1))
    assert old.era.iloc[-1] != DRAWS.era.iloc[-1]
    with pytest.raises(ForecasterError, match="powerball@1 was trained on .*, the draws end in .*; use versions of that era"):
        find_forecaster("powerball@1", old, shop)
    assert balls(old)[0].max() <= 59
