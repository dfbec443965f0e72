"""The rules of Powerball by date, exact odds by enumeration, and a second game."""

from datetime import date, timedelta
from fractions import Fraction
from itertools import combinations, product
from math import log
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.game import POWERBALL, DrawDays, Era, Game, GameError, PowerPlay, Prizes, in_force

SHARED = Path(__file__).resolve().parents[2] / "shared/data/powerball"

# First draw, whites, powerballs, tickets: the odds of the jackpot that the lottery published with each matrix.
ERAS = [
    (date(1992, 4, 22), 45, 45, 54_979_155),
    (date(1997, 11, 5), 49, 42, 80_089_128),
    (date(2002, 10, 9), 53, 42, 120_526_770),
    (date(2005, 8, 31), 55, 42, 146_107_962),
    (date(2009, 1, 7), 59, 39, 195_249_054),
    (date(2012, 1, 18), 59, 35, 175_223_510),
    (date(2015, 10, 7), 69, 26, 292_201_338),
]
DAY = timedelta(days=1)

# Whites and powerball matched -> dollars, by the first draw with these prizes.
PRIZES = {
    date(1992, 4, 22): (1, {"5": 100_000, "4+1": 5_000, "4": 100, "3+1": 100, "3": 5, "2+1": 5, "1+1": 2, "0+1": 1}),
    date(1997, 11, 5): (1, {"5": 100_000, "4+1": 5_000, "4": 100, "3+1": 100, "3": 7, "2+1": 7, "1+1": 4, "0+1": 3}),
    date(2005, 8, 31): (1, {"5": 200_000, "4+1": 10_000, "4": 100, "3+1": 100, "3": 7, "2+1": 7, "1+1": 4, "0+1": 3}),
    date(2012, 1, 18): (2, {"5": 10**6, "4+1": 10_000, "4": 100, "3+1": 100, "3": 7, "2+1": 7, "1+1": 4, "0+1": 4}),
    date(2015, 10, 7): (2, {"5": 10**6, "4+1": 50_000, "4": 100, "3+1": 100, "3": 7, "2+1": 7, "1+1": 4, "0+1": 4}),
}

# First draw -> multipliers, prize of a match of five whites where it is replaced.
POWER_PLAYS = {
    date(2001, 3, 7): ({1, 2, 3, 4, 5}, None),
    date(2002, 10, 9): ({2, 3, 4, 5}, None),
    date(2005, 8, 31): ({2, 3, 4, 5, 10}, None),
    date(2009, 1, 7): ({2, 3, 4, 5, 10}, 1_000_000),
    date(2012, 1, 18): (set(), 2_000_000),
    date(2014, 1, 22): ({2, 3, 4, 5}, 2_000_000),
    date(2015, 10, 7): ({2, 3, 4, 5, 10}, 2_000_000),
}

SMALL_FIRST = date(2020, 1, 1)
SMALL = Game(
    "Small", (Era(SMALL_FIRST, whites=7, powerballs=4, picked=3),), (DrawDays(SMALL_FIRST, (1, 4)),),
    (Prizes(SMALL_FIRST, 1, {(3, True): None, (3, False): 20, (2, True): 5, (0, True): 1}),))


def drawn_one_by_one(n, k, matched):
    """Chance that exactly `matched` of `k` balls drawn one after another from `n` are among the k on the ticket."""
    chance = {0: Fraction(1)}
    for ball in range(k):
        after = {}
        for hits, p in chance.items():
            hit = Fraction(k - hits, n - ball)
            after[hits + 1] = after.get(hits + 1, 0) + p * hit
            after[hits] = after.get(hits, 0) + p * (1 - hit)
        chance = after
    return chance.get(matched, Fraction(0))


def draws_of(era):
    """Every draw of a small era."""
    return [(set(whites), pb) for whites in combinations(range(1, era.whites + 1), era.picked)
            for pb in range(1, era.powerballs + 1)]


# Eras

def test_powerball_has_the_seven_eras():
    assert [(e.first, e.whites, e.powerballs, e.picked) for e in POWERBALL.eras] == [(*e[:3], 5) for e in ERAS]


@pytest.mark.parametrize("first, whites, powerballs, tickets", ERAS)
def test_an_era_begins_on_its_first_draw_and_has_the_published_odds(first, whites, powerballs, tickets):
    era = POWERBALL.era(first)
    assert (era.first, era.name, era.n_tickets) == (first, f"5/{whites}+1/{powerballs}", tickets)
    assert POWERBALL.era_named(era.name) is era
    assert POWERBALL.is_draw_day(first)


@pytest.mark.parametrize("before, after", list(zip(ERAS, ERAS[1:], strict=False)))
def test_the_day_before_an_era_belongs_to_the_one_before(before, after):
    assert POWERBALL.era(after[0] - DAY).first == before[0]


def test_the_last_era_goes_on():
    assert POWERBALL.era(date.max).name == "5/69+1/26"


def test_there_are_no_rules_before_the_first_draw():
    too_early = ERAS[0][0] - DAY
    for question in (POWERBALL.era, POWERBALL.prizes_on, POWERBALL.fixed_value):
        with pytest.raises(GameError, match="no Powerball .* on 1992-04-21; the first begin on 1992-04-22"):
            question(too_early)
    assert not POWERBALL.is_draw_day(date(1992, 4, 18)), "a Saturday before the first draw"


def test_an_unknown_era_is_refused_with_the_names_that_exist():
    with pytest.raises(GameError) as refused:
        POWERBALL.era_named("6/49+1/10")
    assert "'6/49+1/10'" in str(refused.value)
    assert all(era.name in str(refused.value) for era in POWERBALL.eras)


# Odds

@pytest.mark.parametrize("era", POWERBALL.eras, ids=lambda era: era.name)
def test_the_odds_of_every_era_equal_those_of_balls_drawn_one_by_one(era):
    for whites, powerball in product(range(6), (True, False)):
        hit = Fraction(1, era.powerballs) if powerball else 1 - Fraction(1, era.powerballs)
        assert era.match_probability(whites, powerball) == drawn_one_by_one(era.whites, 5, whites) * hit


@pytest.mark.parametrize("matrix", [(7, 4, 3), (5, 1, 2), (6, 2, 1), (5, 3, 4), (4, 3, 4)], ids=str)
def test_the_odds_of_small_games_equal_an_enumeration_of_all_draws(matrix):
    era = Era(SMALL_FIRST, *matrix)
    draws = draws_of(era)
    assert era.n_tickets == len(draws)
    ticket = set(range(1, era.picked + 1))
    for whites, powerball in product(range(era.picked + 1), (True, False)):
        ways = sum(len(ticket & drawn) == whites and (pb == 1) == powerball for drawn, pb in draws)
        assert era.match_probability(whites, powerball) == Fraction(ways, len(draws))


def test_every_ticket_of_a_small_game_has_the_same_odds():
    era = SMALL.eras[0]
    draws = draws_of(era)
    counts = {sum(len(ticket & drawn) == 2 and pb == number for drawn, pb in draws) for ticket, number in draws}
    assert counts == {era.match_probability(2, True) * era.n_tickets}


@pytest.mark.parametrize("whites", [-1, 6])
def test_odds_of_an_impossible_match_are_refused(whites):
    with pytest.raises(GameError, match=f"5/69.*0 to 5 whites, not {whites}"):
        POWERBALL.eras[-1].match_probability(whites, True)


@pytest.mark.parametrize("tier, one_in", [
    ((5, True), 292_201_338), ((5, False), 11_688_053.52), ((4, True), 913_129.18), ((4, False), 36_525.17),
    ((3, True), 14_494.11), ((3, False), 579.76), ((2, True), 701.33), ((1, True), 91.98), ((0, True), 38.32)])
def test_current_odds_are_those_on_the_play_slip(tier, one_in):
    assert round(float(1 / POWERBALL.eras[-1].match_probability(*tier)), 2) == one_in


def test_odds_of_any_prize_are_those_on_the_play_slip():
    won = sum(POWERBALL.eras[-1].match_probability(*tier) for tier in POWERBALL.prizes_on(date(2026, 8, 5)).tiers)
    assert round(float(1 / won), 4) == 24.8671


@pytest.mark.parametrize("era", POWERBALL.eras, ids=lambda era: era.name)
def test_the_baseline_is_the_logarithm_of_the_number_of_tickets(era):
    nats = era.baseline_nats
    assert nats["total"] == pytest.approx(log(era.n_tickets), rel=1e-14)
    assert nats["whites"] == pytest.approx(log(era.n_tickets // era.powerballs), rel=1e-14)
    assert nats["powerball"] == pytest.approx(log(era.powerballs), rel=1e-14)


# Calendar

def test_the_calendar_gives_exactly_the_dates_of_the_real_draws():
    file = SHARED / "draws.csv"
    if not file.is_file():
        pytest.skip(f"real draws are not part of the project and {file} is not there")
    held = [date.fromisoformat(line[:10]) for line in file.read_text().splitlines()[1:]]
    assert len(held) == 3838
    assert list(POWERBALL.draw_dates(held[0], held[-1])) == held


def test_monday_draws_begin_on_2021_08_23():
    mondays = [day for day in POWERBALL.draw_dates(date(2021, 1, 1), date(2021, 12, 31)) if day.weekday() == 0]
    assert mondays[0] == date(2021, 8, 23)
    assert len(mondays) == 19, "every Monday from then on"


@given(st.dates(date(1992, 1, 1), date(2030, 1, 1)), st.integers(-10, 60))
@settings(derandomize=True, deadline=None)
def test_draw_dates_are_the_draw_days_between_both_ends(first, length):
    last = first + length * DAY
    asked = [first + i * DAY for i in range(length + 1)]
    assert list(POWERBALL.draw_dates(first, last)) == [day for day in asked if POWERBALL.is_draw_day(day)]


@given(st.dates(date(1992, 1, 1), date(2030, 1, 1)))
@settings(derandomize=True, deadline=None)
def test_the_next_draw_is_later_and_none_lies_between(after):
    due = POWERBALL.next_draw(after)
    assert due > after
    assert list(POWERBALL.draw_dates(after + DAY, due)) == [due]


@pytest.mark.parametrize("after, due", [
    (date(1980, 1, 1), date(1992, 4, 22)), (date(1992, 4, 22), date(1992, 4, 25)),
    (date(2021, 8, 14), date(2021, 8, 18)), (date(2021, 8, 21), date(2021, 8, 23)),
    (date(2026, 8, 5), date(2026, 8, 8))])
def test_next_draw_at_the_edges_of_the_calendar(after, due):
    assert POWERBALL.next_draw(after) == due


def test_the_calendar_reaches_the_last_day_that_dates_can_express():
    """9999-12-31 is a Friday; the last draw day before it is the Wednesday."""
    assert list(POWERBALL.draw_dates(date(9999, 12, 28), date.max)) == [date(9999, 12, 29)]


# Prizes

@pytest.mark.parametrize("first", PRIZES)
def test_prizes_from_their_first_draw_to_the_eve_of_the_next(first):
    later = [day for day in PRIZES if day > first]
    price, dollars = PRIZES[first]
    for day in (first, later[0] - DAY if later else date.max):
        prizes = POWERBALL.prizes_on(day)
        tiers = {f"{w}+1" if pb else f"{w}": amount for (w, pb), amount in prizes.tiers.items()}
        assert prizes.price == price
        assert tiers == {"5+1": None, **dollars}


@pytest.mark.parametrize("first", POWER_PLAYS)
def test_power_play_from_its_first_draw_to_the_eve_of_the_next(first):
    later = [day for day in POWER_PLAYS if day > first]
    multipliers, match_five = POWER_PLAYS[first]
    for day in (first, later[0] - DAY if later else date.max):
        play = POWERBALL.power_play_on(day)
        assert set(play.wheel) == multipliers
        assert play.flat.get((5, False)) == match_five
        assert play.price == 1


def test_there_was_no_power_play_before_2001_03_07():
    assert POWERBALL.power_play_on(date(2001, 3, 6)) is None


def test_the_wheels_with_published_slots():
    assert POWERBALL.power_play_on(date(2014, 1, 22)).wheel == {2: 5, 3: 3, 4: 1, 5: 1}
    now = POWERBALL.power_play_on(date(2026, 8, 5))
    assert (now.wheel, now.jackpot_limited) == ({2: 24, 3: 13, 4: 3, 5: 2, 10: 1}, (10,))


def test_the_fixed_table_of_2012_replaces_every_tier_below_the_jackpot():
    prizes, play = POWERBALL.prizes_on(date(2013, 1, 2)), POWERBALL.power_play_on(date(2013, 1, 2))
    assert set(play.flat) == {tier for tier, dollars in prizes.tiers.items() if dollars is not None}
    assert all(play.flat[tier] > prizes.tiers[tier] for tier in play.flat)


def test_fixed_value_of_the_current_ticket_is_exact():
    assert POWERBALL.fixed_value(date(2026, 8, 5)) == Fraction(3594848, 11238513)


def test_fixed_value_of_a_small_game_equals_the_mean_over_all_draws():
    ticket, draws = {1, 2, 3}, draws_of(SMALL.eras[0])
    tiers = SMALL.prizes[0].tiers
    paid = sum(tiers.get((len(ticket & drawn), pb == 1)) or 0 for drawn, pb in draws)
    assert SMALL.fixed_value(SMALL_FIRST) == Fraction(paid, len(draws))


# A second game

def test_a_second_game_has_its_own_matrix_columns_and_calendar():
    assert (SMALL.picked, SMALL.white_columns) == (3, ["white_1", "white_2", "white_3"])
    assert SMALL.era(SMALL_FIRST).name == "3/7+1/4"
    assert list(SMALL.draw_dates(date(2019, 12, 1), date(2020, 1, 10))) == [
        date(2020, 1, 3), date(2020, 1, 7), date(2020, 1, 10)]
    assert SMALL.power_play_on(date(2026, 1, 1)) is None
    with pytest.raises(GameError, match="no Small draws on 2019-12-31; the first begin on 2020-01-01"):
        SMALL.era(date(2019, 12, 31))


def test_a_game_without_prizes_says_so():
    bare = Game("Bare", SMALL.eras, SMALL.draw_days)
    with pytest.raises(GameError, match="no Bare prizes on 2020-01-03"):
        bare.fixed_value(date(2020, 1, 3))


def test_a_side_bet_of_a_second_game_is_found_by_date():
    plays = tuple(PowerPlay(date(year, 1, 1), {year: 1}, {}) for year in (2021, 2022))
    game = Game("Wheel", SMALL.eras, SMALL.draw_days, power_plays=plays)
    days = [date(2020, 12, 31), date(2021, 1, 1), date(2021, 12, 31), date(2022, 1, 1)]
    assert [game.power_play_on(day) for day in days] == [None, plays[0], plays[0], plays[1]]


def test_eras_that_draw_different_numbers_of_whites_are_refused():
    with pytest.raises(GameError, match="Mixed: every era must draw the same number of whites"):
        Game("Mixed", (Era(date(2000, 1, 1), 49, 10, picked=6), Era(date(2001, 1, 1), 49, 10)), SMALL.draw_days)


def test_in_force_without_any_rules_is_refused():
    with pytest.raises(GameError, match="no matrix on 2020-01-01$"):
        in_force((), date(2020, 1, 1), "matrix")
