"""A/B tests: the confidence sequence holds over whole paths, answers are right, and scores are counted once and in order."""

import threading

import numpy as np
import pytest
import torch

from helios.ab_test import ABError, ABTest, confidence_sequence, decide, difference_bounds, draws_needed
from helios.draws import balls, simulate
from helios.forecasters import Frequency, Uniform, walk
from helios.memory_store import MemoryStore
from helios.mixtures import Mixture, mixture

DAYS = [str(day) for day in np.datetime64("2024-01-01") + 3 * np.arange(2000)]
BOLD = np.log(np.array([4.0, 1.0]) * 26 / 29)          # gain of a forecaster of one heavy powerball, drawn or not
FAIR_SHARE = -BOLD[1] / (BOLD[0] - BOLD[1])            # the ball's chance at which it gains nothing


def ever_outside(d, low, high, truth=0.0):
    lower, upper = confidence_sequence(d, np.broadcast_to(low, d.shape), np.broadcast_to(high, d.shape))
    return bool(((lower > truth) | (upper < truth)).any())


@pytest.mark.parametrize("kind", ["tight", "bold", "bolder with time", "wandering"])
def test_level_over_whole_paths(kind):
    """100 paths of 300 draws each looked at 300 times; alpha is 5%, and 3 standard errors above is 11.5%."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(100):
        if kind == "bold":
            d, low, high, truth = np.where(rng.random(300) < FAIR_SHARE, *BOLD), BOLD[1], BOLD[0], 0.0
        else:
            size = np.linspace(0.01, 0.4, 300) if kind == "bolder with time" else 0.2
            drift = 0.1 * np.sin(np.arange(300) / 20) if kind == "wandering" else np.zeros(300)
            d = rng.choice([-1, 1], 300) * size + drift
            low, high, truth = drift - size, drift + size, np.cumsum(drift) / np.arange(1, 301)
        wrong += ever_outside(d, low, high, truth)
    assert wrong <= 11


def test_bounds_that_change_or_are_wide_do_not_break_it():
    rng = np.random.default_rng(2)
    d = rng.choice([-0.1, 0.1], 500)
    wide = np.where(np.arange(500) % 50 == 0, 30.0, 0.1)        # now and then a draw on which much could happen
    lower, upper = confidence_sequence(d, -wide, wide)
    assert np.isfinite(lower).all() and (lower <= 0).all() and (upper >= 0).all() and upper[-1] < 0.5
    with pytest.raises(ABError, match="draw 2 is not within its bounds"):
        confidence_sequence([0.0, 0.5], [-0.1, -0.1], [0.1, 0.1])
    with pytest.raises(ABError, match="bounds"):
        confidence_sequence([np.nan], [-1], [1])


def test_a_and_b_are_treated_alike():
    d = np.random.default_rng(3).normal(0.05, 0.2, 300).clip(-1, 1)
    lower, upper = confidence_sequence(d, np.full(300, -1.0), np.full(300, 1.0))
    other, another = confidence_sequence(-d, np.full(300, -1.0), np.full(300, 1.0))
    assert np.allclose(lower, -another) and np.allclose(upper, -other)


def test_the_past_decides_alone():
    d = np.random.default_rng(4).normal(0.05, 0.2, 300).clip(-1, 1)
    ends = np.full(300, -1.0), np.full(300, 1.0)
    whole, half = confidence_sequence(d, *ends), confidence_sequence(d[:150], *(e[:150] for e in ends))
    assert all(np.allclose(w[:150], h, atol=1e-9) for w, h in zip(whole, half, strict=True))


@pytest.mark.parametrize("mean, answer", [(0.15, "A"), (-0.15, "B")])
def test_a_planted_difference_is_found(mean, answer):
    rng = np.random.default_rng(5)
    found = [decide(rng.normal(mean, 0.2, 600).clip(-1, 1), np.full(600, -1.0), np.full(600, 1.0)) for _ in range(20)]
    assert {f[1] for f in found} == {answer} and np.median([f[0] for f in found]) < 150


def test_no_difference_worth_having_is_an_answer_too():
    rng = np.random.default_rng(6)
    n = draws_needed(0.05, 0.02, bound=0.1)
    used, answer, (low, high) = decide(rng.choice([-0.05, 0.05], 2 * n), np.full(2 * n, -0.1), np.full(2 * n, 0.1), 0.02)
    assert answer == "none worth having" and n / 2 < used < 2 * n and -0.02 <= low < high <= 0.02


def test_how_long_it_takes_is_said():
    assert draws_needed(0.2, 0.005) == pytest.approx(21_400, rel=0.05)     # more than a century of Powerball
    assert draws_needed(0.2, 0.01) < draws_needed(0.2, 0.005) / 3
    assert draws_needed(50.0, 1e-6, bound=100.0) is None


def test_bounds_hold_for_real_forecasts_and_are_met():
    draws = simulate(n=300, seed=5, white_weights={3: 4, 9: 4}, powerball_weights={7: 4})
    one, two = walk(Frequency(), draws, 150), walk(Uniform(), draws, 150)
    outcome = tuple(x[150:] for x in balls(draws))
    low, high = difference_bounds(one, two)
    d = one.skill(*outcome).total - two.skill(*outcome).total
    assert ((low <= d) & (d <= high)).all() and np.ptp(d) > 0.5
    best = one.white_logits.topk(5).indices.numpy() + 1, one.powerball_logits.argmax(1).numpy() + 1
    assert np.allclose(one.skill(*best).total, high)
    mixed = mixture([one, two], [1, 3])
    low, high = difference_bounds(mixed, two)
    d = mixed.skill(*outcome).total
    assert ((low <= d) & (d <= high)).all()
    share = torch.linspace(0, 1, len(one), dtype=torch.float64)[:, None]
    moving = Mixture((one, two), torch.hstack([share, 1 - share]), torch.hstack([1 - share, share]))
    (low, high), d = difference_bounds(moving, mixed), moving.skill(*outcome).total - mixed.skill(*outcome).total
    assert ((low <= d) & (d <= high)).all() and (high - low).max() < 20
    with pytest.raises(ABError, match="same draws"):
        difference_bounds(one, walk(Uniform(), draws, 151))


def test_rows_survive_and_draws_count_once(address):
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.1, 0.2, 400).clip(-1, 1), np.zeros(400)
    with MemoryStore(address) as store:
        tests = ABTest(store)
        assert tests.create("duel", "new@2", "old@1", delta=0.01, bound=1.0, since="2023-12-31").status == "running"
        for begin in (0, 20, 10, 0):
            state = tests.observe("duel", DAYS[begin:begin + 20], a[begin:begin + 20], b[begin:begin + 20])
        assert (state.n, state.last, state.answer) == (40, DAYS[39], None)
        assert tests.config("duel")["last"] == DAYS[39]
        state = tests.observe("duel", DAYS[:400], a, b)
        assert (state.answer, state.status, state.needed > state.n) == ("A", "decided", True)
        assert ABTest(store).get("duel") == state and tests.list("running") == []
        assert any("A is better: new@2" in line for line in state.lines())
        assert state.held_before == sum(day <= tests._row("duel")["created_at"][:10] for day in DAYS[:state.n])
        row = tests._row("duel")
        assert row["outcome"]["answer"] == "A" and row["ended_at"] and row["kind"] == "ab"


def test_two_observers_at_once_count_each_draw_once(path):
    rng = np.random.default_rng(8)
    a, b = rng.choice([-0.1, 0.1], 60), np.zeros(60)
    with MemoryStore(path) as store:
        tests = ABTest(store)
        tests.create("duel", "x", "y", bound=0.5)
        threads = [threading.Thread(target=tests.observe, args=("duel", DAYS[:60], a, b)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tests.get("duel").n == 60 and len(tests._row("duel")["outcome"]["scores"]["dates"]) == 60


@pytest.mark.parametrize("change, message", [
    ({"b": "x"}, "both x"), ({"delta": 0}, "delta is 0"), ({"alpha": 0.9}, "alpha is 0.9"),
    ({"bound": 0}, "bound is 0"), ({"since": "soon"}, "no date"),
])
def test_tests_that_make_no_sense_are_not_started(change, message):
    with MemoryStore(":memory:") as store, pytest.raises(ABError, match=message):
        ABTest(store).create(**{"name": "duel", "a": "x", "b": "y"} | change)


@pytest.mark.parametrize("dates, a, message", [
    (["2024-02-02", "2024-02-01"], [0.1, 0.1], "order of time"), (["2023-12-01"], [0.1], "order of time"),
    (["2024-01-01"], [0.2], "does not change after its draw"), (["2024-03-01"], [np.nan], "finite number"),
    (["2024-03-01"], [3.0], "not within its bounds"), (["2024-03-01", "2024-03-02"], [0.1], "each of 2 draws"),
    (["2024-01-01", "2024-03-01", "2024-03-01"], [0.1, 0.1, 0.1], "order of time"), (["never"], [0.1], "no date"),
])
def test_scores_that_do_not_fit_add_nothing(dates, a, message):
    with MemoryStore(":memory:") as store:
        tests = ABTest(store)
        tests.create("duel", "x", "y", bound=1.0, since="2023-12-31")
        tests.observe("duel", ["2024-01-01"], [0.1], [0.0])
        with pytest.raises(ABError, match=message):
            tests.observe("duel", dates, a, np.zeros(len(a)))
        assert tests.get("duel").n == 1


def test_an_end_is_an_end():
    with MemoryStore(":memory:") as store:
        tests = ABTest(store)
        tests.create("duel", "x", "y", bound=1.0)
        assert tests.stop("duel", "lost interest").status == "stopped"
        for act in (lambda: tests.stop("duel"), lambda: tests.observe("duel", DAYS[:1], [0], [0])):
            with pytest.raises(ABError, match="stopped"):
                act()
        with pytest.raises(ABError, match="no A/B test is named 'other'"):
            tests.get("other")
        with pytest.raises(ABError, match="status 'open'"):
            tests.list("open")
        with pytest.raises(ABError, match="there already"):
            tests.create("duel", "x", "y")
