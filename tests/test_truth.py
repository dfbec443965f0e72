"""The law behind simulated draws against enumeration in a small game, and against what `simulate` does."""

from dataclasses import replace
from datetime import date, timedelta
from itertools import combinations, permutations
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from helios.draws import Bias, DrawError, balls, era_draws, simulate, simulate_balls
from helios.drum import weighted_sets
from helios.game import POWERBALL, DrawDays, Era, Game
from helios.mixtures import Mixture, mixture
from helios.scoring import Forecast
from helios.truth import SAMPLES, Truth, TruthError, expected_skill, truth

START = date(2001, 1, 1)                                   # a Monday
ERA = Era(START, 5, 4, 2)
LATER = Era(date(2001, 3, 5), 6, 3, 2)                     # a Monday too
GAME = Game("Small", (ERA, LATER), (DrawDays(START, (0, 3)),))   # Mondays and Thursdays
SETS = list(combinations(range(1, 6), 2))
HUGE = 1e15                                                # a ball of this weight comes, but for a chance of 1e-14


def law_by_hand(bias: Bias, era: Era, last: tuple | None, planted: bool = True) -> tuple[dict, list]:
    """Probability of each set and of each powerball; `last` are the whites and the powerball of the draw before."""
    if not planted:
        bias, last = Bias(), None
    weight = [bias.white_weights.get(ball, 1) for ball in range(1, era.whites + 1)]
    for ball in last[0] if last else ():
        weight[ball - 1] *= bias.repeat if isinstance(bias.repeat, float | int) else bias.repeat.get(ball, 1)
    sets = dict.fromkeys(combinations(range(1, era.whites + 1), era.picked), 0.0)
    for order in permutations(range(1, era.whites + 1), era.picked):
        p, left = 1.0, sum(weight)
        for ball in order:
            p, left = p * weight[ball - 1] / left, left - weight[ball - 1]
        sets[tuple(sorted(order))] += p
    free = [bias.powerball_weights.get(ball, 1) for ball in range(1, era.powerballs + 1)]
    powerball = [w / sum(free) for w in free]
    if last:
        after = last[1] + 1 if last[1] < era.powerballs else 1
        powerball = [(1 - bias.follow) * p + bias.follow * (b == after) for b, p in enumerate(powerball, 1)]
    return sets, powerball


def laws_by_hand(bias, era, whites, powerballs, first_planted=0):
    for t in range(len(powerballs)):
        last = (whites[t - 1].tolist(), int(powerballs[t - 1])) if t > first_planted else None
        yield law_by_hand(bias, era, last, t >= first_planted)


def assert_law(law: Truth, by_hand, era: Era) -> None:
    by_hand = list(by_hand)
    assert len(law) == len(by_hand)
    for t, (sets, powerball) in enumerate(by_hand):
        pi = [sum(p for s, p in sets.items() if ball in s) for ball in range(1, era.whites + 1)]
        np.testing.assert_allclose(law.white_inclusion[t], pi, rtol=1e-10)
        np.testing.assert_allclose(law.powerball_probs[t], powerball, rtol=1e-10)
        assert law.skill.white[t] == pytest.approx(sum(p * log(p * len(sets)) for p in sets.values()), abs=1e-10)
        assert law.skill.powerball[t] == pytest.approx(sum(p * log(p * era.powerballs) for p in powerball if p), abs=1e-10)
    np.testing.assert_allclose(law.white_inclusion.sum(axis=1), era.picked, rtol=1e-12)
    np.testing.assert_allclose(law.powerball_probs.sum(axis=1), 1, rtol=1e-12)


def history(bias, n=40, seed=1, era=ERA):
    return simulate_balls(n, era, np.random.default_rng(seed), bias)


# Every kind of bias against enumeration

KINDS = {
    "fair": Bias(),
    "white weights": Bias({2: 3.0, 5: 0.5}),
    "all whites differ": Bias({1: 1.1, 2: 2.2, 3: 3.3, 4: 4.4, 5: 5.5}),
    "powerball weights": Bias(powerball_weights={4: 3, 1: 0.2}),
    "follow": Bias(follow=0.3),
    "always follows": Bias(follow=1.0),
    "repeat": Bias(repeat=2.5),
    "seldom repeats": Bias(repeat=0.1),
    "repeat by ball": Bias(repeat={1: 4.0, 3: 0.25}),
    "repeat and white weights": Bias({1: 3.0, 2: 0.5}, repeat=2.0),
    "repeat by ball and white weights": Bias({1: 3.0, 4: 0.5}, repeat={1: 1 / 3, 4: 7.0, 5: 2.0}),
    "follow and powerball weights": Bias(powerball_weights={2: 5}, follow=0.4),
    "everything": Bias({2: 2.0}, {3: 2.0}, 0.25, {2: 3.0, 5: 0.5}),
}


@pytest.mark.parametrize("bias", KINDS.values(), ids=KINDS)
def test_law_equals_enumeration(bias):
    drawn = history(bias)
    assert_law(truth(bias, ERA, *drawn), laws_by_hand(bias, ERA, *drawn), ERA)


@pytest.mark.parametrize("era", [Era(START, 4, 1, 1), Era(START, 4, 2, 3), Era(START, 3, 3, 3), Era(START, 6, 5, 4)])
def test_law_in_odd_games(era):
    bias = Bias({1: 3.0}, {1: 2.0}, 0.5, {2: 4.0})
    drawn = history(bias, era=era)
    assert_law(truth(bias, era, *drawn), laws_by_hand(bias, era, *drawn), era)


weights_of = {n: st.dictionaries(st.integers(1, n), st.floats(0.1, 10), max_size=n) for n in (4, 5)}
biases = st.builds(Bias, weights_of[5], weights_of[4], st.floats(0, 1), st.one_of(st.floats(0.1, 10), weights_of[5]))


@settings(max_examples=40, deadline=None)
@given(biases, st.integers(0, 2**32))
def test_law_of_any_bias(bias, seed):
    drawn = history(bias, 8, seed)
    assert_law(truth(bias, ERA, *drawn), laws_by_hand(bias, ERA, *drawn), ERA)


def test_fair_history_and_short_ones():
    for n in (0, 1, 2):
        law = truth(Bias(), ERA, *history(Bias(), n))
        assert law.white_inclusion.shape == (n, 5) and law.powerball_probs.shape == (n, 4)
        np.testing.assert_allclose(law.skill.total, np.zeros(n), atol=1e-14)
        for bias in KINDS.values():
            drawn = history(bias, n)
            assert_law(truth(bias, ERA, *drawn), laws_by_hand(bias, ERA, *drawn), ERA)


@pytest.mark.parametrize("bias", KINDS.values(), ids=KINDS)
def test_weights_in_the_drum_by_hand(bias):
    """Those of the whites before each draw: planted ones, times those of a ball that has just come."""
    whites, powerballs = history(bias)
    law = truth(bias, ERA, whites, powerballs)
    for t in range(40):
        weight = [float(bias.white_weights.get(ball, 1)) for ball in range(1, 6)]
        for ball in whites[t - 1].tolist() if t else ():
            weight[ball - 1] *= bias.repeat if isinstance(bias.repeat, float | int) else bias.repeat.get(ball, 1)
        np.testing.assert_allclose(law.white_weights[t], weight, rtol=1e-12)
    since = replace(bias, since=START + timedelta(20))
    days = [START + timedelta(t) for t in range(40)]
    later = truth(since, ERA, whites, powerballs, days)
    assert (later.white_weights[:20] == 1).all() and later[20:].white_weights.shape == (20, 5)


def test_rows_of_a_law():
    drawn = history(KINDS["everything"])
    law = truth(KINDS["everything"], ERA, *drawn)
    part = law[10:30]
    assert len(part) == 20 and len(part.skill.white) == len(part.white_inclusion) == 20
    assert (part.white_weights == law.white_weights[10:30]).all()
    assert (part.powerball_probs == law.powerball_probs[10:30]).all() and (part.skill.total == law.skill.total[10:30]).all()


# The law and what `simulate` does

def split_of(bias: Bias, n=18, seed=3, first=None):
    """A simulated table, and for each era in it the table's part, its era and law."""
    draws = simulate(GAME, n, seed, first or START, **vars(bias))
    for era in (ERA, LATER):
        if era.name in set(draws.era):
            part = era_draws(draws, era.name)
            yield part, era, truth(bias, era, *balls(part), part.draw_date.dt.date)


@pytest.mark.parametrize("since", [
    None, START, START - timedelta(30), date(2001, 1, 22), date(2001, 1, 23), date(2001, 1, 25), date(2001, 3, 1),
    date(2001, 3, 2), date(2001, 3, 5), date(2001, 3, 8), date(2001, 3, 9), date(2009, 1, 1)])
def test_since_on_and_off_a_draw_day_and_over_eras(since):
    """Mondays and Thursdays; 18 draws of the first era, then the second from 2001-03-05."""
    bias = Bias({2: 3.0}, {1: 2.0}, 0.4, 3.0, since)
    eras = list(split_of(bias, n=40))
    assert [len(part) for part, _, _ in eras] == [18, 22]
    for part, era, law in eras:
        days = part.draw_date.dt.date.tolist()
        planted = [since is None or day >= since for day in days]
        first = planted.index(True) if any(planted) else len(days)
        assert_law(law, laws_by_hand(bias, era, *balls(part), first), era)


@pytest.mark.parametrize("since", [None, date(2001, 1, 29), date(2001, 1, 30), date(2001, 2, 1), date(2001, 3, 15)])
def test_what_is_sure_under_the_law_comes_and_the_rest_is_free(since):
    """Biases so strong that each draw is known from the one before, except the first of an era or of the bias."""
    bias = Bias(follow=1.0, repeat=HUGE, since=since)
    free = []
    for seed in range(60):
        for part, era, law in split_of(bias, 40, seed):
            whites, powerballs = balls(part)
            q = law.powerball_probs[np.arange(len(part)), powerballs - 1]
            pi = np.take_along_axis(law.white_inclusion, whites - 1, axis=1)
            sure = law.skill.powerball > 0.5
            assert (law.skill.white[sure] > 0.5).all() and (law.skill.white[~sure] < 1e-9).all()
            days = part.draw_date.dt.date.to_numpy()
            biased = np.flatnonzero([since is None or day >= since for day in days])
            assert np.flatnonzero(sure).tolist() == biased[1:].tolist()
            np.testing.assert_allclose(q[sure], 1)
            np.testing.assert_allclose(pi[sure], 1)
            np.testing.assert_allclose(q[~sure], 1 / era.powerballs)
            if len(biased) and biased[0]:   # fair draws come before: the first biased one does not look back at them
                at = biased[0]
                free.append(powerballs[at] == powerballs[at - 1] % era.powerballs + 1)
    # 60 chances of a quarter or a third: all or none of them come once in ten million runs
    assert not free or 0 < sum(free) < len(free)


def test_the_last_powerball_is_followed_by_the_first():
    for part, era, law in split_of(Bias(follow=1.0), 40, 5):
        _, powerballs = balls(part)
        assert (np.diff(powerballs) % era.powerballs == 1).all()
        wraps = np.flatnonzero(powerballs[:-1] == era.powerballs) + 1
        assert len(wraps) and (powerballs[wraps] == 1).all() and (law.powerball_probs[wraps, 0] == 1).all()


def test_a_followed_powerball_ignores_weights_and_a_free_one_has_them():
    bias = Bias(powerball_weights={2: HUGE}, follow=0.5)
    _, powerballs = history(bias, 400)
    assert powerballs[0] == 2
    follows = powerballs[:-1] % 4 + 1
    assert ((powerballs[1:] == 2) | (powerballs[1:] == follows)).all()
    assert {1, 2, 3, 4} == set(powerballs.tolist())


@pytest.mark.parametrize("name", ["white weights", "powerball weights", "follow", "repeat", "repeat by ball and white weights", "everything"])
def test_law_matches_frequencies(name):
    """Sets and powerballs after each set and powerball, in 30,000 draws; a fresh seed fails once in a million."""
    bias, n = KINDS[name], 30_000
    whites, powerballs = history(bias, n, seed=11)
    place = {s: i for i, s in enumerate(SETS)}
    at = np.array([place[tuple(s)] for s in whites.tolist()])
    seen_sets, seen_balls = np.zeros((10, 10)), np.zeros((4, 4))
    np.add.at(seen_sets, (at[:-1], at[1:]), 1)
    np.add.at(seen_balls, (powerballs[:-1] - 1, powerballs[1:] - 1), 1)
    expected_sets = np.array([list(law_by_hand(bias, ERA, (s, 1))[0].values()) for s in SETS]) * seen_sets.sum(axis=1, keepdims=True)
    expected_balls = np.array([law_by_hand(bias, ERA, (SETS[0], b))[1] for b in (1, 2, 3, 4)]) * seen_balls.sum(axis=1, keepdims=True)
    for seen, expected, df in ((seen_sets, expected_sets, 90), (seen_balls, expected_balls, 12)):
        assert expected.min() > 5
        assert chi2.sf(((seen - expected) ** 2 / expected).sum(), df) > 1e-6
    both = np.zeros((10, 4))       # whites and powerball of one draw are independent given the draw before
    alone = np.flatnonzero((at[:-1] == 0) | (at[:-1] == 9)) + 1 if bias.follows_whites else np.arange(1, n)
    for last in (0, 9) if bias.follows_whites else (None,):
        rows = alone if last is None else np.flatnonzero(at[:-1] == last) + 1
        both[:] = 0
        np.add.at(both, (at[rows], powerballs[rows] - 1), 1)
        expected = both.sum(axis=1, keepdims=True) * both.sum(axis=0) / both.sum()
        assert chi2.sf(((both - expected) ** 2 / expected).sum(), 27) > 1e-6


@pytest.mark.parametrize("bias", KINDS.values(), ids=KINDS)
def test_sampled_scores_of_the_truth_scatter_about_its_skill(bias):
    """Score less expected score is a martingale difference; its mean stays within 4.5 standard errors."""
    drawn = history(bias, 3000, seed=21)
    law = truth(bias, ERA, *drawn)
    q = law.powerball_probs[np.arange(3000), drawn[1] - 1]
    gap = np.log(4 * q) - law.skill.powerball
    assert abs(gap.mean()) <= 4.5 * gap.std() / np.sqrt(3000) + 1e-12
    drawn_white = np.zeros((3000, 5))
    np.put_along_axis(drawn_white, drawn[0] - 1, 1.0, axis=1)
    gap = drawn_white - law.white_inclusion
    assert (np.abs(gap.mean(axis=0)) < 4.5 * gap.std(axis=0) / np.sqrt(3000)).all()


# What a forecast is worth

def random_forecast(n, seed, scale=1.5, era=ERA):
    g = torch.Generator().manual_seed(seed)
    return Forecast(torch.randn(n, era.whites, generator=g, dtype=torch.float64) * scale,
                    torch.randn(n, era.powerballs, generator=g, dtype=torch.float64) * scale, era.picked)


def expected_by_hand(forecast: Forecast, t: int, sets: dict, powerball: list) -> tuple[float, float]:
    """Mean score over every set and powerball, each scored by itself, weighted by its chance."""
    one = Forecast(forecast.white_logits[[t]], forecast.powerball_logits[[t]], forecast.picked)
    white = total = 0.0
    for s, p in sets.items():
        for b, q in enumerate(powerball, 1):
            skill = one.skill(np.array([s]), np.array([b]))
            white, total = white + p * q * skill.white[0], total + p * q * skill.total[0]
    return white, total


@pytest.mark.parametrize("bias", KINDS.values(), ids=KINDS)
def test_expected_skill_equals_enumeration(bias):
    drawn = history(bias, 5)
    forecast = random_forecast(5, 1)
    expected = expected_skill(forecast, truth(bias, ERA, *drawn))
    for t, (sets, powerball) in enumerate(laws_by_hand(bias, ERA, *drawn)):
        white, total = expected_by_hand(forecast, t, sets, powerball)
        assert expected.white[t] == pytest.approx(white, abs=1e-10)
        assert expected.total[t] == pytest.approx(total, abs=1e-10)


def random_mixture(n, seed, scale=1.5, era=ERA, per_draw=True):
    """Three random forecasts, whose weights change from draw to draw."""
    parts, rng = tuple(random_forecast(n, seed + i, scale, era) for i in range(3)), np.random.default_rng(seed)
    if not per_draw:
        return mixture(list(parts), [1, 2, 3], [3, 2, 1])
    return Mixture(parts, *(torch.from_numpy(rng.dirichlet(np.ones(3), n)) for _ in range(2)))


def mixture_by_hand(mixed: Mixture, t: int, sets: dict, powerball: list) -> tuple[float, float, float]:
    """Mean and spread of the whites' score over every set, and the mean of the powerball's."""
    def over_sets(logits):
        weight = np.array([sum(logits[b - 1] for b in s) for s in sets])
        return weight - np.logaddexp.reduce(weight)

    white, ball = 0.0, 0.0
    for part, w, v in zip(mixed.parts, *(share[:, t].tolist() for share in mixed.shares), strict=True):
        white += w * np.exp(over_sets(part.white_logits[t].tolist()))
        odds = np.exp(part.powerball_logits[t].numpy())
        ball += v * odds / odds.sum()
    p, scores = np.array([*sets.values()]), np.log(white * len(sets))
    gap = scores - over_sets(mixed.white_logits[t].tolist())   # what is estimated by samples; the rest is exact
    return float(p @ scores), float(np.sqrt(max(p @ gap ** 2 - (p @ gap) ** 2, 0.0))), float(np.dot(powerball, np.log(ball * len(ball))))


@pytest.mark.parametrize("bias", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("per_draw", [False, True])
def test_expected_skill_of_a_mixture_against_enumeration(bias, per_draw):
    """The powerball exactly; the whites by samples from the law, within 4 standard errors of their mean over the draws (by
    enumeration: a fresh seed fails once in 16,000) and 6 for any single draw."""
    n = 20
    drawn = history(bias, n)
    mixed = random_mixture(n, 2, per_draw=per_draw)
    expected = expected_skill(mixed, truth(bias, ERA, *drawn))
    by_hand = [mixture_by_hand(mixed, t, sets, powerball) for t, (sets, powerball) in enumerate(laws_by_hand(bias, ERA, *drawn))]
    white, spread, powerball = map(np.array, zip(*by_hand, strict=True))
    np.testing.assert_allclose(expected.powerball, powerball, atol=1e-10)
    error = spread / np.sqrt(SAMPLES)
    assert (np.abs(expected.white - white) <= 6 * error + 1e-9).all()
    assert abs((expected.white - white).mean()) <= 4 * np.sqrt((error ** 2).sum()) / n + 1e-9


def test_expected_skill_of_a_mixture_of_equals():
    """That of the one: exactly for powerballs and for uniform, up to the samples for whites."""
    bias = KINDS["everything"]
    drawn = history(bias, 30)
    law, part = truth(bias, ERA, *drawn), random_forecast(30, 4)
    alone, mixed = expected_skill(part, law), expected_skill(mixture([part, part, part], [1, 2, 3]), law)
    assert abs((mixed.white - alone.white).mean()) < 0.05 < np.abs(alone.white).mean()
    np.testing.assert_allclose(mixed.powerball, alone.powerball, atol=1e-12)
    uniform = expected_skill(mixture([Forecast.uniform(ERA, 30)] * 2), law)
    np.testing.assert_allclose(uniform.total, 0, atol=1e-9)
    assert len(expected_skill(mixture([part[:0]] * 2), law[:0]).total) == 0


def test_expected_skill_of_a_mixture_in_powerball():
    """Against many more draws from the law than it takes itself, within 4 standard errors of both."""
    era, bias, n, many = POWERBALL.eras[-1], Bias({3: 4.0, 17: 4.0}, repeat=3.0), 8, 4000
    drawn = simulate_balls(n, era, np.random.default_rng(1), bias)
    law = truth(bias, era, *drawn)
    mixed = random_mixture(n, 9, 0.7, era)
    expected = expected_skill(mixed, law).white
    for t in range(n):
        sets = weighted_sets(np.random.default_rng(t), many, law.white_weights[t], era.picked)
        repeated = Mixture(tuple(Forecast(p.white_logits[[t] * many], p.powerball_logits[[t] * many]) for p in mixed.parts),
                           mixed.white_weights[[t] * many], mixed.powerball_weights[[t] * many])
        scores = repeated.skill(sets, np.ones(many, int)).white
        assert abs(scores.mean() - expected[t]) < 4 * scores.std() * np.sqrt(1 / many + 1 / SAMPLES)


def test_no_mixture_beats_the_truth_by_more_than_chance():
    bias = KINDS["everything"]
    drawn = history(bias, 400, seed=8)
    law = truth(bias, ERA, *drawn)
    expected = expected_skill(random_mixture(400, 5), law)
    assert (expected.powerball <= law.skill.powerball + 1e-10).all() and expected.white.mean() < law.skill.white.mean()


@settings(max_examples=60, deadline=None)
@given(biases, st.integers(0, 2**32), st.floats(0, 8))
def test_no_forecast_beats_the_truth(bias, seed, scale):
    drawn = history(bias, 20, seed)
    law = truth(bias, ERA, *drawn)
    expected = expected_skill(random_forecast(20, seed, scale), law)
    assert (expected.white <= law.skill.white + 1e-10).all()
    assert (expected.powerball <= law.skill.powerball + 1e-10).all()


@settings(max_examples=40, deadline=None)
@given(biases, st.integers(0, 2**32))
def test_the_powerball_that_is_known_is_worth_its_skill(bias, seed):
    drawn = history(replace(bias, follow=min(bias.follow, 0.99)), 20, seed)
    law = truth(replace(bias, follow=min(bias.follow, 0.99)), ERA, *drawn)
    knowing = Forecast(torch.zeros(20, 5, dtype=torch.float64), torch.from_numpy(law.powerball_probs).log(), 2)
    np.testing.assert_allclose(expected_skill(knowing, law).powerball, law.skill.powerball, atol=1e-12)


def test_whites_of_one_pick_are_known_exactly():
    """One ball a draw: logits can state the drum's law, so the best forecast is worth just the truth's skill."""
    era, bias = Era(START, 6, 2, 1), Bias({2: 3.0, 3: 0.2}, repeat=4.0)
    law = truth(bias, era, *history(bias, 50, era=era))
    knowing = Forecast(torch.from_numpy(law.white_inclusion).log(), torch.zeros(50, 2), 1)
    np.testing.assert_allclose(expected_skill(knowing, law).white, law.skill.white, atol=1e-12)
    assert law.skill.white.min() > 0.1


def test_uniform_is_worth_nothing_and_adding_a_constant_changes_nothing():
    drawn = history(KINDS["everything"])
    law = truth(KINDS["everything"], ERA, *drawn)
    np.testing.assert_allclose(expected_skill(Forecast.uniform(ERA, 40), law).total, 0, atol=1e-12)
    forecast = random_forecast(40, 3)
    moved = Forecast(forecast.white_logits + 7, forecast.powerball_logits - 9, 2)
    np.testing.assert_allclose(expected_skill(moved, law).total, expected_skill(forecast, law).total, atol=1e-10)


def test_single_precision_logits_are_scored_in_double():
    law = truth(KINDS["everything"], ERA, *history(KINDS["everything"]))
    forecast = random_forecast(40, 3)
    single = Forecast(forecast.white_logits.float(), forecast.powerball_logits.float(), 2)
    scored = expected_skill(single, law)
    assert scored.white.dtype == np.float64
    np.testing.assert_allclose(scored.total, expected_skill(forecast, law).total, atol=1e-6)


def test_skill_that_cannot_come_counts_nothing():
    law = truth(Bias(follow=1.0), ERA, *history(Bias(follow=1.0)))
    np.testing.assert_allclose(law.skill.powerball, [0, *[log(4)] * 39])
    assert np.isfinite(law.skill.total).all()
    assert np.isfinite(expected_skill(random_forecast(40, 1), law).total).all()


def test_mean_of_sampled_skill_is_the_expected_one():
    bias, n = KINDS["everything"], 4000
    drawn = history(bias, n, seed=31)
    forecast = random_forecast(n, 5)
    gap = forecast.skill(*drawn).total - expected_skill(forecast, truth(bias, ERA, *drawn)).total
    assert abs(gap.mean()) < 4.5 * gap.std() / np.sqrt(n)


# Errors

def test_a_bias_from_a_date_on_needs_days():
    with pytest.raises(TruthError, match="give the days of the draws"):
        truth(Bias({1: 2.0}, since=START), ERA, *history(Bias()))


@pytest.mark.parametrize("bias", [Bias({6: 2.0}), Bias(powerball_weights={5: 2.0}), Bias(repeat={0: 2.0}), Bias({1: -1.0})])
def test_biases_of_balls_that_the_drum_does_not_hold(bias):
    with pytest.raises(DrawError):
        truth(bias, ERA, *history(Bias()))


@pytest.mark.parametrize(("n", "whites", "powerballs"), [(39, 5, 4), (40, 6, 4), (40, 5, 3)])
def test_forecasts_of_other_draws_or_games(n, whites, powerballs):
    law = truth(Bias(), ERA, *history(Bias()))
    with pytest.raises(TruthError, match="give forecasts of the same draws"):
        expected_skill(Forecast(torch.zeros(n, whites), torch.zeros(n, powerballs), 2), law)


def test_forecasts_of_sets_of_another_size_are_refused():
    law = truth(Bias({1: 3.0}), ERA, *history(Bias()))
    with pytest.raises(TruthError):
        expected_skill(Forecast(torch.zeros(40, 5), torch.zeros(40, 4), 3), law)


def test_days_of_other_draws_are_refused():
    with pytest.raises(TruthError):
        truth(Bias(follow=0.5, since=START), ERA, *history(Bias()), [START] * 3)


@pytest.mark.parametrize("powerball", [0, 5, 8])
def test_powerballs_of_another_era_are_refused(powerball):
    whites, powerballs = history(Bias())
    with pytest.raises(TruthError):
        truth(Bias(follow=0.5), ERA, whites, np.full_like(powerballs, powerball))


@pytest.mark.filterwarnings("ignore:divide")
def test_finite_logits_have_a_finite_expected_skill():
    whites, powerballs = history(Bias(), 4)
    forecast = Forecast(torch.zeros(4, 5), torch.tensor([[0.0, 0.0, 0.0, -800.0]] * 4), 2)
    assert np.isfinite(forecast.skill(whites, np.full(4, 4)).total).all()
    assert np.isfinite(expected_skill(forecast, truth(Bias(), ERA, whites, powerballs)).total).all()
