"""Beliefs and choices: conjugate updates against integration, values of information against simulation, regret."""

import numpy as np
import pytest
from scipy import integrate, stats

from helios.bandit import HALF_LIFE, NOTHING, Arm, fading, thompson, value_of_draws
from helios.challengers import ALPHA, Challengers, DecisionError
from helios.draws import simulate
from helios.memory_store import MemoryStore


def test_the_posterior_is_that_of_integration():
    """Mean and spread of the mean's posterior by brute force over a grid of means, the variance integrated out exactly."""
    rewards = np.random.default_rng(1).normal(0.03, 0.1, 12)
    prior = Arm()

    def density(mu: float) -> float:
        weight, shape = prior.weight, prior.shape + (len(rewards) + 1) / 2
        scale = prior.scale + (weight * mu**2 + ((rewards - mu) ** 2).sum()) / 2
        return scale**-shape * 1e-20

    total = integrate.quad(density, -0.5, 0.5, points=[0, 0.03], limit=200)[0]
    mean = integrate.quad(lambda m: m * density(m), -0.5, 0.5, points=[0, 0.03], limit=200)[0] / total
    square = integrate.quad(lambda m: (m - mean) ** 2 * density(m), -0.5, 0.5, points=[0, 0.03], limit=200)[0] / total
    found = prior.learn(rewards)
    assert (found.mean, found.sd) == pytest.approx((mean, square**0.5), rel=1e-4)
    assert found.chance_above(0.02) == pytest.approx(
        integrate.quad(density, 0.02, 0.5, points=[0.03], limit=200)[0] / total, rel=1e-4
    )


@pytest.mark.parametrize("n", [1, 7, 300])
def test_a_summary_says_as_much_as_the_rewards(n):
    rewards = np.random.default_rng(n).normal(0.1, 0.4, n)
    whole = Arm().learn(rewards)
    short = Arm().learn_summary(n, rewards.mean(), ((rewards - rewards.mean()) ** 2).sum())
    assert vars(whole) == pytest.approx(vars(short))


def test_the_value_of_draws_is_that_of_deciding_after_them():
    """Worlds drawn from a belief, the draws made, the decision taken: the mean gain over deciding now, within 4 standard errors."""
    rng, arm, m, bar = np.random.default_rng(4), Arm(mean=0.005, weight=60.0, shape=40.0, scale=0.39), 80, 0.01
    gains = []
    for _ in range(6000):
        variance = arm.scale / rng.gamma(arm.shape)
        truth = rng.normal(arm.mean, (variance / arm.weight) ** 0.5)
        later = arm.learn(rng.normal(truth, variance**0.5, m)).mean
        gains.append(max(later - bar, 0) - max(arm.mean - bar, 0))
    error = np.std(gains) / len(gains) ** 0.5
    assert abs(np.mean(gains) - value_of_draws(arm, m, bar)) < 4 * error


def test_the_past_fades_to_the_prior():
    old = Arm().learn(np.full(300, 0.2), fading(0, 300, 300 + 20 * HALF_LIFE))
    assert old.mean == pytest.approx(0, abs=1e-4) and old.sd == pytest.approx(Arm().sd, rel=1e-3)
    assert fading(0, 3, 3)[-1] == 1.0


def test_regret_stays_small():
    """Over 30 bandits of five arms the mean regret of 400 pulls is far below that of pulling at random."""
    regrets = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        means, arms, regret = rng.normal(0, 0.05, 5), [Arm()] * 5, 0.0
        for _ in range(400):
            best = thompson(np.column_stack([np.zeros(1), *(arm.sample(rng, 1) for arm in arms)]))[0] - 1
            regret += max(means.max(), 0) - (means[best] if best >= 0 else 0)
            if best >= 0:
                arms[best] = arms[best].learn(rng.normal(means[best], 0.1, 1))
        regrets.append(regret / (400 * (max(means.max(), 0) - np.r_[0, means].mean())))
    assert np.mean(regrets) < 0.35


def test_what_is_known_is_left_alone():
    assert NOTHING.learn([1.0]) is NOTHING and NOTHING.sample(np.random.default_rng(0), 3).tolist() == [0.0] * 3
    assert value_of_draws(NOTHING, 100) == 0.0
    with pytest.raises(DecisionError, match="finite numbers"):
        Arm().learn_summary(0, 0.0, 0.0)


def test_shares_of_alpha_sum_to_alpha_and_keep_the_false_alarms():
    """30 challengers, each a martingale under fair draws, watched after each of 800 draws, in 400 worlds.

    The chance that any is promoted is at most 5%; 400 worlds would show more than 8.5% with a chance of 0.2% if it were.
    """
    here = Challengers(MemoryStore(":memory:"), simulate(n=100, seed=0))
    shares = np.array([here.pay("uniform", f"challenger {k}") for k in range(30)])
    assert shares.sum() == pytest.approx(ALPHA * (1 - 1 / 31))
    needed, rng, alarms = -np.log(shares), np.random.default_rng(5), 0
    for _ in range(400):
        bet = rng.uniform(0.02, 0.4, (30, 1))
        paths = np.cumsum(rng.normal(-(bet**2) / 2, bet, (30, 800)), axis=1)
        alarms += bool((paths.max(axis=1) >= needed).any())
    assert stats.binom.sf(0.085 * 400, 400, ALPHA) < 0.002
    assert alarms <= 0.085 * 400
    assert alarms > 0  # it is no gate that never opens
