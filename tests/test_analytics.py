"""Analytics: subjects meet on draws that none has seen; fair draws give no winner, planted biases do; the store is read back."""

import json

import numpy as np
import pytest

from helios.ab_test import ABTest
from helios.analytics import CrossModelAnalytics, compare_scores, find_subject, observe_draws, scores
from helios.best_ensemble import mixed_score, recommend, recommended_weights
from helios.comparison import ComparisonError, Scores
from helios.draws import balls, era_draws, simulate
from helios.ensembles import register_ensemble
from helios.fitting import TrainingConfig, make_windows
from helios.forecasters import FORECASTERS, ForecasterError, Frequency, walk
from helios.memory_store import MemoryStore
from helios.registered import first_unseen
from helios.registry import Registry, RegistryError
from helios.trainer import ModelTrainer

NAMES = list(FORECASTERS)[:4]
HISTORY = simulate(n=520, seed=5, powerball_weights={7: 6})
EARLY = HISTORY[:400].copy()
TINY = {"hidden": 16, "layers": 1, "heads": 2, "sequence_length": 10, "epochs": 2, "learning_rate": 0.02, "batch_size": 64, "threads": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Analytics over two nets of one history and an ensemble of them."""
    home = tmp_path_factory.mktemp("home")
    with MemoryStore(home / "store.db") as store:
        trainer = ModelTrainer(store, home)
        for seed in (1, 2):
            trainer.train(EARLY, TrainingConfig(**TINY | {"seed": seed}), "net")
        registry = Registry(store, home)
        register_ensemble(registry, "both", ["net@1", "net@2"], None, EARLY)
        yield CrossModelAnalytics(store, registry)


def test_scores_are_those_of_the_walk():
    found = scores(["uniform", Frequency()], HISTORY, 300)
    skill = walk(Frequency(), HISTORY, 300).skill(*(x[300:] for x in balls(era_draws(HISTORY))))
    assert np.allclose(found.white[1], skill.white) and np.allclose(found.powerball[1], skill.powerball)
    assert found.dates[0] == str(HISTORY.draw_date[300].date()) and len(found) == 220 and not found.total[0].any()
    assert found.facts[0]["hits_by_chance"] == pytest.approx(25 / 69) and (found.seconds >= 0).all()


def test_a_start_may_be_a_date():
    day = HISTORY.draw_date[300]
    assert [len(scores(["uniform"], HISTORY, start)) for start in (300, day.date(), str(day.date()))] == [220] * 3
    for start in ("soon", 0, 520, "1999-01-01", "2090-01-01"):
        with pytest.raises(ComparisonError, match="start is"):
            scores(["uniform"], HISTORY, start)


def test_the_future_has_no_say():
    """Scores of draws up to 349 are the same when the later ones are other draws."""
    other = HISTORY.copy()
    other.loc[350:, "powerball"] = other.powerball[350:] % 26 + 1
    one, two = (scores(NAMES, draws, 300).total[:, :50] for draws in (HISTORY, other))
    assert np.allclose(one, two, atol=1e-12)


def test_fair_draws_have_no_winner():
    """6 fair histories, four questions at 5% each; seeds were not chosen."""
    for seed in range(6):
        found = compare_scores(scores(NAMES, simulate(n=360, seed=seed)))
        assert found.verdict == "nobody shows skill; no pair differs"
        assert found.recommendation.is_uniform and found.recommendation.realised.any() == False  # noqa: E712
        assert {c.verdict for c in found.courses} <= {"no change found", "constant, or too few draws"}


@pytest.mark.parametrize("bias, winner", [
    ({"powerball_weights": {7: 5}}, "frequency"), ({"white_weights": {3: 6, 30: 6}}, "frequency"), ({"follow": 0.15}, "steps"),
])
def test_the_forecaster_that_sees_a_bias_wins(bias, winner):
    found = compare_scores(scores(NAMES, simulate(n=900, seed=4, **bias), 300))
    of_winner = [p for p in found.pairs if winner in (p.first, p.second)]
    assert len(of_winner) == 3 and {p.better for p in of_winner} == {winner} and max(p.p_holm for p in of_winner) <= 0.05
    assert found.matrix.has_skill[winner] and not found.matrix.has_skill["uniform"]
    weights = np.array(found.recommendation.white_weights) + found.recommendation.powerball_weights
    assert not found.recommendation.is_uniform and weights[NAMES.index(winner)] > 0.9
    assert found.recommendation.realised.mean() > 0


def test_versions_meet_after_what_they_have_seen(shop):
    test_part = make_windows(EARLY, TrainingConfig(**TINY))[1].test[0].item() + 10
    for ref in ("net@1", "both"):
        assert find_subject(ref, EARLY, shop.registry).first == find_subject(ref, HISTORY, shop.registry).first == test_part
    found = shop.compare(["net@1", "both", "uniform"], HISTORY)
    assert found.scores.names == ("net@1", "both@1", "uniform") and found.scores.dates[0] == str(HISTORY.draw_date[test_part].date())
    with pytest.raises(ComparisonError, match="has seen draws until"):
        shop.compare(["uniform", "net@2"], HISTORY, test_part - 1)


def test_scores_of_a_version_are_those_of_its_evaluation(shop):
    for ref in ("net@1", "both@1"):
        found = scores([ref], EARLY, registry=shop.registry)
        assert found.total.mean() == pytest.approx(shop.registry.get(ref)["evaluation"]["skill_nats"], abs=1e-6)


def test_another_history_under_the_same_dates_is_not_trusted(shop):
    about = shop.registry.get("net@1")["about"]
    assert first_unseen(about, simulate(n=520, seed=9)) == 400
    with pytest.raises(ComparisonError, match="has seen all 400 draws"):
        shop.compare(["net@1"], simulate(n=400, seed=9))
    old = HISTORY.assign(era="2012-01-15")
    with pytest.raises(ForecasterError, match="was trained on 5/69"):
        shop.compare(["net@1"], old)


@pytest.mark.parametrize("subjects, error, message", [
    ([], ComparisonError, "at least one"), (["net@9"], RegistryError, "no net@9"), (["wizard"], ForecasterError, "wizard"),
    (["net", "net@1"], ComparisonError, "named twice"),
])
def test_subjects_that_are_not_there(shop, subjects, error, message):
    with pytest.raises(error, match=message):
        shop.compare(subjects, HISTORY)


def test_everything_is_plain_json(shop):
    found = shop.compare(["net@1", "frequency", "uniform"], HISTORY).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    matrix = shop.performance_matrix(["frequency", "uniform"], HISTORY)
    assert json.loads(json.dumps(matrix, allow_nan=False))["names"] == ["frequency", "uniform"]
    assert found["simulated"] and {p["verdict"] for p in found["pairs"]}
    for part in (shop.overview(), shop.performance("net"), shop.trends()):
        json.dumps(part, allow_nan=False)


def test_seeds_of_one_configuration(shop):
    assert [s.names for s in shop.seeds("net", HISTORY)] == [("net@1", "net@2")]
    with pytest.raises(ComparisonError, match="differ only in their seed"):
        shop.seeds("both", HISTORY)


def test_what_is_known_of_a_model(shop):
    known = shop.performance("net")
    assert [v["ref"] for v in known["versions"]] == ["net@2", "net@1"] and known["metrics"][0]["metric"] == "skill_nats"
    assert shop.overview()["n_judged"] == 3 and "p_holm" in shop.overview()["versions"][0]
    with pytest.raises(RegistryError, match="wizard"):
        shop.performance("wizard")
    with MemoryStore(":memory:") as empty, pytest.raises(ComparisonError, match="nothing is known of net"):
        CrossModelAnalytics(empty).performance("net")


def test_trends_of_what_was_measured():
    with MemoryStore(":memory:") as store:
        rng = np.random.default_rng(0)
        for i in range(15):
            for name, value in (("loss", 20 - 0.1 * i + 0.01 * rng.normal()), ("rows", rng.normal()), ("skill_nats", 0.01 * i)):
                store.store_performance_metric("net", name, float(value))
        found = CrossModelAnalytics(store).trends()
        by_name = {row["metric"]: row for row in found["series"]}
        assert found["verdict"] == "loss of net falls" and found["n_asked"] == 2
        assert by_name["loss"]["slope"] == pytest.approx(-0.1, abs=0.01) and by_name["loss"]["first"] > by_name["loss"]["last"]
        assert by_name["skill_nats"]["p"] is None           # its measurements share draws
        assert CrossModelAnalytics(store).trends("other")["verdict"] == "no series is long enough to ask"


def test_a_mixture_scores_as_its_forecasts_do():
    from helios.mixtures import mixture
    forecasts = [walk(FORECASTERS[name](), HISTORY, 300) for name in ("frequency", "steps", "uniform")]
    outcome = tuple(x[300:] for x in balls(HISTORY))
    mixed = mixture(forecasts, [2, 3, 5], [5, 3, 2]).skill(*outcome)
    found = scores(["frequency", "steps"], HISTORY, 300)
    assert np.allclose(mixed_score(found.white.T, np.array([0.2, 0.3, 0.5])), mixed.white)
    assert np.allclose(mixed_score(found.powerball.T, np.array([0.5, 0.3, 0.2])), mixed.powerball)


def bold(n, m, seed, balls_of=26):
    """Scores of m forecasters of one heavy powerball each, on fair draws, (n, m)."""
    drawn = np.random.default_rng(seed).integers(0, balls_of, n)
    return np.log(np.where(drawn[:, None] == np.arange(m), 2.0, 1.0) * balls_of / (balls_of + 1))


@pytest.mark.parametrize("m", [1, 8])
def test_fair_draws_recommend_uniform(m):
    """300 fair histories at 5%: the guarantee, without a margin for luck, since it is far from tight."""
    kinds = [recommended_weights(bold(150, m, seed), 0.05)[1] for seed in range(300)]
    assert np.mean([kind != "uniform" for kind in kinds]) <= 0.05


def test_the_ensemble_is_judged_on_draws_that_had_no_say():
    days = tuple(str(d) for d in np.datetime64("2020-01-01") + np.arange(400))
    late = np.where(np.arange(400) < 200, 0.1, -0.2) + 0.01 * np.random.default_rng(0).normal(size=400)    # good until the choice
    found = recommend(Scores(("lucky",), days, late[None], np.zeros((1, 400)), np.ones(1)))
    assert found.expected[0] > 0.05 and found.realised.mean() < -0.1 and "not shown" in found.verdict
    assert found.first_judged == days[200] and found.n_fitted == 200
    with pytest.raises(ComparisonError, match="leave some to judge"):
        recommend(Scores(("a",), days[:6], np.zeros((1, 6)), np.zeros((1, 6)), np.ones(1)))


def test_an_ab_test_over_a_growing_history(shop):
    tests = ABTest(shop.store)
    tests.create("growing", "frequency", "uniform", since=HISTORY.draw_date[319].date())
    states = [observe_draws(tests, "growing", HISTORY[:n], shop.registry) for n in (320, 360, 360, 440)]
    assert [s.n for s in states] == [0, 40, 40, 120]
    tests.create("seen", "net@1", "uniform", since=HISTORY.draw_date[100].date())
    with pytest.raises(ComparisonError, match="has seen draws until"):
        observe_draws(tests, "seen", HISTORY, shop.registry)
    tests.create("startless", "frequency", "uniform", bound=9.0)
    with pytest.raises(ComparisonError, match="without a first day"):
        observe_draws(tests, "startless", HISTORY, shop.registry)
