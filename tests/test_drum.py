"""The drum against brute force: every outcome of the generator, every order of picks, every set."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product
from math import comb, factorial, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from helios.drum import (
    Drum,
    DrumError,
    compositions,
    fair_sets,
    heavy_inclusion,
    inclusion,
    truth_skill,
    weighted_sets,
)

P_FLOOR = 1e-6   # a fresh seed would fall below it once in a million tests


def law_of_sets(weights, picked) -> dict[tuple, float]:
    """Probability of each set, summed over the orders in which its balls may be picked."""
    law = dict.fromkeys(combinations(range(1, len(weights) + 1), picked), 0)
    for order in permutations(range(len(weights)), picked):
        p, left = 1, sum(weights)
        for ball in order:
            p, left = p * weights[ball] / left, left - weights[ball]
        law[tuple(sorted(ball + 1 for ball in order))] += p
    return law


def inclusion_by_hand(law, n) -> list:
    return [sum(p for balls, p in law.items() if ball in balls) for ball in range(1, n + 1)]


def skill_by_hand(law) -> float:
    return sum(float(p) * (log(p) + log(len(law))) for p in law.values() if p)


def p_value(times, expected) -> float:
    times, expected = np.asarray(times, float), np.asarray(expected, float)
    return float(chi2.sf(((times - expected) ** 2 / expected).sum(), len(times) - 1))


def count_sets(drawn, law) -> list[int]:
    seen = Counter(map(tuple, drawn.tolist()))
    assert set(seen) <= set(law)
    return [seen[balls] for balls in law]


# Fair sets

class Enumerated:
    """In place of a generator: its columns run through every outcome once."""

    def __init__(self, n_balls, picked):
        self.outcomes = np.array(list(product(*(range(n_balls - j) for j in range(picked)))))
        self.column = 0

    def integers(self, low, high, size):
        values = self.outcomes[:, self.column]
        assert (low, size) == (0, len(values)) and values.max() == high - 1
        self.column += 1
        return values


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 8) for k in range(1, n + 1)] + [(12, 4), (9, 5), (40, 3), (27, 3)])
def test_every_outcome_of_the_generator_gives_every_set_equally_often(n, k):
    outcomes = Enumerated(n, k)
    seen = Counter(map(tuple, fair_sets(outcomes, len(outcomes.outcomes), n, k).tolist()))
    assert seen == dict.fromkeys(combinations(range(1, n + 1), k), factorial(k))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 2), (6, 3), (8, 4), (9, 2), (7, 6), (10, 5)])
def test_all_sets_are_equally_likely(n, k):
    law = dict.fromkeys(combinations(range(1, n + 1), k))
    drawn = fair_sets(np.random.default_rng([1, n, k]), 40_000, n, k)
    assert p_value(count_sets(drawn, law), [40_000 / len(law)] * len(law)) > P_FLOOR


@pytest.mark.parametrize(("n", "k"), [(69, 5), (26, 1), (254, 5), (255, 7), (256, 7), (257, 5), (300, 20)])
def test_balls_and_pairs_of_large_drums(n, k):
    draws = 60_000
    drawn = fair_sets(np.random.default_rng([2, n, k]), draws, n, k)
    assert drawn.dtype == np.int64 and drawn.min() == 1 and drawn.max() == n
    assert k == 1 or (np.diff(drawn) > 0).all()
    singles = np.bincount(drawn.ravel(), minlength=n + 1)[1:]
    # Balls of one draw exclude each other: the statistic times (n - 1) / (n - k) is chi-square (Joe 1993).
    statistic = ((singles - draws * k / n) ** 2).sum() / (draws * k / n) * (n - 1) / (n - k)
    assert chi2.sf(statistic, n - 1) > P_FLOOR and chi2.cdf(statistic, n - 1) > P_FLOOR
    if k > 1:   # two balls of a draw, chosen by their places: all pairs are equally likely, so their gaps are known
        pair = np.random.default_rng(3).permuted(drawn, axis=1)[:, :2]
        gaps, most = np.abs(pair[:, 0] - pair[:, 1]), n * 3 // 4
        expected = draws * (n - np.arange(1, n)) / comb(n, 2)
        seen = np.bincount(np.minimum(gaps, most), minlength=most + 1)[1:]
        assert p_value(seen, [*expected[:most - 1], expected[most - 1:].sum()]) > P_FLOOR


@pytest.mark.parametrize(("n", "k", "draws"), [
    (69, 5, 16_383), (69, 5, 16_384), (69, 5, 16_385), (69, 5, 40_000), (300, 4, 33_000), (256, 3, 17_000), (5, 5, 16_400)])
def test_draws_are_those_of_a_list_that_is_picked_from(n, k, draws):
    """Bit for bit, whatever the part of the draws that is worked on at a time."""
    drawn = fair_sets(np.random.default_rng(7), draws, n, k)
    rng = np.random.default_rng(7)
    places = np.stack([rng.integers(0, n - j, draws) for j in range(k)], axis=1)
    near = [*range(20), *range(16_370, min(16_400, draws)), *range(draws - 20, draws), *range(0, draws, 97)]
    for t in sorted(set(near)):
        left = list(range(1, n + 1))
        assert sorted(left.pop(place) for place in places[t]) == drawn[t].tolist()


def test_the_whole_drum_and_no_draws():
    for n in (1, 2, 69, 255, 256, 300):
        assert fair_sets(np.random.default_rng(0), 3, n, n).tolist() == [list(range(1, n + 1))] * 3
        assert fair_sets(np.random.default_rng(0), 0, n, n).shape == (0, n)


def test_equal_seeds_give_equal_draws_and_others_do_not():
    one, same, other = (fair_sets(np.random.default_rng(seed), 1000, 69, 5) for seed in (4, 4, 5))
    assert (one == same).all() and not (one == other).all()


# The exact law

weight = st.one_of(st.sampled_from([1.0, 2.0, 0.5, 3.0]), st.floats(0.05, 20))


@st.composite
def drums(draw, most=6):
    weights = draw(st.lists(weight, min_size=1, max_size=most))
    return Drum(tuple(weights), draw(st.integers(1, len(weights))))


@settings(max_examples=60, deadline=None)
@given(drums())
def test_law_equals_enumeration(drum):
    n, law = len(drum.weights), law_of_sets(drum.weights, drum.picked)
    np.testing.assert_allclose(inclusion(drum), inclusion_by_hand(law, n), rtol=1e-10)
    assert truth_skill(drum) == pytest.approx(skill_by_hand(law), abs=1e-10)
    counts, chances = compositions(drum)
    values, sizes, of_ball = drum.classes
    grouped = Counter()
    for balls, p in law.items():
        grouped[tuple(np.bincount(of_ball[np.array(balls) - 1], minlength=len(values)).tolist())] += p
    assert len(counts) == len(grouped) and (counts <= sizes).all()
    for row, chance in zip(counts.tolist(), chances.tolist(), strict=True):
        assert chance == pytest.approx(grouped[tuple(row)], rel=1e-10)


@pytest.mark.parametrize(("weights", "k"), [((1, 2, 1, 5, 0.3, 1, 2), 4), ((3, 1, 4, 1.5, 9, 2.6, 5), 3), ((1, 1, 1, 1, 1, 1, 7), 6)])
def test_law_of_seven_balls(weights, k):
    law = law_of_sets(weights, k)
    np.testing.assert_allclose(inclusion(Drum(weights, k)), inclusion_by_hand(law, 7), rtol=1e-12)
    assert truth_skill(Drum(weights, k)) == pytest.approx(skill_by_hand(law), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(drums(), st.sampled_from([2.0**-40, 0.125, 3.0, 1e6]), st.randoms(use_true_random=False))
def test_only_ratios_matter_and_numbers_mean_nothing(drum, factor, random):
    scaled = Drum(tuple(w * factor for w in drum.weights), drum.picked)
    np.testing.assert_allclose(inclusion(scaled), inclusion(drum), rtol=1e-10)
    assert truth_skill(scaled) == pytest.approx(truth_skill(drum), abs=1e-10)
    order = list(range(len(drum.weights)))
    random.shuffle(order)
    moved = Drum(tuple(drum.weights[i] for i in order), drum.picked)
    np.testing.assert_allclose(inclusion(moved), inclusion(drum)[order], rtol=1e-10)
    assert truth_skill(moved) == pytest.approx(truth_skill(drum), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(drums())
def test_inclusion_sums_to_picked_and_heavier_balls_come_more_often(drum):
    pi = inclusion(drum)
    assert pi.sum() == pytest.approx(drum.picked) and (pi > 0).all() and (pi < 1 + 1e-12).all()
    assert truth_skill(drum) >= -1e-12
    by_weight = pi[np.argsort(drum.weights)]
    assert (np.diff(by_weight) > -1e-12).all()


@pytest.mark.parametrize("weights", [
    (1e-6, 1, 1e6, 1, 2), (1e-6, 1e-6, 1, 1, 1), (1e6, 1e6, 1, 1, 1), (1e-6, 1e-6, 1e-6, 1e6, 1e6), (1e-6, 1e-3, 1, 1e3, 1e6)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_extreme_weights_keep_their_digits(weights, k):
    law = law_of_sets([Fraction(w) for w in weights], k)
    drum = Drum(weights, k)
    np.testing.assert_allclose(inclusion(drum), [float(p) for p in inclusion_by_hand(law, 5)], rtol=1e-12)
    assert truth_skill(drum) == pytest.approx(skill_by_hand(law), rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(2, 80), st.data())
def test_one_heavy_ball_of_many(heavy, n, data):
    k = data.draw(st.integers(1, min(n - 1, 8)))
    assert heavy_inclusion(heavy, n, k) == pytest.approx(inclusion(Drum((heavy,) + (1,) * (n - 1), k))[0], rel=1e-6)


def test_a_drum_of_equal_weights_is_fair():
    for n, k in ((1, 1), (7, 7), (69, 5), (300, 8)):
        np.testing.assert_allclose(inclusion(Drum((0.3,) * n, k)), np.full(n, k / n), rtol=1e-12)
        assert truth_skill(Drum((0.3,) * n, k)) == pytest.approx(0, abs=1e-10)


# Weighted sets

@pytest.mark.parametrize(("weights", "k"), [
    ((1, 1, 3, 1, 2, 1), 3), ((0.2, 1, 5), 1), ((0.2, 1, 5), 2), ((4, 1, 1, 2, 7), 4), ((1, 2, 3, 4, 5, 6, 7), 3), ((1,) * 6, 2)])
def test_weighted_sets_follow_the_exact_law(weights, k):
    law = law_of_sets(weights, k)
    drawn = weighted_sets(np.random.default_rng([5, k, len(weights)]), 100_000, np.array(weights), k)
    assert drawn.dtype == np.int64 and (np.diff(drawn) > 0).all()
    assert p_value(count_sets(drawn, law), 100_000 * np.array(list(law.values()))) > P_FLOOR


def test_weights_of_each_draw():
    kinds = np.array([[1, 1, 4, 2, 1], [6, 1, 1, 1, 0.5], [1, 1, 1, 1, 1]], float)
    of_draw = np.random.default_rng(0).integers(0, 3, 150_000)        # parts are of 65,536 draws
    drawn = weighted_sets(np.random.default_rng(6), 150_000, kinds[of_draw], 2)
    for kind, weights in enumerate(kinds):
        law = law_of_sets(weights, 2)
        for part in (slice(0, 65_536), slice(65_536, None)):
            rows = drawn[part][of_draw[part] == kind]
            assert p_value(count_sets(rows, law), len(rows) * np.array(list(law.values()))) > P_FLOOR


@pytest.mark.parametrize("draws", [65_535, 65_536, 65_537, 131_072, 131_073])
def test_each_row_has_its_own_weights_beyond_the_first_part(draws):
    wanted = fair_sets(np.random.default_rng(1), draws, 6, 2)
    weights = np.ones((draws, 6))
    np.put_along_axis(weights, wanted - 1, 1e15, axis=1)             # 131,073 draws miss with a chance of 1e-9
    assert (weighted_sets(np.random.default_rng(8), draws, weights, 2) == wanted).all()


def test_one_row_for_all_is_as_many_equal_rows():
    weights = np.array([1, 2, 3, 4.0])
    one = weighted_sets(np.random.default_rng(9), 70_000, weights, 2)
    assert (one == weighted_sets(np.random.default_rng(9), 70_000, np.tile(weights, (70_000, 1)), 2)).all()
    assert (one == weighted_sets(np.random.default_rng(9), 70_000, weights.tolist(), 2)).all()


def test_all_balls_and_no_draws():
    assert weighted_sets(np.random.default_rng(0), 4, [1, 5, 2], 3).tolist() == [[1, 2, 3]] * 4
    for weights in ([1, 2, 3], np.ones((0, 3))):
        empty = weighted_sets(np.random.default_rng(0), 0, weights, 2)
        assert empty.shape == (0, 2) and empty.dtype == np.int64


# Errors

@pytest.mark.parametrize("wrong", [0, -1, 0.0, float("nan"), float("inf"), -float("inf")])
def test_weights_that_cannot_be(wrong):
    with pytest.raises(DrumError, match=r"^weight .* of ball 2: give a positive number from 1e-15 to 1e\+15$"):
        Drum((1, wrong, 1))


@pytest.mark.parametrize(("n", "k"), [(2, 3), (2, 0), (2, -1), (0, 1)])
def test_numbers_of_balls_that_cannot_be(n, k):
    with pytest.raises(DrumError, match=f"{k} of {n} balls cannot be drawn"):
        Drum((1,) * n, k)


def test_too_many_different_weights():
    few = Drum(tuple(range(1, 28)), 5)
    assert inclusion(few).sum() == pytest.approx(5)
    for ask in (compositions, inclusion, truth_skill):
        with pytest.raises(DrumError, match="^28 different weights .* fewer different weights$"):
            ask(Drum(tuple(range(1, 29)), 5))


@pytest.mark.parametrize("weight", [1e-16, 1e-100, 1e16, 1e308])
def test_weights_that_no_ball_has(weight):
    with pytest.raises(DrumError, match="give a positive number from 1e-15 to 1e\\+15"):
        Drum((1, weight), 1)
