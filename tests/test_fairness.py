"""The fairness audit: real numbers, what each test is for, adjustment, refusals, words and JSON.

Levels and powers are in test_randomness.py.
"""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, hypergeom

from helios.draws import balls, read_draws, simulate
from helios.fairness import (
    TESTS,
    FairnessError,
    NotTestable,
    audit,
    benjamini_hochberg,
    draw_order,
    holm,
    power_play,
    powerball_repeats,
    powerball_singles,
    white_overlap,
    white_pairs,
    white_singles,
    white_sum,
)
from helios.game import POWERBALL, DrawDays, Era, Game
from helios.randomness import detectable_weight, pair_counts

NAMES = ["white_singles", "powerball_singles", "white_pairs", "white_overlap", "powerball_repeats", "white_sum",
         "power_play", "draw_order"]
NOW = POWERBALL.era_named("5/69+1/26")
BEFORE = POWERBALL.era_named("5/59+1/35")
REAL = Path(__file__).resolve().parents[2] / "shared/data/powerball/draws.csv"


def with_order(draws, seed=1):
    """The draws with the whites in a random order beside them."""
    drawn = np.random.default_rng(seed).permuted(balls(draws)[0], axis=1)
    return draws.assign(**{f"drawn_{i}": pd.array(drawn[:, i - 1], dtype="Int64") for i in range(1, 6)})


def with_whites(draws, whites):
    return draws.assign(**{f"white_{i}": np.sort(whites, axis=1)[:, i - 1] for i in range(1, 6)})


@pytest.fixture(scope="module")
def history():
    return simulate(POWERBALL, 3838, seed=4, first=date(1992, 4, 22))


@pytest.fixture(scope="module")
def fair():
    return with_order(simulate(POWERBALL, 1390, seed=1))


# Real draws

@pytest.fixture(scope="module")
def real():
    if not REAL.is_file():
        pytest.skip(f"real draws are not part of the project and {REAL} is not there")
    draws, _ = read_draws(REAL)
    return draws[draws.draw_date <= "2026-08-05"]


def test_real_draws_of_the_current_era(real):
    result = {r.test: r for r in audit(real).tests if r.era == NOW}
    whites, powerball = result["white_singles"], result["powerball_singles"]
    assert (whites.n, whites.df, powerball.n, powerball.df) == (1390, 68, 1390, 25)
    assert (round(whites.statistic, 3), round(whites.p, 4)) == (85.124, 0.0783)
    assert (round(powerball.statistic, 3), round(powerball.p, 3)) == (24.624, 0.484)


def test_real_draws_raise_no_alarm_and_say_what_was_missed(real):
    found = audit(real.drop(columns=[c for c in real if c.startswith("drawn_")]))
    assert len(found.tests) == 7 * 6 + 2 and not found.simulated
    assert [(s.era.name, s.test) for s in found.skipped if s.test != "draw_order"] == [
        (era.name, "power_play") for era in POWERBALL.eras[:5]]
    assert sum(s.test == "draw_order" for s in found.skipped) == 7
    assert found.verdict.startswith("Nothing unusual: no departure from fair draws was found at level 5% after Holm over 44 tests")
    assert "the 1,390 draws of 5/69+1/26 one time in five or more" in found.verdict


def test_real_multipliers_leave_out_the_tens(real):
    wheels = {r.era.name: r for r in audit(real).tests if r.test == "power_play"}
    spun = real[real.multiplier.notna() & (real.multiplier != 10)]
    assert {name: r.n for name, r in wheels.items()} == {
        name: int(((spun.era == name) & (spun.draw_date >= "2014-01-22")).sum()) for name in ("5/59+1/35", "5/69+1/26")}
    assert {name: r.df for name, r in wheels.items()} == {"5/59+1/35": 3, "5/69+1/26": 3}


def test_the_real_order_of_drawing():
    """The Texas Lottery's file has the whites in the order drawn, from 2010-02-03 to 2025-04-14."""
    path = REAL.with_name("texas_lottery.csv")
    if not path.is_file():
        pytest.skip(f"real draws are not part of the project and {path} is not there")
    found = audit(read_draws(path)[0])
    orders = {r.era.name: (r.n, round(r.statistic, 2), r.df, round(r.p, 3)) for r in found.tests if r.test == "draw_order"}
    assert orders == {"5/59+1/35": (388, 205.37, 232, 0.895), "5/69+1/26": (1185, 267.03, 272, 0.574)}
    assert [s.reason for s in found.skipped if s.test == "draw_order"] == [
        "204 draws expect 3.46 of each white at each place, below 5; it takes 295 draws"]


# The tests by hand

def test_names_and_order_of_the_tests():
    assert [test.__name__ for test in TESTS] == NAMES


def test_statistics_by_hand(fair):
    """Every statistic of the current era again, by another way where there is one."""
    whites, powerballs = balls(fair)
    found = {test.__name__: test(fair, NOW, POWERBALL) for test in TESTS}
    n = len(fair)

    counts = np.array([(whites == ball).sum() for ball in range(1, 70)])
    assert found["white_singles"].statistic == pytest.approx(((counts - n * 5 / 69)**2 / (n * 5 / 69)).sum() * 68 / 64)
    counts = np.array([(powerballs == ball).sum() for ball in range(1, 27)])
    assert found["powerball_singles"].statistic == pytest.approx(((counts - n / 26)**2 * 26 / n).sum())

    drawn = np.array([[ball in row for ball in range(1, 70)] for row in whites.tolist()], dtype=int)
    one, other = np.triu_indices(69, 1)
    pairs, expected = (drawn.T @ drawn)[one, other], n * 20 / (69 * 68)
    design = np.zeros((len(one), 69))
    design[np.arange(len(one)), one] = design[np.arange(len(one)), other] = 1
    rest = pairs - design @ np.linalg.lstsq(design, pairs, rcond=None)[0]      # without what is additive in the balls
    share = 1 - 2 * 3 / 67 + 3 * 2 / (67 * 66)
    assert found["white_pairs"].statistic == pytest.approx((rest**2).sum() / expected / share)

    shared = np.array([len(set(a) & set(b)) for a, b in zip(whites[1:].tolist(), whites[:-1].tolist(), strict=True)])
    chance = hypergeom(69, 5, 5).pmf([0, 1])
    expected = (n - 1) * np.array([*chance, 1 - chance.sum()])
    cells = np.array([(shared == 0).sum(), (shared == 1).sum(), (shared > 1).sum()])
    assert found["white_overlap"].statistic == pytest.approx(((cells - expected)**2 / expected).sum())

    repeats = sum(a == b for a, b in zip(powerballs[1:], powerballs[:-1], strict=True))
    chances, distance = binom.pmf(np.arange(n), n - 1, 1 / 26), abs(np.arange(n) - (n - 1) / 26)
    further = chances[distance > distance[repeats] + 1e-9].sum() + chances[repeats] / 2
    assert found["powerball_repeats"].p == pytest.approx(further)
    assert found["white_sum"].statistic == pytest.approx((whites.sum(axis=1).mean() - 175)**2 * n / (5 * 64 * 70 / 12))

    slots = {2: 24, 3: 13, 4: 3, 5: 2}
    spun = {multiplier: int((fair.multiplier == multiplier).sum()) for multiplier in slots}
    total = sum(spun.values())
    assert found["power_play"].statistic == pytest.approx(
        sum((spun[m] - total * slots[m] / 42)**2 / (total * slots[m] / 42) for m in slots))
    assert found["power_play"].n == total == n - int((fair.multiplier == 10).sum())

    order = fair[[f"drawn_{i}" for i in range(1, 6)]].to_numpy(int)
    counts = drawn.sum(axis=0)
    excess = np.array([[(order[:, p] == ball).sum() for p in range(5)] for ball in range(1, 70)]) - counts[:, None] / 5
    inverse = np.linalg.pinv(np.diag(counts / 5) - pair_counts(whites, 69) / 20)
    assert found["draw_order"].statistic == pytest.approx(np.trace(excess.T @ inverse @ excess))

    assert [found[name].df for name in NAMES] == [68, 25, 69 * 33, 2, 1, 1, 3, 68 * 4]
    for name, result in found.items():
        assert (result.test, result.era, result.p_holm, result.p_bh) == (name, NOW, None, None)
        assert result.n == (total if name == "power_play" else 1390)
        assert result.p == chi2.sf(result.statistic, result.df)


# What each test is for

def alarms(draws):
    return {r.test for r in audit(draws).tests if r.p_holm <= 0.05}


def test_fair_draws_raise_no_alarm(fair):
    assert alarms(fair) == set()


def test_a_planted_white_is_found_and_only_there():
    """It shows in overlaps and sums too, but not in pairs, which are judged without their single balls."""
    found = audit(simulate(POWERBALL, 1390, seed=7, white_weights={7: 3}))
    p = {r.test: r.p_holm for r in found.tests}
    assert p["white_singles"] < 1e-6
    assert min(p[test] for test in ("powerball_singles", "white_pairs", "powerball_repeats", "power_play")) > 0.05
    assert "depart from fair ones at level 5% after Holm over 7 tests: white singles in 5/69+1/26" in found.verdict


def test_a_planted_powerball_is_found():
    found = audit(simulate(POWERBALL, 1390, seed=8, powerball_weights={26: 3}))
    assert found.tests[1].p_holm < 1e-6 < 0.05 < found.tests[0].p_holm
    assert "powerball singles in 5/69+1/26" in found.verdict


def test_whites_that_stick_together_are_found(fair):
    """Balls 7 and 8 are brought together by swaps between draws, which leave every ball's count as it was."""
    whites = balls(fair)[0].copy()
    sevens = np.flatnonzero((whites == 7).any(axis=1) & ~(whites == 8).any(axis=1))
    eights = np.flatnonzero((whites == 8).any(axis=1) & ~(whites == 7).any(axis=1))
    for a, b in zip(sevens[:60], eights[:60], strict=True):
        given_away = next(ball for ball in whites[a] if ball != 7 and ball not in whites[b])
        whites[a, whites[a] == given_away], whites[b, whites[b] == 8] = 8, given_away
    glued = with_whites(simulate(POWERBALL, 1390, seed=1), whites)
    assert white_singles(glued, NOW).statistic == pytest.approx(white_singles(fair, NOW).statistic)
    assert alarms(glued) == {"white_pairs"}


def test_whites_that_return_are_found():
    draws = simulate(POWERBALL, 1390, seed=9)
    whites = balls(draws)[0].copy()
    for row in range(5, 1390, 5):
        if whites[row - 1, 0] not in whites[row]:
            whites[row, 4] = whites[row - 1, 0]
        whites[row].sort()
    assert "white_overlap" in alarms(with_whites(draws, whites))


def test_a_sticky_powerball_is_found(fair):
    powerball = fair.powerball.to_numpy().copy()
    powerball[10::10] = powerball[9:-1:10]
    assert alarms(fair.assign(powerball=powerball)) == {"powerball_repeats"}


def test_a_powerball_that_never_returns_is_found(fair):
    powerball = fair.powerball.to_numpy().copy()
    for i in range(1, len(powerball)):
        if powerball[i] == powerball[i - 1]:
            powerball[i] = powerball[i] % 26 + 1
    assert alarms(fair.assign(powerball=powerball)) == {"powerball_repeats"}


def test_high_numbers_are_found_by_their_sum():
    weights = {ball: 0.9 + 0.2 * (ball - 1) / 68 for ball in range(1, 70)}
    assert alarms(simulate(POWERBALL, 1390, seed=10, white_weights=weights)) == {"white_sum"}


def test_a_doctored_wheel_is_found(fair):
    doctored = fair.multiplier.where(~((fair.multiplier == 2) & (fair.index % 8 == 0)), 3)
    assert alarms(fair.assign(multiplier=doctored)) == {"power_play"}


def test_a_wheel_without_its_ten_is_not_suspected(fair):
    """The 10x leaves the wheel when the jackpot is high: its share says nothing."""
    assert alarms(fair[fair.multiplier != 10]) == set()
    none = fair.assign(multiplier=fair.multiplier.where(fair.multiplier != 10, other=pd.NA))
    assert power_play(none, NOW).statistic == power_play(fair, NOW).statistic


def test_a_ball_that_comes_first_is_found(fair):
    drawn = fair[[f"drawn_{i}" for i in range(1, 6)]].to_numpy(int)
    first = np.take_along_axis(drawn, np.argsort(drawn != 7, axis=1, kind="stable"), axis=1)
    draws = fair.assign(**{f"drawn_{i}": pd.array(first[:, i - 1], dtype="Int64") for i in range(1, 6)})
    assert alarms(draws) == {"draw_order"}


# Wheels

def test_multipliers_without_known_slots_are_not_tested(history):
    reasons = {"5/45+1/45": "no multiplier was drawn before 2001-03-07$",
               "5/49+1/42": "before 2001-03-07; the slots of the wheel of 2001-03-07 are not published",
               "5/53+1/42": "the slots of the wheel of 2002-10-09 are not published",
               "5/59+1/39": "the slots of the wheel of 2009-01-07 are not published"}
    for name, reason in reasons.items():
        with pytest.raises(NotTestable, match=reason):
            power_play(history[history.era == name].assign(multiplier=2), POWERBALL.era_named(name))


def test_a_change_of_wheel_within_an_era(history):
    draws = history[history.era == BEFORE.name]
    result = power_play(draws, BEFORE)
    assert (result.n, result.df) == ((draws.draw_date >= "2014-01-22").sum(), 3)
    with pytest.raises(NotTestable, match="no multiplier was drawn from 2012-01-18 on$"):
        power_play(draws[draws.draw_date < "2014-01-22"], BEFORE)
    few = draws[draws.draw_date < "2014-03-01"]
    with pytest.raises(NotTestable, match="of the rarest multiplier from 2014-01-22 on, below 5; it takes 50 draws"):
        power_play(few, BEFORE)


def test_two_known_wheels_are_summed():
    era = Era(date(2012, 1, 18), 69, 26)
    game = Game("one matrix", (era,), POWERBALL.draw_days, power_plays=POWERBALL.power_plays)
    draws = simulate(game, 1500, seed=3)
    old, new = (part for _, part in draws[draws.draw_date >= "2014-01-22"].groupby(draws.draw_date >= "2015-10-07"))
    parts = [power_play(part, era, game) for part in (old, new)]
    whole = power_play(draws, era, game)
    assert (whole.n, whole.df) == (sum(r.n for r in parts), sum(r.df for r in parts)) == (whole.n, 6)
    assert whole.statistic == pytest.approx(sum(r.statistic for r in parts))
    few = draws[(draws.draw_date < "2014-03-01") | (draws.draw_date >= "2015-10-07")]
    assert power_play(few, era, game).statistic == pytest.approx(parts[1].statistic)     # the short wheel is left out


def test_a_file_without_multipliers(fair):
    with pytest.raises(NotTestable, match="the file has no multipliers from 2015-10-07 on"):
        power_play(fair.assign(multiplier=pd.array([pd.NA] * 1390, dtype="Int64")), NOW)
    with pytest.raises(FairnessError, match="multiplier 6 is not on the wheel of 2015-10-07"):
        power_play(fair.assign(multiplier=6), NOW)


# The order of drawing

def test_draws_without_their_order_are_left_out(fair):
    part = fair.assign(drawn_3=fair.drawn_3.where(fair.index % 2 == 0))
    assert draw_order(part, NOW).n == 695
    assert draw_order(part, NOW).statistic == pytest.approx(draw_order(fair[::2], NOW).statistic)
    for lacking in (fair.drop(columns="drawn_5"), part[1::2], simulate(POWERBALL, 500)):
        with pytest.raises(NotTestable, match="does not have the order"):
            draw_order(lacking, NOW)
    with pytest.raises(NotTestable, match="344 draws expect 4.99 of each white at each place, below 5; it takes 345"):
        draw_order(fair[:344], NOW)
    assert draw_order(fair[:345], NOW).n == 345


def test_an_order_of_other_balls_is_refused(fair):
    wrong = fair.copy()
    wrong.loc[3, "drawn_1"] = wrong.loc[3, "drawn_2"]
    with pytest.raises(FairnessError, match=f"{fair.draw_date[3]:%Y-%m-%d}: .* are not the whites of that draw"):
        draw_order(wrong, NOW)


# Refusals

@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_pooled_eras_are_refused(history, test):
    with pytest.raises(FairnessError, match="eras are not pooled") as caught:
        test(history, NOW, POWERBALL)
    assert not isinstance(caught.value, NotTestable)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_draws_of_another_era_are_refused(fair, test):
    with pytest.raises(FairnessError, match=r"given draws of 5/69\+1/26"):
        test(fair, POWERBALL.eras[0], POWERBALL)


def test_a_ball_outside_the_drum_is_refused(fair):
    wrong = fair.copy()
    wrong.loc[3, "white_5"] = 70
    with pytest.raises(FairnessError, match="ball 70"):
        white_singles(wrong, NOW)


@pytest.mark.parametrize("test, takes", [(white_singles, 69), (powerball_singles, 130), (white_pairs, 235),
                                         (white_overlap, 17), (powerball_repeats, 131), (white_sum, 30)])
def test_short_eras_say_how_many_draws_it_takes(fair, test, takes):
    assert test(fair[:takes], NOW, POWERBALL).n == takes
    for n in (takes - 1, 1, 0):
        with pytest.raises(NotTestable, match=f"it takes {takes} draws"):
            test(fair[:n], NOW, POWERBALL)


# The audit

def test_all_seven_eras(history):
    found = audit(history)
    assert [(r.era, r.test) for r in found.tests] == [
        (era, name) for era in POWERBALL.eras for name in NAMES[:6] + NAMES[6:7] * (era in (BEFORE, NOW))]
    assert sum(r.n for r in found.tests if r.test == "white_singles") == 3838
    p = [r.p for r in found.tests]
    assert [r.p_holm for r in found.tests] == list(holm(p))
    assert [r.p_bh for r in found.tests] == list(benjamini_hochberg(p))
    assert found.verdict.startswith("SIMULATED draws, not those of a lottery. Nothing unusual: no departure")
    assert found.verdict.count("times as heavy") == 2       # of the newest era alone
    assert found.verdict.endswith("a fraud on a few dates, or a rigged generator whose numbers look uniform.")


def test_with_the_order_of_drawing_every_era_has_a_test_more(history):
    found = audit(with_order(history))
    assert len(found.tests) == 51 and [s.test for s in found.skipped] == ["power_play"] * 5
    assert [r.df for r in found.tests if r.test == "draw_order"] == [4 * (era.whites - 1) for era in POWERBALL.eras]


def test_detectable_weights_are_those_of_the_single_ball_tests(history):
    found = audit(history, alpha=0.01)
    assert [d.era for d in found.detectable] == list(POWERBALL.eras)
    for d in found.detectable:
        n = (history.era == d.era.name).sum()
        assert d.white_ball_bias == detectable_weight(n, d.era.whites, 5, 0.01)
        assert d.powerball_bias == detectable_weight(n, d.era.powerballs, 1, 0.01)


def test_an_audit_of_nothing():
    found = audit(simulate(POWERBALL, 0))
    assert (found.tests, found.detectable, found.skipped) == ([], [], [])
    assert "there are no draws" in found.verdict
    assert list(found.table().columns) == ["era", "test", "n", "statistic", "df", "p", "p_holm", "p_bh"]


def test_tiny_eras_are_skipped_and_named():
    draws = simulate(POWERBALL, 100, seed=1)
    found = audit(draws)
    assert [r.test for r in found.tests] == ["white_singles", "white_overlap", "white_sum"]
    assert [(s.era, s.test, s.reason) for s in found.skipped][:2] == [
        (NOW, "powerball_singles", "100 draws expect 3.85 of each powerball, below 5; it takes 130 draws"),
        (NOW, "white_pairs", "100 draws expect 0.426 of each pair of whites, below 1; it takes 235 draws")]
    assert (found.detectable[0].white_ball_bias, found.detectable[0].powerball_bias) == (
        detectable_weight(100, 69, 5), None)
    assert "each with its reason beside the results: 5." in found.verdict
    assert "or a single powerball" not in found.verdict
    assert "No era is long enough to show a bias of a single ball." in audit(draws[:40]).verdict
    assert audit(draws[:1]).verdict.endswith("no era can be tested, each says why beside the results.")


def test_what_was_missed_is_said_of_an_era_whose_balls_were_tested():
    found = audit(simulate(POWERBALL, 120, seed=1, first=date(2014, 10, 1)))
    assert [d.era for d in found.detectable] == [BEFORE, NOW]
    assert "white_sum" not in {r.test for r in found.tests if r.era == NOW}
    assert "of 5/59+1/35 one time in five or more" in found.verdict


def test_a_game_whose_bonus_drum_has_one_ball_and_that_has_no_wheel():
    game = Game("6 of 49", (Era(date(2020, 1, 1), 49, 1, picked=6),), (DrawDays(date(2020, 1, 1), tuple(range(7))),))
    found = audit(simulate(game, 300, seed=9), game)
    assert [r.test for r in found.tests] == ["white_singles", "white_pairs", "white_overlap", "white_sum"]
    assert found.tests[0].df == 48 and found.detectable[0].powerball_bias is None
    reasons = {s.test: s.reason for s in found.skipped}
    assert "nothing to compare" in reasons["powerball_singles"] and "nothing to compare" in reasons["powerball_repeats"]
    assert reasons["power_play"] == "6 of 49 draws no multiplier"


@pytest.mark.parametrize("whites, picked, ran", [(10, 1, {"white_singles", "white_overlap", "white_sum"}),
                                                 (5, 4, {"white_singles", "white_overlap", "white_sum"}),
                                                 (5, 5, set()), (6, 4, {"white_singles", "white_pairs", "white_overlap",
                                                                        "white_sum"})])
def test_odd_drums(whites, picked, ran):
    """One white a draw has no pairs; with one white left out, pairs say what single balls say."""
    days = (DrawDays(date(2020, 1, 1), tuple(range(7))),)
    game = Game("odd", (Era(date(2020, 1, 1), whites, 10, picked=picked),), days)
    found = audit(simulate(game, 300, seed=9), game)
    assert {r.test for r in found.tests} - {"powerball_singles", "powerball_repeats"} == ran


def test_impossible_levels_are_refused(fair):
    for alpha in (0, 0.8, -1, float("nan")):
        with pytest.raises(FairnessError, match="level above 0"):
            audit(fair, alpha=alpha)


def test_the_level_is_the_one_asked_for(fair):
    strict, loose = audit(fair, alpha=0.01), audit(fair, alpha=0.1)
    assert "at level 1% after" in strict.verdict and "at level 10% after" in loose.verdict
    assert strict.detectable[0].white_ball_bias > loose.detectable[0].white_ball_bias
    assert strict.tests == loose.tests


def test_an_audit_is_json(history, fair):
    for draws in (history, fair[:100], fair[:0]):
        found = audit(draws)
        sent = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert list(sent) == ["tests", "detectable", "verdict", "skipped"]
        assert [POWERBALL.era(date.fromisoformat(t["era"])) for t in sent["tests"]] == [r.era for r in found.tests]
        assert [(s["matrix"], s["test"], s["reason"]) for s in sent["skipped"]] == [
            (s.era.name, s.test, s.reason) for s in found.skipped]
        assert [(d["era"], d["white_ball_bias"], d["powerball_bias"]) for d in sent["detectable"]] == [
            (d.era.first.isoformat(), d.white_ball_bias, d.powerball_bias) for d in found.detectable]
        table, rows = found.table(), pd.DataFrame(sent["tests"], columns=["matrix", *found.table().columns[1:]])
        pd.testing.assert_frame_equal(table, rows.rename(columns={"matrix": "era"}),
                                      check_dtype=False, check_index_type=False)
    assert set(json.loads(json.dumps(audit(fair).as_dict()))["tests"][0]) == {
        "era", "matrix", "test", "n", "statistic", "df", "p", "p_holm", "p_bh"}


def test_a_monitor_joins_the_verdict_and_the_json(fair):
    found = audit(fair)
    watched = replace(found, monitor={"highest": 3.0}, monitor_verdict="Watched draw by draw, E reached 3.")
    assert watched.as_dict()["monitor"] == {"highest": 3.0} and "monitor" not in found.as_dict()
    assert " Watched draw by draw, E reached 3. No test of frequencies" in watched.verdict
    assert watched.verdict.replace(" Watched draw by draw, E reached 3.", "") == found.verdict


def test_the_verdict_rests_on_holm(fair):
    found = audit(fair)
    for p_holm, words in [(0.0501, "Nothing unusual: no departure from fair draws"), (0.05, "These draws depart from fair ones")]:
        tests = [replace(r, p_holm=p_holm, p_bh=0.04) for r in found.tests]
        assert words in replace(found, tests=tests).verdict


# Adjustment

def test_adjustment_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert benjamini_hochberg([0.6, 0.7]) == pytest.approx([0.7, 0.7])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30), st.randoms())
def test_adjustment_keeps_order_and_bounds(p, random):
    order = np.argsort(p)
    shuffled = random.sample(range(len(p)), len(p))
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        assert np.all(adjusted >= p) and np.all(adjusted <= 1)
        assert np.all(np.diff(adjusted[order]) >= 0)
        assert np.array_equal(adjust(np.array(p)[shuffled]), adjusted[shuffled])
    assert np.all(holm(p) >= benjamini_hochberg(p) - 1e-15)


@pytest.mark.parametrize("p", [[1.1], [-0.1], [float("nan")], [[0.1, 0.2]]])
def test_what_is_no_p_value_is_refused(p):
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(FairnessError, match="p-values from 0 to 1"):
            adjust(p)
