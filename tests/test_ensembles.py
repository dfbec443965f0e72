"""Ensembles: registered, loaded and judged like a model; members that changed or are gone are named."""

import json
from pathlib import Path

import numpy as np
import pytest

import helios.ensembles
from helios.draws import balls, era_draws, simulate
from helios.ensembles import Ensemble, parts_of, register_ensemble
from helios.fitting import TrainError, TrainingConfig, make_windows
from helios.memory_store import MemoryStore
from helios.mixtures import MixtureError
from helios.registry import Registry, RegistryError
from helios.trained_model import TrainedModel
from helios.trainer import ModelTrainer

DRAWS = simulate(n=400, seed=3, white_weights={3: 6, 17: 6, 29: 6})
TINY = {"hidden": 16, "layers": 1, "heads": 2, "sequence_length": 10, "epochs": 4, "learning_rate": 0.02, "batch_size": 64, "threads": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A registry with three nets of one history (the third of another), and an ensemble of the first two."""
    home = tmp_path_factory.mktemp("home")
    with MemoryStore(home / "store.db") as store:
        trainer = ModelTrainer(store, home)
        for seed, length in ((1, 10), (2, 20)):
            trainer.train(DRAWS, TrainingConfig(**TINY | {"seed": seed, "sequence_length": length}), "net")
        trainer.train(simulate(n=300, seed=8), TrainingConfig(**TINY), "other")
        registry = Registry(store, home)
        register_ensemble(registry, "both", ["net@1", "net@2"], "fit", DRAWS, notes="the two of them")
        yield registry


def test_it_is_a_version_like_others(shop):
    row = shop.get("both")
    assert (row["architecture"], row["version"], row["aliases"], row["notes"]) == ("Mixture", 1, ["champion"], "the two of them")
    assert row["file_path"].endswith("both-v1.json") and row["config"]["members"] == ["net@1", "net@2"]
    assert row["data"] == shop.get("net@1")["data"]
    assert [v["ref"] for v in shop.versions("both")] == ["both@1"]
    kept = json.loads(Path(row["file_path"]).read_text(encoding="utf-8"))
    assert [m["sha256"] for m in kept["members"]] == [shop.get(f"net@{i}")["sha256"] for i in (1, 2)]
    assert shop.compare("both@1", "net@1")["differs"]["architecture"] == ["Mixture", "PowerballNet"]


def test_what_it_says_is_the_weighted_mean_of_its_members(shop):
    ensemble = shop.load("both")
    members = [TrainedModel(*shop.load(f"net@{i}")) for i in (1, 2)]
    forecast, chance = ensemble.next_forecast(DRAWS)
    mean = sum(w * m.next_forecast(DRAWS)[0].white_inclusion for w, m in zip(ensemble.white_weights, members, strict=False))
    mean = mean + ensemble.white_weights[-1] * 5 / 69
    assert np.allclose(forecast.white_inclusion.numpy(), mean.numpy(), atol=1e-12) and 0 <= chance <= 1
    assert sum(ensemble.white_weights) == pytest.approx(1) and len(forecast.top_tickets(3)) == 3
    with pytest.raises(TrainError, match="was trained on"):
        ensemble.next_forecast(simulate(n=100, seed=1, since=None).assign(era="2012-01-15"))


def test_validation_and_test_keep_off_what_members_saw(shop):
    members = [TrainedModel(*shop.load(f"net@{i}")) for i in (1, 2)]
    validation, test = parts_of(members, DRAWS)
    for member in members:
        config = TrainingConfig(**member.file.sidecar["config"])
        _, split = make_windows(DRAWS, config)
        assert test.start >= int(split.test[0]) + config.sequence_length
        assert validation.start >= int(split.validation[0]) + config.sequence_length
        assert validation.stop <= int(split.test[0]) + config.sequence_length
    assert validation.stop <= test.start and test.stop == len(DRAWS)


def test_its_judgement_is_that_of_the_mixture_on_the_test_part(shop):
    row, ensemble = shop.get("both"), shop.load("both")
    at = parts_of(list(ensemble.members), DRAWS)[1]
    whites, powerballs = (drawn[at.start:at.stop] for drawn in balls(era_draws(DRAWS)))
    forecasts = [helios.ensembles._walk(member, DRAWS, at) for member in ensemble.members]
    skill = ensemble.mixed(forecasts).skill(whites, powerballs).total
    assert row["evaluation"]["n"] == len(at) and row["evaluation"]["skill_nats"] == pytest.approx(skill.mean(), abs=1e-9)
    best = max(f.skill(whites, powerballs).total.sum() for f in forecasts)
    assert skill.sum() > 0 and skill.sum() > best - len(at) * 0.2
    # one draw of the walk, asked as the next draw of a history cut off before it
    cut = DRAWS[:at.start + 3].copy()
    assert np.allclose(ensemble.next_forecast(cut)[0].white_inclusion[0], ensemble.mixed(forecasts).white_inclusion[3], atol=1e-5)


def test_equal_and_given_weights_and_no_judgement(shop):
    row = register_ensemble(shop, "plain", ["net@1", "net@2"])
    assert shop.load("plain").white_weights == (0.5, 0.5, 0.0) and row["evaluation"] is None and "not judged" in row["about"]["verdict"]
    register_ensemble(shop, "plain", ["net@1", "net@2"], [3, 1])
    assert shop.load("plain@2").powerball_weights == (0.75, 0.25, 0.0)


@pytest.mark.parametrize("history", [22, 24])     # in the first, a member shows a little skill by luck
def test_fair_draws_give_all_to_uniform(tmp_path, history):
    fair = simulate(n=300, seed=history)
    with MemoryStore(":memory:") as store:
        for seed in (1, 2):
            ModelTrainer(store, tmp_path).train(fair, TrainingConfig(**TINY | {"seed": seed}), "net")
        registry = Registry(store, tmp_path)
        row = register_ensemble(registry, "both", ["net@1", "net@2"], "fit", fair)
        assert any(TrainedModel(*registry.load("net@1")).shrink) == (history == 22)
        assert row["about"]["white_weights"] == row["about"]["powerball_weights"] == [0.0, 0.0, 1.0]
        assert "no skill" in row["about"]["verdict"] and row["evaluation"]["shrink"] == {"white": 0.0, "powerball": 0.0}
        forecast, chance = registry.load("both").next_forecast(fair)
        assert chance == 0 and np.allclose(forecast.white_inclusion.numpy(), 5 / 69)


@pytest.mark.parametrize(("refs", "weights", "draws", "error", "said"), [
    ([], None, None, MixtureError, "no version is named"), (["net@1", "net@1"], None, None, MixtureError, "named twice"),
    (["net@9"], None, None, RegistryError, "no net@9"), (["both@1"], None, None, MixtureError, "both@1 is a Mixture"),
    (["net@1"], "fit", None, MixtureError, "give the history"), (["net@1"], "best", None, MixtureError, "or fit"),
    (["net@1"], [1, 2], None, MixtureError, "give 1 numbers"), (["net@1"], [-1], None, MixtureError, "from 0 up"),
    (["net@1", "other@1"], None, DRAWS, MixtureError, "other@1 was trained on another history")])
def test_what_makes_no_ensemble(shop, refs, weights, draws, error, said):
    with pytest.raises(error, match=said):
        register_ensemble(shop, "none", refs, weights, draws)
    with pytest.raises(RegistryError, match="no model is named 'none'"):
        shop.get("none")


def test_members_that_changed_or_are_gone_are_named(tmp_path):
    with MemoryStore(tmp_path / "store.db") as store:
        for seed in (1, 2, 3):
            ModelTrainer(store, tmp_path).train(DRAWS, TrainingConfig(**TINY | {"seed": seed, "epochs": 1}), "net")
        registry = Registry(store, tmp_path)
        register_ensemble(registry, "both", ["net@1", "net@2"])
        assert isinstance(registry.load("both"), Ensemble)
        weights = Path(registry.get("net@1")["file_path"])
        good = weights.read_bytes()
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(RegistryError, match=r"both@1 needs its member net@1: .*sha256"):
            registry.load("both")
        weights.write_bytes(good)
        with pytest.raises(RegistryError, match="is a member of the ensemble both@1"):
            registry.delete("net@2")
        registry.remove_alias("both", "champion")
        registry.delete("both@1")     # with the ensemble away its members may go, and it comes back only with them
        registry.delete("net@2")
        with pytest.raises(RegistryError, match=r"both@1 needs its member net@2: net@2 is deleted; bring it back"):
            registry.restore("both@1")
        with pytest.raises(RegistryError, match=r"net@2 is a member of the deleted ensemble both@1, which could be restored; purge that first"):
            registry.purge("net@2")
        registry.restore("net@2")
        registry.restore("both@1")
        assert isinstance(registry.load("both@1"), Ensemble)
        own = Path(registry.get("both@1")["file_path"])
        own.write_text(own.read_text(encoding="utf-8").replace("net@1", "net@3"), encoding="utf-8")
        with pytest.raises(RegistryError, match="sha256"):
            registry.load("both")


def test_the_commands_mix_forecast_and_keep_the_whole_distribution(shop, tmp_path, monkeypatch):
    """What is on record must give back the mixture: no single set of logits says it."""
    from click.testing import CliRunner

    from helios.cli import main
    from helios.draws import write_draws
    from helios.mixtures import Mixture
    monkeypatch.setenv("HELIOS_HOME", str(shop.home))
    monkeypatch.setenv("HELIOS_DATABASE_URL", f"sqlite:///{shop.store.path}")
    write_draws(DRAWS, tmp_path / "draws.csv")
    run = CliRunner().invoke(main, ["models", "ensemble", "mixed", "net@1", "net@2", "--weights", "3,1", "--json", "-"])
    row = json.loads(run.stdout)
    assert (run.exit_code, row["ref"], row["about"]["white_weights"]) == (0, "mixed@1", [0.75, 0.25, 0.0])
    run = CliRunner().invoke(main, ["forecast", "--model", "mixed", "--data", str(tmp_path / "draws.csv"), "--json", "-"])
    keys = json.loads(run.stdout)
    assert run.exit_code == 0 and keys["model"]["ref"] == "mixed@1"
    (kept,) = shop.store.get_model_predictions("mixed")
    assert kept["id"] == keys["prediction_id"] and "white_logits" not in kept["prediction_data"]
    mixture = Mixture.from_json(json.dumps(kept["prediction_data"]["mixture"]))
    assert np.allclose(mixture.white_inclusion[0].numpy(), keys["forecast"]["white_inclusion"], atol=1e-12)


def test_it_goes_to_another_machine_in_one_file(shop, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from helios.cli import main
    file = tmp_path / "both.helios"
    monkeypatch.setenv("HELIOS_HOME", str(shop.home))
    monkeypatch.setenv("HELIOS_DATABASE_URL", f"sqlite:///{shop.store.path}")
    run = CliRunner().invoke(main, ["models", "export", "both@1", str(file)])
    assert run.exit_code == 0 and "both@1 with its members net@1, net@2" in run.stdout
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "there"))
    monkeypatch.delenv("HELIOS_DATABASE_URL")
    run = CliRunner().invoke(main, ["models", "import", str(file)])
    assert (run.exit_code, run.stdout) == (0, "Imported   both@1 with its members net@1, net@2, the champion of its name\n")
    with MemoryStore(tmp_path / "there" / "helios_memory.db") as store:
        theirs, ours = (registry.load("both").next_forecast(DRAWS) for registry in (Registry(store, tmp_path / "there"), shop))
    assert np.array_equal(theirs[0].white_inclusion, ours[0].white_inclusion) and theirs[1] == ours[1]
    assert theirs[0].top_tickets(5) == ours[0].top_tickets(5)
