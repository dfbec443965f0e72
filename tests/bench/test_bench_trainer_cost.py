"""What logs, checkpoints, progress and the question whether to stop add to the bare loop, at the specification's net.

Two figures from runs that train in turns. The share is the time that the loop spends in the trainer's own functions
over the time of its steps, which a busy machine hardly disturbs. The ratio is the processor time of a whole training
within its job, the threads that beat its pulse and write included, over that of the bare loop; it says something where a run has one thread.

    pytest tests/bench/test_bench_trainer_cost.py --benchmark-enable -s
"""

import statistics
import time
from dataclasses import replace

import pytest

import helios.trainer
from helios.draws import simulate
from helios.fitting import PRESETS, fit, make_windows
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.net import PowerballNet
from helios.recurrence import kept_memory
from helios.trainer import ModelTrainer, _seeded


class Timed:
    """A function that adds up how long it took."""

    def __init__(self, act, book, name):
        self.act, self.book, self.name = act, book, name

    def __call__(self, *args):
        began = time.perf_counter()
        try:
            return self.act(*args)
        finally:
            self.book[self.name] = self.book.get(self.name, 0.0) + time.perf_counter() - began


def bare(draws, config):
    """Processor seconds of the loop alone."""
    windows, split = make_windows(draws, config)
    with _seeded(config.seed, config.threads), kept_memory():
        net = PowerballNet(sequence_length=config.sequence_length, hidden=config.hidden, layers=config.layers,
                           heads=config.heads, dropout=config.dropout)
        began = time.process_time()
        fit(net, windows, split, config)
        return time.process_time() - began


def by_the_trainer(draws, config, home, monkeypatch):
    """The same within a job: processor seconds, and wall seconds by part of the trainer and in all."""
    book, spent = {}, []

    def timed(*args, stop, on_step, save, **rest):
        net, windows, split, config, record = args
        began, processor = time.perf_counter(), time.process_time()
        found = fit(net, windows, split, config, Timed(record, book, "logs"), stop=Timed(stop, book, "stop"),
                    on_step=Timed(on_step, book, "progress"), save=Timed(save, book, "checkpoints"), **rest)
        spent.append(time.process_time() - processor)
        book["all"] = time.perf_counter() - began
        return found

    with monkeypatch.context() as patched, MemoryStore(home / "helios_memory.db") as store:
        patched.setattr(helios.trainer, "fit", timed)
        ModelTrainer(store, home).train(draws, config)
        assert Jobs(store, home).list()[0]["status"] == "completed"
    return spent[0], book


@pytest.mark.parametrize(("preset", "epochs", "turns"), [("full", 4, 2), ("quick", 20, 3)])
def test_the_trainers_own_cost(figure, tmp_path, monkeypatch, preset, epochs, turns):
    config = replace(PRESETS[preset], epochs=epochs, early_stopping_patience=0)
    if not figure.measuring:
        config = replace(config, epochs=2, hidden=16, layers=1, sequence_length=10)
    draws, ratios, shares, parts = simulate(n=1390 if figure.measuring else 150, seed=1), [], [], {}
    for turn in range(turns if figure.measuring else 1):
        reference = bare(draws, config)
        processor, book = by_the_trainer(draws, config, tmp_path / str(turn), monkeypatch)
        own = sum(seconds for name, seconds in book.items() if name != "all")
        ratios.append(processor / reference)
        shares.append(own / (book["all"] - own))
        parts = {name: seconds / book["all"] for name, seconds in book.items() if name != "all"}
    figure(f"trainer's own cost over the bare loop, {preset} net: share of its time", 100 * statistics.median(shares), "%", at_most=3)
    if config.threads == 1:       # several threads wait for each other by spinning: 0.7 to 1.6 was seen on a busy machine
        figure(f"trainer's own cost over the bare loop, {preset} net: ratio of processor time", statistics.median(ratios), at_most=1.03)
    for name, share in parts.items():
        figure(f"  of which {name}", 100 * share, "%")
    assert set(parts) == {"logs", "stop", "progress", "checkpoints"}
