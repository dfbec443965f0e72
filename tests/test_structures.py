"""Labels against plain loops, and their weights against a slow reading of the prose, term by term."""

from datetime import date, timedelta
from itertools import combinations
from math import exp, log, prod
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.blends import powerball_structures, white_structures
from helios.draws import simulate
from helios.forecasting import past_of
from helios.game import POWERBALL, DrawDays, Era, Game
from helios.labels import (
    GAPS,
    LabelError,
    echo_labels,
    first_given,
    gap_labels,
    given_labels,
    groups,
    lagged,
    months,
    own_labels,
    slip_groups,
    step_labels,
    weekdays,
)
from helios.structures import FEW, SHARES, inclusion, learned, powerball_prior, weight_prior, white_prior

START = date(2001, 1, 1)
pytestmark = pytest.mark.filterwarnings("error")


def game_of(whites, powerballs, picked) -> Game:
    return Game("Small", (Era(START, whites, powerballs, picked),), (DrawDays(START, tuple(range(7))),))


def drawn_at_random(n: int, balls: int, picked: int, seed: int, weights=None) -> np.ndarray:
    rng, out = np.random.default_rng(seed), np.zeros((n, balls), bool)
    p = None if weights is None else np.array(weights) / np.sum(weights)
    for row in out:
        row[rng.choice(balls, picked, replace=False, p=p)] = True
    return out


histories = st.tuples(st.integers(0, 60), st.integers(1, 9), st.integers(0, 10**6))


# Labels

@settings(max_examples=40, deadline=None)
@given(histories, st.data())
def test_gaps_and_echoes_by_hand(size, data):
    n, balls, seed = size
    drawn = drawn_at_random(n, balls, data.draw(st.integers(1, balls)), seed)
    lag, step = data.draw(st.integers(1, 4)), data.draw(st.integers(-3, 3))
    gaps, echo = gap_labels(drawn), echo_labels(drawn, lag, step)
    assert gaps.shape == echo.shape == (n + 1, balls)
    for t in range(n + 1):
        for ball in range(balls):
            gap = next((g for g in range(1, t + 1) if drawn[t - g, ball]), None)
            label = -1 if gap is None or gap >= 48 else max(i for i, first in enumerate(GAPS) if first <= gap)
            assert gaps[t, ball] == label
            assert echo[t, ball] == (0 if t >= lag and drawn[t - lag, (ball - step) % balls] else -1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), max_size=20), st.integers(1, 30), st.integers(1, 9))
def test_steps_by_hand(numbers, lag, balls):
    reference = lagged(np.array(numbers, int), lag)
    assert reference.tolist() == [numbers[t - lag] if t >= lag else -1 for t in range(len(numbers) + 1)]
    for t, row in enumerate(step_labels(reference, balls)):
        for ball in range(1, balls + 1):
            assert row[ball - 1] == (-1 if t < lag else (ball - numbers[t - lag]) % balls)


@pytest.mark.parametrize("make", [lambda: lagged(np.array([1]), 0), lambda: echo_labels(np.ones((1, 2), bool), 0), lambda: lagged(np.array([1]), -2)])
def test_a_lag_that_would_look_at_the_draw_itself(make):
    with pytest.raises(LabelError, match="not known yet; give 1 or more"):
        make()


@pytest.mark.parametrize("balls", [1, 2, 3, 5, 9, 10, 26, 35, 39, 69])
def test_groups_of_a_slip_by_what_is_written(balls):
    written = range(1, balls + 1)
    by_hand = {"parity": [n % 2 for n in written], "halves": [int(2 * (n - 1) >= balls) for n in written],
               "thirds": [(3 * (n - 1) >= balls) + (3 * (n - 1) >= 2 * balls) for n in written], "tens": [int(f"{n:02}"[0]) for n in written],
               "digits": [int(str(n)[-1]) for n in written], "birthdays": [int(n > 31) for n in written], "threes": [n % 3 for n in written]}
    assert {name: group.tolist() for name, group in slip_groups(balls).items()} == by_hand
    assert groups(2, np.array(by_hand["tens"])).tolist() == [by_hand["tens"]] * 3
    assert own_labels(1, balls).tolist() == [list(range(balls))] * 2


def test_calendar_by_hand():
    days = [START + timedelta(37 * i) for i in range(60)]
    found = np.array(days, "datetime64[D]")
    assert weekdays(found).tolist() == [day.weekday() for day in days] and months(found).tolist() == [day.month - 1 for day in days]
    assert weekdays(np.array(["1969-12-31", "1969-12-29"], "datetime64[D]")).tolist() == [2, 0]


@pytest.mark.parametrize("balls", [1, 5, 11, 26, 69])
def test_labels_that_stand_for_a_state_begin_where_others_end(balls):
    state = np.array([-1, 0, 3, 0])
    found = given_labels(state, balls)
    assert (found[0] == -1).all() and found[1:].min() == first_given(balls)
    assert found[1].tolist() == found[3].tolist() and len({*found[1], *found[2]}) == 2 * balls
    others = [own_labels(3, balls), gap_labels(np.eye(60, balls, dtype=bool)), step_labels(np.arange(-1, 9), balls),
              *(groups(3, group) for group in slip_groups(balls).values())]
    assert max(int(labels.max()) for labels in others) < first_given(balls)


# The prior

@pytest.mark.parametrize("prior", [white_prior(), powerball_prior(), weight_prior((0.5, 1.0), (0.3,), (0.0, 0.5))])
def test_the_prior_is_symmetric_and_sums_to_one(prior):
    np.testing.assert_allclose(prior.nodes, -prior.nodes[::-1])
    np.testing.assert_allclose(prior.slabs.sum(axis=0), 1)
    np.testing.assert_allclose(prior.slabs, prior.slabs[::-1])
    assert (np.diff(prior.nodes) > 0).all() and 0 not in prior.nodes and prior.shares[0] == 0 and len(prior.slabs) == len(prior.nodes)


def test_each_slab_is_a_laplace_density_over_its_grid():
    prior = weight_prior((1.0, 2.0, 4.0), (0.5, 3.0))
    widths = [2.0, 1.5, 1.5, 1.5, 1.5, 2.0]      # of the cells of -4, -2, -1, 1, 2, 4: between the middles to either neighbour, the last step at the ends
    for column, scale in enumerate((0.5, 3.0)):
        weight = [exp(-abs(x) / scale) * w for x, w in zip((-4, -2, -1, 1, 2, 4), widths, strict=True)]
        np.testing.assert_allclose(prior.slabs[:, column], np.array(weight) / sum(weight))
    assert SHARES[0] == 0.0 and SHARES[-1] == 1.0


# Weights, slowly

def log_odds(p: float) -> float:
    p = min(max(p, 1e-12), 1 - 1e-12)
    return log(p / (1 - p))


def chance(x: float) -> float:
    return 1 / (1 + exp(-x))


def inclusion_by_hand(logits, picked) -> list[float]:
    sets = list(combinations(range(len(logits)), picked))
    weights = [prod(exp(logits[i]) for i in s) for s in sets]
    return [sum(w for s, w in zip(sets, weights, strict=True) if ball in s) / sum(weights) for ball in range(len(logits))]


def shift_by_hand(sums: dict, one_ball_each: bool, by_state: bool) -> dict:
    """How much more likely each label's balls would come at weight 1 than expected, log odds."""
    if by_state or len(sums) < FEW:
        return dict.fromkeys(sums, 0.0)
    came = {label: (h + 0.5) / (m + 1) for label, (h, m, _) in sums.items()}
    base = {label: log_odds((e + 0.5) / (m + 1)) for label, (_, m, e) in sums.items()}
    middle = median(log_odds(came[label]) - base[label] for label in sums)
    if not one_ball_each:
        return dict.fromkeys(sums, middle)
    out = {}
    for label in sums:                                          # the ball itself put back at weight 1
        light = came | {label: chance(base[label] + middle)}
        rest = sum(light.values())
        out[label] = middle + log(sum(came.values()) / rest) * rest / sum(p * (1 - p) for p in light.values())
    return out


def learned_by_hand(labels, drawn, base, picked, prior, window=None) -> list[list[float]]:
    n, balls = drawn.shape
    expected = [inclusion_by_hand(row, picked) for row in base]
    by_state = labels.max() >= first_given(balls)
    one_ball_each = all(sorted(row) == list(range(balls)) or (row == -1).all() for row in labels)
    grid = list(zip(prior.nodes.tolist(), prior.slabs.tolist(), strict=True))
    out = []
    for t in range(n + 1):
        sums = {}
        for s in range(max(0, t - (window or n)), t):
            for ball in range(balls):
                if (label := int(labels[s, ball])) >= 0:
                    h, m, e = sums.get(label, (0, 0, 0.0))
                    sums[label] = h + bool(drawn[s, ball]), m + 1, e + expected[s][ball]
        shift = shift_by_hand(sums, one_ball_each, by_state)
        factor, mean = {}, {}                                   # by label and slab
        for label in {*sums, *(int(x) for x in labels[t] if x >= 0)}:
            h, m, e = sums.get(label, (0, 0, 0.0))
            p = chance(log_odds(e / m) + shift[label]) if m else 0.0
            likelihood = [exp(h * x - m * log(1 - p + p * exp(x))) for x, _ in grid]
            for j in range(prior.slabs.shape[1]):
                factor[label, j] = sum(like * slab[j] for like, (_, slab) in zip(likelihood, grid, strict=True))
                mean[label, j] = sum(like * slab[j] * exp(x) for like, (x, slab) in zip(likelihood, grid, strict=True)) / factor[label, j]
        explained = {(j, share): prod(1 - share + share * factor[label, j] for label in sums)
                     for j in range(prior.slabs.shape[1]) for share in prior.shares}
        total = sum(explained.values())
        row = []
        for ball in range(balls):
            weight, label = 1.0, int(labels[t, ball])
            for (j, share), value in explained.items() if label >= 0 else ():
                off = share * factor[label, j] / (1 - share + share * factor[label, j])
                weight += value / total * off * (mean[label, j] - 1)
            row.append(base[t][ball] + log(weight))
        out.append(row)
    return out


def cases(balls, picked, n, seed):
    rng = np.random.default_rng(seed)
    drawn = drawn_at_random(n, balls, picked, seed, np.r_[4.0, np.ones(balls - 1)])
    reference = rng.integers(1, balls + 1, n)
    scattered = rng.integers(-1, 3, (n + 1, balls))
    return drawn, {"own": own_labels(n, balls), "gaps": gap_labels(drawn), "echo": echo_labels(drawn), "step": step_labels(lagged(reference), balls),
                   "given": given_labels(rng.integers(-1, 3, n + 1), balls), "groups": groups(n, slip_groups(balls)["threes"]), "scattered": scattered}


@pytest.mark.parametrize("kind", ["own", "gaps", "echo", "step", "given", "groups", "scattered"])
@pytest.mark.parametrize(("balls", "picked", "n"), [(4, 1, 12), (5, 2, 14), (9, 1, 30), (10, 2, 20)])
@pytest.mark.parametrize("build", ["on uniform", "on logits"])
def test_weights_by_hand(kind, balls, picked, n, build):
    prior = white_prior() if picked > 1 else powerball_prior()
    drawn, labels = cases(balls, picked, n, seed=balls)
    base = np.zeros((n + 1, balls)) if build == "on uniform" else np.random.default_rng(9).normal(size=(n + 1, balls)) * 0.5
    expected = learned_by_hand(labels[kind], drawn, base, picked, prior)
    np.testing.assert_allclose(learned(labels[kind], drawn, base, picked, prior), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [1, 3, 10, 29, 30, 100])
@pytest.mark.parametrize("kind", ["own", "gaps", "step", "groups", "scattered"])
def test_a_window_by_hand(window, kind):
    drawn, labels = cases(9, 2, 30, seed=3)
    base = np.random.default_rng(2).normal(size=(31, 9)) * 0.3
    expected = learned_by_hand(labels[kind], drawn, base, 2, white_prior(), window)
    np.testing.assert_allclose(learned(labels[kind], drawn, base, 2, white_prior(), window), expected, rtol=0, atol=1e-8)


def test_a_window_knows_nothing_of_what_it_has_forgotten():
    drawn, labels = cases(12, 2, 80, seed=4)
    other = drawn.copy()
    other[:50] = drawn_at_random(50, 12, 2, 99)
    base = np.zeros((81, 12))
    one, two = (learned(own_labels(80, 12), came, base, 2, white_prior(), 20) for came in (drawn, other))
    np.testing.assert_allclose(one[70:], two[70:], atol=1e-9)
    assert np.abs(one[60] - two[60]).max() > 1e-6


def test_what_a_window_and_a_state_refuse():
    drawn, labels = cases(6, 2, 20, seed=1)
    with pytest.raises(LabelError, match="a window of 5 draws takes labels below 11"):
        learned(labels["given"], drawn, np.zeros((21, 6)), 2, white_prior(), 5)
    twice = np.tile(first_given(6) + np.array([0, 1, 2, 3, 4, 4]), (21, 1))
    with pytest.raises(LabelError, match="label 15 is on two balls at once; from 11 on"):
        learned(twice, drawn, np.zeros((21, 6)), 2, white_prior())


@pytest.mark.parametrize(("balls", "picked"), [(1, 1), (3, 3), (2, 5)])
def test_a_drum_that_is_emptied_leaves_nothing_to_learn(balls, picked):
    drawn, base = np.ones((9, balls), bool), np.random.default_rng(1).normal(size=(10, balls))
    found = learned(own_labels(9, balls), drawn, base, picked, white_prior())
    assert (found == base).all() and found is not base


@pytest.mark.parametrize("labels", [np.full((10, 5), -1), own_labels(0, 5)])
def test_no_labels_or_no_draws(labels):
    n = len(labels) - 1
    drawn, base = drawn_at_random(n, 5, 2, 1), np.random.default_rng(1).normal(size=(n + 1, 5))
    found = learned(labels, drawn, base, 2, white_prior())
    np.testing.assert_allclose(found - found.mean(), base - base.mean(), atol=1e-12)


def test_one_label_on_all_balls_says_nothing():
    drawn, base = drawn_at_random(200, 9, 3, 1), np.random.default_rng(1).normal(size=(201, 9))
    found = learned(groups(200, np.zeros(9, int)), drawn, base, 3, white_prior())
    np.testing.assert_allclose(inclusion(found, 3), inclusion(base, 3), atol=1e-9)


@pytest.mark.parametrize("picked", [1, 2, 4])
def test_inclusion_by_hand(picked):
    logits = np.random.default_rng(picked).normal(size=(3, 6)) * 2
    np.testing.assert_allclose(inclusion(logits, picked), [inclusion_by_hand(row, picked) for row in logits], atol=1e-12)
    assert np.isfinite(inclusion(np.array([[800.0, 0.0, -800.0]]), 1)).all()


@pytest.mark.parametrize(("balls", "picked", "least"), [(26, 1, 0.84), (69, 5, 0.3), (10, 1, 0.84)])
def test_a_ball_that_always_comes_is_never_forgotten(balls, picked, least):
    """The Bayes factor is beyond any number, and what the others weigh is lost in the ball's shadow."""
    drawn = np.zeros((3000, balls), bool)
    drawn[:, 3] = True
    rng = np.random.default_rng(1)
    for row in drawn:
        row[4 + rng.choice(balls - 4, picked - 1, replace=False)] = True
    prior = powerball_prior() if picked == 1 else white_prior()
    found = inclusion(learned(own_labels(3000, balls), drawn, np.zeros((3001, balls)), picked, prior), picked)
    assert np.isfinite(found).all() and (np.diff(found[:20, 3]) > -0.01).all()
    assert (found[50:, 3] > least).all() and (found[50:].argmax(axis=1) == 3).all() and found.max() < 1


# Time

@pytest.mark.parametrize("game", [POWERBALL, game_of(7, 4, 2), game_of(10, 10, 1), game_of(12, 3, 4)], ids=lambda game: game.eras[-1].name)
@pytest.mark.parametrize("head", ["whites", "powerball"])
def test_no_structure_depends_on_the_future(game, head):
    """Neither its labels nor its weights, when the history is cut anywhere: the past alone has to give the same rows."""
    first = date(2016, 1, 2) if game is POWERBALL else START
    past = past_of(simulate(game, 110, 3, first=first, repeat=3.0, follow=0.2), game)
    structures, prior = (white_structures(), white_prior()) if head == "whites" else (powerball_structures(), powerball_prior())
    for name, make in structures.items():
        whole, rows = make(past), {}
        for t in (0, 1, 2, 3, 8, 17, 40, 60, 109, 110):
            seen = past.until(t)
            assert np.array_equal(make(seen), whole[:t + 1]), name
            drawn, picked = (seen.drawn, game.picked) if head == "whites" else (seen.came, 1)
            rows[t] = learned(make(seen), drawn, np.zeros((t + 1, drawn.shape[1])), picked, prior)
        for t in rows:
            np.testing.assert_allclose(rows[t], rows[110][:t + 1], rtol=0, atol=1e-10, err_msg=name)


def test_fair_draws_cost_little_and_a_heavy_ball_is_found():
    """Mean log score of what is learned, over 12 histories of 300 draws of 2 of 12 balls, against uniform and the truth."""
    cost, gain, there = [], [], []
    for seed in range(12):
        for weights, into in ((np.ones(12), cost), (np.r_[4.0, np.ones(11)], gain)):
            drawn = drawn_at_random(300, 12, 1, seed, weights)
            p = inclusion(learned(own_labels(300, 12), drawn, np.zeros((301, 12)), 1, powerball_prior()), 1)[-1]
            q = weights / weights.sum()
            into.append(float((q * np.log(12 * p)).sum()))
            if into is gain:
                there.append(float((q * np.log(12 * q)).sum()))
    assert -0.005 < np.mean(cost) <= 0
    assert np.mean(gain) > 0.9 * np.mean(there)
