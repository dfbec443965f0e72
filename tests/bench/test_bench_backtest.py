"""How long a backtest of today's rules takes, 1,390 draws, on one core; and how long a ledger of ten years takes to be verified.

The reference for the ten forecasters that count is counting itself: how often each ball came before each draw, once
as one would first write it, a Python loop that adds and divides for each ball, and once as a cumulative sum in numpy.
Ten forecasters, scored, tested for looking ahead and judged, do far more than either; the ratio is there so that two
machines can be compared. The reference of the ledger is hashing the same bytes. Nothing here fails for being slow.

    pytest tests/bench/test_bench_backtest.py --benchmark-enable --benchmark-only
"""

import hashlib
import json
import statistics
import time
from datetime import date, timedelta

import numpy as np
import pytest
import torch

from helios.backtest import backtest
from helios.chain import HASHED, Chain
from helios.draws import simulate
from helios.forecasters import past_of
from helios.ledger import forecast_to_json
from helios.memory_store import MemoryStore
from helios.scoring import Forecast
from helios.tables import ledger

COUNTED = ("uniform", "frequency", "recency", "steps", "markov", "repeats", "hot", "cold", "overdue", "birthdays")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def draws(figure):
    return simulate(n=1390 if figure.measuring else 60, seed=1)


def in_python(past):
    """Counts of each ball before each draw, and the log of their shares."""
    counts, rows = [1.0] * past.era.whites, []
    for whites in past.whites.tolist():
        total = sum(counts)
        rows.append([count / total for count in counts])
        for ball in whites:
            counts[ball - 1] += 1
    return rows


def in_numpy(past):
    counts = 1 + np.cumsum(past.drawn, axis=0)
    return np.log(counts / counts.sum(axis=1, keepdims=True))


def processor_seconds(work, rounds):
    """What `work` takes of the processor: the median, since a machine that others use too has a clock of its own."""
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def test_those_that_count(draws, figure):
    past, rounds = past_of(draws), 5 if figure.measuring else 1
    found = backtest(COUNTED, draws)
    assert len(found.runs) == 10 and len(found) == len(draws) - found.start
    whole = processor_seconds(lambda: backtest(COUNTED, draws), rounds)
    looped, summed = (processor_seconds(lambda count=count: [count(past) for _ in COUNTED], rounds) for count in (in_python, in_numpy))
    figure(f"backtest of {len(COUNTED)} that count, {len(draws):,} draws, one core", whole, "s", at_most=2)
    figure("  over counting in a Python loop, ten times", whole / looped, "times")
    figure("  over a cumulative sum in numpy, ten times", whole / summed, "times")
    figure("  of it forecasting and scoring", sum(run.walked.seconds for run in backtest(COUNTED, draws).runs.values()), "s")


def test_the_mixture(draws, figure):
    past, rounds = past_of(draws), 3 if figure.measuring else 1
    found = backtest("mixture", draws)
    assert {*found.runs} == {"mixture", "uniform"}
    whole = processor_seconds(lambda: backtest("mixture", draws), rounds)
    figure(f"backtest of the mixture, {len(draws):,} draws, one core", whole, "s", at_most=10)
    figure("  over counting in a Python loop", whole / processor_seconds(lambda: in_python(past), 5), "times")
    figure("  of it forecasting and scoring", found.runs["mixture"].walked.seconds, "s")


def entries_of_ten_years(store, n):
    """`n` entries as forecasts make them, 95 logits each."""
    chain, rng = Chain(store), np.random.default_rng(1)
    for k in range(n):
        forecast = Forecast(*(torch.from_numpy(rng.normal(size=(1, balls))) for balls in (69, 26)))
        entry = {"kind": "prediction", "draw_date": str(date(2016, 1, 2) + timedelta(k)), "forecaster": "frequency", "version": "1",
                 "content": {"forecast": forecast_to_json(forecast), "simulated": True}}
        chain.append(lambda conn, made_at, entry=entry: entry)
    return chain


def test_the_ledger_of_ten_years(tmp_path, figure):
    n = 1500 if figure.measuring else 5
    with MemoryStore(tmp_path / "ledger.db") as store:
        chain = entries_of_ten_years(store, n)
        assert chain.verify().ok and chain.head()["n"] == n
        texts = [json.dumps({name: row[name] for name in HASHED}) for row in store._rows(ledger.select())]

        def hashing():
            for text in texts:
                hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()

        took, alone = figure.medians(chain.verify, hashing, 6 if figure.measuring else 2)
        figure(f"verify {n:,} entries of a ledger", took * 1e3, "ms", at_most=1000)
        figure("  over reading and hashing their texts", took / alone, "times")
