"""One table of all figures, printed at the end of the bench: what was measured, what is wanted, whether it is met."""

import statistics
import time

import pytest

FIGURES = []


def seconds(work):
    """How long `work` takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Figures:
    """Collects figures of one test; `measuring` is False in an ordinary run of the tests, where small sizes do."""

    def __init__(self, measuring: bool):
        self.measuring = measuring

    def __call__(self, what: str, value: float, unit: str = "", at_least: float | None = None, at_most: float | None = None):
        """Put one measured figure into the table; what is wanted is said beside it, never asserted."""
        if self.measuring:
            FIGURES.append((what, value, unit, at_least, at_most))

    @staticmethod
    def ratio(work, reference, rounds: int = 5) -> float:
        """The median over rounds of the time of `work` over that of `reference`, taken in turns within one run."""
        pairs = [(seconds(reference), seconds(work)) for _ in range(rounds)]
        return statistics.median(own / other for other, own in pairs)

    @staticmethod
    def medians(work, reference, rounds: int) -> list[float]:
        """Seconds that each took in the median, by turns, the first round thrown away."""
        pairs = [(seconds(work), seconds(reference)) for _ in range(rounds)]
        return [statistics.median(taken) for taken in zip(*pairs[1:], strict=True)]


@pytest.fixture
def figure(benchmark):
    return Figures(measuring=not benchmark.disabled)


def _met(value, at_least, at_most) -> str:
    if at_least is None and at_most is None:
        return ""
    return "yes" if (at_least is None or value >= at_least) and (at_most is None or value <= at_most) else "NO"


def pytest_terminal_summary(terminalreporter):
    if not FIGURES:
        return
    terminalreporter.section("figures")
    rows = [("what", "measured", "wanted", "met")]
    for what, value, unit, at_least, at_most in FIGURES:
        wanted = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}" if at_most is not None else ""
        rows.append((what, f"{value:.3g} {unit}".strip(), wanted, _met(value, at_least, at_most)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
