"""The forecasters against counting by hand, against each other's ways, and on fair draws."""

from datetime import date
from itertools import combinations
from math import comb, exp, log, prod

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from helios.draws import Bias, DrawError, balls, draw_table, era_draws, simulate
from helios.forecasters import (
    FORECASTERS,
    PRICE,
    STRENGTHS,
    Forecaster,
    ForecasterError,
    Frequency,
    Repeats,
    Steps,
    Uniform,
    best_strength,
    looks_ahead,
    walk,
)
from helios.formats import Draw
from helios.game import POWERBALL, DrawDays, Era, Game, GameError
from helios.scoring import Forecast, drawn_matrix, e_process
from helios.truth import expected_skill, truth

START = date(2001, 1, 1)
DAYS = (DrawDays(START, tuple(range(7))),)
ALL = pytest.mark.parametrize("cls", FORECASTERS.values(), ids=FORECASTERS)
LEARNING = pytest.mark.parametrize("cls", [Frequency, Steps, Repeats], ids=lambda cls: cls.name)


def game_of(whites=7, powerballs=4, picked=2) -> Game:
    return Game("Small", (Era(START, whites, powerballs, picked),), DAYS)


SMALL = game_of()
STRONG = Bias({1: 4.0, 5: 0.3}, {2: 3.0}, 0.3, 3.0)


def history(game=SMALL, n=120, seed=1, bias=STRONG) -> pd.DataFrame:
    return simulate(game, n, seed, **vars(bias))


def table(game, whites, powerballs) -> pd.DataFrame:
    """The one table of these numbers on the game's first days."""
    days = list(zip(game.draw_dates(START), whites, powerballs, strict=False))
    return draw_table([Draw(day, tuple(map(int, w)), int(b)) for day, w, b in days], game)


def assert_same(one: Forecast, other: Forecast, rows=slice(None), atol=1e-12):
    np.testing.assert_allclose(one.white_logits[rows], other.white_logits, rtol=0, atol=atol)
    np.testing.assert_allclose(one.powerball_logits[rows], other.powerball_logits, rtol=0, atol=atol)


def probabilities(forecast: Forecast) -> tuple[np.ndarray, np.ndarray]:
    return forecast.white_inclusion.numpy(), forecast.powerball_probs.numpy()


# A walk and draw by draw

games = st.builds(game_of, st.integers(3, 9), st.integers(1, 6), st.integers(1, 3))
planted = st.builds(lambda w, p, f, r: Bias({1: w}, {1: p}, f, r), st.sampled_from([1, 6.0]), st.sampled_from([1, 4.0]),
                    st.sampled_from([0.0, 0.5]), st.sampled_from([1.0, 8.0]))


@ALL
@settings(max_examples=25, deadline=None)
@given(data=st.data(), game=games, bias=planted, n=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_a_walk_says_what_fitting_and_updating_does(cls, data, game, bias, n, seed):
    draws = history(game, n, seed, bias)
    start = data.draw(st.one_of(st.integers(1, n), st.sampled_from([1, n])))
    walked, step = walk(cls(game), draws, start), cls(game).fit(draws[:start])
    assert len(walked) == n - start
    rng = np.random.default_rng(seed)
    for t in range(start, n):
        assert_same(walked, step.forecast(), slice(t - start, t - start + 1), atol=0)
        whites, powerballs = balls(draws)
        step.update(rng.permutation(whites[t]), powerballs[t])       # in the order drawn
    fresh = cls(game).fit(draws)
    if cls is Repeats:            # nothing of it is fixed by `fit`, so learning anew changes nothing
        assert_same(step.forecast(), fresh.forecast(), atol=0)
    assert (step.whites == fresh.whites).all() and (step.powerballs == fresh.powerballs).all()


@ALL
def test_walks_of_any_start_agree_where_they_learned_the_same(cls):
    draws = simulate(n=300, seed=4, **vars(Bias({7: 6.0}, {3: 5.0}, 0.3, 4.0)))
    for start in (1, 2, 150, 299, 300):
        step = cls().fit(draws[:start])
        walked = walk(cls(), draws, start)
        if start < 300:
            assert_same(walked, step.forecast(), slice(0, 1), atol=0)
        assert len(walked) == 300 - start


@ALL
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("powerballs", [1, 2, 26])
def test_the_shortest_histories_are_uniform(cls, n, powerballs):
    game = game_of(9, powerballs, 3)
    forecast = cls(game).fit(history(game, n, 3, Bias())).forecast()
    assert forecast.white_logits.shape == (1, 9) and forecast.powerball_logits.shape == (1, powerballs)
    assert_same(forecast, Forecast.uniform(game.eras[0]))


@ALL
def test_every_draw_alike(cls):
    """Whatever a forecaster thinks of it, its forecast is finite and its probabilities are such."""
    for game in (SMALL, game_of(5, 1, 4), game_of(3, 2, 3)):
        k = game.picked
        draws = table(game, [range(1, k + 1)] * 80, [1] * 80)
        pi, q = probabilities(walk(cls(game), draws, 40))
        np.testing.assert_allclose(pi.sum(axis=1), k)
        np.testing.assert_allclose(q.sum(axis=1), 1)
        assert (pi[:, 0] >= k / game.eras[0].whites - 1e-12).all() and (q[:, 0] >= 1 / game.eras[0].powerballs - 1e-12).all()


# No look ahead

@ALL
@pytest.mark.parametrize("alter", ["reversed", "others", "constant", "one draw", "cut", "longer"])
def test_the_future_changes_no_forecast(cls, alter):
    draws, other = (history(n=160, seed=seed) for seed in (1, 2))
    whites, powerballs = balls(draws)
    for at in (61, 100, 158, 159):
        w, b = whites.copy(), powerballs.copy()
        if alter == "reversed":
            w[at:], b[at:] = w[at:][::-1], b[at:][::-1]
        elif alter == "others":
            w[at:], b[at:] = balls(other)[0][at:], balls(other)[1][at:]
        elif alter == "constant":
            w[at:], b[at:] = [6, 7], 4
        elif alter == "one draw":
            w[at], b[at] = np.sort(w[at] % 7 + 1), b[at] % 4 + 1
        elif alter == "cut":
            w, b = w[:at], b[:at]
        else:
            w, b = np.vstack([w, balls(other)[0]]), np.r_[b, balls(other)[1]]
        before, after = walk(cls(SMALL), draws, 60), walk(cls(SMALL), table(SMALL, w, b), 60)
        seen = at + 1 - 60 if alter != "cut" else at - 60        # the forecast of draw `at` is made before it
        assert torch.equal(before.white_logits[:seen], after.white_logits[:seen])
        assert torch.equal(before.powerball_logits[:seen], after.powerball_logits[:seen])


@LEARNING
def test_the_past_does_change_forecasts(cls):
    draws = history(n=400)
    whites, powerballs = balls(draws)
    one = walk(cls(SMALL), draws, 200)
    other = walk(cls(SMALL), table(SMALL, whites % 7 + 1, np.where(np.arange(400) % 2, 1, powerballs)), 200)
    assert not (torch.equal(one.white_logits, other.white_logits) and torch.equal(one.powerball_logits, other.powerball_logits))


class Peeks(Frequency):
    name = "peeks"

    def logits(self, whites, powerballs, start):
        white, powerball = super().logits(whites, powerballs, start)
        white[:-1] += drawn_matrix(whites, self.era.whites)[start:]
        return white, powerball


def test_looks_ahead_tells_one_that_peeks_from_the_rest():
    draws = simulate(n=60, seed=1)
    for at in (2, 3, 20, 21, 57, 58):
        assert looks_ahead(Peeks(), draws, at)
        assert not any(looks_ahead(cls(), draws, at) for cls in FORECASTERS.values())


def test_looks_ahead_at_the_last_draw():
    assert looks_ahead(Peeks(), simulate(n=60, seed=1), 59)


@pytest.mark.parametrize("at", [0, 60, 99])
def test_looks_ahead_outside_the_history(at):
    with pytest.raises(ForecasterError):
        looks_ahead(Peeks(), simulate(n=60, seed=1), at)


# Counting by hand

def log_prob_by_hand(weights, chosen) -> float:
    return log(prod(weights[i] for i in chosen) / sum(prod(weights[i] for i in s) for s in combinations(range(len(weights)), len(chosen))))


def strength_by_hand(sets: list[tuple], n: int) -> tuple[float, float]:
    """The best strength and its gain over uniform, each set scored with the counts before it."""
    gains = {}
    for a in STRENGTHS[:-1]:
        counts, gains[a] = [0] * n, 0.0
        for chosen in sets:
            gains[a] += log_prob_by_hand([c + a for c in counts], chosen) + log(comb(n, len(chosen)))
            for i in chosen:
                counts[i] += 1
    best = max(gains, key=gains.get)
    return (best if gains[best] > PRICE else np.inf), gains[best]


@pytest.mark.parametrize(("picked", "weights", "n"), [(2, {}, 60), (2, {1: 3}, 60), (2, {1: 3}, 150), (2, {1: 30, 2: 30}, 150),
                                                      (1, {3: 2}, 80), (1, {3: 2}, 200), (3, {1: 4}, 100), (2, {2: 1.5}, 200)])
def test_best_strength_is_that_of_trying_all(picked, weights, n):
    game = game_of(6, 2, picked)
    chosen = set()
    for seed in range(4):
        whites, _ = balls(history(game, n, seed, Bias(weights)))
        a, gain = strength_by_hand([tuple(w) for w in (whites - 1).tolist()], 6)
        assert abs(gain - PRICE) > 1e-6
        assert best_strength(drawn_matrix(whites, 6).astype(float), picked) == a
        chosen.add(a)
    if weights == {1: 30, 2: 30}:
        assert chosen == {10.0}
    if not weights:
        assert chosen == {np.inf}


def test_strengths_by_hand_cover_both_sides_of_the_price():
    """Histories cut ever longer: belief comes with the draw at which the gain passes one nat, and not before."""
    game = game_of(6, 4, 1)
    _, powerballs = balls(history(game, 150, 2, Bias(powerball_weights={1: 5})))
    seen = []
    for n in range(1, 150):
        sets = [(b - 1,) for b in powerballs[:n].tolist()]
        a, gain = strength_by_hand(sets, 4)
        assert best_strength(np.eye(4)[powerballs[:n] - 1], 1) == a
        seen.append((gain, a))
    assert any(0 < gain < 1 and a == np.inf for gain, a in seen) and any(1 < gain < 1.3 and a < np.inf for gain, a in seen)
    assert best_strength(np.zeros((0, 4)), 1) == np.inf


def test_frequency_logits_by_hand():
    draws = history(n=200, bias=Bias({1: 5.0}, {2: 5.0}))
    whites, powerballs = balls(draws)
    forecaster = Frequency(SMALL)
    walked = walk(forecaster, draws, 150)
    a, b = forecaster.strengths
    assert np.isfinite([a, b]).all()
    for t in range(150, 200):
        white = [log((whites[:t] == ball).sum() + a) for ball in range(1, 8)]
        powerball = [log((powerballs[:t] == ball).sum() + b) for ball in range(1, 5)]
        np.testing.assert_allclose(walked.white_logits[t - 150], white, rtol=1e-14)
        np.testing.assert_allclose(walked.powerball_logits[t - 150], powerball, rtol=1e-14)
    posterior = [((powerballs == ball).sum() + b) / (200 + 4 * b) for ball in range(1, 5)]
    final = Frequency(SMALL).fit(draws[:150])
    for t in range(150, 200):
        final.update(whites[t], powerballs[t])
    np.testing.assert_allclose(final.forecast().powerball_probs[0], posterior, rtol=1e-12)   # Dirichlet


def test_frequency_believes_each_drum_apart():
    for bias, believed in ((Bias({1: 8.0}), (True, False)), (Bias(powerball_weights={1: 8.0}), (False, True))):
        forecaster = Frequency(SMALL).fit(history(n=300, bias=bias))
        assert tuple(np.isfinite(forecaster.strengths)) == believed
        forecast = forecaster.forecast()
        assert bool(forecast.white_logits.any()) == believed[0] and bool(forecast.powerball_logits.any()) == believed[1]


@pytest.mark.parametrize("m", [1, 2, 4, 7])
@pytest.mark.parametrize("follow", [0.0, 0.5])
def test_steps_by_hand(m, follow):
    game = game_of(7, m, 2)
    draws = history(game, 160, 5, Bias(follow=follow))
    _, powerballs = balls(draws)
    before = powerballs.tolist()
    sets = [((b - last) % m,) for last, b in zip(before[:99], before[1:100], strict=True)]
    a, gain = strength_by_hand(sets, m)
    assert abs(gain - PRICE) > 1e-6
    forecaster = Steps(game)
    walked = walk(forecaster, draws, 100)
    assert forecaster.strength == a and (np.isfinite(a) or not follow or m == 1)
    for t in range(100, 160):
        logits = []
        for ball in range(1, m + 1):
            step = (ball - before[t - 1]) % m
            seen = sum((before[s] - before[s - 1]) % m == step for s in range(1, t))
            logits.append(log(seen + a) if np.isfinite(a) else 0.0)
        np.testing.assert_allclose(walked.powerball_logits[t - 100], logits, rtol=1e-14)
    assert not walked.white_logits.any()


def test_steps_wrap_from_the_highest_to_the_first():
    game = game_of(7, 5, 2)
    draws = table(game, [(1, 2)] * 100, [t % 5 + 1 for t in range(100)])
    forecaster = Steps(game).fit(draws)
    assert int(draws.powerball.iloc[-1]) == 5
    assert int(forecaster.forecast().powerball_probs.argmax()) + 1 == 1


def repeats_by_hand(whites, n) -> tuple[float, float]:
    """Log weight that maximises the likelihood of the overlaps, within +-4, and what it gains over none."""
    k = whites.shape[1]
    overlaps = [len(set(a) & set(b)) for a, b in zip(whites[:-1].tolist(), whites[1:].tolist(), strict=True)]

    def gain(at):
        norm = log(sum(comb(k, j) * comb(n - k, k - j) * exp(at * j) for j in range(k + 1)) / comb(n, k))
        return sum(overlaps) * at - len(overlaps) * norm

    found = minimize_scalar(lambda at: -gain(at), bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    return found.x, gain(found.x)


@pytest.mark.parametrize("repeat", [1.0, 3.0, 8.0, 0.1])
@pytest.mark.parametrize(("n", "k"), [(7, 2), (12, 5), (69, 5), (6, 4)])
def test_repeats_weight_is_the_maximum_of_the_likelihood(n, k, repeat):
    game, believed = game_of(n, 3, k), []
    draws = history(game, 300, 7, Bias(repeat=repeat))
    whites, _ = balls(draws)
    walked = walk(Repeats(game), draws, 1)
    for t in [2, 3, 5, 10, 20, 50, 100, 200, 299]:
        at, gain = repeats_by_hand(whites[:t], n)
        weight = walked.white_logits[t - 1][torch.from_numpy(whites[t - 1] - 1)]
        others = np.delete(walked.white_logits[t - 1].numpy(), whites[t - 1] - 1)
        assert not others.any() and (weight == weight[0]).all()
        if abs(gain - PRICE) < 0.01:      # the grid of weights decides
            continue
        believed.append(gain > PRICE)
        # the grid is fine enough for three digits; at its ends the likelihood is flat
        assert float(weight[0]) == pytest.approx(at if gain > PRICE else 0.0, abs=2e-3 if abs(at) < 3.9 else 0.11)
    assert repeat != 8.0 or believed[-1]
    assert not walked.powerball_logits.any()


def test_repeats_weight_at_the_maximum_of_its_own_score():
    """The forecast's own log score, with the weight moved either way, falls."""
    whites, _ = balls(draws := history(n=200, bias=Bias(repeat=4.0)))
    weight = float(Repeats(SMALL).fit(draws).forecast().white_logits.max())
    last = torch.from_numpy(drawn_matrix(whites, 7)[:-1].astype(float))

    def score(at):
        forecast = Forecast(last * at, torch.zeros(199, 4, dtype=torch.float64), 2)
        return forecast.skill(whites[1:], np.ones(199, dtype=int)).white.sum()

    assert score(weight) > PRICE and score(weight) > max(score(weight - 0.02), score(weight + 0.02))


def test_uniform_learns_nothing():
    walked = walk(Uniform(SMALL), history(), 60)
    assert not walked.white_logits.any() and not walked.powerball_logits.any() and len(walked) == 60


# What numbers mean nothing to

@LEARNING
@pytest.mark.parametrize("seed", range(4))
def test_relabelled_whites_relabel_the_forecast(cls, seed):
    draws = history(n=200, seed=seed)
    whites, powerballs = balls(draws)
    new = np.random.default_rng(seed).permutation(7)              # ball i + 1 becomes new[i] + 1
    moved = table(SMALL, new[whites - 1] + 1, powerballs)
    one, other = walk(cls(SMALL), draws, 100), walk(cls(SMALL), moved, 100)
    np.testing.assert_allclose(other.white_logits[:, new], one.white_logits, atol=1e-12)
    np.testing.assert_allclose(other.powerball_logits, one.powerball_logits, atol=0)


@LEARNING
@pytest.mark.parametrize("seed", range(4))
def test_relabelled_powerballs_relabel_the_forecast(cls, seed):
    """Any permutation for those that count balls; for steps, where order has a meaning, the cyclic ones."""
    draws = history(n=200, seed=seed)
    whites, powerballs = balls(draws)
    new = np.random.default_rng(seed).permutation(4) if cls is not Steps else np.roll(np.arange(4), -1 - seed)
    one, other = walk(cls(SMALL), draws, 100), walk(cls(SMALL), table(SMALL, whites, new[powerballs - 1] + 1), 100)
    np.testing.assert_allclose(other.powerball_logits[:, new], one.powerball_logits, atol=1e-12)


def test_steps_backwards_are_mirrored():
    draws = history(n=200, bias=Bias(follow=0.5))
    whites, powerballs = balls(draws)
    one, other = walk(Steps(SMALL), draws, 100), walk(Steps(SMALL), table(SMALL, whites, 5 - powerballs), 100)
    np.testing.assert_allclose(other.powerball_logits.flip(1), one.powerball_logits, atol=1e-12)
    assert one.powerball_logits.any()


@ALL
def test_the_order_within_a_draw_means_nothing(cls):
    draws = simulate(n=200, seed=1, white_weights={7: 8.0}, repeat=4.0)
    whites, _ = balls(draws)
    mixed = np.random.default_rng(0).permuted(whites, axis=1)
    shuffled = draws.assign(**{f"white_{i + 1}": mixed[:, i] for i in range(5)})
    assert_same(walk(cls(), draws, 100), walk(cls(), shuffled, 100), atol=0)


# Eras, games and errors

@ALL
def test_a_table_of_two_eras_is_learned_from_its_last(cls):
    both = simulate(POWERBALL, 260, 3, first=date(2014, 1, 1), follow=0.5, repeat=5.0)
    assert both.era.nunique() == 2
    last = era_draws(both)
    assert_same(cls().fit(both).forecast(), cls().fit(last).forecast(), atol=0)
    start = len(last) - 20
    assert_same(walk(cls(), both, start), walk(cls(), last, start), atol=0)
    assert cls().fit(both).era.name == "5/69+1/26"
    earlier = cls().fit(both[both.era != last.era.iloc[0]])
    assert earlier.forecast().powerball_logits.shape == (1, 35)
    with pytest.raises(ForecasterError, match=f"cannot start at draw {len(last) + 1} of {len(last)}"):
        walk(cls(), both, len(last) + 1)


@ALL
def test_fitting_again_forgets(cls):
    one, other = history(seed=1), history(seed=2)
    assert_same(cls(SMALL).fit(one).fit(other).forecast(), cls(SMALL).fit(other).forecast(), atol=0)


@ALL
def test_a_forecast_changes_nothing(cls):
    draws = history()
    kept = draws.copy()
    forecaster = cls(SMALL).fit(draws)
    assert_same(forecaster.forecast(), forecaster.forecast(), atol=0)
    walk(cls(SMALL), draws, 50)
    forecaster.update([1, 2], 1)
    pd.testing.assert_frame_equal(draws, kept)


@ALL
def test_requests_that_cannot_be_answered(cls):
    with pytest.raises(ForecasterError, match=f"^{cls.name} has not seen a draw; call fit first$"):
        cls(SMALL).forecast()
    with pytest.raises(ForecasterError, match="call fit first"):
        cls(SMALL).update([1, 2], 1)
    for start in (0, -1, 121):
        with pytest.raises(ForecasterError, match=f"cannot start at draw {start} of 120; give 1 to 120"):
            walk(cls(SMALL), history(), start)
    with pytest.raises(DrawError):
        cls(SMALL).fit(history()[:0])
    with pytest.raises(GameError, match="no era '2/7"):
        cls(POWERBALL).fit(history())


@LEARNING
@pytest.mark.parametrize(("whites", "powerball"), [([1, 2], 0), ([1, 2], 5), ([1, 8], 1), ([2, 2], 1), ([1, 2, 3], 1)])
def test_a_draw_that_cannot_be_is_refused(cls, whites, powerball):
    with pytest.raises(ForecasterError):
        cls(SMALL).fit(history()).update(whites, powerball)


def test_names():
    assert list(FORECASTERS) == ["uniform", "frequency", "steps", "repeats"]
    assert all(issubclass(cls, Forecaster) and cls.name == name for name, cls in FORECASTERS.items())


# Fair draws

@pytest.mark.slow
def test_fair_draws_raise_few_alarms_and_cost_little():
    """Of 200 fair histories at most 5% may alarm; so many more come by chance once in a thousand sets of seeds."""
    alarms, skills, n, start = 0, {cls.name: [] for cls in (Frequency, Steps, Repeats)}, 600, 490
    for seed in range(200):
        draws = simulate(n=n, seed=50_000 + seed)
        drawn = tuple(x[start:] for x in balls(draws))
        law = truth(Bias(), POWERBALL.eras[-1], *drawn)
        e = []
        for cls in (Frequency, Steps, Repeats):
            walked = walk(cls(), draws, start)
            e.append(e_process(walked.skill(*drawn).total).final)
            skills[cls.name].append(expected_skill(walked, law).total.mean())
        alarms += np.mean(e) >= 20
    assert alarms <= binom.isf(0.001, 200, 0.05)
    means = {name: float(np.mean(values)) for name, values in skills.items()}
    assert all(-0.003 < mean <= 1e-12 for mean in means.values()), means
