"""Comparing score series: levels hold on exchangeable, skewed and changing scores; planted differences are found."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.comparison import (
    ComparisonError,
    Scores,
    correlations,
    courses,
    diebold_mariano,
    pairs,
    performance_matrix,
    period_matrix,
    seed_spread,
    sign_flip,
    skewed_mean,
    trend,
)


def table(total, names=None, seconds=None, facts=()):
    total = np.atleast_2d(np.asarray(total, dtype=float))
    days = tuple(str(d) for d in np.datetime64("2020-01-01") + np.arange(total.shape[1]))
    names = tuple(names or (f"s{i}" for i in range(len(total))))
    return Scores(names, days, total, np.zeros_like(total), np.ones(len(total)) if seconds is None else np.array(seconds), facts)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_few_draws_are_judged_by_all_signs(values):
    d = np.array(values)
    d[np.abs(d) <= 1e-12] = 0.0
    sums = [abs(np.dot(signs, d)) for signs in product((-1, 1), repeat=len(d))]
    expected = np.mean(np.array(sums) >= abs(d.sum()) * (1 - 1e-9))
    assert sign_flip(d[None])[0] == pytest.approx(expected) or abs(d.sum()) < 1e-9


def test_random_signs_are_seeded_never_zero_and_blind_to_direction():
    d = np.random.default_rng(0).normal(0.02, 0.2, (3, 150))
    assert (sign_flip(d, seed=1) == sign_flip(d, seed=1)).all() and (sign_flip(d) == sign_flip(-d)).all()
    assert sign_flip(np.full((1, 200), 0.1))[0] == 1e-4


def test_draws_on_which_two_agree_change_nothing():
    d = np.random.default_rng(2).normal(0.1, 0.2, 10)
    assert sign_flip(np.r_[d, np.zeros(300)][None])[0] == sign_flip(d[None])[0]


def test_level_over_all_pairs_with_skewed_scores():
    """Five equally good forecasters, gamma scores; 40 histories at 5%: 3 standard errors above is 0.153."""
    rng = np.random.default_rng(5)
    alarms = [any(p.better for p in pairs(table(0.1 * (rng.gamma(2, 1, (5, 150)) - 2)))) for _ in range(40)]
    assert np.mean(alarms) <= 0.153


@pytest.mark.slow
def test_level_of_a_pair_where_a_great_win_is_rare():
    """A bold forecaster of one ball of weight w that gains nothing in the mean against uniform; at 200 draws, 2,000 histories."""
    for w in (1.5, 2.0, 4.0, 8.0):
        gain = np.log(np.array([w, 1.0]) * 26 / (25 + w))
        share = -gain[1] / (gain[0] - gain[1])
        d = np.where(np.random.default_rng(int(10 * w)).random((2000, 200)) < share, *gain)
        p = np.maximum(sign_flip(d, flips=1999), [skewed_mean(row)[2] for row in d])
        for level in (0.05, 0.01):
            assert (p <= level).mean() <= level + 3 * np.sqrt(level / 2000)


def test_a_planted_difference_is_found_and_named():
    rng = np.random.default_rng(1)
    common = rng.normal(0, 0.3, 300)
    found = pairs(table(common + rng.normal(0, 0.1, (2, 300)) + [[0], [0.04]], ("old", "new")))[0]
    assert found.better == "new" and found.verdict == "new is better"
    assert found.interval[0] < -0.04 < found.interval[1] < 0 and found.p_dm < 0.01


def test_the_same_forecasts_and_too_few_draws():
    row = np.random.default_rng(3).normal(0, 1, 120)
    same = pairs(table([row, row + 1e-14]))[0]
    assert (same.p, same.p_holm, same.p_dm, same.verdict) == (1.0, 1.0, 1.0, "the same forecasts")
    few = pairs(table([np.zeros(99), np.ones(99)]))[0]
    assert few.better is None and "too few draws" in few.verdict
    one = pairs(table([[0.1], [0.3]]))[0]
    assert one.p == 1.0 and one.p_dm is None and one.interval == (-np.inf, np.inf)


def test_intervals_of_skewed_means_cover():
    """400 means of 150 exponential values; 95% less 3 standard errors is 0.917."""
    rows = np.random.default_rng(8).exponential(1, (400, 150))
    assert np.mean([low <= 1 <= high for _, (low, high), _ in map(skewed_mean, rows)]) >= 0.917
    mean, (low, high), p = skewed_mean(np.r_[-np.ones(50), np.ones(50)])
    assert mean == 0 and low == pytest.approx(-high) and p == pytest.approx(1)


def test_diebold_mariano_allows_for_neighbours():
    rng = np.random.default_rng(0)
    smooth = [np.convolve(rng.normal(0, 1, 204), np.ones(5) / 5, "valid") for _ in range(300)]
    plain, lagged = (np.mean([diebold_mariano(d, h) <= 0.05 for d in smooth]) for h in (1, 8))
    assert plain > 0.2 and lagged < 0.13
    assert diebold_mariano(np.full(10, 0.2)) == 0.0
    with pytest.raises(ComparisonError, match="more draws"):
        diebold_mariano(np.ones(3), 3)


@pytest.mark.parametrize("kind", ["steady", "bolder", "woken"])
def test_no_change_is_found_where_only_the_spread_changes(kind):
    """150 scores worth nothing; 5% and 3 standard errors is 0.103."""
    scale = {"steady": np.ones(200), "bolder": np.linspace(0.05, 1, 200), "woken": np.arange(200) >= 100.0}[kind]
    found = courses(table(np.random.default_rng(6).normal(0, 1, (150, 200)) * scale))
    assert {c.verdict for c in found} == {"no change found"}
    for which in ("p_stable", "p_trend"):
        assert np.mean([getattr(c, which) <= 0.05 for c in found]) <= 0.103


def test_changes_and_trends_are_found():
    noise = np.random.default_rng(7).normal(0, 0.2, (3, 400))
    time = np.arange(400)
    rising, middle, falling = courses(table(noise + [0.001 * time, 0.3 * ((time > 100) & (time < 300)), -0.001 * time]))
    assert (rising.verdict, middle.verdict, falling.verdict) == ("rises over time", "changes over time", "falls over time")
    assert rising.slope_interval[0] < 0.1 < rising.slope_interval[1] and len(rising.means) == 4
    short, constant = courses(table([np.zeros(39)]))[0], courses(table([np.ones(200)]))[0]
    assert short.p_trend is None and constant.p_stable_holm is None and "constant" in constant.verdict


def test_trend_of_a_short_series():
    assert trend([1, 2, 3, 4, 5, 6, 7]) == (None, None) and trend([2.0] * 20) == (None, None)
    slope, p = trend(np.arange(12.0))
    assert slope == pytest.approx(1) and p == pytest.approx(0.001)
    levels = [trend(row)[1] for row in np.random.default_rng(1).normal(0, 1, (200, 12))]
    assert np.mean(np.array(levels) <= 0.05) <= 0.05 + 3 * 0.0154


def test_seeds_that_matter_and_seeds_that_do_not():
    rng = np.random.default_rng(4)
    p = [seed_spread(table(rng.normal(0, 0.2, 150) + rng.normal(0, 0.05, (4, 150)))).p for _ in range(40)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * 0.0345
    apart = seed_spread(table(rng.normal(0, 0.05, (3, 200)) + [[0], [0.03], [0]]))
    assert apart.p == 0.001 and apart.spread > 3 * apart.by_chance
    with pytest.raises(ComparisonError, match="another one"):
        seed_spread(table(np.zeros(50)))


def test_matrix_shares_alpha_between_subjects():
    strong = np.full(100, np.log(30) / 100)      # E = 30: enough for one subject, not for two
    assert performance_matrix(table([strong])).has_skill.tolist() == [True]
    found = performance_matrix(table([strong, np.zeros(100)], seconds=(2.0, 0.0), facts=({"hits": 0.4, "ece": 0.01}, {})))
    assert found.has_skill.tolist() == [False, False] and found.hits["s0"] == 0.4 and np.isnan(found.ece["s1"])
    assert found.nats_per_s["s0"] == pytest.approx(np.log(30) / 2) and np.isnan(found.nats_per_s["s1"])


def test_periods_cover_every_draw_once():
    total = np.random.default_rng(0).normal(0, 1, (2, 103))
    found = period_matrix(table(total), 5)
    sizes = [int(np.diff(np.array(c.split(" to "), dtype="datetime64[D]"))[0].astype(int)) + 1 for c in found.columns]
    assert sum(sizes) == 103 and np.allclose(found.to_numpy() @ sizes / 103, total.mean(1))


def test_correlation_of_a_constant_score_is_none():
    row = np.random.default_rng(0).normal(0, 1, 50)
    constant, first, second = correlations(table([np.zeros(50), row, -row]))
    assert constant == [None] * 3 and first[0] is None
    assert first[1:] == pytest.approx([1, -1]) and second[1:] == pytest.approx([-1, 1])


@pytest.mark.parametrize("change, message", [
    ({"names": ("a", "a")}, "named twice"), ({"dates": ("2020-01-02", "2020-01-01")}, "do not rise"),
    ({"white": np.zeros((2, 3))}, "give"), ({"powerball": np.full((2, 2), np.inf)}, "NaN or inf"),
    ({"facts": ({},)}, "1 facts"), ({"seconds": np.zeros(1)}, "give"),
])
def test_tables_that_do_not_fit_are_refused(change, message):
    good = {"names": ("a", "b"), "dates": ("2020-01-01", "2020-01-02"), "white": np.zeros((2, 2)),
            "powerball": np.zeros((2, 2)), "seconds": np.zeros(2)}
    with pytest.raises(ComparisonError, match=message):
        Scores(**good | change)
