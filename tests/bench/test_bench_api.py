"""How quick the served API is: a forecast beside the bare forward pass, and 32 clients while a training runs.

Servers are processes of their own behind gunicorn with one worker and sixteen threads; the clients are threads of this
process, so on two cores they share the machine with the server, and with the training where there is one. Ratios are
of medians taken by turns in one run. Nothing here fails for being slow.

    pytest tests/bench/test_bench_api.py --benchmark-enable --benchmark-only
"""

import http.client
import itertools
import json
import statistics
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helios.draws import simulate, write_draws
from helios.fitting import PRESETS
from helios.job_rows import JobError
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.next_forecast import load_version
from helios.places import DATABASE, HISTORY
from helios.registry import Registry
from helios.trainer import ModelTrainer, submit_training

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving_area import running


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, path: str, body: dict | None = None) -> float:
        """Seconds until the whole answer is here."""
        start = time.perf_counter()
        if body is None:
            self.connection.request("GET", path)
        else:
            self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data[:300]
        return time.perf_counter() - start


@pytest.fixture
def home(figure, tmp_path, monkeypatch):
    """A home with draws and two models: the net as specified, and the quick one."""
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    draws = simulate(n=1390 if figure.measuring else 150, seed=1)
    write_draws(draws, tmp_path / HISTORY)
    quick = replace(PRESETS["quick"], epochs=1, sequence_length=50 if figure.measuring else 10)
    full = replace(PRESETS["full"], epochs=0, threads=1) if figure.measuring else replace(quick, hidden=16)
    with MemoryStore(tmp_path / DATABASE) as store:
        for name, config in (("full", full), ("quick", quick)):
            ModelTrainer(store).train(draws, config, name)
        yield tmp_path
    torch.set_num_threads(before)


@contextmanager
def helios_server(home: Path):
    """A server of the whole API on loopback; its port."""
    with running(home, HELIOS_DRAWS_MAX_AGE_DAYS="36500", LOG_LEVEL="WARNING", OMP_NUM_THREADS="1") as server:
        yield server.port


def by_turns(rounds: int, *works) -> list[list[float]]:
    """Seconds of each work in each round, in turns, the first round thrown away."""
    taken = [[work() for work in works] for _ in range(rounds + 1)]
    return [[*column] for column in zip(*taken[1:], strict=True)]


def timed(work):
    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    return run


def test_a_forecast_costs_little_more_than_the_net(figure, home, benchmark):
    """The bare forward pass with decoding (shrinkage, ball probabilities, five best tickets) in this process; the answer over a socket."""
    with MemoryStore(home / DATABASE) as store:
        nets = {name: load_version(Registry(store, home), name)[1] for name in ("full", "quick")}
    window = simulate(n=1390, seed=1).tail(50)

    def bare(model):
        forecast, _ = model.next_forecast(window)
        forecast.top_tickets(5), forecast.inclusion()

    with helios_server(home) as port:
        ask = Client(port)
        for name, model in nets.items():
            rounds = 200 if figure.measuring else 2
            alone, served = by_turns(rounds, timed(lambda model=model: bare(model)),
                                     lambda name=name: ask("/api/predict", {"model_name": name, "record": False}))
            wanted = 1.3 if name == "full" else None
            figure(f"POST /api/predict, net {name}, over the bare forward pass", statistics.median(served) / statistics.median(alone), "times", at_most=wanted)
            figure(f"POST /api/predict, net {name}", 1e3 * statistics.median(served), "ms")
    benchmark.pedantic(lambda: None, rounds=1)


def latencies(port: int, seconds: float, clients: int = 32) -> np.ndarray:
    """Milliseconds of each request of 32 clients that ask for a list, a row and a forecast in turn, each twice a second at times of its own."""
    taken, stop = [[] for _ in range(clients)], time.monotonic() + seconds
    asks = (("/api/models", None), ("/api/models/quick/info", None), ("/api/predict", {"model_name": "quick", "record": False}))

    def work(i: int) -> None:
        ask, pauses, due = Client(port), np.random.default_rng(i), time.monotonic()
        for n in itertools.count(i):
            due += pauses.exponential(0.5)      # of a Poisson process: nobody waits for the others
            if due > stop:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            taken[i].append(1e3 * ask(*asks[n % len(asks)]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array([ms for mine in taken for ms in mine])


def test_a_training_does_not_make_it_slow(figure, home, benchmark):
    """p50 and p99 of 32 clients before and while a training job runs on a core that it may have, at lower priority."""
    seconds = 40 if figure.measuring else 1
    draws = simulate(n=1390 if figure.measuring else 150, seed=2)
    config = replace(PRESETS["full" if figure.measuring else "quick"], epochs=100, threads=1, sequence_length=50 if figure.measuring else 10, early_stopping_patience=0)
    with helios_server(home) as port, MemoryStore(home / DATABASE) as store:
        latencies(port, 5 if figure.measuring else 1)      # everything loaded
        quiet = latencies(port, seconds)
        jobs = Jobs(store, home)
        job_id = submit_training(jobs, draws, config, "slow")["job_id"]
        while not (row := jobs.get(job_id))["progress"] and row["status"] in ("queued", "running"):
            time.sleep(0.2)
        busy = latencies(port, seconds)
        status = jobs.get(job_id)["status"]
        with suppress(JobError):      # it may have ended
            jobs.cancel(job_id)
        jobs.wait(job_id, 60)
    assert status in ("running", "completed")
    for name, q in (("p50", 50), ("p99", 99)):
        figure(f"32 clients, {name}", float(np.percentile(quiet, q)), "ms")
        figure(f"32 clients, {name}, while a training runs", float(np.percentile(busy, q)), "ms")
    figure("32 clients, p99 while a training runs, over without", float(np.percentile(busy, 99) / np.percentile(quiet, 99)), "times", at_most=2)
    benchmark.pedantic(lambda: None, rounds=1)
