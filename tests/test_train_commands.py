"""`helios train`: from outside, with real processes, terminals and servers, and what becomes of it when they die."""

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time

import psutil
import pytest
from test_training_log import kill_server, own_server, start_server  # noqa: F401  a fixture, and two verbs of its own
from waiting import until

from helios.draws import read_draws, simulate, write_draws
from helios.fitting import config_from
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.places import DATABASE
from helios.trainer import ModelTrainer

MAIN = {"train": "helios.train_commands", "jobs": "helios.job_commands", "models": "helios.model_commands"}
SETTINGS = {"hidden": 16, "heads": 4, "sequence_length": 10, "dropout": 0.3, "early_stopping_patience": 0}


def words(command, *args):
    return [sys.executable, "-c", f"from {MAIN[command]} import {command}; {command}(prog_name='helios {command}')", *args]


def helios(command, *args, **rest):
    return subprocess.run(words(command, *map(str, args)), capture_output=True, text=True, timeout=120, **rest)


def train_words(path, epochs, *args):
    settings = [f"--set={name}={value}" for name, value in (SETTINGS | {"epochs": epochs}).items()]
    return ["--data", str(path), "--seed", "3", *settings, *map(str, args)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def draws(tmp_path):
    write_draws(simulate(n=200, seed=5, powerball_weights={3: 9}), tmp_path / "draws.csv")
    return tmp_path / "draws.csv"


def undisturbed(path, home, epochs):
    """The weights of a run that nothing happened to, in this process."""
    with MemoryStore(":memory:") as store:
        config = config_from(SETTINGS | {"epochs": epochs, "seed": 3}, "quick")
        return ModelTrainer(store, home).train(read_draws(path)[0], config).model.file.sha256


def the_job(home, url=None):
    with MemoryStore(url or home / DATABASE) as store:
        return Jobs(store, home).list()[0]


@pytest.mark.slow
def test_a_training_from_the_command_line(draws, home, tmp_path):
    done = helios("train", *train_words(draws, 3, "--name", "demo", "--json", tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout and "demo@1" in done.stdout and "Verdict" in done.stdout
    keys = json.loads((tmp_path / "out.json").read_text())
    assert keys["model"]["sha256"] == undisturbed(draws, tmp_path / "other", 3)
    assert the_job(home)["job_id"] == keys["job_id"] and the_job(home)["result"]["model"]["ref"] == "demo@1"
    alone = helios("train", *train_words(draws, 1, "--json", "-"))
    assert json.loads(alone.stdout)["model"]["ref"] == "powerball@1"


@pytest.mark.slow
def test_a_child_takes_after_its_parent(draws, home):
    first = helios("train", *train_words(draws, 2, "--json", "-"))
    assert first.returncode == 0, first.stderr
    child = helios("train", "--data", draws, "--parent", "powerball@champion", "--set", "epochs=1", "--json", "-")
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["model"] | {"file": "", "sha256": ""} == {
        "name": "powerball", "version": 2, "ref": "powerball@2", "file": "", "sha256": "", "parent": "powerball@1"}
    other = helios("train", "--data", draws, "--parent", "powerball@1", "--set", "hidden=32")
    assert (other.returncode, "hidden 16 there, 32 here" in other.stderr) == (2, True), other.stderr
    none = helios("train", "--data", draws, "--parent", "powerball@9")
    assert none.returncode == 2 and "there is no powerball@9" in none.stderr


@pytest.mark.parametrize(("args", "said"), [
    (["--set", "hidden=wide"], "hidden is 'wide'; give a whole number"),
    (["--set", "hiden=8"], "no setting hiden"),
    (["--set", "learning_rate=7"], "learning_rate is 7.0; give a number from 1e-07 to 1.0"),
    (["--set", "hidden=30"], "hidden 30 is not a multiple"),
    (["--name", "../up"], "use up to 64 letters"),
    (["--data", "no_such.csv"], "no_such.csv"),
    (["--json", "no/folder/a.json"], "there is no folder no/folder"),
])
def test_what_cannot_be_trained_is_one_line_and_no_job(draws, home, args, said):
    done = helios("train", "--data", draws, *args)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    if (home / DATABASE).exists():
        with MemoryStore(home / DATABASE) as store:
            assert Jobs(store, home).list() == []


@pytest.mark.slow
def test_detached_and_cancelled_and_taken_up(draws, home, tmp_path):
    """Cancelled in the middle of an epoch or at its end, as it comes: the same weights in the end."""
    started = helios("train", *train_words(draws, 60, "--detach", "--json", "-"))
    assert started.returncode == 0, started.stderr
    job_id = json.loads(started.stdout)["job_id"]
    until(lambda: (the_job(home)["progress"] or {}).get("epoch"))
    assert helios("jobs", "cancel", job_id).returncode == 0
    row = the_job(home)
    assert row["status"] == "cancelled" and (home / "jobs" / job_id / "state.safetensors").exists()
    assert helios("jobs", "resume", job_id).returncode == 0
    row = until(lambda: (row := the_job(home))["status"] != "running" and row["status"] != "queued" and row, timeout_s=120)
    assert row["status"] == "completed" and row["token"] == 2, row["error_message"]
    assert row["result"]["model"]["sha256"] == undisturbed(draws, tmp_path / "other", 60)
    with MemoryStore(home / DATABASE) as store:
        assert [log["epoch"] for log in store.get_training_logs(job_id)] == list(range(1, 61))


@pytest.mark.slow
def test_a_time_limit_keeps_the_state(draws, home):
    done = helios("train", *train_words(draws, 100_000, "--time-s", "20"))
    assert done.returncode == 1 and "time limit" in done.stderr and "helios jobs resume" in done.stderr
    assert list((home / "jobs").glob("*/state.safetensors"))


@pytest.mark.parametrize("detach", [[], ["--detach"]])
@pytest.mark.parametrize("started", [True, False])
def test_ctrl_c_while_the_job_is_started_leaves_none_without_a_name(draws, home, monkeypatch, detach, started):
    from click.testing import CliRunner

    import helios.trainer
    from helios.cli import main
    submit = helios.trainer.submit_training

    def pressed(*args, **rest):
        if started:
            submit(*args, **rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(helios.trainer, "submit_training", pressed)
    done = CliRunner().invoke(main, ["train", *train_words(draws, 4000, *detach)])
    with MemoryStore(home / DATABASE) as store:
        background = Jobs(store, home)
        rows = background.list()
        for row in rows:
            assert f"helios jobs cancel {row['job_id'][:12]} stops it" in done.stderr
            background.cancel(row["job_id"])
            background.wait(row["job_id"], 60)
    assert done.exit_code == 1 and len(rows) == started and done.stderr.splitlines()[-1].startswith("helios: stopped")


def take_terminal():
    """In the child: the terminal is its own."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A command in a terminal of its own, which can be closed."""

    def __init__(self, args):
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        preexec_fn=take_terminal)
        os.close(slave)
        self.said = b""

    def read_until(self, pattern, timeout_s=60):
        end = time.monotonic() + timeout_s
        os.set_blocking(self.master, False)
        while not re.search(pattern, self.said):
            assert time.monotonic() < end, self.said.decode(errors="replace")
            try:
                self.said += os.read(self.master, 65536)
            except (BlockingIOError, OSError):
                time.sleep(0.05)

    def type(self, keys):
        os.write(self.master, keys)

    def close(self):
        os.close(self.master)
        self.process.wait(30)


@pytest.mark.parametrize(("answer", "status", "left"), [(b"y\n", 1, "cancelled"), (b"\n", 0, "running")])
@pytest.mark.slow
def test_ctrl_c_asks(draws, home, answer, status, left):
    terminal = Terminal(words("train", *train_words(draws, 100_000)))
    terminal.read_until(rb"epoch \d+/100000")
    terminal.type(b"\x03")
    terminal.read_until(rb"Stop it\?")
    terminal.type(answer)
    terminal.read_until(rb"was cancelled.*resume|goes on; helios jobs logs")
    assert terminal.process.wait(30) == status
    row = the_job(home)
    assert row["status"] == left
    if left == "running":
        helios("jobs", "cancel", row["job_id"])


def kill_everything(row):
    """The job's process and all that belong to it, as a machine does that loses its power."""
    process = psutil.Process(row["pid"])
    for one in [process, *process.children(recursive=True)]:
        one.kill()
    until(lambda: not psutil.pid_exists(row["pid"]) or psutil.Process(row["pid"]).status() == psutil.STATUS_ZOMBIE)


def a_life(draws, home, epochs, deaths, url=None, server=None):
    """`helios train` in a terminal that is closed; then its process, and its database if it has a server, die so many times."""
    terminal = Terminal(words("train", *train_words(draws, epochs)))
    terminal.read_until(rb"epoch \d+/")
    terminal.close()                                           # SIGHUP to everything in it
    assert terminal.process.returncode == -signal.SIGHUP
    row, pids = the_job(home, url), set()
    state = home / "jobs" / row["job_id"] / "state.safetensors"
    for _ in range(deaths):
        before = state.stat().st_mtime_ns if state.exists() else 0
        until(lambda before=before: state.exists() and state.stat().st_mtime_ns > before)      # it has come further
        row = the_job(home, url)
        assert row["status"] == "running" and row["pid"] not in pids and psutil.pid_exists(row["pid"])
        pids.add(row["pid"])
        if server:
            kill_server(server[1])
        kill_everything(row)
        if server:
            start_server(*server)
        until(lambda: the_job(home, url)["status"] == "interrupted", timeout_s=10)
        resumed = helios("jobs", "resume", row["job_id"])
        assert resumed.returncode == 0, resumed.stderr
    row = until(lambda: (row := the_job(home, url))["status"] in ("completed", "failed", "interrupted") and row, timeout_s=300)
    assert (row["status"], row["token"]) == ("completed", deaths + 1), row["error_message"]
    with MemoryStore(url or home / DATABASE) as store:
        assert [log["epoch"] for log in store.get_training_logs(row["job_id"])] == list(range(1, epochs + 1))
        assert store.get_training_session(row["job_id"])["status"] == "completed"
    assert sorted(p.name for p in (home / "models").iterdir() if p.suffix) == ["powerball-v1.json", "powerball-v1.safetensors"]
    assert not list((home / "jobs" / row["job_id"]).glob(".*")) and not (home / "jobs" / row["job_id"] / "state.safetensors").exists()
    return row["result"]["model"]["sha256"]


@pytest.mark.slow
def test_a_closed_terminal_and_a_killed_machine(draws, home, tmp_path):
    assert a_life(draws, home, 150, 1) == undisturbed(draws, tmp_path / "other", 150)


@pytest.mark.slow
def test_a_closed_terminal_and_a_machine_that_is_killed_again_and_again(draws, home, tmp_path):
    assert a_life(draws, home, 400, 5) == undisturbed(draws, tmp_path / "other", 400)


@pytest.mark.slow
def test_a_closed_terminal_and_a_database_server_killed_too(draws, home, tmp_path, own_server, monkeypatch):  # noqa: F811
    url = own_server[0].get_uri()
    monkeypatch.setenv("HELIOS_DATABASE_URL", url)
    assert a_life(draws, home, 400, 3, url, own_server) == undisturbed(draws, tmp_path / "other", 400)


@pytest.mark.slow
def test_the_database_server_dies_and_the_job_lives(draws, home, tmp_path, own_server, monkeypatch):  # noqa: F811
    """The run goes on without its store, spools, and its log is whole in the end."""
    url = own_server[0].get_uri()
    monkeypatch.setenv("HELIOS_DATABASE_URL", url)
    started = helios("train", *train_words(draws, 200, "--detach", "--json", "-"))
    job_id = json.loads(started.stdout)["job_id"]
    until(lambda: (the_job(home, url)["progress"] or {}).get("epoch", 0) > 2)
    kill_server(own_server[1])
    spool = home / "spool" / f"{job_id}.jsonl"
    until(lambda: spool.exists() and spool.read_bytes().count(b"\n") > 5)
    start_server(*own_server)
    row = until(lambda: (row := the_job(home, url))["status"] not in ("running", "queued") and row, timeout_s=180)
    assert (row["status"], row["token"]) == ("completed", 1), row["error_message"]
    with MemoryStore(url) as store:
        assert [log["epoch"] for log in sorted(store.get_training_logs(job_id), key=lambda log: log["id"])] == list(range(1, 201))
    assert not spool.exists() and row["result"]["model"]["sha256"] == undisturbed(draws, tmp_path / "other", 200)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_bars_say_how_far_it_is_on_a_terminal_of_usual_width(width):
    """Once all columns were cut alike, and in 80 columns no epoch could be read."""
    from rich.console import Console

    from helios.cli import TrainingBar
    from helios.fitting import EpochReport
    from helios.train_commands import FollowBar
    followed, trained = io.StringIO(), io.StringIO()
    with FollowBar(Console(file=followed, width=width, force_terminal=True)) as bar:
        bar({"epoch": 123, "epochs": 400, "batch": 7, "batches": 25, "loss": 19.4331, "validation_skill": 0.0822, "best_epoch": 106,
             "samples_per_s": 2731.4, "left_s": 35.2})
    assert "epoch 123/400" in followed.getvalue() and "at most 35 s left" in followed.getvalue() and "loss 19.433" in followed.getvalue()
    with TrainingBar(Console(file=trained, width=width, force_terminal=True)) as bar:
        bar(EpochReport(123, 400, 19.4331, {}, 0.0822, 106, 80.0))
    assert "epoch 123/400" in trained.getvalue() and "left at most" in trained.getvalue()
