"""Mixtures against enumeration, the bounds of their entropy, exact best tickets, weights that have to be earned."""

from itertools import combinations
from math import comb, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios.mixtures
from helios.draws import balls, simulate
from helios.evaluation import evaluate
from helios.game import POWERBALL
from helios.mixtures import Mixture, MixtureError, fit_weights, mixture
from helios.scoring import Forecast, ScoreError


def forecasts(seed: int, count: int, n: int, whites: int, powerballs: int, picked: int, spread: float) -> list[Forecast]:
    random = torch.Generator().manual_seed(seed)
    return [Forecast(spread * torch.randn(n, whites, dtype=torch.float64, generator=random),
                     spread * torch.randn(n, powerballs, dtype=torch.float64, generator=random), picked) for _ in range(count)]


def weights(seed: int, count: int) -> list[float]:
    return np.random.default_rng(seed).dirichlet(np.ones(count)).tolist()


def weights_per_draw(seed: int, n: int, count: int) -> torch.Tensor:
    """Weights that change from draw to draw, some of them 0."""
    rows = np.random.default_rng(seed).dirichlet(np.ones(count), n)
    if count > 1:
        rows[0] = np.eye(count)[seed % count]
    return torch.from_numpy(rows / rows.sum(axis=1, keepdims=True))


def brute(mixed: Mixture, draw: int) -> dict[tuple, float]:
    """Probability of every ticket by the definition."""
    whites, powerballs = mixed.balls
    sets = [*combinations(range(whites), mixed.picked)]
    by_set, by_ball = dict.fromkeys(sets, 0.0), np.zeros(powerballs)
    def of_draw(given):     # one a part, or a row for each draw
        return given[draw].tolist() if isinstance(given, torch.Tensor) and given.dim() == 2 else given
    for part, w, v in zip(mixed.parts, of_draw(mixed.white_weights), of_draw(mixed.powerball_weights), strict=True):
        scores = np.exp([part.white_logits[draw].numpy()[list(s)].sum() for s in sets])
        for s, p in zip(sets, scores / scores.sum(), strict=True):
            by_set[s] += w * p
        odds = np.exp(part.powerball_logits[draw].numpy())
        by_ball += v * odds / odds.sum()
    return {(tuple(b + 1 for b in s), ball + 1): p * q for s, p in by_set.items() for ball, q in enumerate(by_ball)}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), whites=st.integers(4, 12), picked=st.integers(1, 4),
       powerballs=st.integers(1, 6), spread=st.sampled_from([0.01, 1.0, 8.0]))
def test_everything_agrees_with_enumeration(seed, count, whites, picked, powerballs, spread):
    parts = forecasts(seed, count, 2, whites, powerballs, picked, spread)
    check_against_enumeration(mixture(parts, weights(seed, count), weights(seed + 1, count)))
    check_against_enumeration(Mixture(tuple(parts), weights_per_draw(seed, 2, count), weights_per_draw(seed + 1, 2, count)))


def check_against_enumeration(mixed: Mixture):
    whites, powerballs, picked = *mixed.balls, mixed.picked
    tickets = brute(mixed, 1)
    assert sum(tickets.values()) == pytest.approx(1, abs=1e-9)
    (set_drawn, ball), p = max(tickets.items(), key=lambda item: (item[1], item[0]))
    skill = mixed.skill(np.array([set_drawn] * 2), np.array([ball] * 2))
    assert skill.total[1] == pytest.approx(log(p * comb(whites, picked) * powerballs), abs=1e-9)
    assert mixed.log_prob(np.array([set_drawn] * 2), np.array([ball] * 2))[1] == pytest.approx(log(p), abs=1e-9)
    inclusion = [sum(p for (s, _), p in tickets.items() if b in s) for b in range(1, whites + 1)]
    assert mixed.white_inclusion[1].numpy() == pytest.approx(np.array(inclusion), abs=1e-9)
    assert mixed.inclusion()[0][1] == pytest.approx(np.array(inclusion), abs=1e-9)
    of_ball = [sum(p for (_, q), p in tickets.items() if q == b) for b in range(1, powerballs + 1)]
    assert mixed.powerball_probs[1].numpy() == pytest.approx(np.array(of_ball), abs=1e-9)
    by_set = {s: sum(tickets[s, b] for b in range(1, powerballs + 1)) for s, _ in tickets}
    low, high = mixed.white_entropy_bounds[1].tolist()
    assert low - 1e-9 <= -sum(p * log(p) for p in by_set.values() if p > 0) <= high + 1e-9 <= log(comb(whites, picked)) + 2e-9
    top = mixed.top_tickets(7, draw=1)
    assert [t.probability for t in top] == pytest.approx(sorted(tickets.values(), reverse=True)[:7], abs=1e-12, rel=1e-7)
    assert all(tickets[t.whites, t.powerball] == pytest.approx(t.probability, abs=1e-12, rel=1e-7) for t in top)
    assert len({(t.whites, t.powerball) for t in top}) == len(top) == min(7, len(tickets))


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_lists_and_the_search_of_all_find_the_same(spread, monkeypatch):
    parts = forecasts(3, 3, 1, 24, 4, 5, spread)
    mixed = mixture(parts, [3, 2, 1])
    rows = [p.white_logits[0] for p in parts]
    every = helios.mixtures._search_all(rows, list(mixed.white_weights), 5, 50)
    monkeypatch.setattr(helios.mixtures, "DEPTH", 10**9)
    listed = helios.mixtures._top_sets(rows, list(mixed.white_weights), 5, 50)
    assert [s for _, s in listed] == [s for _, s in every]
    assert [p for p, _ in listed] == pytest.approx([p for p, _ in every], abs=1e-11)


def test_the_lists_are_read_no_deeper_than_needed(monkeypatch):
    """The bound is what stops: a part far from the others' best sets must still be able to bring its own in."""
    asked = []
    original = helios.mixtures.top_subsets
    monkeypatch.setattr(helios.mixtures, "top_subsets", lambda row, k, m: asked.append(m) or original(row, k, m))
    peaked = [torch.zeros(1, 69, dtype=torch.float64), torch.zeros(1, 69, dtype=torch.float64)]
    peaked[0][0, :5], peaked[1][0, -5:] = 4.0, 3.0
    balls_row = torch.zeros(1, 26, dtype=torch.float64)
    mixed = mixture([Forecast(row, balls_row) for row in peaked], [0.1, 0.9])
    found = [t.whites for t in mixed.top_tickets(27)]
    assert found[0] == (65, 66, 67, 68, 69) and found[26] == (1, 2, 3, 4, 5) and max(asked) <= 1024


def test_all_of_powerball_and_too_much(monkeypatch):
    parts = forecasts(5, 2, 1, 69, 26, 5, 0.03)
    tickets = mixture(parts).top_tickets(3)
    assert len(tickets) == 3 and tickets[0].probability > 1 / POWERBALL.eras[-1].n_tickets
    monkeypatch.setattr(helios.mixtures, "ALL_SETS", 1000)
    with pytest.raises(MixtureError, match="disagree too much to find the 5 best of 11,238,513 sets"):
        mixture(forecasts(5, 4, 1, 69, 26, 5, 0.03)).top_tickets(5)


def test_a_mixture_of_one_is_that_one_and_of_uniforms_is_uniform():
    draws = simulate(n=60, seed=1)
    whites, powerballs = balls(draws)
    part = forecasts(1, 1, 60, 69, 26, 5, 0.3)[0]
    one, alone = evaluate(part, whites, powerballs), evaluate(mixture([part]), whites, powerballs)
    assert alone.skill.total == pytest.approx(one.skill.total, abs=1e-10)
    assert alone.brier == pytest.approx(one.brier) and alone.hits.counts == one.hits.counts and alone.verdict == one.verdict
    flat = mixture([Forecast.uniform(POWERBALL.eras[-1], 60)] * 3, [1, 2, 3])
    assert np.abs(flat.skill(whites, powerballs).total).max() < 1e-9
    assert "the forecast is the uniform one" in evaluate(flat, whites, powerballs).verdict
    assert float(flat.white_logits.std()) < 1e-9 and [t.whites for t in flat.top_tickets(27)[::26]] == [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6)]


def test_a_mixture_never_falls_behind_a_part_by_more_than_its_weight_costs():
    whites, powerballs = balls(simulate(n=50, seed=2))
    parts = forecasts(2, 3, 50, 69, 26, 5, 1.0)
    mixed = mixture(parts, [0.5, 0.3, 0.2])
    for part, w in zip(parts, mixed.white_weights, strict=True):
        assert (mixed.skill(whites, powerballs).white >= part.skill(whites, powerballs).white + log(w) - 1e-12).all()


def test_extreme_parts_keep_their_digits():
    parts = [Forecast(torch.full((1, 9), 0.0).double().index_fill(1, torch.tensor([i]), -300.0), torch.zeros(1, 3).double(), 2) for i in (0, 1)]
    mixed = mixture(parts)
    both = mixed.white_log_prob(torch.tensor([[0, 1]]))
    assert both.item() == pytest.approx(-300 - log(comb(8, 2)), abs=1e-9)


@pytest.mark.parametrize(("make", "said"), [
    (lambda p: mixture([]), "one or more forecasts"), (lambda p: mixture(p, [1]), "give 2 numbers"),
    (lambda p: mixture(p, [0, 0]), "positive sum"), (lambda p: mixture(p, [2, -1]), "from 0 to 1"),
    (lambda p: mixture(p, [float("nan"), 1]), "positive sum"), (lambda p: Mixture(tuple(p), (0.5, 0.5), (0.7, 0.7)), "powerball_weights"),
    (lambda p: mixture(p).estimate_white_entropy(1), "give 2 or more"), (lambda p: fit_weights(np.zeros(3)), "finite numbers")])
def test_what_is_no_mixture(make, said):
    with pytest.raises(MixtureError, match=said):
        make(forecasts(1, 2, 2, 8, 4, 3, 1.0))


def test_outcomes_that_do_not_fit():
    with pytest.raises(ScoreError):
        mixture(forecasts(1, 2, 2, 8, 4, 3, 1.0)).skill(np.array([[1, 2, 9], [1, 2, 3]]), np.array([1, 1]))


def test_json_brings_everything_back_and_refuses_the_rest():
    mixed = mixture(forecasts(1, 2, 3, 8, 4, 3, 1.0), [1, 2], [0, 1])
    back = Mixture.from_json(mixed.to_json())
    assert (back.white_weights, back.powerball_weights, back.picked) == (mixed.white_weights, mixed.powerball_weights, 3)
    for a, b in zip(mixed.parts, back.parts, strict=True):
        assert torch.equal(a.white_logits, b.white_logits) and torch.equal(a.powerball_logits, b.powerball_logits)
    for text in ("", "[]", "{}", '{"format": 2}', mixed.to_json().replace("0.3333333333333333", "0.9"), mixed.to_json().replace('"picked": 3', '"picked": 3, "parts": []')[:-1]):
        with pytest.raises(MixtureError):
            Mixture.from_json(text)


def test_weights_of_each_draw_survive_json_to_the_bit():
    parts = forecasts(2, 3, 4, 8, 4, 3, 1.0)
    mixed = Mixture(tuple(parts), weights_per_draw(1, 4, 3), weights_per_draw(2, 4, 3))
    back = Mixture.from_json(mixed.to_json())
    assert torch.equal(back.white_weights, mixed.white_weights) and torch.equal(back.powerball_weights, mixed.powerball_weights)
    assert all(torch.equal(a.white_logits, b.white_logits) for a, b in zip(mixed.parts, back.parts, strict=True))
    half = Mixture(tuple(parts), (0.5, 0.25, 0.25), weights_per_draw(2, 4, 3))                 # the one way for whites, the other for powerballs
    back = Mixture.from_json(half.to_json())
    assert back.white_weights == half.white_weights and torch.equal(back.powerball_weights, half.powerball_weights)


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 1), slice(0, 0), slice(None, None, 2), slice(-1, None)])
@pytest.mark.parametrize("per_draw", [False, True])
def test_some_of_the_draws(rows, per_draw):
    parts = forecasts(3, 3, 5, 7, 4, 2, 1.0)
    mixed = Mixture(tuple(parts), *(weights_per_draw(i, 5, 3) for i in (1, 2))) if per_draw else mixture(parts, [1, 2, 3], [3, 1, 1])
    part = mixed[rows]
    at = list(range(5))[rows]
    assert len(part) == len(at) and part.picked == 2 and part.balls == (7, 4)
    for name in ("white_inclusion", "powerball_probs", "white_logits", "powerball_logits", "powerball_entropy", "white_entropy_bounds"):
        torch.testing.assert_close(getattr(part, name), getattr(mixed, name)[rows], rtol=0, atol=1e-12)
    whites, powerballs = np.tile([2, 5], (5, 1)), np.array([1, 2, 3, 4, 1])
    assert part.log_prob(whites[rows], powerballs[rows]) == pytest.approx(mixed.log_prob(whites, powerballs)[rows], abs=1e-12)
    for i, draw in enumerate(at):
        assert part.top_tickets(4, draw=i) == mixed.top_tickets(4, draw=draw)


@pytest.mark.parametrize(("change", "said"), [
    (lambda w: w[:3], "give 3 numbers from 0 to 1 that sum to 1, for all draws or for each"), (lambda w: w[:, :2], "give 3 numbers"),
    (lambda w: w * 0.9, "sum to 1"), (lambda w: w + torch.tensor([1.5, -1.5, 0.0]), "from 0 to 1"),
    (lambda w: w * float("nan"), "white_weights"), (lambda w: w[None], "white_weights"), (lambda w: w.T, "white_weights")])
def test_weights_of_each_draw_that_are_none(change, said):
    with pytest.raises(MixtureError, match=said):
        Mixture(tuple(forecasts(1, 3, 4, 8, 4, 3, 1.0)), change(weights_per_draw(1, 4, 3)), (1.0, 0.0, 0.0))


def test_a_weight_of_its_own_for_each_draw_is_that_draw_s_mixture():
    """As many mixtures as there are draws, one at a time, say the same."""
    parts, white, powerball = forecasts(6, 4, 6, 9, 5, 3, 1.0), weights_per_draw(3, 6, 4), weights_per_draw(4, 6, 4)
    together = Mixture(tuple(parts), white, powerball)
    for t in range(6):
        alone = mixture([part[t:t + 1] for part in parts], white[t].tolist(), powerball[t].tolist())
        for a, b in zip(together[t:t + 1].inclusion(), alone.inclusion(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        assert [(x.whites, x.powerball) for x in together.top_tickets(5, draw=t)] == [(x.whites, x.powerball) for x in alone.top_tickets(5)]


def test_fair_draws_leave_the_weights_at_uniform():
    """Noise forecasts of fair draws: a part's true expected skill is negative, so uniform wins nearly always."""
    kept = 0
    for seed in range(40):
        whites, powerballs = balls(simulate(n=150, seed=seed))
        parts = forecasts(seed, 3, 150, 69, 26, 5, 0.1)
        skills = np.column_stack([p.skill(whites, powerballs).white for p in parts])
        kept += fit_weights(skills)[1] == 1.0
    # Measured: 35 of these 40 stay, 26 if nothing had to be paid. At a rate of 35 in 40 fewer than 30 stay once in 120 times.
    assert kept >= 30


def test_weights_find_the_part_that_knows():
    draws = simulate(n=400, seed=9, white_weights={3: 3, 17: 3, 29: 3})
    whites, powerballs = balls(draws)
    logits = torch.zeros(400, 69, dtype=torch.float64)
    logits[:, [2, 16, 28]] = log(3)
    knows, uniform = Forecast(logits, torch.zeros(400, 26).double()), Forecast.uniform(POWERBALL.eras[-1], 400)
    wrong = forecasts(4, 1, 400, 69, 26, 5, 0.5)[0]
    skills = np.column_stack([f.skill(whites, powerballs).white for f in (wrong, knows, uniform)])
    found, rest = fit_weights(skills)
    assert found[1] > 0.7 and rest == 0 and sum(found) == pytest.approx(1)


@pytest.mark.parametrize("per_draw", [False, True])
def test_samples_have_the_mixtures_law(per_draw):
    parts = forecasts(8, 3, 2, 6, 3, 2, 1.5)
    mixed = Mixture(tuple(parts), *(weights_per_draw(i, 2, 3) for i in (5, 6))) if per_draw else mixture(parts, [1, 2, 3], [3, 0, 1])
    n = 20_000
    sets, chosen = mixed.sample(n, torch.Generator().manual_seed(3))
    assert sets.shape == (n, 2, 2) and chosen.shape == (n, 2) and bool((sets[..., 0] < sets[..., 1]).all())
    for draw in (0, 1):
        tickets, seen = brute(mixed, draw), {}
        for s, b in zip(sets[:, draw].tolist(), chosen[:, draw].tolist(), strict=True):
            seen[tuple(s), b] = seen.get((tuple(s), b), 0) + 1
        for ticket, p in tickets.items():     # 90 shares, 5 standard errors each: a false alarm in 19,000
            assert abs(seen.get(ticket, 0) / n - p) <= 5 * (p * (1 - p) / n) ** 0.5 + 1e-12
