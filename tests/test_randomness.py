"""The statistics of fair draws: exact means and variances by listing small drums, levels and power by simulation.

A simulated rate may miss its value by 3.5 standard errors, unless a test says otherwise; a fresh seed would do so in
one check of 2,150. The seeds are fixed, so these checks pass or fail for good.
"""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, hypergeom, kstwobign, norm

from helios.drum import fair_sets, heavy_inclusion, weighted_sets
from helios.fairness import holm
from helios.game import POWERBALL
from helios.randomness import (
    MIN_EXPECTED,
    FairnessError,
    alarm_probability,
    ball_counts,
    chi_square,
    detectable_weight,
    fair_band,
    order_chi_square,
    overlap_chances,
    overlap_chi_square,
    overlaps,
    pair_chi_square,
    pair_counts,
    pearson,
    pooled_cells,
    repeat_score,
    repeat_z,
    sum_z,
)

# Draws of each era up to 2026-08-05, and of multipliers from a wheel with known slots that are no 10x.
DRAWS = dict(zip([era.name for era in POWERBALL.eras], (578, 514, 302, 350, 316, 388, 1390), strict=True))
WHEELS = {"5/59+1/35": (178, np.array([5, 3, 1, 1]) / 10), "5/69+1/26": (1370, np.array([24, 13, 3, 2]) / 42)}
HISTORIES = 4000


def errors(rate, n, number=3.5):
    return number * np.sqrt(rate * (1 - rate) / n)


def every_draw(n_balls, picked):
    return [np.array(draw) for draw in combinations(range(1, n_balls + 1), picked)]


# Exact, by listing every history of a small drum

@pytest.mark.parametrize("n_balls, picked, n_draws", [(5, 2, 2), (6, 3, 2), (7, 3, 2), (5, 3, 3), (6, 1, 4), (7, 5, 2)])
def test_mean_and_variance_of_singles_are_exact(n_balls, picked, n_draws):
    draws = [ball_counts(draw, n_balls) for draw in every_draw(n_balls, picked)]
    values = chi_square(np.array([sum(history) for history in product(draws, repeat=n_draws)]), picked)
    df = n_balls - 1
    assert values.mean() == pytest.approx(df)
    assert values.var() == pytest.approx(2 * df * (n_draws - 1) / n_draws)


@pytest.mark.parametrize("n_balls, picked, n_draws", [(5, 2, 2), (5, 3, 3), (6, 3, 2), (6, 4, 3), (7, 2, 3), (7, 4, 2),
                                                      (7, 5, 2)])
def test_mean_and_variance_of_pairs_are_exact(n_balls, picked, n_draws):
    draws = [pair_counts(draw[None], n_balls) for draw in every_draw(n_balls, picked)]
    values = pair_chi_square(np.array([sum(history) for history in product(draws, repeat=n_draws)]), picked)
    df = n_balls * (n_balls - 3) / 2
    assert values.mean() == pytest.approx(df)
    assert values.var() == pytest.approx(2 * df * (n_draws - 1) / n_draws)


def test_pairs_and_singles_are_uncorrelated():
    """The singles part is removed: over all histories the two statistics have covariance zero."""
    draws = every_draw(7, 3)
    singles, pairs = np.array([(float(chi_square(ball_counts(np.array(h), 7), 3)),
                                float(pair_chi_square(pair_counts(np.array(h), 7), 3))) for h in product(draws, repeat=2)]).T
    assert np.mean(singles * pairs) == pytest.approx(singles.mean() * pairs.mean())


def test_pairs_by_hand():
    """The formula written out over pairs of balls, one after another."""
    drawn, m, k = fair_sets(np.random.default_rng(1), 40, 12, 4), 12, 4
    together = {(i, j): sum({i, j} <= set(row) for row in drawn.tolist()) for i, j in combinations(range(1, m + 1), 2)}
    expected = 40 * k * (k - 1) / (m * (m - 1))
    d = [sum(count - expected for pair, count in together.items() if i in pair) for i in range(1, m + 1)]
    x1 = sum(x * x for x in d) / ((m - 2) * expected)
    x2 = sum((count - expected)**2 / expected for count in together.values())
    share = 1 - 2 * (k - 2) / (m - 2) + (k - 2) * (k - 3) / ((m - 2) * (m - 3))
    counts = pair_counts(drawn, m)
    assert pair_chi_square(counts, k) == pytest.approx((x2 - x1) / share)
    assert all(counts[i - 1, j - 1] == counts[j - 1, i - 1] == n for (i, j), n in together.items())
    assert np.array_equal(pair_counts(drawn[:, ::-1], m), counts) and not counts.diagonal().any()


@pytest.mark.parametrize("n_balls, picked", [(5, 2), (6, 3), (4, 3)])
def test_overlaps_are_independent_and_hypergeometric(n_balls, picked):
    joint = np.zeros((picked + 1, picked + 1))
    for history in product(every_draw(n_balls, picked), repeat=3):
        joint[tuple(overlaps(np.array(history)))] += 1
    chances = hypergeom(n_balls, picked, picked).pmf(np.arange(picked + 1))
    assert overlap_chances(n_balls, picked) == pytest.approx(chances)
    assert joint / joint.sum() == pytest.approx(np.outer(chances, chances))


def test_repeats_are_binomial():
    """All 729 histories of six draws from three balls: each count of repeats gets the score of its mid-p value."""
    histories = [np.array(history) for history in product(range(1, 4), repeat=6)]
    counts = np.array([(history[1:] == history[:-1]).sum() for history in histories])
    z = np.array([repeat_z(history, 3) for history in histories])
    for count in range(6):
        distance, own = abs(counts - 5 / 3), abs(count - 5 / 3)
        p = (distance > own + 1e-9).mean() + (abs(distance - own) < 1e-9).mean() / 2
        assert z[counts == count] == pytest.approx(np.sign(count - 5 / 3) * norm.isf(p / 2))


@pytest.mark.parametrize("repeats", [0, 1, 53, 200, 1389])
def test_a_score_is_finite_and_has_its_sign(repeats):
    z = repeat_score(repeats, 1389, 26)
    assert np.isfinite(z) and (z > 0) == (repeats > 53.4)


@pytest.mark.parametrize("n_balls, picked", [(7, 3), (6, 1), (5, 4)])
def test_sums_have_mean_zero_and_variance_one(n_balls, picked):
    z = [sum_z(np.array(history), n_balls) for history in product(every_draw(n_balls, picked), repeat=2)]
    assert (np.mean(z), np.var(z)) == (pytest.approx(0, abs=1e-12), pytest.approx(1))


SMALL_ORDERS = [(5, [(1, 2, 3), (1, 2, 4)]), (4, [(1, 2), (2, 3), (3, 4), (1, 4)]), (7, [(1, 2, 3), (3, 4, 5), (5, 6, 7)]),
                (6, [(1, 2), (1, 2), (4, 5)]), (5, [(2, 3, 4, 5), (1, 2, 3, 4)])]


def orders_of(sets):
    return [np.array(history) for history in product(*(permutations(balls) for balls in sets))]


def places(drawn, n_balls):
    """(n_balls, picked) how often each ball came at each place, by looking."""
    return np.array([[(column == ball).sum() for column in drawn.T] for ball in range(1, n_balls + 1)])


@pytest.mark.parametrize("n_balls, sets", SMALL_ORDERS)
def test_order_has_exactly_this_covariance(n_balls, sets):
    k, every = len(sets[0]), orders_of(sets)
    counts = ball_counts(np.array(sets), n_balls)
    excess = np.array([(places(drawn, n_balls) - counts[:, None] / k).ravel() for drawn in every])
    laplacian = np.diag(counts / k) - pair_counts(np.array(sets), n_balls) / (k * (k - 1))
    covariance = np.kron(laplacian, np.eye(k) - 1 / k)
    assert excess.mean(axis=0) == pytest.approx(np.zeros(n_balls * k), abs=1e-12)
    assert excess.T @ excess / len(every) == pytest.approx(covariance, abs=1e-12)
    found = [order_chi_square(drawn, n_balls) for drawn in every]
    df = int(np.linalg.matrix_rank(covariance))
    assert {each for _, each in found} == {df}
    assert np.mean([statistic for statistic, _ in found]) == pytest.approx(df)
    inverse = np.linalg.pinv(covariance)
    assert [statistic for statistic, _ in found] == pytest.approx([x @ inverse @ x for x in excess])


def test_degrees_of_freedom_of_order():
    rng = np.random.default_rng(2)
    full = rng.permuted(fair_sets(rng, 302, 53, 5), axis=1)
    assert order_chi_square(full, 53)[1] == 52 * 4
    assert order_chi_square(full, 55)[1] == 52 * 4                       # two balls that were never drawn
    assert order_chi_square(np.array([[1, 2], [3, 4]]), 4)[1] == 2       # two parts that never meet
    assert order_chi_square(full[:, [2, 0, 1, 4, 3]], 53)[0] == pytest.approx(order_chi_square(full, 53)[0])
    with pytest.raises(FairnessError, match="ball 53 is not in a drum"):
        order_chi_square(full, 52)


# Cells

@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12), st.integers(0, 200))
def test_pooled_cells_expect_enough(weights, n):
    chances = np.array(weights) / sum(weights)
    cells = pooled_cells(chances, n)
    assert cells[0] == 0 and set(np.diff(cells)) <= {0, 1}
    expected = n * np.bincount(cells, chances)
    assert len(expected) == 1 or expected.min() >= MIN_EXPECTED
    sides = np.minimum(np.cumsum(chances), 1 - np.cumsum(chances))[:-1]
    if (n * sides > MIN_EXPECTED + 1e-9).any():
        assert len(expected) > 1                    # whenever some cut leaves enough on both sides


def test_overlaps_of_too_few_draws_are_refused():
    drawn = fair_sets(np.random.default_rng(3), 17, 69, 5)
    assert overlap_chi_square(drawn, 69)[1] == 1
    for few in (drawn[:16], drawn[:1], drawn[:0]):
        with pytest.raises(FairnessError, match=f"{len(few)} draws are too few"):
            overlap_chi_square(few, 69)


def test_pearson_by_hand():
    assert pearson(np.array([5, 3, 2]), np.array([0.5, 0.25, 0.25])) == pytest.approx(0.25 / 2.5 + 0.25 / 2.5)


@settings(deadline=None)
@given(st.integers(0, 5000), st.floats(0.01, 0.99), st.floats(0.5, 0.999))
def test_the_band_is_the_smallest_with_equal_tails(n, p, level):
    low, high = fair_band(n, p, level)
    tail = (1 - level) / 2
    assert 0 <= low <= high <= n
    assert binom.cdf(low - 1, n, p) <= tail + 1e-9 and binom.sf(high, n, p) <= tail + 1e-9
    assert binom.cdf(low, n, p) >= tail - 1e-9 and binom.sf(high - 1, n, p) >= tail - 1e-9


def test_the_band_refuses_what_cannot_be():
    for n, p, level in [(-1, 0.5, 0.95), (10, 0, 0.95), (10, 1.5, 0.95), (10, 0.5, 95)]:
        with pytest.raises(FairnessError, match="inside 0 to 1"):
            fair_band(n, p, level)


# Power by formula

def test_power_of_a_fair_drum_is_the_level():
    for era in POWERBALL.eras:
        assert alarm_probability(5 / era.whites, 400, era.whites, 5) == pytest.approx(0.05, abs=0.002)
        assert alarm_probability(1 / era.powerballs, 400, era.powerballs) == pytest.approx(0.05, abs=0.002)


def test_more_draws_power_or_level_need_less_weight():
    assert detectable_weight(4000, 69, 5) < detectable_weight(1390, 69, 5) < detectable_weight(200, 69, 5)
    assert detectable_weight(1390, 69, 5, power=0.5) < detectable_weight(1390, 69, 5, power=0.95)
    assert detectable_weight(1390, 69, 5, alpha=0.2) < detectable_weight(1390, 69, 5, alpha=0.001)


def test_no_weight_is_large_enough_for_a_handful_of_draws():
    assert detectable_weight(3, 6, 5) is None
    assert detectable_weight(1, 26) is None


def test_impossible_levels_are_refused():
    for alpha, power in [(0, 0.8), (0.9, 0.8), (0.05, 1)]:
        with pytest.raises(FairnessError, match="alpha < power < 1"):
            detectable_weight(100, 26, alpha=alpha, power=power)


# Level by simulation: 4,000 fair histories of all seven eras

def p_values_of(rng, era, n_draws):
    """p-value of every test on one fair history of one era."""
    m, k = era.whites, era.picked
    drawn = rng.permuted(fair_sets(rng, n_draws, m, k), axis=1)
    powerballs = rng.integers(1, era.powerballs + 1, n_draws)
    found = {"white_singles": (chi_square(ball_counts(drawn, m), k), m - 1),
             "powerball_singles": (chi_square(ball_counts(powerballs, era.powerballs)), era.powerballs - 1),
             "white_pairs": (pair_chi_square(pair_counts(drawn, m), k), m * (m - 3) // 2),
             "white_overlap": overlap_chi_square(drawn, m),
             "powerball_repeats": (repeat_z(powerballs, era.powerballs)**2, 1),
             "white_sum": (sum_z(drawn, m)**2, 1), "draw_order": order_chi_square(drawn, m)}
    if era.name in WHEELS:
        n, chances = WHEELS[era.name]
        found["power_play"] = pearson(rng.multinomial(n, chances), chances), len(chances) - 1
    statistics, df = zip(*found.values(), strict=True)
    return dict(zip(found, chi2.sf(statistics, df), strict=True))


@pytest.fixture(scope="module")
def fair_p():
    """(era, test) -> (4000,) p-values of fair histories; 51 tests in all."""
    collected = {}
    for seed, era in enumerate(POWERBALL.eras):
        rng = np.random.default_rng([101, seed])
        rows = [p_values_of(rng, era, DRAWS[era.name]) for _ in range(HISTORIES)]
        collected |= {(era.name, test): np.array([row[test] for row in rows]) for test in rows[0]}
    return collected


def exact_repeat_level(n_draws, n_balls, alpha):
    """Level of the test of repeats, whose statistic takes few values."""
    repeats = np.arange(n_draws)
    alarm = repeat_score(repeats, n_draws - 1, n_balls)**2 > chi2.isf(alpha, 1)
    return float(binom.pmf(repeats, n_draws - 1, 1 / n_balls)[alarm].sum())


@pytest.mark.slow
def test_every_test_keeps_its_level_in_every_era(fair_p):
    """51 checks at 3.5 standard errors (1.2 points at 5%): fresh seeds would fail one of them in 2.4% of runs."""
    assert len(fair_p) == 7 * 7 + 2
    for (name, test), p in fair_p.items():
        wanted = 0.05
        if test == "powerball_repeats":
            wanted = exact_repeat_level(DRAWS[name], POWERBALL.era_named(name).powerballs, 0.05)
            assert 0.044 < wanted < 0.059
        assert abs((p <= 0.05).mean() - wanted) < errors(wanted, HISTORIES), (name, test)


@pytest.mark.slow
def test_p_values_of_fair_histories_are_uniform(fair_p):
    """Of the tests whose statistic is not made of few values; 35 checks at 1 in 10,000, so 0.35% of fresh seeds fail."""
    for (name, test), p in fair_p.items():
        if test in ("white_overlap", "powerball_repeats", "power_play"):
            continue
        ordered, steps = np.sort(p), np.arange(HISTORIES + 1) / HISTORIES
        distance = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
        assert distance * np.sqrt(HISTORIES) < kstwobign.isf(1e-4), (name, test)


@pytest.mark.slow
def test_holm_keeps_the_chance_of_any_alarm_over_the_whole_audit(fair_p):
    """5%, but for what the few values of the repeats cost or gain far out: within 1.2 points, 3.5 standard errors."""
    step = 0.05 / len(fair_p)
    wanted = 0.05 + sum(exact_repeat_level(DRAWS[era.name], era.powerballs, step) - step for era in POWERBALL.eras)
    assert 0.048 < wanted < 0.051
    rate = np.mean([holm(p).min() <= 0.05 for p in np.array(list(fair_p.values())).T])
    assert abs(rate - wanted) < errors(wanted, HISTORIES)


@pytest.mark.slow
@pytest.mark.parametrize("n_draws, n_balls", [(235, 69), (100, 45)])
def test_pairs_keep_their_level_at_one_expected(n_draws, n_balls):
    """The least history that the audit takes, and one a little over."""
    rng, df = np.random.default_rng(105), n_balls * (n_balls - 3) // 2
    values = np.array([pair_chi_square(pair_counts(fair_sets(rng, n_draws, n_balls, 5), n_balls), 5)
                       for _ in range(4000)])
    for alpha in (0.2, 0.05, 0.01):
        assert abs((values > chi2.isf(alpha, df)).mean() - alpha) < errors(alpha, 4000)


def test_plain_chi_square_of_whites_is_too_quiet():
    rng = np.random.default_rng(103)
    counts = np.array([ball_counts(fair_sets(rng, 300, 69, 5), 69) for _ in range(400)])
    assert abs(chi_square(counts).mean() - 64) < 4 * np.sqrt(2 * 64 / 400)
    assert abs(chi_square(counts, 5).mean() - 68) < 4 * np.sqrt(2 * 68 / 400)


# Power by simulation: the weight that the audit names is found four times in five

@pytest.mark.slow
@pytest.mark.parametrize("era", POWERBALL.eras, ids=lambda era: era.name)
def test_power_of_whites_at_the_detectable_weight(era):
    """1,000 histories an era: seven checks within 4.4 points, which fresh seeds fail in 0.3% of runs."""
    n, m = DRAWS[era.name], era.whites
    weights, rng = np.ones(m), np.random.default_rng(104)
    weights[m // 2] = detectable_weight(n, m, 5)
    counts = np.array([ball_counts(weighted_sets(rng, n, weights, 5), m) for _ in range(1000)])
    assert abs((chi_square(counts, 5) > chi2.isf(0.05, m - 1)).mean() - 0.8) < errors(0.8, 1000)


@pytest.mark.parametrize("era", POWERBALL.eras, ids=lambda era: era.name)
def test_power_of_powerballs_at_the_detectable_weight(era):
    """20,000 histories an era, within 1 point: noncentral chi-square, up to 10 points off, would fail."""
    n, m = DRAWS[era.name], era.powerballs
    weights = np.ones(m)
    weights[0] = detectable_weight(n, m)
    assert weights[0] / weights.sum() == pytest.approx(heavy_inclusion(weights[0], m))
    counts = np.random.default_rng(106).multinomial(n, weights / weights.sum(), size=20_000)
    assert abs((chi_square(counts) > chi2.isf(0.05, m - 1)).mean() - 0.8) < errors(0.8, 20_000)
