"""Executors: results, order, dead workers, poisoned tasks, cancelling, dead coordinators, and the same work on Dask."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, as_completed
from contextlib import contextmanager
from hashlib import sha256
from math import factorial
from pathlib import Path

import psutil
import pytest

from helios.executor import ExecutorError, get_executor

TESTS = Path(__file__).parent


# What workers run: they import this module.

def trained(seed: int) -> tuple[int, float, str]:
    """A small training: seed, validation skill, checksum of the weights."""
    import torch

    from helios.draws import simulate
    from helios.fitting import TrainingConfig, fit, make_windows
    from helios.net import PowerballNet
    config = TrainingConfig(hidden=16, layers=1, heads=2, sequence_length=10, epochs=4, seed=seed)
    windows, split = make_windows(simulate(n=300, seed=5), config)
    torch.manual_seed(seed)
    net = PowerballNet(69, 26, 5, 10, 16, 1, 2, 0.2)
    reports = fit(net, windows, split, config)
    weights = b"".join(t.numpy().tobytes() for t in net.state_dict().values())
    return seed, reports[-1].validation_skill, sha256(weights).hexdigest()


def slowly(value: int, pause_s: float = 0.3) -> int:
    time.sleep(pause_s)
    return value * value


def noted(value: int, folder: str) -> int:
    """`value`, with a file for each attempt; the first attempt at 3 waits to be killed."""
    tries = len([*Path(folder).glob(f"{value}-*")])
    (Path(folder) / f"{value}-{tries}-{os.getpid()}").touch()
    if value == 3 and not tries:
        time.sleep(60)
    time.sleep(0.05)
    return value


def die(how: int = signal.SIGKILL):
    os.kill(os.getpid(), how)


def environment() -> dict:
    import torch
    return {"threads": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}


class Odd(Exception):
    """An error that pickles and does not come back."""
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raise_odd():
    raise Odd(1, 2)


def unsendable():
    return threading.Lock()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(what, patience_s: float = 30.0):
    """Wait until `what()` is true, and give it back."""
    end = time.monotonic() + patience_s
    while not (got := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return got


# local

def test_results_come_in_order_and_on_one_thread():
    with get_executor(workers=2) as pool:
        assert [*pool.map(slowly, range(6), [0.0] * 6)] == [0, 1, 4, 9, 16, 25]
        said = [pool.submit(environment).result() for _ in range(2)]
        assert {s["threads"] for s in said} == {1} and {s["omp"] for s in said} == {"1"}
        assert all(s["pid"] != os.getpid() for s in said)
    assert pool.pids == []


def test_the_variables_of_this_process_stay(monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with get_executor(workers=1) as pool:
        assert pool.submit(environment).result()["omp"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_tasks_begin_in_order_of_submission(tmp_path):
    with get_executor(workers=1) as pool:
        futures = [pool.submit(noted, i, str(tmp_path)) for i in (9, 5, 7, 1)]
        order = [f.result() for f in as_completed(futures)]
    assert order == [9, 5, 7, 1]


def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    with get_executor(workers=2) as pool:
        futures = [pool.submit(noted, i, str(tmp_path)) for i in range(8)]
        victim = eventually(lambda: next(tmp_path.glob("3-0-*"), None))
        os.kill(int(victim.name.split("-")[2]), signal.SIGKILL)
        assert [f.result(60) for f in futures] == [*range(8)]
    tries = {i: len([*tmp_path.glob(f"{i}-*")]) for i in range(8)}
    assert tries == {i: 2 if i == 3 else 1 for i in range(8)}     # nobody else ran twice


def test_a_worker_killed_while_idle_is_replaced_without_blame():
    with get_executor(workers=1) as pool:
        first = pool.submit(environment).result()["pid"]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not alive(first))
        assert pool.submit(environment).result()["pid"] != first


def test_a_task_that_kills_its_workers_is_named_and_the_others_finish():
    with get_executor(workers=2) as pool:
        poison = pool.submit(die)
        others = [pool.submit(slowly, i, 0.05) for i in range(10)]
        assert [f.result() for f in others] == [i * i for i in range(10)]
        with pytest.raises(ExecutorError, match=r"die\(\) ended 3 worker processes, the last by SIGKILL"):
            poison.result()


def test_errors_arrive_as_they_were_with_the_place_in_the_worker():
    with get_executor(workers=1) as pool:
        with pytest.raises(ValueError, match="factorial") as caught:
            pool.submit(factorial, -1).result()
        assert "in the worker" in caught.value.__notes__[0]
        with pytest.raises(ExecutorError, match="Odd: 1 2"):
            pool.submit(raise_odd).result()
        with pytest.raises(ExecutorError, match="its result, lock, cannot be sent back"):
            pool.submit(unsendable).result()
        with pytest.raises(SystemExit):
            pool.submit(sys.exit, 4).result()
        assert pool.submit(factorial, 5).result() == 120


def test_what_cannot_be_sent_is_refused_at_once():
    with get_executor(workers=1) as pool, pytest.raises(ExecutorError, match="use a function of a module"):
        pool.submit(lambda: 1)


def test_cancelling_takes_tasks_that_have_not_begun():
    with get_executor(workers=1) as pool:
        running = pool.submit(slowly, 3, 1.0)
        eventually(running.running)
        waiting = pool.submit(slowly, 4)
        assert waiting.cancel() and not running.cancel()
        assert running.result() == 9
        with pytest.raises(CancelledError):
            waiting.result()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(slowly, 1)


def test_an_exception_in_the_with_ends_the_workers_at_once():
    began = time.monotonic()
    with pytest.raises(KeyError), get_executor(workers=2) as pool:
        futures = [pool.submit(slowly, i, 60.0) for i in range(4)]
        eventually(lambda: len(pool.pids) == 2)
        pids = pool.pids
        raise KeyError("mine")
    assert time.monotonic() - began < 40
    assert not any(map(alive, pids)) and all(f.done() for f in futures)
    with pytest.raises(CancelledError):
        futures[0].result()


def coordinator(body: str, tmp_path, **kwargs) -> subprocess.Popen:
    script = tmp_path / "coordinator.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nfrom helios.executor import get_executor\n"
                      f"from test_executor import slowly\n{body}", encoding="utf-8")
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


BUSY = """
if __name__ == "__main__":
    with get_executor(workers=2) as pool:
        futures = [pool.submit(slowly, i, 60.0) for i in range(4)]
        while len(pool.pids) < 2 or not all(f.running() for f in futures[:2]): pass
        import time; time.sleep({settle})
        print(*pool.pids, flush=True)
        futures[0].result()
"""


@pytest.mark.parametrize("settle", [0.0, 3.0])     # also while the workers are still importing
def test_workers_die_with_a_killed_coordinator(tmp_path, settle):
    process = coordinator(BUSY.format(settle=settle), tmp_path)
    pids = [*map(int, process.stdout.readline().split())]
    assert len(pids) == 2
    process.kill()
    process.wait()
    began = time.monotonic()
    eventually(lambda: not any(map(alive, pids)))
    print(f"\nthe last worker ended {time.monotonic() - began:.2f} s after its coordinator was killed")
    assert time.monotonic() - began < 30
    process.communicate()


def test_ctrl_c_ends_coordinator_and_workers_without_noise(tmp_path):
    process = coordinator(BUSY.format(settle=1.0), tmp_path, start_new_session=True)
    pids = [*map(int, process.stdout.readline().split())]
    os.killpg(process.pid, signal.SIGINT)       # as a terminal does: the whole group
    _, said = process.communicate(timeout=30)
    eventually(lambda: not any(map(alive, pids)))
    assert said.count("KeyboardInterrupt") == 1 and said.count("Traceback") == 1       # the coordinator's own


def test_leaving_without_closing_ends(tmp_path):
    process = coordinator('if __name__ == "__main__":\n    pool = get_executor(workers=2)\n'
                          '    print(pool.submit(slowly, 3, 0.1).result())\n    pool.submit(slowly, 4, 60.0)\n', tmp_path)
    out, said = process.communicate(timeout=40)
    assert (out, said, process.returncode) == ("9\n", "", 0)


def test_a_script_without_a_guard_gets_the_mend(tmp_path):
    process = coordinator("pool = get_executor(workers=1)\ntry:\n    pool.submit(slowly, 3).result()\n"
                          "except Exception as e:\n    print('SAID', e)\n", tmp_path)
    out, _ = process.communicate(timeout=120)
    assert "if __name__ == '__main__'" in out


@pytest.mark.parametrize(("kind", "workers", "said"), [
    ("ray", None, "give local or dask://host:port"), ("dask://", None, "give local"), ("dask://host", None, "give local"),
    ("dask://host:x", None, "give local"), ("dask://me:secret@host:1", None, "give local"), ("local", 0, "from 1 to 1024"),
    ("local", 1.5, "from 1 to 1024"), ("dask://host:1", 2, "leave it out")])
def test_words_that_are_no_executor(kind, workers, said):
    with pytest.raises(ExecutorError, match=said):
        get_executor(kind, workers)


# Dask: a real scheduler and two workers, processes over TCP

@contextmanager
def cluster(folder: Path, workers: int = 2):
    """A scheduler with workers: the address `dask://host:port`, and the workers' processes."""
    place, env = folder / "scheduler.json", os.environ | {
        "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": open(folder / "dask.log", "ab"), "env": env, "cwd": folder}
    dask = [sys.executable, "-m", "dask"]
    processes = [subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                                   "--scheduler-file", str(place)], **quiet)]
    try:
        eventually(lambda: place.exists() and place.stat().st_size, 60)
        address = json.loads(place.read_text(encoding="utf-8"))["address"]
        processes += [subprocess.Popen([*dask, "worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard",
                                        "--host", "127.0.0.1", "--death-timeout", "60", "--local-directory", str(folder)],
                                       **quiet) for _ in range(workers)]
        yield address.replace("tcp://", "dask://"), processes[0], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        quiet["stderr"].close()


@pytest.fixture
def dask(tmp_path):
    pytest.importorskip("distributed")
    with cluster(tmp_path) as (address, scheduler, workers):
        yield address, scheduler, workers


@pytest.mark.slow
def test_the_same_work_on_local_and_on_dask_with_a_worker_killed_on_each(dask):
    seeds = [*range(10)]
    with get_executor(workers=2) as pool:
        whole = [*pool.map(trained, seeds)]
    with get_executor(workers=2) as pool:
        futures = [pool.submit(trained, seed) for seed in seeds]
        futures[1].result()
        os.kill(pool.pids[0], signal.SIGKILL)
        local = [f.result() for f in futures]
    address, _, workers = dask
    with get_executor(address) as pool:
        futures = [pool.submit(trained, seed) for seed in seeds]
        futures[1].result()
        assert not all(f.done() for f in futures)
        workers[0].kill()
        remote = [f.result(120) for f in futures]
    assert workers[0].wait() == -signal.SIGKILL and workers[1].poll() is None
    assert local == whole == remote
    assert len({weights for _, _, weights in whole}) == len(seeds)


@pytest.mark.slow
def test_dask_does_not_take_two_equal_tasks_for_one_and_cancels(dask):
    with get_executor(dask[0]) as pool:
        assert {pool.submit(environment).result()["threads"] for _ in range(3)} == {1}
        futures = [pool.submit(slowly, 3, 0.5) for _ in range(6)]
        assert futures[-1].cancel()
        assert [f.result() for f in futures[:-1]] == [9] * 5
        with pytest.raises(ValueError, match="factorial"):
            pool.submit(factorial, -1).result()
    with pytest.raises(RuntimeError):
        pool.submit(slowly, 3)
    with get_executor(dask[0]) as pool:      # the cluster goes on after its client has left
        assert pool.submit(factorial, 5).result() == 120


def test_a_scheduler_that_goes_away_is_said(dask):
    address, scheduler, workers = dask
    with pytest.raises(ExecutorError, match=r"slowly\(3, 50.0\): .* went away before it was done"), get_executor(address) as pool:
        future = pool.submit(slowly, 3, 50.0)
        time.sleep(0.5)
        for process in (scheduler, *workers):
            process.kill()
        future.result(120)


@pytest.mark.slow
def test_nobody_there_and_nobody_at_work(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("helios.executor.PATIENCE_S", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))       # bound and not listening: refused
        with pytest.raises(ExecutorError, match="no scheduler answers") as caught:
            get_executor(f"dask://127.0.0.1:{taken.getsockname()[1]}")
    assert "\n" not in str(caught.value)
    with cluster(tmp_path, workers=0) as (address, _, _), pytest.raises(ExecutorError, match="has no workers; start some with"):
        get_executor(address)


def test_without_dask_the_mend_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ExecutorError, match=r"pip install -e '\.\[dask\]'"):
        get_executor("dask://127.0.0.1:8786")


def test_a_task_that_kills_its_dask_workers_is_named(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    with cluster(tmp_path) as (address, _, _), get_executor(address) as pool:
        with pytest.raises(ExecutorError, match=r"die\(\) ended 1 workers of dask://127"):
            pool.submit(die).result(60)
        assert pool.submit(factorial, 5).result(60) == 120
