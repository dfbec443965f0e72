"""Scores, evidence, calibration and verdicts, held to plain Python and to enumeration of small games.

Nothing of the truth here goes through `helios.subsets`: distributions are enumerated ticket by ticket. Simulated rates
are allowed four standard errors, which a fresh seed would exceed once in 30,000 runs; the seeds are fixed.
"""

import dataclasses
import json
import warnings
from datetime import date
from itertools import combinations, product
from math import comb, exp, fsum, inf, log, nan, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from helios.evaluation import Evaluation, evaluate
from helios.game import Era
from helios.scoring import (
    Calibration,
    EProcess,
    Forecast,
    ScoreError,
    Skill,
    calibration,
    drawn_matrix,
    e_process,
    fit_shrinkage,
    hits,
    mean_interval,
)

quick = settings(deadline=None, max_examples=60, derandomize=True)


def set_probs(logits, k):
    """{whites: probability} of one row by enumeration, balls from 1."""
    sums = {s: fsum(float(logits[b - 1]) for b in s) for s in combinations(range(1, len(logits) + 1), k)}
    top = max(sums.values())
    total = fsum(exp(v - top) for v in sums.values())
    return {s: exp(v - top) / total for s, v in sums.items()}


def ball_probs(logits):
    return {s[0]: p for s, p in set_probs(logits, 1).items()}


def game(n=4, whites=7, powerballs=4, picked=3, seed=0, scale=1.0):
    """(forecast, whites, powerballs): n random forecasts and fair outcomes."""
    rng = np.random.default_rng(seed)
    forecast = Forecast(torch.tensor(rng.normal(size=(n, whites)) * scale),
                        torch.tensor(rng.normal(size=(n, powerballs)) * scale), picked)
    drawn = np.sort(rng.random((n, whites)).argsort(1)[:, :picked] + 1, axis=1)
    return forecast, drawn, rng.integers(1, powerballs + 1, n)


def flat(n=3, whites=7, powerballs=4, picked=3):
    return Forecast(torch.zeros(n, whites), torch.zeros(n, powerballs), picked)


# Forecasts


@pytest.mark.parametrize("scale", [0.5, 20.0])
def test_probabilities_of_balls(scale):
    forecast, _, _ = game(scale=scale)
    for t in range(len(forecast)):
        probs = set_probs(forecast.white_logits[t], 3)
        truth = [fsum(p for s, p in probs.items() if b in s) for b in range(1, 8)]
        assert forecast.white_inclusion[t].tolist() == pytest.approx(truth, abs=1e-12)
        balls = ball_probs(forecast.powerball_logits[t])
        assert forecast.powerball_probs[t].tolist() == pytest.approx(list(balls.values()), abs=1e-12)


@given(st.floats(0, 1), st.floats(0, 1))
@quick
def test_shrunk_is_the_geometric_mixture_with_uniform(white, powerball):
    forecast, _, _ = game(n=1)
    small = forecast.shrunk(white, powerball)
    sets = [set_probs(f.white_logits[0], 3) for f in (forecast, small)]
    balls = [ball_probs(f.powerball_logits[0]) for f in (forecast, small)]
    for before, after, factor in ((*sets, white), (*balls, powerball)):
        mixed = {s: p**factor * (1 / len(before)) ** (1 - factor) for s, p in before.items()}
        total = fsum(mixed.values())
        assert all(after[s] == pytest.approx(m / total, abs=1e-12) for s, m in mixed.items())
    assert small.picked == 3


def test_uniform_covers_the_era():
    uniform = Forecast.uniform(Era(date(2015, 10, 7), 69, 26), 2)
    assert len(uniform) == 2 and uniform.picked == 5
    assert torch.allclose(uniform.white_inclusion, torch.full((2, 69), 5 / 69, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(uniform.powerball_probs, torch.full((2, 26), 1 / 26, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("shapes", [((69,), (26,)), ((2, 69), (3, 26)), ((1, 2, 69), (1, 26)), ((), ())])
def test_logits_of_other_shapes_are_refused(shapes):
    with pytest.raises(ScoreError, match="give"):
        Forecast(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


# The most probable tickets


def tickets_of(forecast, draw):
    """All tickets with their probabilities, best first."""
    whites, balls = set_probs(forecast.white_logits[draw], forecast.picked), ball_probs(forecast.powerball_logits[draw])
    return sorted(((p * q, s, b) for s, p in whites.items() for b, q in balls.items()), key=lambda x: -x[0])


@pytest.mark.parametrize("draw", [-1, 0, 2])
@pytest.mark.parametrize("m", [0, 1, 7, 60, 140, 1000])
def test_top_tickets_equals_enumeration(m, draw):
    forecast, _, _ = game()
    truth = tickets_of(forecast, draw)[:m]
    found = forecast.top_tickets(m, draw)
    assert [(t.whites, t.powerball) for t in found] == [(s, b) for _, s, b in truth]
    assert [t.probability for t in found] == pytest.approx([p for p, _, _ in truth], rel=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6), st.lists(st.integers(-3, 3), min_size=3, max_size=3),
       st.integers(1, 45))
@quick
def test_top_tickets_with_ties_leaves_out_nothing_better(whites, balls, m):
    forecast = Forecast(torch.tensor([whites]).double(), torch.tensor([balls]).double(), 2)
    truth = tickets_of(forecast, 0)
    found = forecast.top_tickets(m)
    assert len(found) == len({(t.whites, t.powerball) for t in found}) == m
    assert [t.probability for t in found] == pytest.approx([p for p, _, _ in truth[:m]], rel=1e-12)
    of = {(s, b): p for p, s, b in truth}
    assert [t.probability for t in found] == pytest.approx([of[t.whites, t.powerball] for t in found], rel=1e-12)


def test_equal_tickets_of_a_flat_forecast_come_in_the_order_of_their_numbers():
    every = [(s, b) for s in combinations(range(1, 7), 2) for b in (1, 2, 3)]
    found = [(t.whites, t.powerball) for t in flat(1, 6, 3, 2).top_tickets(45)]
    assert found == every


# Skill


@pytest.mark.parametrize("scale", [0.1, 1.0, 15.0])
def test_skill_is_the_log_ratio_to_uniform(scale):
    forecast, whites, powerballs = game(n=6, scale=scale)
    skill = forecast.skill(whites, powerballs)
    white = [log(set_probs(forecast.white_logits[t], 3)[tuple(whites[t])] * comb(7, 3)) for t in range(6)]
    ball = [log(ball_probs(forecast.powerball_logits[t])[powerballs[t]] * 4) for t in range(6)]
    assert skill.white.tolist() == pytest.approx(white, abs=1e-10)
    assert skill.powerball.tolist() == pytest.approx(ball, abs=1e-10)
    assert skill.total.tolist() == pytest.approx(np.add(white, ball).tolist(), abs=1e-10)


@pytest.mark.parametrize("scale", [0.3, 3.0, 10.0])
@pytest.mark.parametrize(("whites", "powerballs", "picked"), [(7, 4, 3), (5, 2, 1), (4, 3, 4), (9, 1, 5)])
def test_expected_exp_skill_is_1_under_uniform(whites, powerballs, picked, scale):
    outcomes = list(product(combinations(range(1, whites + 1), picked), range(1, powerballs + 1)))
    one, _, _ = game(1, whites, powerballs, picked, seed=1, scale=scale)
    n = len(outcomes)
    forecast = Forecast(one.white_logits.expand(n, -1), one.powerball_logits.expand(n, -1), picked)
    skill = forecast.skill(np.array([s for s, _ in outcomes]), np.array([b for _, b in outcomes]))
    assert fsum(np.exp(skill.total)) / n == pytest.approx(1, abs=1e-11)
    assert fsum(np.exp(skill.white)) / n == pytest.approx(1, abs=1e-11)
    assert fsum(np.exp(skill.powerball)) / n == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_log_prob_is_that_of_the_ticket(scale):
    forecast, whites, powerballs = game(5, 7, 4, 3, 2, scale)
    found = forecast.log_prob(whites, powerballs)
    for t in range(5):
        p = set_probs(forecast.white_logits[t], 3)[tuple(whites[t].tolist())] * ball_probs(forecast.powerball_logits[t])[int(powerballs[t])]
        assert found[t] == pytest.approx(log(p), abs=1e-9)
    base = forecast.skill(whites, powerballs).total - log(comb(7, 3)) - log(4)
    np.testing.assert_allclose(found, base, atol=1e-12)
    for wrong in ((whites[:4], powerballs[:4]), (whites + 5, powerballs), (whites, powerballs * 0)):
        with pytest.raises(ScoreError):
            forecast.log_prob(*wrong)


def test_inclusion_of_both_drums():
    forecast, _, _ = game(3, 7, 4, 3, 5)
    white, powerball = forecast.inclusion()
    assert isinstance(white, np.ndarray) and isinstance(powerball, np.ndarray)
    for t in range(3):
        by_set = set_probs(forecast.white_logits[t], 3)
        assert white[t] == pytest.approx([sum(p for s, p in by_set.items() if ball in s) for ball in range(1, 8)], abs=1e-9)
        assert powerball[t] == pytest.approx([ball_probs(forecast.powerball_logits[t])[ball] for ball in range(1, 5)], abs=1e-9)


def test_samples_have_the_forecasts_law():
    """Every ticket of two draws: 5 standard errors each, a false alarm in 19,000 sets of seeds."""
    forecast, _, _ = game(2, 6, 3, 2, 7)
    n = 20_000
    sets, powerballs = forecast.sample(n, torch.Generator().manual_seed(1))
    assert sets.shape == (n, 2, 2) and powerballs.shape == (n, 2) and bool((sets[..., 0] < sets[..., 1]).all())
    again = forecast.sample(n, torch.Generator().manual_seed(1))
    assert torch.equal(again[0], sets) and torch.equal(again[1], powerballs)
    for t in range(2):
        seen = {}
        for s, b in zip(map(tuple, sets[:, t].tolist()), powerballs[:, t].tolist(), strict=True):
            seen[s, b] = seen.get((s, b), 0) + 1
        tickets = {(s, b): p * q for s, p in set_probs(forecast.white_logits[t], 2).items() for b, q in ball_probs(forecast.powerball_logits[t]).items()}
        assert set(seen) <= set(tickets)
        assert all(abs(seen.get(ticket, 0) / n - p) <= 5 * sqrt(p * (1 - p) / n) for ticket, p in tickets.items())


# JSON and rows

numbers_of_all_sizes = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 5e-324, 1e308, 0.1, 1 / 3]))


@quick
@given(st.lists(st.lists(numbers_of_all_sizes, min_size=5, max_size=5), min_size=1, max_size=4), st.sampled_from([torch.float64, torch.float32]))
def test_json_brings_a_forecast_back_to_the_last_bit(rows, kind):
    white = torch.tensor(rows, dtype=torch.float64).clamp(-3e38, 3e38).to(kind) if kind == torch.float32 else torch.tensor(rows, dtype=kind)
    forecast = Forecast(white, white[:, :3], 2)
    text = forecast.to_json()
    back = Forecast.from_json(text)
    assert back.white_logits.dtype == torch.float64 and back.picked == 2 and back.to_json() == text
    for name in ("white_logits", "powerball_logits"):
        one, other = getattr(forecast, name).double().numpy(), getattr(back, name).numpy()
        assert one.tobytes() == other.tobytes()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


GOOD = game(2, 6, 3, 2, 7)[0].to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "7", GOOD[:-3], GOOD.replace('"format": 1', '"format": 2'), GOOD.replace("white_logits", "whites"),
                                  GOOD.replace("[[", "[", 1).replace("]]", "]", 1), GOOD.replace("[[", "[[NaN, ", 1), GOOD.replace("[[", '[["a", ', 1),
                                  GOOD.replace("[[", "[[1e999, ", 1),
                                  *(GOOD.replace('"picked": 2', f'"picked": {wrong}') for wrong in ("0", "-1", "7", "2.0", '"2"', "true", "null"))])
def test_what_is_no_forecast(text):
    with pytest.raises(ScoreError):
        Forecast.from_json(text)


def test_a_later_format_is_said_to_be_one():
    with pytest.raises(ScoreError, match="format 2 of a forecast; this Helios reads 1, update it"):
        Forecast.from_json(GOOD.replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 0), slice(None, None, 2), slice(-2, None), slice(None), slice(3, 99)])
def test_some_of_the_forecasts(rows):
    forecast, whites, powerballs = game(5, 7, 4, 3, 2)
    part = forecast[rows]
    assert len(part) == len(range(5)[rows]) and part.picked == 3
    assert torch.equal(part.white_logits, forecast.white_logits[rows]) and torch.equal(part.powerball_logits, forecast.powerball_logits[rows])
    np.testing.assert_allclose(part.skill(whites[rows], powerballs[rows]).total, forecast.skill(whites, powerballs).total[rows], atol=1e-12)


def test_uniform_has_no_skill():
    _, whites, powerballs = game()
    assert np.abs(flat(4).skill(whites, powerballs).total).max() < 1e-13
    offset = Forecast(torch.full((4, 7), 3.0), torch.full((4, 4), -2.0), 3)
    assert np.abs(offset.skill(whites, powerballs).total).max() < 1e-13


def test_skill_of_no_draws():
    skill = flat(0).skill(np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int))
    assert skill.total.shape == (0,)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint8])
def test_outcomes_in_any_integer_type(kind):
    forecast, whites, powerballs = game()
    found = forecast.skill(whites.astype(kind), powerballs.astype(kind)).total
    assert found.tolist() == forecast.skill(whites, powerballs).total.tolist()


def test_skill_of_a_forecast_under_training():
    forecast, whites, powerballs = game()
    tracked = Forecast(forecast.white_logits.clone().requires_grad_(), forecast.powerball_logits, 3)
    assert tracked.skill(whites, powerballs).total.tolist() == forecast.skill(whites, powerballs).total.tolist()


BAD_OUTCOMES = {
    "a white of 0": ([[0, 2, 3]], [1]), "a white too large": ([[1, 2, 8]], [1]),
    "the same white twice": ([[1, 1, 3]], [1]),
    "a powerball of 0": ([[1, 2, 3]], [0]), "a powerball too large": ([[1, 2, 3]], [5]),
    "too few whites": ([[1, 2]], [1]), "too many draws": ([[1, 2, 3]] * 2, [1, 1]),
    "too few powerballs": ([[1, 2, 3]], []),
    "not in rows": ([1, 2, 3], [1])}


@pytest.mark.parametrize("name", BAD_OUTCOMES)
def test_outcomes_that_do_not_fit(name):
    whites, powerballs = (np.array(x, dtype=int) for x in BAD_OUTCOMES[name])
    with pytest.raises(ScoreError) as caught:
        flat(1).skill(whites, powerballs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD_OUTCOMES)
def test_shrinkage_refuses_the_same_outcomes(name):
    whites, powerballs = (np.array(x, dtype=int) for x in BAD_OUTCOMES[name])
    with pytest.raises(ScoreError):
        fit_shrinkage(game(1)[0], whites, powerballs)


def test_outcomes_that_are_not_whole_are_never_cut_off():
    with pytest.raises(ScoreError):
        flat(1).skill(np.array([[1.9, 2.7, 3.2]]), np.array([1]))
    with pytest.raises(ScoreError):
        drawn_matrix(np.array([[1.9, 2.7]]), 7)


@pytest.mark.parametrize("part", [0, 1], ids=["whites", "powerball"])
@pytest.mark.parametrize("value", [nan, inf], ids=["NaN", "inf"])
def test_logits_that_are_no_distribution_are_never_scored(value, part):
    logits = [torch.zeros(3, 7), torch.zeros(3, 4)]
    logits[part][1, 2] = value
    _, whites, powerballs = game(3)
    with pytest.raises(ScoreError):
        evaluate(Forecast(*logits, 3), whites, powerballs)


def test_a_ball_ruled_out_is_refused_or_shrinks_to_uniform():
    """-inf times 0 must not become NaN."""
    balls = torch.zeros(2, 4)
    balls[:, 0] = -inf
    whites = torch.zeros(2, 7)
    whites[:, 0] = -inf
    try:
        forecast = Forecast(whites, balls, 3)
    except ScoreError:
        return
    found = forecast.shrunk(0.0, 0.0)
    assert torch.allclose(found.powerball_probs, torch.full((2, 4), 1 / 4, dtype=torch.float64))
    assert torch.allclose(found.white_inclusion, torch.full((2, 7), 3 / 7, dtype=torch.float64))
    factors = fit_shrinkage(forecast, np.array([[1, 2, 3], [2, 3, 4]]), np.array([2, 3]))
    assert all(0 <= f <= 1 for f in factors)


# The mean and its interval


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_mean_interval_is_students(level):
    values = np.random.default_rng(1).normal(0.1, 1, 17)
    mean = fsum(values) / 17
    error = sqrt(fsum((v - mean) ** 2 for v in values) / 16 / 17)
    low, high = stats.t.interval(level, 16, loc=mean, scale=error)
    assert mean_interval(values, level) == pytest.approx((mean, low, high), abs=1e-12)


def test_mean_interval_of_too_little():
    assert mean_interval([]) == (0.0, -inf, inf)
    assert mean_interval([2.5]) == (2.5, -inf, inf)
    assert mean_interval([0.0, 0.0]) == (0.0, 0.0, 0.0)


# Evidence


def test_evidence_is_the_running_product():
    skill = [0.5, -1.0, 2.0, 1.6, -0.3]
    process = e_process(skill)
    running, value = [], 1.0
    for s in skill:
        value *= exp(s)
        running.append(value)
    assert np.exp(process.log_e).tolist() == pytest.approx(running, rel=1e-12)
    assert process.final == pytest.approx(running[-1], rel=1e-12)
    assert process.highest == pytest.approx(max(running), rel=1e-12)
    assert process.crossed_at == 4  # e^3.1 = 22.2
    assert e_process(skill, alpha=0.01).crossed_at is None


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.01])
def test_evidence_exactly_at_the_bound_counts(alpha):
    assert e_process([-log(alpha)], alpha).crossed_at == 1
    assert e_process([-log(alpha) - 1e-9], alpha).crossed_at is None


def test_evidence_at_the_ends():
    assert (e_process([]).final, e_process([]).highest, e_process([]).crossed_at) == (1.0, 1.0, None)
    assert e_process([-1.0, -1.0]).highest == 1.0
    assert e_process([1e6]).final == e_process([1e6]).highest == pytest.approx(exp(700))
    gone = e_process([1.0, -inf, 5.0])
    assert gone.final == 0.0 and gone.highest == pytest.approx(exp(1)) and gone.crossed_at is None


def learner(history, n_white, n_powerball, picked, strength):
    """Logits from what was drawn so far: a wild believer in hot balls."""
    white, ball = np.zeros(n_white), np.zeros(n_powerball)
    for s, b in history:
        white[np.array(s) - 1] += strength
        ball[b - 1] += strength
    return white, ball


@pytest.mark.parametrize("strength", [-2.0, 0.7, 5.0])
def test_evidence_on_all_fair_histories(strength):
    """Two of three whites, two powerballs, four draws: all 6**4 histories, with a forecaster that learns from the past.

    The mean of E is exactly 1 after every draw, and Ville's bound holds for every alpha without any luck.
    """
    outcomes = list(product(combinations((1, 2, 3), 2), (1, 2)))
    histories = list(product(outcomes, repeat=4))
    rows = [learner(h[:t], 3, 2, 2, strength) for h in histories for t in range(4)]
    forecast = Forecast(torch.tensor(np.array([w for w, _ in rows])), torch.tensor(np.array([b for _, b in rows])), 2)
    drawn = [o for h in histories for o in h]
    skill = forecast.skill(np.array([s for s, _ in drawn]), np.array([b for _, b in drawn])).total.reshape(-1, 4)
    paths = [e_process(s) for s in skill]
    means = np.exp([p.log_e for p in paths]).mean(0)
    assert means.tolist() == pytest.approx([1.0] * 4, abs=1e-10)
    for alpha in (0.9, 0.5, 0.2, 0.1, 0.05, 0.01):
        assert np.mean([e_process(s, alpha).crossed_at is not None for s in skill]) <= alpha


def test_evidence_on_many_fair_histories():
    """4,000 histories of 60 draws watched after each: at most alpha may ever cross, plus four standard errors."""
    n, length, rng = 4000, 60, np.random.default_rng(5)
    whites = rng.random((n * length, 6)).argsort(1)[:, :2] + 1
    powerballs = rng.integers(1, 5, n * length)
    wild = Forecast(torch.tensor(rng.normal(size=(n * length, 6))), torch.tensor(rng.normal(size=(n * length, 4))), 2)
    skill = wild.skill(whites, powerballs).total.reshape(n, length)
    for alpha in (0.2, 0.05, 0.01):
        crossed = np.mean([e_process(s, alpha).crossed_at is not None for s in skill])
        assert crossed <= alpha + 4 * sqrt(alpha * (1 - alpha) / n)
    cheat = wild.powerball_logits.clone()
    cheat[torch.arange(n * length), torch.tensor(powerballs - 1)] += 1  # knows something that it cannot know
    cheated = Forecast(wild.white_logits * 0, cheat, 2).skill(whites, powerballs).total.reshape(n, length)
    assert np.mean([e_process(s).crossed_at is not None for s in cheated]) > 0.5


# Shrinkage


def scores_on_grid(logits, sets, k, grid):
    """Total log score of the logits times each factor of a grid, by enumeration."""
    every = list(combinations(range(logits.shape[1]), k))
    sums = np.asarray(logits)[:, np.array(every)].sum(-1)
    place = [every.index(tuple(sorted(s))) for s in np.asarray(sets).tolist()]
    scaled = grid[:, None, None] * sums
    return (scaled[:, np.arange(len(place)), place] - np.log(np.exp(scaled).sum(-1))).sum(1)


def with_truth(n, factor, seed, whites=6, powerballs=4, picked=2):
    """Random forecasts, and outcomes drawn from them with their logits times `factor`."""
    rng = np.random.default_rng(seed)
    logits, balls = rng.normal(size=(n, whites)), rng.normal(size=(n, powerballs))
    every = np.array(list(combinations(range(whites), picked)))

    def pick(scores):
        return (scores * factor + rng.gumbel(size=scores.shape)).argmax(1)

    drawn = every[pick(logits[:, every].sum(-1))] + 1
    return Forecast(torch.tensor(logits), torch.tensor(balls), picked), drawn, pick(balls) + 1


@pytest.mark.parametrize("factor", [-0.5, 0.0, 0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_shrinkage_is_the_best_of_a_fine_grid(factor, seed):
    forecast, whites, powerballs = with_truth(150, factor, seed)
    found, grid = fit_shrinkage(forecast, whites, powerballs), np.linspace(0, 1, 2001)
    both = (scores_on_grid(forecast.white_logits, whites - 1, 2, grid),
            scores_on_grid(forecast.powerball_logits, powerballs[:, None] - 1, 1, grid))
    for value, scores in zip(found, both, strict=True):
        expected = grid[scores.argmax()] if scores.max() - scores[0] > 1.0 else 0.0
        assert value == pytest.approx(expected, abs=1e-3)


def test_a_factor_pays_its_price():
    forecast, whites, powerballs = with_truth(150, 0.6, 3)
    grid = np.linspace(0, 1, 2001)
    scores = (scores_on_grid(forecast.white_logits, whites - 1, 2, grid),
              scores_on_grid(forecast.powerball_logits, powerballs[:, None] - 1, 1, grid))
    for head in (0, 1):
        gain = scores[head].max() - scores[head][0]
        assert fit_shrinkage(forecast, whites, powerballs, price=gain - 1e-3)[head] > 0.1
        assert fit_shrinkage(forecast, whites, powerballs, price=gain + 1e-3)[head] == 0.0


def test_heads_are_fitted_apart():
    forecast, whites, powerballs = with_truth(300, 0.7, 4)
    both = fit_shrinkage(forecast, whites, powerballs)
    silent = Forecast(forecast.white_logits * 0, forecast.powerball_logits, 2)
    assert fit_shrinkage(silent, whites, powerballs) == (0.0, both[1])
    assert both[0] > 0.3


def test_shrinkage_never_scores_below_uniform_on_its_own_draws():
    for seed in range(8):
        forecast, whites, powerballs = game(30, seed=seed, scale=2.0)
        found = forecast.shrunk(*fit_shrinkage(forecast, whites, powerballs)).skill(whites, powerballs)
        assert found.white.sum() >= -1e-9 and found.powerball.sum() >= -1e-9


def test_false_belief_on_fair_draws_survives_seldom():
    """Twice the gain is chi-square with 1 degree of freedom on one side: 7.9% of heads keep a factor by chance."""
    kept = 0
    for seed in range(100):
        forecast, whites, powerballs = game(60, whites=5, powerballs=4, picked=2, seed=seed)
        kept += sum(f > 0 for f in fit_shrinkage(forecast, whites, powerballs))
    chance = 0.5 * stats.chi2.sf(2, 1)
    assert abs(kept / 200 - chance) < 4 * sqrt(chance * (1 - chance) / 200)


def test_shrinkage_without_draws():
    assert fit_shrinkage(flat(0), np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int)) == (0.0, 0.0)


# Calibration


def held_to_its_table(stated, drawn, found):
    """The table and its sums, recomputed: bins are stretches of the sorted probabilities."""
    order = np.argsort(stated, kind="stable")
    start, gaps, noise = 0, 0.0, 0.0
    for row in found.table.itertuples():
        part = order[start : start + row.n]
        p, share = fsum(stated[part]) / row.n, fsum(drawn[part]) / row.n
        error = sqrt(max(p * (1 - p), 0) / row.n)
        assert (row.stated, row.drawn) == pytest.approx((p, share), abs=1e-12)
        assert (row.low, row.high) == pytest.approx((p - 1.96 * error, p + 1.96 * error), abs=1e-9)
        gaps, noise = gaps + row.n * abs(p - share), noise + row.n * error * sqrt(2 / np.pi)
        start += row.n
        if start < len(order):
            assert stated[order[start - 1]] < stated[order[start]]  # equal probabilities share a bin
    assert start == len(stated)
    assert found.ece == pytest.approx(gaps / start, abs=1e-12)
    assert found.ece_noise == pytest.approx(noise / start, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=80), st.integers(1, 12))
@quick
def test_calibration_equals_its_definition(pairs, bins):
    stated = np.array([p / 20 for p, _ in pairs])
    drawn = np.array([d for _, d in pairs], dtype=float)
    found = calibration(stated, drawn, bins)
    assert 1 <= len(found.table) <= bins
    held_to_its_table(stated, drawn, found)


@pytest.mark.parametrize(("n", "bins"), [(10, 10), (11, 10), (23, 10), (101, 10), (1000, 10), (1001, 7), (5, 10),
                                         (40, 1)])
def test_bins_of_different_probabilities_are_of_equal_size(n, bins):
    found = calibration(np.random.default_rng(n).random(n), np.zeros(n), bins).table.n
    assert len(found) == min(n, bins)
    assert found.max() - found.min() <= 1


@pytest.mark.parametrize("low", [5, 50, 90, 95, 99])
def test_two_probabilities_make_two_bins(low):
    """A forecast that believes in a few balls must be seen to be wrong about them."""
    stated = np.array([0.1] * low + [0.6] * (100 - low))
    drawn = np.zeros(100)
    found = calibration(stated, drawn)
    assert found.table.n.tolist() == [low, 100 - low]
    assert found.ece == pytest.approx(stated.mean())


def test_a_false_belief_in_few_balls_shows():
    """Five heavy balls of 69 are a fourteenth of all pairs, less than one bin of ten, and equal but for rounding."""
    rng = np.random.default_rng(9)
    logits = torch.zeros(2000, 69)
    logits[:, :5] = 1.5
    whites = rng.random((2000, 69)).argsort(1)[:, :5] + 1
    heavy = (whites <= 5).sum() / 10_000
    total = fsum(comb(5, j) * exp(1.5 * j) * comb(64, 5 - j) for j in range(6))
    believed = fsum(j * comb(5, j) * exp(1.5 * j) * comb(64, 5 - j) for j in range(6)) / total / 5
    found = Forecast(logits, torch.zeros(2000, 26)).white_calibration(whites)
    assert found.table.n.tolist() == [128_000, 10_000]
    assert found.table.stated.tolist() == pytest.approx([(5 - 5 * believed) / 64, believed], abs=1e-9)
    assert found.ece == pytest.approx(2 * 10_000 / 138_000 * (believed - heavy), abs=1e-9)


@pytest.mark.parametrize("kind", ["many", "rare"])
def test_ece_noise_is_the_ece_of_a_calibrated_forecast(kind):
    rng = np.random.default_rng(10)
    stated = rng.uniform(0, 1, 4000) if kind == "many" else rng.uniform(0.02, 0.1, 4000)
    found = [calibration(stated, rng.random(4000) < stated) for _ in range(300)]
    eces = np.array([f.ece for f in found])
    slack = 4 * eces.std() / sqrt(300)
    noise = found[0].ece_noise  # a bin's spread is taken as if all of it had the mean probability: a little too much
    assert noise * 0.95 - slack < eces.mean() < noise + slack


def test_calibration_of_whites_against_plain_sums():
    forecast, whites, _ = game(40)
    stated = np.array([[fsum(p for s, p in set_probs(row, 3).items() if b in s) for b in range(1, 8)]
                       for row in forecast.white_logits])
    drawn = np.array([[float(b in s) for b in range(1, 8)] for s in whites.tolist()])
    found = forecast.white_calibration(whites, bins=5)
    truth = calibration(stated, drawn, bins=5)
    assert found.ece == pytest.approx(truth.ece, abs=1e-12)
    held_to_its_table(stated.ravel(), drawn.ravel(), found)


def test_certain_and_right_is_calibrated():
    found = calibration([0.0, 0.0, 1.0], [False, False, True])
    assert (found.ece, found.ece_noise) == (0.0, 0.0)


@pytest.mark.parametrize(("stated", "drawn"), [([], []), ([0.1], []), ([0.1, 0.2], [1])])
def test_calibration_of_nothing(stated, drawn):
    with pytest.raises(ScoreError, match="at least one"):
        calibration(stated, drawn)


# Brier score and hits


def test_brier_against_plain_sums():
    forecast, whites, _ = game(12)
    gaps, base = [], []
    for row, drawn in zip(forecast.white_logits, whites.tolist(), strict=True):
        probs = set_probs(row, 3)
        for b in range(1, 8):
            gaps.append((fsum(p for s, p in probs.items() if b in s) - (b in drawn)) ** 2)
            base.append((3 / 7 - (b in drawn)) ** 2)
    assert forecast.brier(whites) == pytest.approx((fsum(gaps) / len(gaps), fsum(base) / len(base)), abs=1e-12)
    assert flat(12).brier(whites) == pytest.approx((fsum(base) / len(base),) * 2, abs=1e-12)


def test_drawn_matrix():
    found = drawn_matrix(np.array([[1, 3], [4, 2]]), 4)
    assert found.dtype == bool and found.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert drawn_matrix(np.zeros((0, 2), dtype=int), 4).shape == (0, 4)


@pytest.mark.parametrize("ball", [-1, 0, 5])
def test_drawn_matrix_of_a_ball_that_is_not_in_the_drum(ball):
    with pytest.raises(ScoreError):
        drawn_matrix(np.array([[ball, 3]]), 4)


@pytest.mark.parametrize(("n_white", "k", "length"), [(6, 2, 3), (5, 3, 3), (4, 1, 4), (4, 4, 2), (6, 3, 2)])
def test_chance_of_hits_over_all_fair_histories(n_white, k, length):
    every = list(combinations(range(1, n_white + 1), k))
    rng = np.random.default_rng(n_white + k)
    tickets = [every[i] for i in rng.integers(0, len(every), length)]

    def matches(drawn):
        return [len({*t} & {*s}) for t, s in zip(tickets, drawn, strict=True)]

    totals = np.array([sum(matches(history)) for history in product(every, repeat=length)])
    shares = [np.mean([len({*tickets[0]} & {*s}) == j for s in every]) for j in range(k + 1)]
    for drawn in [tuple(every[i] for i in rng.integers(0, len(every), length)) for _ in range(8)]:
        matched = matches(drawn)
        found = hits(np.array(tickets), np.array(drawn), n_white)
        assert found.p == pytest.approx(np.mean(totals >= sum(matched)), abs=1e-12)
        assert found.counts == [matched.count(j) for j in range(k + 1)]
        assert found.expected == pytest.approx([length * s for s in shares], abs=1e-12)
        assert found.mean == pytest.approx(sum(matched) / length)
        assert found.mean_expected == pytest.approx(totals.mean() / length)


def test_hits_of_a_long_run_against_the_normal():
    rng = np.random.default_rng(12)
    drawn = rng.random((1500, 69)).argsort(1)[:, :5] + 1
    found = hits(np.tile([1, 2, 3, 4, 5], (1500, 1)), drawn, 69)
    chance = stats.hypergeom(69, 5, 5)
    z = (found.mean * 1500 - 0.5 - 1500 * chance.mean()) / (sqrt(1500) * chance.std())
    assert found.p == pytest.approx(stats.norm.sf(z), abs=0.01)
    assert sum(found.counts) == 1500


@pytest.mark.parametrize("ticket", [[1, 2, 3], [1], [1, 1]], ids=["too many", "too few", "twice the same"])
def test_hits_of_a_ticket_of_another_size(ticket):
    """Its hits are not Hypergeometric(n, k, k), so no p-value of that would be true."""
    with pytest.raises(ScoreError):
        hits(np.array([ticket]), np.array([[1, 2]]), 7)


def test_hits_without_draws():
    found = hits(np.zeros((0, 3), dtype=int), np.zeros((0, 3), dtype=int), 7)
    assert (found.counts, found.mean, found.p) == ([0, 0, 0, 0], 0.0, 1.0)
    assert found.mean_expected == pytest.approx(9 / 7)


# The whole judgement


def judged(skill_nats, alpha=0.05, shrink=(1.0, 1.0)):
    """An evaluation with this skill, all of it of the powerball."""
    skill = Skill(np.zeros(len(skill_nats)), np.array(skill_nats, dtype=float))
    whites = np.tile([1, 2, 3], (len(skill_nats), 1))
    return Evaluation(skill, e_process(skill.total, alpha), calibration([0.5], [1]), (0.1, 0.2),
                      hits(whites, whites, 7), shrink)


def test_evaluate_holds_the_parts():
    forecast, whites, powerballs = game(25)
    found = evaluate(forecast, whites, powerballs, shrink=(0.5, 0.25), alpha=0.1)
    assert len(found) == 25
    assert found.skill.total.tolist() == forecast.skill(whites, powerballs).total.tolist()
    assert np.allclose(found.process.log_e, np.cumsum(found.skill.total)) and found.process.alpha == 0.1
    assert found.brier == forecast.brier(whites)
    assert found.calibration.ece == forecast.white_calibration(whites).ece
    rows = forecast.white_logits.tolist()
    best = np.array([sorted(range(1, 8), key=lambda b, row=row: -row[b - 1])[:3] for row in rows])
    assert dataclasses.asdict(found.hits) == dataclasses.asdict(hits(best, whites, 7))
    assert found.shrink == (0.5, 0.25)


def test_evaluate_refuses_what_skill_refuses():
    with pytest.raises(ScoreError, match="another era"):
        evaluate(flat(1), np.array([[1, 2, 8]]), np.array([1]))


def test_as_dict():
    forecast, whites, powerballs = game(25)
    found = evaluate(forecast, whites, powerballs, shrink=(0.5, 0.25))
    keys = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert set(keys) == {"n", "skill_nats", "ci95", "white_skill_nats", "powerball_skill_nats", "e_value", "e_highest",
                         "crossed_at", "ece", "ece_noise", "brier", "brier_uniform", "hits", "shrink"}
    mean, low, high = mean_interval(found.skill.total)
    assert keys["n"] == 25
    assert (keys["skill_nats"], *keys["ci95"]) == pytest.approx((mean, low, high))
    assert keys["white_skill_nats"] + keys["powerball_skill_nats"] == pytest.approx(mean)
    assert (keys["e_value"], keys["e_highest"]) == (found.process.final, found.process.highest)
    assert keys["crossed_at"] == found.process.crossed_at
    assert (keys["brier"], keys["brier_uniform"]) == found.brier
    assert keys["hits"] == dataclasses.asdict(found.hits)
    assert keys["shrink"] == {"white": 0.5, "powerball": 0.25}


def test_as_dict_has_no_infinity():
    _, whites, powerballs = game(1)
    one = evaluate(flat(1), whites, powerballs).as_dict()
    assert one["ci95"] == [None, None]
    json.dumps(one, allow_nan=False)


def test_verdict_of_evidence():
    found = judged([1.0, 1.0, 1.0, 0.0])
    assert found.has_evidence
    assert found.verdict == (
        "evidence of skill at the 5% level: E is 20.1, and fair draws reach 20 with a chance of at most 5%; "
        "+0.7500 nats a draw against uniform (95% interval -0.0456 to +1.5456) on 4 test draws")


def test_an_e_that_crossed_and_fell_back_is_no_evidence():
    found = judged([1.0, 1.0, 1.0, -1.0])
    assert found.process.crossed_at == 3 and not found.has_evidence
    assert "the evidence is E = 7.39 (20.09 at its highest on the way) and 20 is needed" in found.verdict


def test_verdict_of_no_skill():
    found = judged([0.2, -0.5, 0.1, -0.2])
    assert not found.has_evidence
    assert found.verdict == (
        "no skill: -0.1000 nats a draw against uniform (95% interval -0.6032 to +0.4032) on 4 test draws; the evidence "
        "is E = 0.67 (1.22 at its highest on the way) and 20 is needed, which a skill of 0.7489 nats a draw would have given")


def test_verdict_of_other_levels():
    assert "at the 1% level: E is 148, and fair draws reach 100 with a chance of at most 1%" in judged([5, 0], 0.01).verdict
    assert "0.1% level: E is 2.98e+03, and fair draws reach 1000" in judged([8.0, 0.0], alpha=0.001).verdict


def test_verdict_of_the_uniform_forecast():
    _, whites, powerballs = game(3)
    shrunk = evaluate(flat(3), whites, powerballs, shrink=(0.0, 0.0))
    assert shrunk.verdict.startswith("no skill: validation shrank the forecast to the uniform one")
    assert not shrunk.has_evidence
    never_shrunk = evaluate(flat(3), whites, powerballs)
    assert never_shrunk.verdict.startswith("no skill") and "3 test draws" in never_shrunk.verdict


def test_verdict_without_draws():
    nothing = flat(0), np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(*nothing)
        assert found.verdict == "no skill: there were no test draws to show any on"
        json.dumps(found.as_dict(), allow_nan=False)
    assert not found.has_evidence and len(found) == 0


def test_verdict_is_never_made_of_nan():
    """NaN is not the uniform forecast."""
    assert "uniform one" not in judged([nan, 0.1]).verdict


def test_results_cannot_be_changed():
    forecast, whites, powerballs = game()
    for thing, field in ((forecast, "picked"), (e_process([1.0]), "alpha"), (calibration([0.5], [1]), "ece"),
                         (evaluate(forecast, whites, powerballs), "shrink")):
        assert isinstance(thing, Forecast | EProcess | Calibration | Evaluation)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, None)
