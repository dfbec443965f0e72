"""Tests of change over time: how often they raise a false alarm, and whether they find what is there."""

from datetime import date, timedelta

import numpy as np
import pytest
import torch
from scipy.stats import binom

from helios.counting import Repeats
from helios.draws import balls, simulate
from helios.drift import (
    DriftError,
    anomaly,
    change,
    cycle,
    fair_scores,
    held_opinions,
    patterns,
    shuffle_p,
    standardized,
    trend,
    weekday,
)
from helios.forecasters import walk
from helios.game import POWERBALL
from helios.mixtures import Mixture
from helios.scoring import Forecast

SHUFFLES = 199
DAYS = [date(2020, 1, 1) + timedelta(int(i)) for i in np.arange(400) * 7 // 3]

# Bounds on counts below are exceeded by chance once in 1,000 times where the tests keep their level.


def most(n: int, p: float = 0.05) -> int:
    return int(binom.ppf(0.999, n, p))


@pytest.mark.parametrize("kind", ["normal", "skewed", "two values"])
def test_any_finding_in_a_series_without_one_is_as_rare_as_promised(kind):
    rng, n, m = np.random.default_rng(5), 150, 120
    make = {"normal": lambda: rng.normal(size=n), "skewed": lambda: rng.standard_exponential(n) ** 2, "two values": lambda: (rng.random(n) < 1 / 26) * 3.0}
    found = [patterns(make[kind](), DAYS[:n], seed=10 * i, n_shuffles=SHUFFLES) for i in range(m)]
    assert sum(bool(f.found) for f in found) <= most(m)
    for test in ("change", "trend", "cycle", "weekday"):
        assert sum(f.of(test).p <= 0.05 for f in found) <= most(m), test


def learner(draws, prior=5):
    """Forecasts from 50 draws on that take counts for the truth, and what was drawn."""
    whites, powerballs = balls(draws)
    counts = np.cumsum(np.eye(26)[powerballs - 1], axis=0)[49:-1] + prior
    return Forecast(torch.zeros(len(counts), 69, dtype=torch.float64), torch.from_numpy(np.log(counts))), whites[50:], powerballs[50:]


def patterns_of(forecast, whites, powerballs, seed):
    held, first = held_opinions(forecast)
    fair = fair_scores(held, 199, seed)
    z = standardized(held.skill(whites[first:], powerballs[first:]).total, fair)
    return patterns(z, DAYS[first:first + len(z)], (held, fair), first, seed=seed, n_shuffles=SHUFFLES)


@pytest.mark.parametrize("kind", ["learner", "repeats"])
def test_a_forecaster_that_learns_from_fair_draws_shows_no_drift(kind, monkeypatch):
    """Also one that falls silent after losses: leaving its silent draws out gave 2 to 3 times too many alarms."""
    monkeypatch.setattr("helios.drift.TICKETS", 20_000)
    found = []
    for seed in range(35):
        draws = simulate(n=250, seed=900 + seed)
        case = learner(draws) if kind == "learner" else (walk(Repeats(), draws, 50), *(x[50:] for x in balls(draws)))
        if len(held_opinions(case[0])[0]) >= 60:
            found.append(patterns_of(*case, seed))
    assert len(found) >= 12
    assert sum(bool(f.found) for f in found) <= most(len(found))
    for test in ("change", "trend", "anomaly"):
        assert sum(f.of(test).p <= 0.05 for f in found) <= most(len(found)), test


def test_the_place_of_a_change_lies_in_its_interval_as_often_as_promised():
    rng, inside, found = np.random.default_rng(2), 0, 0
    for i in range(80):
        x = rng.standard_exponential(200) + 1.2 * (np.arange(200) >= 120)
        f = change(x, i, 99)
        found += f.p <= 0.05
        inside += f.detail["low"] <= 120 <= f.detail["high"]
    assert found >= 70 and inside >= binom.ppf(0.001, 80, 0.95) - 2     # the scores are skewed, the interval is for normal ones


def test_a_bias_that_begins_is_dated():
    """Found in each of 12 histories; the date lies in its interval as often as promised."""
    since, inside, widths = date(2018, 6, 2), 0, []
    logits = torch.zeros(500, 26, dtype=torch.float64)
    logits[:, 8] = np.log(8)
    forecast = Forecast(torch.zeros(500, 69, dtype=torch.float64), logits)
    fair = fair_scores(forecast)
    for seed in range(12):
        draws = simulate(n=500, seed=seed, powerball_weights={9: 8}, since=since)
        days = [d.date() for d in draws.draw_date]
        z = standardized(forecast.skill(*balls(draws)).total, fair)
        f = patterns(z, days, n_shuffles=SHUFFLES)
        low, high = (days[f.of("change").detail[key]] for key in ("low", "high"))
        assert "change" in [x.test for x in f.found] and f.of("change").detail["after"] > f.of("change").detail["before"]
        inside += low <= since + timedelta(3) and since <= high
        widths.append((high - low).days)
    assert inside >= binom.ppf(0.001, 12, 0.95) and np.median(widths) < 250


@pytest.mark.parametrize(("test", "add"), [
    (lambda x: trend(x), np.arange(200) / 60), (lambda x: cycle(x), 1.5 * np.sin(np.arange(200) * 2 * np.pi / 9)),
    (lambda x: weekday(x, DAYS[:200]), np.array([2.0 * (d.weekday() == 2) for d in DAYS[:200]])),
])
def test_what_is_there_is_found(test, add):
    noise = np.random.default_rng(4).normal(size=200)
    assert test(noise).p > 0.05 and test(noise + add).p <= 0.005


def test_one_impossible_draw_is_an_anomaly_and_a_lucky_one_is_not():
    """A forecast nearly sure of five whites: that they come is a chance of one in eleven million."""
    logits = torch.zeros(60, 69, dtype=torch.float64)
    logits[:, :5] = 1.0
    forecast = Forecast(logits, torch.zeros(60, 26, dtype=torch.float64))
    whites, powerballs = balls(simulate(n=60, seed=4))
    fair = fair_scores(forecast, 199)
    z = standardized(forecast.skill(whites, powerballs).total, fair)
    assert anomaly(z, forecast, fair).p > 0.05
    whites[30] = [1, 2, 3, 4, 5]
    f = anomaly(standardized(forecast.skill(whites, powerballs).total, fair), forecast, fair)
    assert f.p < 0.01 and f.detail["at"] == 30


def test_a_mixture_of_equal_parts_scores_like_the_part():
    forecast, whites, powerballs = learner(simulate(n=120, seed=1))
    both = Mixture((forecast, forecast), (0.3, 0.7), (0.5, 0.5))
    a, b = fair_scores(forecast, 299, 1), fair_scores(both, 299, 1)
    assert np.allclose(a.mean, b.mean, atol=0.12) and np.allclose(a.sd, b.sd, rtol=0.25)
    uniform = Forecast.uniform(POWERBALL.eras[-1], len(forecast))
    held, first = held_opinions(Mixture((forecast, uniform), (0.0, 1.0), (0.0, 1.0)))
    assert (len(held), first) == (0, len(forecast))      # a part without weight has no opinion


def test_equal_seeds_give_equal_answers():
    x = np.random.default_rng(0).normal(size=100)
    assert patterns(x, DAYS[:100]).as_dict() == patterns(x, DAYS[:100]).as_dict()
    assert change(x, 1).p != change(x, 2).p or change(x, 1).p == 1


@pytest.mark.parametrize(("act", "said"), [
    (lambda: change(np.zeros(10)), "10 scores are too few"),
    (lambda: shuffle_p(np.array([np.inf] * 40), lambda x: x.sum(1)), "finite"),
    (lambda: weekday(np.zeros(40), DAYS[:30]), "30 days for 40 scores"),
    (lambda: weekday(np.zeros(40), DAYS[:1] * 40), "one weekday"),
    (lambda: fair_scores(Forecast(torch.zeros(1, 69), torch.zeros(1, 26)), 10), "n_samples is 10"),
])
def test_what_cannot_be_tested_is_said(act, said):
    with pytest.raises(DriftError, match=said):
        act()


def test_tests_that_were_not_run_are_listed():
    found = patterns(np.random.default_rng(0).normal(size=50))
    assert set(found.skipped) == {"weekday", "anomaly"} and len(found.findings) == 3
    assert patterns(np.zeros(40), DAYS[:40]).words().startswith("none found")
    assert patterns(np.zeros(0)).as_dict()["tests"] == []
