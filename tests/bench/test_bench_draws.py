"""How fast fair draws are simulated, beside numpy's own way to choose without replacement.

Run with: pytest tests/bench --benchmark-enable --benchmark-only
"""

import time

import numpy as np
import pytest

from helios.draws import simulate_balls
from helios.game import POWERBALL

NOW = POWERBALL.eras[-1]
N_DRAWS, N_CHOICES = 1_000_000, 2_000


def a_draw_at_a_time(rng):
    """The reference: `choice` for each draw, as it is usually written."""
    return [np.sort(rng.choice(69, 5, replace=False) + 1) for _ in range(N_CHOICES)], rng.integers(1, 27, N_CHOICES)


@pytest.mark.benchmark(group="fair draws")
def test_fair_draws(benchmark):
    """Whites and powerball, one thread."""
    whites, powerballs = benchmark(lambda: simulate_balls(N_DRAWS, NOW, np.random.default_rng(1)))
    assert whites.shape == (N_DRAWS, 5) and powerballs.shape == (N_DRAWS,)
    if benchmark.disabled:
        return
    start = time.perf_counter()
    a_draw_at_a_time(np.random.default_rng(1))
    reference = N_CHOICES / (time.perf_counter() - start)
    rate = N_DRAWS / benchmark.stats["median"]
    benchmark.extra_info |= {"million_draws_a_second": round(rate / 1e6, 1), "times_the_reference": round(rate / reference)}
    print(f"\n{rate / 1e6:.1f} million fair draws a second, {rate / reference:.0f} times one choice a draw")
