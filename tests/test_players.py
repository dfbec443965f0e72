"""What players believe: ranks, counts and absences against plain loops, and what believing costs."""

from datetime import date
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.draws import balls, simulate
from helios.forecasting import past_of, walk
from helios.game import POWERBALL, DrawDays, Era, Game
from helios.players import HOT_DRAWS, LIKED, Birthdays, Cold, Hot, Overdue, draws_away, recent_counts, weight_by_rank
from helios.truth import Bias, expected_skill, truth

START = date(2001, 1, 1)
pytestmark = pytest.mark.filterwarnings("error")


def game_of(whites, powerballs, picked) -> Game:
    return Game("Small", (Era(START, whites, powerballs, picked),), (DrawDays(START, tuple(range(7))),))


def rank_by_hand(row: list) -> list[float]:
    """Average rank from 1, ties share it."""
    return [sum(other < x for other in row) + (sum(other == x for other in row) + 1) / 2 for x in row]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=4))
def test_weights_fall_evenly_with_the_rank_and_ties_share_it(rows):
    found = weight_by_rank(np.array(rows))
    for row, weights in zip(rows, found, strict=True):
        expected = [log(2) * (2 * (rank - 1) / 5 - 1) for rank in rank_by_hand(row)]
        np.testing.assert_allclose(weights, expected, atol=1e-12)
        assert abs(weights.sum()) < 1e-12                       # liking moves weight from ball to ball and makes none


def test_the_best_liked_weighs_two_and_the_least_liked_a_half():
    np.testing.assert_allclose(np.exp(weight_by_rank(np.array([[5, 1, 3]]))), [[2, 0.5, 1]])
    assert LIKED == 2.0 and not weight_by_rank(np.zeros((3, 4))).any() and not weight_by_rank(np.zeros((3, 1))).any()


matrices = st.tuples(st.integers(0, 30), st.integers(1, 6), st.integers(0, 10**6)).map(
    lambda size: np.random.default_rng(size[2]).random(size[:2]) < 0.4)


@settings(max_examples=50, deadline=None)
@given(came=matrices, window=st.integers(1, 40))
def test_recent_counts_by_hand(came, window):
    found = recent_counts(came, window)
    assert found.shape == (len(came) + 1, came.shape[1])
    for t in range(len(came) + 1):
        assert found[t].tolist() == came[max(0, t - window):t].sum(axis=0).tolist()


@settings(max_examples=50, deadline=None)
@given(came=matrices)
def test_draws_away_by_hand(came):
    found = draws_away(came)
    for t in range(len(came) + 1):
        for ball in range(came.shape[1]):
            away = 0
            while away < t and not came[t - 1 - away, ball]:
                away += 1
            assert found[t, ball] == away


def test_beliefs_by_hand():
    """Over more draws than hot and cold remember."""
    game = game_of(8, 5, 3)
    draws = simulate(game, HOT_DRAWS + 40, 2)
    past = past_of(draws, game)
    for came, head in ((past.drawn, "white_logits"), (past.came, "powerball_logits")):
        walks = {cls: getattr(walk(cls(game), draws, 1), head).numpy() for cls in (Hot, Cold, Overdue, Birthdays)}
        for t in (1, 2, 50, HOT_DRAWS, HOT_DRAWS + 1, HOT_DRAWS + 39):
            recent = came[max(0, t - HOT_DRAWS):t].sum(axis=0).tolist()
            last = [max((s for s in range(t) if came[s, ball]), default=-1) for ball in range(came.shape[1])]
            for cls, liking in ((Hot, recent), (Cold, [-c for c in recent]), (Overdue, [-s for s in last])):
                ranks = np.array(rank_by_hand(liking))
                np.testing.assert_allclose(walks[cls][t - 1], log(2) * (2 * (ranks - 1) / (len(liking) - 1) - 1), atol=1e-12)
        np.testing.assert_allclose(walks[Hot], -walks[Cold], atol=1e-12)
        np.testing.assert_allclose(walks[Birthdays], log(2))          # no ball above 31: uniform, whatever the logits


def test_birthdays_are_the_first_thirty_one():
    pi, q = Birthdays().fit(simulate(n=5, seed=1)).forecast().inclusion()
    assert (pi[0, :31] > pi[0, 31:].max() * 1.5).all() and np.ptp(pi[0, :31]) < 1e-12
    np.testing.assert_allclose(q, 1 / 26)


@pytest.mark.parametrize("cls", [Hot, Cold, Overdue, Birthdays], ids=lambda cls: cls.name)
def test_a_belief_costs_on_fair_draws_whatever_they_are(cls):
    """Expected under the truth, so no luck is in it: every single forecast that is not uniform loses."""
    draws = simulate(n=300, seed=3)
    law = truth(Bias(), POWERBALL.eras[-1], *balls(draws))[150:]
    cost = expected_skill(walk(cls(), draws, 150), law)
    assert (cost.white < -0.05).all() and (cost.powerball <= 1e-12).all()
    assert -0.6 < cost.total.mean() < -0.2


def test_hot_is_right_where_balls_are_heavy_and_cold_is_wrong():
    draws = simulate(n=500, seed=4, white_weights=dict.fromkeys(range(1, 12), 4.0))
    law = truth(Bias(dict.fromkeys(range(1, 12), 4.0)), POWERBALL.eras[-1], *balls(draws))[250:]
    gain = {cls: expected_skill(walk(cls(), draws, 250), law).white.mean() for cls in (Hot, Cold, Overdue)}
    assert gain[Hot] > 0.1 and gain[Cold] < -0.5 and gain[Overdue] < -0.2
