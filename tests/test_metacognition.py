"""The engine: what it states holds as often as it says, fair draws stay without a claim, and it remembers."""

from datetime import date

import numpy as np
import pytest
import torch
from scipy.stats import binom

from helios.assessment_plot import plot_assessment, png
from helios.counting import Frequency, Repeats, Steps
from helios.draws import Bias, balls, era_draws, simulate
from helios.ensembles import register_ensemble
from helios.fitting import TrainingConfig
from helios.forecasters import Forecaster
from helios.game import POWERBALL
from helios.memory_store import MemoryStore, StoreError
from helios.metacognition import MetacognitiveEngine
from helios.registry import Registry
from helios.scoring import Forecast
from helios.statements import posterior, skewed_interval, skill_statements
from helios.subjects import AssessError, find_subject
from helios.trainer import ModelTrainer
from helios.trials import EVENT, past_assessments
from helios.truth import expected_skill, truth
from helios.uncertainty import claims_and_doubts, draws_needed

ERA = POWERBALL.eras[-1]
BIASED = simulate(n=300, seed=3, white_weights={3: 6, 17: 6, 29: 6})
TINY = TrainingConfig(hidden=16, layers=1, heads=2, sequence_length=10, epochs=4, learning_rate=0.02, batch_size=64, threads=1)


class Fixed(Forecaster):
    """States the same law always."""

    name = "fixed"

    def __init__(self, whites: dict[int, float], powerballs: dict[int, float]):
        super().__init__()
        self.given = [np.log([weights.get(ball, 1.0) for ball in range(1, n + 1)]) for weights, n in ((whites, 69), (powerballs, 26))]

    def learn(self, *past):
        pass

    def logits(self, *past_and_start):
        n = len(past_and_start[-2]) + 1 - past_and_start[-1]
        return tuple(np.tile(row, (n, 1)) for row in self.given)


# Statements about models whose true skill is known, since the law that made the draws is


KNOWN = {
    "knows a heavy powerball": (Bias(powerball_weights={9: 5}), lambda: Fixed({}, {9: 5})),
    "believes too much of it": (Bias(powerball_weights={9: 3}), lambda: Fixed({}, {9: 6})),
    "knows heavy whites": (Bias(white_weights={3: 4, 17: 4}), lambda: Fixed({3: 4, 17: 4}, {})),
    "learns heavy whites": (Bias(white_weights={3: 6, 17: 6, 29: 6}), Frequency),
    "learns what follows": (Bias(follow=0.4), Steps),
    "learns what repeats": (Bias(repeat=3.0), Repeats),
    "suspects the wrong whites": (Bias(), lambda: Fixed({3: 3, 17: 3, 40: 0.3}, {})),
    "suspects many": (Bias(), lambda: Fixed({b: 1 + b % 3 for b in range(1, 70)}, {b: 1 + b % 2 for b in range(1, 27)})),
}


def scores_and_truth(kind: str, seed: int) -> tuple[np.ndarray, float]:
    """Scores of the last 140 of 200 draws, and the mean of what they were worth under the law."""
    bias, make = KNOWN[kind]
    draws = simulate(n=200, seed=seed, white_weights=bias.white_weights, powerball_weights=bias.powerball_weights, follow=bias.follow, repeat=bias.repeat)
    subject = find_subject(make(), draws, start=60)
    law = truth(bias, ERA, *balls(era_draws(draws)))[60:]
    return subject.forecast.skill(subject.whites, subject.powerballs).total, float(expected_skill(subject.forecast, law).total.mean())


@pytest.fixture(scope="module", params=[12, pytest.param(250, marks=pytest.mark.slow)])
def cases(request):
    found = [(kind, *scores_and_truth(kind, 1000 * i + seed)) for i, kind in enumerate(KNOWN) for seed in range(request.param)]
    return [case for case in found if np.abs(case[1]).max() > 1e-9]     # one that stays uniform has a skill of exactly 0


def test_statements_at_80_percent_are_right_80_times_of_100(cases):
    """By chance outside these bounds once in 500 times, if 80% are right.

    Of 5,600 such statements, 700 a model, 81% of the intervals were right.
    """
    right = np.zeros(2)
    for _, scores, true in cases:
        interval, above, _ = skill_statements(scores, 0.8)
        assert interval.confidence == above.confidence == 0.8
        right += [interval.low <= true <= interval.high, true >= above.low]
    low, high = binom.ppf([0.001, 0.999], len(cases), 0.8)
    assert len(cases) > 85
    assert low <= right[0] <= high, right / len(cases)
    assert low <= right[1] <= high, right / len(cases)


@pytest.mark.parametrize("kind", KNOWN)
def test_no_kind_of_model_is_far_from_it(cases, kind):
    mine = [(scores, true) for name, scores, true in cases if name == kind]
    right = sum(low <= true <= high for (low, high), true in ((skewed_interval(scores), true) for scores, true in mine))
    low, high = binom.ppf(0.0005, len(mine), 0.75), binom.ppf(0.9995, len(mine), 0.85)     # rare wins make one of them 85%, of 700
    assert low <= right <= high


@pytest.mark.parametrize("level", [0.5, 0.6, 0.95])
def test_other_levels_hold_too(cases, level):
    right = sum(low <= true <= high for (low, high), true in ((skewed_interval(scores, level), true) for _, scores, true in cases))
    low, high = binom.ppf([0.0005, 0.9995], len(cases), level)
    assert low <= right <= high, right / len(cases)


@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_yes_and_no_are_right_as_often_as_stated(prior):
    """A population in which a share of the models knows the law and the others face fair draws."""
    rng, chances, knows = np.random.default_rng(int(100 * prior)), [], []
    weights = np.where(np.arange(26) == 8, 3.0, 1.0)
    law = weights / weights.sum()
    for _ in range(4000):
        knows.append(rng.random() < prior)
        drawn = rng.choice(26, 100, p=law) if knows[-1] else rng.integers(0, 26, 100)
        chances.append(posterior(float(np.log(law[drawn] * 26).sum()), prior))
    chances, knows = np.array(chances), np.array(knows)
    stated, right = np.maximum(chances, 1 - chances), (chances >= 0.5) == knows
    for low, high in ((0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
        some = (stated >= low) & (stated < high)
        error = np.sqrt((stated[some] * (1 - stated[some])).sum())
        assert some.sum() > 50 and abs(right[some].sum() - stated[some].sum()) <= 3.5 * error


# Fair draws: the worst bug is a claim; planted biases: the second worst is silence


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("subject", ["frequency", "steps", "repeats"])
def test_fair_draws_give_no_claim(subject, seed):
    out = MetacognitiveEngine().assess(subject, simulate(n=300, seed=70 + seed))
    keys = out.as_dict()
    assert not keys["evidence"]["found"] and keys["strategy"] == "abstain" and not out.patterns.found
    assert out.statements[-1].confidence > 0.5 and (keys["uniform"] or "not nearer" in out.statements[-1].claim)
    assert keys["ci95"][0] <= 0 and not keys["fitness"]["fit"]


@pytest.mark.parametrize(("subject", "bias"), [
    ("frequency", {"white_weights": {3: 6, 17: 6, 29: 6}}), ("steps", {"follow": 0.5}), ("repeats", {"repeat": 4.0}),
])
def test_a_planted_bias_is_seen_and_kept(subject, bias):
    keys = MetacognitiveEngine().assess(subject, simulate(n=400, seed=9, **bias)).as_dict()
    assert keys["evidence"]["found"] and keys["ci95"][0] > 0 and "keep" in keys["recommendation"]["candidates"]
    assert keys["statements"][-1]["confidence"] > 0.99 and " nearer" in keys["statements"][-1]["claim"]


def test_a_model_that_misses_what_the_audit_finds_is_told_so():
    out = MetacognitiveEngine().assess(Fixed({}, {5: 2}), simulate(n=400, seed=9, white_weights={3: 6, 17: 6}))
    assert "structured_mixture" in out.recommendation.candidates and "abstain" in out.recommendation.candidates
    assert MetacognitiveEngine().assess("uniform", BIASED).recommendation.strategy == "structured_mixture"


def test_a_score_that_falls_is_seen():
    """The bias is there until a date only; a forecaster that suspects it falls then."""
    until, since = simulate(n=250, seed=1, powerball_weights={9: 8}), simulate(n=500, seed=2)
    draws = since.copy()
    draws.loc[:249, draws.columns != "draw_date"] = until.loc[:, until.columns != "draw_date"].to_numpy()
    draws = draws.astype(since.dtypes.to_dict())
    draws.attrs["simulated"] = True
    drift = MetacognitiveEngine().assess(Fixed({}, {9: 8}), draws, start=1).as_dict()["drift"]
    low, high = drift["between"]
    assert drift["fell"] and low <= str(since.draw_date[250].date()) and str(since.draw_date[249].date()) <= high


def test_the_split_adds_up_and_shrinks_with_data():
    parts = [MetacognitiveEngine().assess("uniform", simulate(n=n, seed=1)).as_dict()["uncertainty"] for n in (5, 200, 1200)]
    for p in parts:
        assert p["irreducible_nats"] + p["reducible_nats"] + p["avoidable_nats"] == pytest.approx(p["surprise_nats"])
    assert parts[0]["reducible_nats"] == pytest.approx(ERA.baseline_nats["total"])      # five draws tell nothing
    assert parts[0]["reducible_nats"] > parts[1]["reducible_nats"] > parts[2]["reducible_nats"] > 0
    assert draws_needed(1.25, 69, 5) > draws_needed(1.5, 69, 5) > draws_needed(3, 69, 5)


def test_claims_are_what_the_forecast_would_score_if_it_were_the_law():
    forecast = Forecast(torch.log(1 + torch.arange(69.0) % 3)[None].double(), torch.log(1 + torch.arange(26.0) % 2)[None].double())
    rows = forecast[[0] * 20_000]
    whites, powerballs = forecast.sample(20_000, torch.Generator().manual_seed(1))
    scores = rows.skill(whites[:, 0].numpy(), powerballs[:, 0].numpy()).total
    assert claims_and_doubts(forecast)[0][0] == pytest.approx(scores.mean(), abs=4 * scores.std() / 20_000 ** 0.5)


# Freshness


def test_draws_behind_the_calendar_ask_for_draws_first():
    draws = simulate(n=200, seed=1)
    draws.attrs["simulated"] = False
    last = draws.draw_date.iloc[-1].date()
    keys = MetacognitiveEngine().assess("uniform", draws, today=date.fromordinal(last.toordinal() + 60)).as_dict()
    assert keys["freshness"]["behind"] > 10 and keys["strategy"] == "collect_data" and keys["recommendation"]["command"] == "helios data update"
    fresh = MetacognitiveEngine().assess("uniform", draws, today=last).as_dict()
    assert fresh["freshness"]["behind"] == 0 and fresh["strategy"] == "abstain" and fresh["notices"] == []


# Memory, on every database


def test_journal_metrics_and_knowledge(address):
    with MemoryStore(address) as store:
        engine = MetacognitiveEngine(store)
        first = engine.assess("frequency", BIASED)
        again = engine.assess("frequency", BIASED)
        assert [e["ref"] for e in engine.journal("frequency", simulated=True)] == ["frequency"] * 2 and engine.journal("frequency") == []
        entry = store.get_enhanced_journal_entries("frequency", EVENT)[0]
        assert entry["success_metric"] == first.keys["skill_nats"] and entry["context_hash"] == first.keys["draws"]["sha256"]
        assert 0.5 <= entry["confidence_score"] <= 1
        names = {m["metric_name"] for m in store.get_performance_metrics("frequency")}
        assert names >= {"skill_nats", "e_value", "ece", "sharpness_nats", "reducible_nats"}
        kinds = [f["kind"] for f in engine.knowledge("frequency", use=False)]
        assert sorted(kinds) == ["pattern", "skill"]                  # the same learned twice is known once
        assert first.keys["knowledge"] == [] and len(again.keys["knowledge"]) == 2
        uses = [f["uses"] for f in engine.knowledge("frequency", use=False)]
        assert uses == [1, 1] and [f["uses"] for f in engine.knowledge("frequency")] == [1, 1]
        assert [f["uses"] for f in engine.knowledge("frequency", use=False)] == [2, 2]


def test_nothing_is_half_written(monkeypatch):
    with MemoryStore(":memory:") as store:
        def fail(*args, **kwargs):
            raise StoreError("the disk is full")
        monkeypatch.setattr(MemoryStore, "store_knowledge_fragment", fail)
        with pytest.raises(StoreError, match="full"):
            MetacognitiveEngine(store).assess("uniform", BIASED)
        counts = store.get_memory_statistics()
        assert counts["enhanced_journal_count"] == counts["performance_metrics_count"] == counts["knowledge_fragments_count"] == 0


def test_asked_not_to_it_writes_nothing():
    with MemoryStore(":memory:") as store:
        before = store.get_memory_statistics()
        engine = MetacognitiveEngine(store)
        engine.assess("frequency", BIASED, record=False)
        engine.recommend("uniform", BIASED)
        engine.patterns("frequency", BIASED)
        assert store.get_memory_statistics() == before


def test_models_tried_on_the_same_draws_share_the_level():
    """E of about 48 is evidence alone, and none as the best of six."""
    draws = simulate(n=200, seed=13, powerball_weights={9: 2.4})
    suspect = Fixed({}, {9: 2.4})
    with MemoryStore(":memory:") as store:
        engine = MetacognitiveEngine(store)
        alone = engine.assess(suspect, draws, record=False)
        assert 20 <= alone.keys["e_value"] < 120 and alone.keys["evidence"] == {"found": True, "needed": 20.0, "models_tried": 1}
        for ball in (1, 2, 3, 4, 5):
            other = Fixed({}, {ball: 2})
            other.name = f"suspects {ball}"
            engine.assess(other, draws)
        engine.assess("uniform", draws)
        shared = engine.assess(suspect, draws)
        assert shared.keys["evidence"] == {"found": False, "needed": 120.0, "models_tried": 6}
        assert "6 models were tried" in shared.keys["notices"][1] and shared.recommendation.strategy != "keep"


def test_what_was_followed_in_vain_is_not_advised_again():
    """Twice a mixture was advised, and found no more than the model did."""
    with MemoryStore(":memory:") as store:
        engine = MetacognitiveEngine(store)
        assert engine.recommend("uniform", BIASED).strategy == "structured_mixture"
        for data in ("d1", "d2"):
            for name, strategy in (("uniform", "structured_mixture"), ("mixture", "abstain")):
                store.store_enhanced_journal_entry(name, "s", EVENT, {
                    "ref": name, "data": data, "simulated": True, "n": 100, "n_era": 200, "skill_nats": -0.01, "ci95": [-0.02, 0.0], "e_value": 0.1,
                    "evidence": False, "uniform": False, "strategy": strategy, "candidates": [strategy]})
        out = engine.assess("uniform", BIASED)
        assert [(t.ended, t.by) for t in out.trials] == [("no effect", "mixture")] * 2
        assert out.recommendation.strategy == "abstain" and out.recommendation.avoided == ["structured_mixture"]
        assert any("followed 2 times without effect" in reason for reason in out.recommendation.reasons)
        assert {f["kind"] for f in engine.knowledge("uniform")} == {"trial", "skill", "pattern"}
        assert len(engine.assess("uniform", BIASED).trials) == 2          # abstaining is no trial


def test_a_read_only_memory_is_read(tmp_path):
    with MemoryStore(tmp_path / "s.db") as store:
        MetacognitiveEngine(store).assess("frequency", BIASED)
        store.read_only = True
        before = store.get_memory_statistics()
        assert len(MetacognitiveEngine(store).assess("frequency", BIASED).keys["knowledge"]) == 2
        assert store.get_memory_statistics() == before


# Versions


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Two versions of a net, and an ensemble of them."""
    home = tmp_path_factory.mktemp("home")
    with MemoryStore(home / "s.db") as store:
        trainer = ModelTrainer(store, home)
        for seed in (1, 2):
            trainer.train(BIASED, TrainingConfig(**{**TINY.__dict__, "seed": seed}), "net")
        registry = Registry(store, home)
        registry.set_alias("net", "champion", 2, "newer")
        register_ensemble(registry, "both", ["net@1", "net@2"], None, BIASED)
        yield MetacognitiveEngine(store, home)


def test_a_version_is_asked_about_its_test_part(shop):
    keys = shop.assess("net@2", BIASED, record=False).as_dict()
    row = shop.registry.get("net@2")
    assert (keys["model"], keys["version"], keys["draws"]["judged"]) == ("net@2", 2, 58)
    assert keys["skill_nats"] == pytest.approx(row["evaluation"]["skill_nats"], abs=1e-6)
    assert keys["overfit_nats"] == keys["overfit"]["nats"] == pytest.approx(keys["overfit"]["training_nats"] - keys["skill_nats"])
    assert [a["version"] for a in keys["attempts"]] == [2, 1]
    head = keys["calibration"]["confidence"]
    assert (head["stated"] is None) == keys["uniform"] and (keys["uniform"] or 0 <= head["stated"] <= 1)


def test_a_version_of_simulated_draws_is_not_taken_for_one_of_a_lottery(shop):
    later = simulate(n=400, seed=8)
    later.attrs["simulated"] = False
    keys = shop.assess("net@1", later, record=False).as_dict()
    assert keys["draws"]["judged"] == 100 and keys["overfit"] is None
    assert keys["notices"] == ["net@1 was trained on SIMULATED draws. What it says of real ones is worth nothing."]


def test_a_champion_knows_the_way_back(shop):
    assert shop._rollback(find_subject("net", BIASED, shop.registry)) == "net@1"
    assert shop._rollback(find_subject("net@1", BIASED, shop.registry)) is None


def test_an_ensemble_is_a_version_too(shop):
    out = shop.assess("both", BIASED, record=False)
    keys = out.as_dict()
    assert keys["model"] == "both@1" and keys["overfit"] is None and keys["uncertainty"]["disagreement_nats"] >= 0
    assert png(plot_assessment(out))[:4] == b"\x89PNG"


@pytest.mark.parametrize(("ref", "draws", "said"), [
    ("nobody", BIASED, "no model is named 'nobody'.*forecasters are uniform"),
    ("net@9", BIASED, "there is no net@9"),
    ("net@1", simulate(n=200, seed=8), "give the history that it was trained on, or draws held after it"),
    ("net@1", simulate(n=100, seed=8, first=date(2013, 1, 2)), "was trained on 5/69"),
    ("uniform", BIASED[:2], "2 draws"),
])
def test_what_cannot_be_asked_is_said(shop, ref, draws, said):
    with pytest.raises(AssessError, match=said):
        shop.assess(ref, draws)


def test_without_a_store_nothing_is_remembered():
    with pytest.raises(AssessError, match="has no store"):
        MetacognitiveEngine().journal()
    with pytest.raises(AssessError, match="no registry"):
        MetacognitiveEngine().assess("net@1", BIASED)
    assert past_assessments(MemoryStore(":memory:"), None) == []
