"""The worth of a ticket: exact odds and laws by enumeration, shared jackpots, popularity files, a year by other ways."""

import json
from dataclasses import FrozenInstanceError
from datetime import date, timedelta
from fractions import Fraction
from itertools import combinations, product
from math import exp, expm1, factorial, isfinite, log1p, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, poisson

from helios.game import POWERBALL, DrawDays, Era, Game, GameError, PowerPlay, Prizes
from helios.prizes import (
    LEVELS,
    MAX_TICKETS,
    PrizeLaw,
    TicketError,
    jackpot_share,
    multiplier_odds,
    prize_odds,
    prize_sum,
    share_odds,
    year_of_play,
)
from helios.value import Popularity, parse_ticket, players_probability, read_popularity, sales, ticket_value

TODAY = date(2026, 8, 5)
NOW = POWERBALL.era(TODAY)
N = 292_201_338
FIXED = Fraction(3594848, 11238513)
FIRST = date(2020, 1, 1)
SMALL = Game(
    "Small", (Era(FIRST, whites=7, powerballs=4, picked=3),), (DrawDays(FIRST, (1, 4)),),
    (Prizes(FIRST, 1, {(3, True): None, (3, False): 20_000, (2, True): 5, (0, True): 1}),),
    (PowerPlay(FIRST, {2: 2, 5: 1, 10: 1}, {(3, False): 30_000}, jackpot_limited=(10,)),))


def value(cash=10**8, sold=5 * 10**7, **keys):
    return ticket_value(cash, sold, **{"day": TODAY, **keys})


def mean_of(odds):
    return sum(dollars * p for dollars, p in odds.items())


def exact_sum(one, n):
    """All sums of `n` independent amounts, in the arithmetic of the chances given."""
    total = {0: 1}
    for _ in range(n):
        after = {}
        for (a, p), (b, q) in product(total.items(), one.items()):
            after[a + b] = after.get(a + b, 0) + p * q
        total = after
    return total


def whole_law(law):
    """The law of one ticket as one table, the jackpot's payouts among the others."""
    one = dict(law.fixed)
    for payout, chance in zip(law.payouts.tolist(), law.chances.tolist(), strict=True):
        one[payout] = one.get(payout, 0) + law.p_jackpot * Fraction(chance)
    return one


# Odds of one ticket

def test_odds_against_every_draw_of_a_small_game():
    """One ticket against all 140 draws and, with Power Play, all slots of the wheel."""
    draws = [(set(whites), pb) for whites in combinations(range(1, 8), 3) for pb in range(1, 5)]
    prizes = {(3, False): 20_000, (2, True): 5, (0, True): 1}
    for slots in (None, [2, 2, 5], [2, 2, 5, 10]):
        counted, won = {0: Fraction(0)}, Fraction(0)
        for (whites, pb), multiplier in product(draws, slots or [1]):
            each, tier = Fraction(1, len(draws) * len(slots or [1])), (len(whites & {1, 2, 3}), pb == 1)
            if tier == (3, True):
                won += each
                continue
            paid = 30_000 if slots and tier == (3, False) else multiplier * prizes.get(tier, 0)
            counted[paid] = counted.get(paid, 0) + each
        multipliers = multiplier_odds(SMALL, FIRST, 10 in slots) if slots else None
        assert prize_odds(SMALL, FIRST, multipliers) == (counted, won)


def test_fixed_value_is_exact():
    assert value().fixed == FIXED
    assert isinstance(value().fixed, Fraction)


@pytest.mark.parametrize("ten, expected", [(True, 0.819558), (False, 0.779208)])
def test_fixed_value_with_power_play(ten, expected):
    with_play = value(power_play=True, ten=ten)
    assert round(float(with_play.fixed), 6) == expected
    assert (with_play.price, with_play.ten_on_wheel) == (3, ten)
    tiers = [(w, pb) for w in range(6) for pb in (True, False)]
    wheel = {2: 24, 3: 13, 4: 3, 5: 2} | ({10: 1} if ten else {})
    times = Fraction(sum(m * n for m, n in wheel.items()), sum(wheel.values()))
    dollars = {(4, True): 50_000, (4, False): 100, (3, True): 100, (3, False): 7, (2, True): 7, (1, True): 4, (0, True): 4}
    assert with_play.fixed == (sum(NOW.match_probability(*t) * dollars.get(t, 0) for t in tiers) * times
                               + 2_000_000 * NOW.match_probability(5, False))


def test_five_whites_pay_two_million_whatever_the_multiplier():
    odds, _ = prize_odds(POWERBALL, TODAY, multiplier_odds(POWERBALL, TODAY, True))
    assert odds[2_000_000] == NOW.match_probability(5, False)
    assert max(odds) == 2_000_000 and 10_000_000 not in odds and 1_000_000 not in odds


@pytest.mark.parametrize("day", [e.first for e in POWERBALL.eras] + [p.first for p in POWERBALL.prizes])
def test_odds_sum_to_one_and_agree_with_the_game_in_every_era(day):
    odds, jackpot = prize_odds(POWERBALL, day)
    assert sum(odds.values()) + jackpot == 1
    assert jackpot == Fraction(1, POWERBALL.era(day).n_tickets)
    assert mean_of(odds) == POWERBALL.fixed_value(day) == value(day=day).fixed


def test_the_table_of_2012_and_the_wheel_of_2014():
    assert multiplier_odds(POWERBALL, date(2012, 6, 2), False) == {1: 1}
    odds, _ = prize_odds(POWERBALL, date(2012, 6, 2), multiplier_odds(POWERBALL, date(2012, 6, 2), False))
    assert set(odds) == {0, 12, 14, 200, 40_000, 2_000_000}
    assert multiplier_odds(POWERBALL, date(2014, 6, 4), False) == {
        2: Fraction(1, 2), 3: Fraction(3, 10), 4: Fraction(1, 10), 5: Fraction(1, 10)}
    assert value(day=date(2014, 6, 4), power_play=True).ten_on_wheel is None


@pytest.mark.parametrize("day, said", [(date(2000, 1, 1), "no Power Play on 2000-01-01"), (date(2008, 1, 2), "not published")])
def test_power_play_without_known_odds_is_refused(day, said):
    with pytest.raises(TicketError, match=said):
        value(day=day, power_play=True)


# The share of the jackpot

@pytest.mark.parametrize("rate", [0, 1e-300, 1e-12, 1e-6, 0.171, 1, 5, 20])
def test_share_is_the_sum_over_co_winners(rate):
    summed = sum(exp(-rate) * rate**k / factorial(k) / (k + 1) for k in range(150))
    assert jackpot_share(rate) == pytest.approx(summed, rel=1e-13)


@pytest.mark.parametrize("n, p", [(10**6, 1e-6), (5 * 10**7, 1 / N), (10**9, 1 / N)])
def test_poisson_stands_for_the_binomial(n, p):
    assert jackpot_share(n * p) == pytest.approx(-expm1((n + 1) * log1p(-p)) / ((n + 1) * p), rel=3e-6 if n < 10**7 else 1e-7)


def test_share_by_simulation_of_whole_draws():
    """Everyone picks one of 50 combinations; the jackpot is divided among those who hold the drawn one, if I do."""
    rng = np.random.default_rng(7)
    co_winners = (rng.integers(0, 50, (200_000, 60)) == 0).sum(axis=1)
    paid = 1 / (1 + co_winners)
    exact = (1 - (1 - 1 / 50)**61) / (61 / 50)
    assert abs(paid.mean() - exact) < 4 * paid.std() / sqrt(len(paid)), "false alarm once in 16,000 seeds"
    assert jackpot_share(60 / 50) == pytest.approx(exact, rel=0.01)


@given(st.floats(0, 20) | st.floats(20, 1e4) | st.floats(1e4, 1e7))
@settings(max_examples=60, deadline=None)
def test_shares_keep_their_mean(rate):
    parts, chances = share_odds(rate)
    assert chances.sum() == pytest.approx(1, abs=1e-12) and (chances >= 0).all()
    assert ((parts > 0) & (parts <= 1)).all()
    assert parts @ chances == pytest.approx(jackpot_share(rate), rel=1e-9)


def test_shares_are_those_of_the_poisson_distribution():
    parts, chances = share_odds(1.03)
    assert parts[:9] == pytest.approx(1 / np.arange(1, 10), rel=1e-14)
    assert chances[:9] == pytest.approx(poisson.pmf(np.arange(9), 1.03), rel=1e-12)


def test_no_other_player_leaves_all_of_it():
    assert value(sold=0).share == 1 and value(sold=0).jackpot == pytest.approx(1e8 / N, rel=1e-14)


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), "1"])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(TicketError, match="co-winners"):
        jackpot_share(rate)


# Tickets sold

def test_winners_times_the_odds_of_any_prize():
    found = sales(winners=1_000_000, day=TODAY)
    assert found.tickets == pytest.approx(24.8671 * 10**6, rel=2e-6)
    low, high = found.interval
    each = found.tickets / 10**6
    assert low == pytest.approx(chi2.ppf(0.025, 2 * 10**6) / 2 * each) and high == pytest.approx(chi2.ppf(0.975, 2 * 10**6 + 2) / 2 * each)
    assert "1,000,000 winners" in found.source


@pytest.mark.parametrize("winners", [0, 1, 7])
def test_the_interval_of_few_winners(winners):
    low, high = sales(winners=winners, day=TODAY).interval
    each = 1 / float(1 - prize_odds(POWERBALL, TODAY)[0][0])
    assert low == pytest.approx(chi2.ppf(0.025, 2 * winners) / 2 * each if winners else 0)
    assert high == pytest.approx(chi2.ppf(0.975, 2 * winners + 2) / 2 * each)


def test_the_odds_are_those_of_the_day():
    older = sales(winners=1000, day=date(2010, 3, 6)).tickets
    assert older == pytest.approx(1000 / float(1 - prize_odds(POWERBALL, date(2010, 3, 6))[0][0]))
    assert older != pytest.approx(24867.1, rel=1e-3)


@pytest.mark.parametrize("tickets", [0, 1e6, 3e8])
def test_coverage_goes_there_and_back(tickets):
    covered = -expm1(-tickets / N)
    assert sales(coverage=covered, day=TODAY).tickets == pytest.approx(tickets, rel=1e-9)


@pytest.mark.parametrize("keys, said", [
    ({}, "give just one of"), ({"tickets_sold": 1, "coverage": 0.1}, "give just one of"), ({"coverage": 1}, "below 1"),
    ({"coverage": 1.5}, "below 1"), ({"coverage": -0.1}, "below 1"), ({"winners": -1}, "winners -1"), ({"winners": 1.5}, "whole"),
    ({"tickets_sold": -1}, "tickets sold -1"), ({"tickets_sold": float("nan")}, "tickets sold nan"),
    ({"tickets_sold": float("inf")}, "tickets sold inf"), ({"tickets_sold": 10**400}, "trillion")])
def test_impossible_sales_are_refused(keys, said):
    with pytest.raises(TicketError, match=said) as refused:
        sales(**keys, day=TODAY)
    assert "\n" not in str(refused.value)


def test_estimated_sales_say_so():
    said = value(sold=sales(winners=2_000_000, day=TODAY))
    assert any("estimated from 2,000,000 winners" in line for line in said.assumptions)
    assert any("(95% " in line for line in said.lines())
    assert said.as_dict()["tickets_sold_ci95"][0] < said.sold.tickets < said.as_dict()["tickets_sold_ci95"][1]


# Popularity

@given(st.lists(st.floats(0.001, 1000), min_size=7, max_size=7), st.lists(st.floats(0.001, 1000), min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_players_probability_against_enumeration(whites, powerballs):
    era = SMALL.eras[0]
    liked = Popularity(dict(enumerate(whites, 1)), dict(enumerate(powerballs, 1)))
    products = {s: np.prod([whites[i - 1] for i in s]) for s in combinations(range(1, 8), 3)}
    for s in ((1, 2, 3), (5, 6, 7)):
        expected = products[s] / sum(products.values()) * powerballs[2] / sum(powerballs)
        assert players_probability(liked, (*s, 3), era) == pytest.approx(expected, rel=1e-9)


def test_popularity_changes_the_share_and_nothing_else(tmp_path):
    file = tmp_path / "liked.csv"
    file.write_text("drum,ball,weight\n" + "".join(f"white,{b},2\n" for b in range(1, 32)) + "powerball,7,1.5\n")
    plain = value(ticket="3 7 11 17 23 7")
    liked, shunned = (value(ticket=t, popularity=str(file)) for t in ("3 7 11 17 23 7", "44 52 58 63 69 21"))
    assert shunned.share > plain.share > liked.share
    p = players_probability(read_popularity(file, NOW), "3 7 11 17 23 7", NOW)
    assert liked.rate == pytest.approx(5e7 * p) and liked.jackpot == pytest.approx(1e8 / N * jackpot_share(5e7 * p))
    for other in (liked, shunned):
        assert (other.fixed, other.year.p_no_prize, other.year.p_jackpot) == (plain.fixed, plain.year.p_no_prize, plain.year.p_jackpot)
        assert str(file) in other.assumptions[0]
    assert plain.assumptions[0] == "other players pick at random, so no ticket is better than another", "off by default"


def test_even_weights_are_random_picks():
    even = value(ticket="3 7 11 17 23 7", popularity=Popularity({1: 1.0}, {}))
    assert even.jackpot == pytest.approx(value().jackpot, rel=1e-12)
    scaled = Popularity({b: 5.0 for b in range(1, 70)}, {b: 0.2 for b in range(1, 27)})
    assert players_probability(scaled, "3 7 11 17 23 7", NOW) == pytest.approx(1 / N, rel=1e-9)


def test_popularity_needs_a_ticket():
    with pytest.raises(TicketError, match="needs a ticket"):
        value(popularity=Popularity({7: 2.0}, {}))


@pytest.mark.parametrize("text, said", [
    ("", "line 1: the first line must be drum,ball,weight"),
    ("ball,weight\n7,2\n", "line 1: the first line must be"),
    ("drum,ball,weight\nwhite,7,2\nblue,7,2\n", "line 3: drum 'blue'; write white or powerball"),
    ("drum,ball,weight\n\n# note\nwhite,70,2\n", "line 4: white 70 is not in the drum; balls of 5/69"),
    ("drum,ball,weight\npowerball,27,2\n", "line 2: powerball 27 is not in the drum"),
    ("drum,ball,weight\nwhite,0,2\n", "line 2: white 0"), ("drum,ball,weight\nwhite,7,0\n", "give a number from 0.001"),
    ("drum,ball,weight\nwhite,7,-2\n", "weight -2.0"), ("drum,ball,weight\nwhite,7,nan\n", "weight nan"),
    ("drum,ball,weight\nwhite,7,inf\n", "weight inf"), ("drum,ball,weight\nwhite,7,1_0\n", "give a ball's number"),
    ("drum,ball,weight\nwhite,7,1e\n", "line 2"), ("drum,ball,weight\nwhite,seven,1\n", "'seven' and '1'"),
    ("drum,ball,weight\nwhite,٧,1\n", "give a ball's number"),
    ("drum,ball,weight\nwhite,7\n", "2 cells; give three"), ("drum,ball,weight\nwhite,7,1,\n", "4 cells; give three"),
    ("drum,ball,weight\nwhite,7,1\nwhite,07,2\n", "line 3: white 7 has a weight already; remove"),
])
def test_a_bad_line_is_named_with_its_mend(tmp_path, text, said):
    file = tmp_path / "liked.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TicketError) as refused:
        read_popularity(file, NOW)
    assert said in str(refused.value) and str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_popularity_files_that_cannot_be_read(tmp_path):
    (tmp_path / "utf16.csv").write_bytes("drum,ball,weight".encode("utf-16"))
    for name, said in [("none.csv", "No such file"), ("utf16.csv", "not UTF-8 text"), (".", "directory")]:
        with pytest.raises(TicketError, match=said):
            read_popularity(tmp_path / name, NOW)


def test_popularity_files_as_spreadsheets_write_them(tmp_path):
    file = tmp_path / "liked.csv"
    file.write_bytes("\ufeffDrum, Ball, Weight\r\nWhite, 7, 1.5\r\nPOWERBALL,7,2e0\r\n\r\n".encode())
    read = read_popularity(file, NOW)
    assert (read.whites, read.powerballs, read.source) == ({7: 1.5}, {7: 2.0}, str(file))


def test_a_file_is_read_by_the_drum_of_the_day(tmp_path):
    file = tmp_path / "liked.csv"
    file.write_text("drum,ball,weight\npowerball,35,2\n")
    assert value(day=date(2013, 1, 2), ticket="1 2 3 4 5 35", popularity=file).share < 1
    with pytest.raises(TicketError, match="powerball 35"):
        value(ticket="1 2 3 4 5 6", popularity=file)


@pytest.mark.parametrize("ticket", ["", "1 2 3 4 5", "1 2 3 4 5 6 7", "1 2 3 4 4 6", "0 2 3 4 5 6", "1 2 3 4 70 6", "1 2 3 4 5 27",
                                    "1 2 3 4 5 0", "a 2 3 4 5 6", "1.5 2 3 4 5 6", "-1 2 3 4 5 6", "² 2 3 4 5 6", (1, 2, 3, 4, 5)])
def test_tickets_that_cannot_be_bought(ticket):
    with pytest.raises(TicketError, match="give 5 whites and the powerball") as refused:
        value(ticket=ticket)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("ticket", ["3 17 29 44 60 7", " 60,44, 29 17,3 + 7 ", (3, 17, 29, 44, 60, 7), np.array([3, 17, 29, 44, 60, 7])])
def test_ways_to_write_a_ticket(ticket):
    assert parse_ticket(ticket, NOW) == ((3, 17, 29, 44, 60), 7)


# Sums of prizes

CHANCES = st.lists(st.integers(1, 50), min_size=4, max_size=4)


@given(CHANCES, st.integers(1, 5), st.sampled_from([0, 3, 250.25, 7_000, 10**8 / 3]), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_the_sum_against_all_outcomes(weights, n, payout, jackpots):
    """Prizes on both sides of the limit between the lattice and the enumeration, and a jackpot anywhere."""
    whole = sum(weights) + jackpots
    fixed = {d: Fraction(w, whole) for d, w in zip((0, 4, 4_999, 5_000), weights, strict=True)}
    law = PrizeLaw(fixed, Fraction(jackpots, whole), np.array([payout, payout / 2]), np.array([0.75, 0.25]))
    exact, found = exact_sum(whole_law(law), n), prize_sum(law, n)
    for x in [-1.0, *(float(a) + shift for a in list(exact)[::7] for shift in (-0.01, 0.01))]:
        assert found.chance_above(x) == pytest.approx(float(sum(p for a, p in exact.items() if a > x)), abs=1e-12)
    assert found.mean == pytest.approx(float(mean_of(exact)), rel=1e-11)


def test_quantiles_are_the_least_amounts():
    law = PrizeLaw({0: Fraction(1, 2), 3: Fraction(3, 10), 6_000: Fraction(1, 10)}, Fraction(1, 10), np.array([9_999.37]), np.ones(1))
    found, exact = prize_sum(law, 4), exact_sum(whole_law(law), 4)
    for level in (0.01, 0.07, 0.2, 0.5, 0.8, 0.97, 0.999):
        least = min(a for a in exact if sum(p for b, p in exact.items() if b <= a) >= level)
        assert found.quantile(level) == pytest.approx(round(least, 2), abs=1e-9)
    for level in (0, 1, -1, float("nan")):
        with pytest.raises(TicketError, match="inside 0 to 1"):
            found.quantile(level)


def test_the_sum_of_a_real_ticket_over_three_draws_in_fractions():
    """The true law of Powerball with Power Play, all outcomes of three tickets, with no rounding before the comparison."""
    odds, p = prize_odds(POWERBALL, TODAY, multiplier_odds(POWERBALL, TODAY, True))
    law = PrizeLaw(odds, p, np.array([5e7]), np.ones(1))
    exact, found = exact_sum(whole_law(law), 3), prize_sum(law, 3)
    for x in (-1, 0, 7, 8, 9, 100, 999, 1000, 5_000, 50_000, 100_000, 2_000_000, 49_999_999, 50_000_000):
        assert found.chance_above(x) == pytest.approx(float(sum(q for a, q in exact.items() if a > x)), abs=1e-14)


def test_many_tickets_keep_mass_mean_and_variance():
    odds, p = prize_odds(POWERBALL, TODAY)
    law, n = PrizeLaw(odds, p, np.array([1e6, 5e5]), np.array([0.6, 0.4])), 50_000
    found = prize_sum(law, n)
    assert found.chance_above(-1) == pytest.approx(1, abs=1e-10)
    assert found.mean == pytest.approx(n * (law.mean_from(0) + law.jackpot_mean), rel=1e-10)
    assert all((np.diff(tail) <= 1e-15).all() for _, _, tail in found.parts)


def test_large_prizes_come_binomially():
    """Where a million is won so often that several come, their number is binomial."""
    law = PrizeLaw({0: Fraction(99, 100), 10**6: Fraction(1, 100)}, Fraction(0), np.array([0.0]), np.ones(1))
    found = prize_sum(law, 300)
    for k in range(12):
        assert found.chance_above(10**6 * k + 1) == pytest.approx(binom.sf(k, 300, 0.01), abs=1e-12)


def test_a_law_without_large_prizes():
    law = PrizeLaw({0: Fraction(1, 2), 2: Fraction(1, 2)}, Fraction(0), np.array([0.0]), np.ones(1))
    assert prize_sum(law, 10).chance_above(9) == pytest.approx(binom.sf(4, 10, 0.5), abs=1e-14)
    assert prize_sum(law, 10).quantile(0.5) == 10


# A year

def test_the_year_of_the_calendar():
    assert (value().year.draws, value().year.tickets, value().year.cost) == (157, 157, 314)
    assert value(day=date(2010, 3, 6)).year.draws == 105
    assert value(power_play=True, tickets_a_draw=3).year.cost == 157 * 3 * 3


def test_a_year_against_a_binomial_count():
    """Chances that need no convolution: no prize, a large one, the jackpot."""
    year = value().year
    odds, _ = prize_odds(POWERBALL, TODAY)
    assert year.p_no_prize == pytest.approx(float(odds[0])**157, rel=1e-12)
    large = odds[50_000] + odds[10**6] + Fraction(1, N)
    assert year.p_50000 == pytest.approx(float(1 - (1 - large)**157), rel=1e-9)
    assert year.p_jackpot == pytest.approx(157 / N, rel=1e-6)
    total = float(FIXED) + value().jackpot
    assert year.mean_prizes == pytest.approx(157 * total, rel=1e-12)
    assert year.jackpot_part == pytest.approx(value().jackpot / total, rel=1e-12)
    assert year.million_part == pytest.approx(float(10**6 * odds[10**6]) / total, rel=1e-12)


def test_a_jackpot_below_50000_is_not_a_large_prize():
    odds, _ = prize_odds(POWERBALL, TODAY)
    assert value(cash=40_000).year.p_50000 == pytest.approx(157 * float(odds[50_000] + odds[10**6]), rel=1e-3)
    assert value(cash=40_000).year.p_50000 < value(cash=60_000, sold=0).year.p_50000


@pytest.mark.parametrize("power_play, tickets_a_draw", [(False, 1), (True, 1), (False, 20)])
def test_a_year_against_simulation(power_play, tickets_a_draw):
    """100,000 years; each share within 4 standard errors, a false alarm once in 16,000 comparisons."""
    found, years = value(power_play=power_play, ten=True, tickets_a_draw=tickets_a_draw), 100_000
    odds, p = prize_odds(POWERBALL, TODAY, multiplier_odds(POWERBALL, TODAY, True) if power_play else None)
    rng = np.random.default_rng([tickets_a_draw, power_play])
    won = rng.multinomial(found.year.tickets, [*map(float, odds.values()), float(p)], years) @ np.array([*odds, 9e7])
    for level in LEVELS:
        se, quantile = sqrt(level * (1 - level) / years), found.year.quantiles[level]
        assert (won < quantile).mean() - 4 * se <= level <= (won <= quantile).mean() + 4 * se
    for share, chance in [((won > found.year.cost).mean(), found.year.p_ahead), ((won == 0).mean(), found.year.p_no_prize)]:
        assert abs(share - chance) <= 4 * sqrt(chance / years) + 1e-12


def test_a_year_of_a_small_game_in_fractions():
    """Six draws with a jackpot of 1 in 140: jackpots come in pairs, and the chance to end ahead is enumerated."""
    odds, p = prize_odds(SMALL, FIRST)
    law = PrizeLaw(odds, p, np.array([3.0, 1.5]), np.array([0.5, 0.5]))
    exact, year = exact_sum(whole_law(law), 6), year_of_play(law, 6, 1)
    assert year.p_ahead == pytest.approx(float(sum(q for a, q in exact.items() if a > 6)), abs=1e-13)
    assert year.p_no_prize == pytest.approx(float(odds[0]**6), rel=1e-12)


@pytest.mark.parametrize("tickets", [0, -1, 1.5, "2", True, None, MAX_TICKETS])
def test_tickets_a_draw_that_are_refused(tickets):
    with pytest.raises(TicketError, match="tickets a draw .* from 1 to 636"):
        value(tickets_a_draw=tickets)


# The value

def test_the_total_is_the_sum_of_its_parts():
    found = value(10**9, 3 * 10**8, tax=0.37)
    assert found.jackpot == pytest.approx(1e9 * 0.63 * jackpot_share(3e8 / N) / N, rel=1e-13)
    assert found.total == pytest.approx(float(FIXED) + found.jackpot, rel=1e-14)
    keys = found.as_dict()
    assert keys["expected_loss"] == pytest.approx(2 - found.total) and keys["total"] == found.total


def test_tax_is_taken_from_the_jackpot_alone():
    assert value(tax=0.5).jackpot == pytest.approx(value().jackpot / 2, rel=1e-14)
    assert value(tax=1).jackpot == 0 and value(tax=1).fixed == FIXED
    assert value(tax=0.5).year.mean_prizes == pytest.approx(157 * value(tax=0.5).total, rel=1e-12)
    assert value(cash=60_000, sold=0, tax=0.5).year.p_50000 == value(cash=30_000, sold=0).year.p_50000, "after tax"
    assert value(tax=1).break_even_cash is None and value(tax=1).as_dict()["break_even_cash"] is None
    assert any("tax of 0.5 is taken from the jackpot alone" in said for said in value(tax=0.5).assumptions)


@pytest.mark.parametrize("keys", [{}, {"tax": 0.37}, {"power_play": True, "ten": False}, {"sold": 3 * 10**8}, {"day": date(2000, 1, 1)}])
def test_break_even_is_where_the_total_meets_the_price(keys):
    found = value(**keys)
    again = value(cash=found.break_even_cash, **keys)
    assert again.total == pytest.approx(found.price, rel=1e-12)


@pytest.mark.parametrize("cash, advertised, ten, on", [
    (10**8, None, None, True), (151 * 10**6, None, None, False), (150 * 10**6, None, None, True), (10**8, 2 * 10**8, None, False),
    (7 * 10**7, 150 * 10**6, None, True), (7 * 10**7, 150 * 10**6 + 1, None, False), (10**9, None, True, True), (1, None, False, False)])
def test_when_the_ten_is_on_the_wheel(cash, advertised, ten, on):
    found = value(cash, advertised=advertised, ten=ten, power_play=True)
    assert found.ten_on_wheel is on
    assert sum("10x" in said for said in found.assumptions) == 1
    assert found.fixed == value(cash, ten=on, power_play=True).fixed
    assert not any("10x" in said for said in value(cash, advertised=advertised, ten=ten).assumptions), "no Power Play, no 10x"


@pytest.mark.parametrize("keys, said", [
    ({"cash": -1}, "jackpot cash -1"), ({"cash": float("nan")}, "jackpot cash nan"), ({"cash": float("inf")}, "jackpot cash inf"),
    ({"cash": "many"}, "jackpot cash 'many'"), ({"tax": -0.1}, "tax -0.1"), ({"tax": 37}, "such as 0.37"),
    ({"tax": float("nan")}, "tax nan"), ({"sold": -1}, "tickets sold -1"), ({"sold": float("nan")}, "tickets sold nan"),
    ({"advertised": 5}, "below its cash"), ({"advertised": -5}, "advertised jackpot -5"),
    ({"day": date.max - timedelta(days=30)}, "runs past the calendar")])
def test_impossible_numbers_are_refused_in_one_line(keys, said):
    with pytest.raises(TicketError, match=said) as refused:
        value(**keys)
    assert isinstance(refused.value, ValueError) and "\n" not in str(refused.value)


def test_a_day_without_prizes_is_the_games_error():
    with pytest.raises(GameError, match="1992-04-21"):
        value(day=date(1992, 4, 21))
    without = Game("Bare", SMALL.eras, SMALL.draw_days)
    with pytest.raises(GameError, match="no Bare prizes"):
        ticket_value(1, 1, day=FIRST, game=without)


def test_the_default_day_is_the_next_draw():
    assert ticket_value(10**8, 10**7).day == POWERBALL.next_draw(date.today())
    assert value(day=date(2026, 8, 6)).day == date(2026, 8, 8), "a day without a draw leads to the next"
    assert value().day == TODAY


@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(0, 1), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_possible_numbers_give_finite_json(cash, sold, tax, power_play):
    keys = value(cash, sold, tax=tax, power_play=power_play).as_dict()
    json.dumps(keys, allow_nan=False)
    assert 0 < keys["share"] <= 1 and keys["jackpot"] >= 0 and isfinite(keys["total"])
    assert list(keys["year"]["prizes"].values()) == sorted(keys["year"]["prizes"].values())


def test_json_keys():
    keys = value(ticket="3 17 29 44 60 7").as_dict()
    assert {"fixed", "jackpot", "total", "share", "break_even_cash", "assumptions", "year"} <= set(keys)
    assert keys["ticket"] == {"whites": [3, 17, 29, 44, 60], "powerball": 7}
    assert list(keys["year"]["net"]) == ["1%", "5%", "25%", "50%", "75%", "95%", "99%"]
    assert keys["year"]["net"]["50%"] == keys["year"]["prizes"]["50%"] - 314


def test_the_value_is_frozen():
    with pytest.raises(FrozenInstanceError):
        value().price = 1


def test_lines_say_what_matters():
    text = "\n".join(value().lines())
    for said in ("Wednesday 2026-08-05", "$0.63 on average", "expected loss $1.37", "91.9%", "cost $314", "$27 or less", "California"):
        assert said in text
    assert "Notice" not in text
    assert "no advice to buy" in "\n".join(value(10**9, 3 * 10**8).lines())
    assert "no jackpot is enough" in "\n".join(value(tax=1).lines())
    assert all(line.isprintable() for line in value().lines())


def test_another_game_does_not_speak_of_california():
    found = ticket_value(140, 0, day=FIRST, game=SMALL)
    assert found.total == pytest.approx(1 + float(SMALL.fixed_value(FIRST)))
    assert not any("California" in said for said in found.assumptions)


def test_rules_that_change_within_the_year_are_said():
    assert any("rules of 2015-05-02" in said for said in value(day=date(2015, 5, 2)).assumptions)
    assert not any("though they changed" in said for said in value().assumptions)
