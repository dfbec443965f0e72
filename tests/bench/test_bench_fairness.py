"""How long the audit of a whole history takes, beside the plain chi-square that it replaces.

Run with: pytest tests/bench --benchmark-enable --benchmark-only
"""

import time
from datetime import date

import pytest
from scipy.stats import chisquare

from helios.draws import balls, simulate
from helios.fairness import audit, examine
from helios.game import POWERBALL
from helios.monitor import Monitor
from helios.randomness import ball_counts, detectable_weight

WHITES = {era.name: era.whites for era in POWERBALL.eras}


@pytest.fixture(scope="module")
def history():
    return simulate(n=3838, seed=1, first=date(1992, 4, 22))


def plain(draws):
    """The reference: one uncorrected chi-square of the whites for each era."""
    return [chisquare(ball_counts(balls(part)[0], WHITES[name])).pvalue for name, part in draws.groupby("era", sort=False)]


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.benchmark(group="audit of 3,838 draws")
@pytest.mark.parametrize("work", [audit, examine, lambda draws: Monitor().extend(draws)], ids=["audit", "with the monitor", "monitor"])
def test_audit(benchmark, history, work):
    """44 tests with their power, worked out anew each time."""
    def afresh():
        detectable_weight.cache_clear()
        return work(history)
    assert benchmark(afresh) is not None
    if not benchmark.disabled:
        reference = min(seconds(lambda: plain(history)) for _ in range(5))
        ratio = benchmark.stats["median"] / reference
        benchmark.extra_info["times_a_plain_chi_square"] = round(ratio, 1)
        print(f"\n{1000 * benchmark.stats['median']:.0f} ms, {ratio:.0f} times a plain chi-square for each era")
