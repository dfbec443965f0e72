"""`helios backtest`: from names to JSON and picture, everything tried counted, and one line with status 2 for what is wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import takewhile

import matplotlib.image
import pytest
import torch
from click.testing import CliRunner
from waiting import until

import helios.backtest
from helios.backtest_commands import backtest
from helios.draws import read_draws, simulate, write_draws
from helios.evidence_jobs import EVENT
from helios.fitting import PRESETS
from helios.forecasters import FORECASTERS, OWN
from helios.memory_store import MemoryStore
from helios.places import DATABASE
from helios.trainer import ModelTrainer

TINY = replace(PRESETS["quick"], hidden=16, layers=1, heads=2, epochs=4, sequence_length=20, batch_size=32, learning_rate=0.01, threads=1)
COUNTED = ["uniform", "frequency", "recency", "steps", "markov", "repeats", "hot", "cold", "overdue", "birthdays"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    """Run the command in a home of its own, in a folder with histories; words before the first option name forecasters."""
    monkeypatch.chdir(tmp_path)
    write_draws(simulate(n=300, seed=5, follow=0.5), "follows.csv")
    write_draws(simulate(n=200, seed=1), "fair.csv")
    write_draws(simulate(n=25, seed=1), "tiny.csv")

    def say(*words):
        names = [*takewhile(lambda word: not word.startswith("-"), words)]
        result = CliRunner().invoke(backtest, [word for name in names for word in ("--forecaster", name)] + [*words[len(names):]])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result.exit_code, result.stdout, result.stderr
    return say


def errors(said):
    return [line for line in said.splitlines() if line.startswith("helios:")]


def journal(home):
    with MemoryStore(home / DATABASE) as store:
        return store.get_enhanced_journal_entries(event_type=EVENT, limit=1000)


def test_json_picture_and_table(run, tmp_path, home):
    status, out, err = run("steps", "hot", "--data", "follows.csv", "--json", "b.json", "--plot", "b.png")
    assert status == 0 and "SIMULATED DRAWS" in err and "Draws" in err and not errors(err)
    found = json.loads((tmp_path / "b.json").read_text())
    needed = {"forecaster", "n", "skill_nats", "ci95", "e_value", "p_holm", "hits_mean", "hits_expected", "ece", "payback"}
    assert all(needed <= {*row} for row in found["results"]) and [row["forecaster"] for row in found["results"]] == ["steps", "uniform", "hot"]
    assert (found["tried"], found["tried_names"], found["n"], found["start"], found["draws"]["simulated"]) == (2, ["hot", "steps"], 200, 100, True)
    assert found["results"][0]["evidence"] and found["verdict"].startswith("SIMULATED draws")
    assert out.splitlines()[0].startswith("200 draws forecast") and out.splitlines()[-1] == f"Verdict    {found['verdict']}"
    picture = matplotlib.image.imread(tmp_path / "b.png")
    assert picture.shape[:2] == (800, 1100) and 0.02 < (picture[..., :3] < 0.9).any(axis=2).mean() < 0.6
    entries = journal(home)
    assert {e["model_name"] for e in entries} == {"steps", "hot"} and {e["event_data"]["sha256"] for e in entries} == {found["draws"]["sha256"]}
    assert [e["event_data"]["evidence"] for e in entries if e["model_name"] == "steps"] == [True]


def test_json_alone_on_standard_output(run):
    status, out, _ = run("steps", "--data", "fair.csv", "--json", "-")
    assert status == 0 and json.loads(out)["tried_names"] == ["steps"]


def test_by_default_all_that_need_no_training(run):
    status, out, err = run("--data", "tiny.csv", "--json", "-")
    found = json.loads(out)
    assert status == 0 and {row["forecaster"] for row in found["results"]} == {*COUNTED, "mixture"} and found["tried"] == 10
    assert found["verdict"].startswith("SIMULATED draws, not those of a lottery; nothing beats uniform: of 10 forecasters")


def test_everything_ever_tried_on_these_draws_is_counted(run, home):
    assert json.loads(run("hot", "cold", "--data", "fair.csv", "--json", "-")[1])["tried"] == 2
    again = json.loads(run("steps", "hot", "--data", "fair.csv", "--json", "-")[1])
    assert (again["tried"], again["tried_names"]) == (3, ["cold", "hot", "steps"])
    assert json.loads(run("uniform", "--data", "fair.csv", "--json", "-")[1])["tried"] == 3
    assert json.loads(run("steps", "--data", "follows.csv", "--json", "-")[1])["tried"] == 1        # other draws
    by_name = {row["forecaster"]: row for row in again["results"]}
    assert by_name["steps"]["p_holm"] == pytest.approx(min(1, 3 * by_name["steps"]["p"]))
    assert by_name["uniform"]["p_holm"] == 1
    with MemoryStore(home / DATABASE) as store:       # archived entries were tried all the same
        store.compact_memory(archive_days=0)
    assert json.loads(run("overdue", "--data", "fair.csv", "--json", "-")[1])["tried"] == 4


def test_all_with_a_history_too_short_to_train_on(run, home):
    status, out, err = run("all", "--data", "tiny.csv")
    assert status == 2 and not out and len(errors(err)) == 1 and "PowerballNet needs 12 to learn from" in errors(err)[0]
    assert journal(home) == []          # nothing was seen, so nothing was tried


@pytest.mark.parametrize("words, message", [
    (["wizard", "--data", "fair.csv"], "no forecaster 'wizard'; there are uniform"),
    (["wizard@2", "--data", "fair.csv"], "wizard"),
    (["hot", "--data", "fair.csv", "--start", "200"], "cannot start at draw 200 of 200; give 1 to 199"),
    (["hot", "--data", "fair.csv", "--start", "0"], "--start"),
    (["hot", "--data", "fair.csv", "--start", "soon"], "--start"),
    (["hot", "--data", "fair.csv", "--refit", "0"], "--refit"),
    (["hot", "--data", "fair.csv", "--alpha", "0"], "--alpha"),
    (["hot", "--data", "none.csv"], "none.csv"),
    (["hot", "--data", "fair.csv", "--plot", "b.svg"], "not a PNG"),
    (["hot", "--data", "fair.csv", "--json", "fair.csv"], "are both"),
    (["hot", "--data", "fair.csv", "--json", "b.png", "--plot", "b.png"], "are both"),
    (["hot", "--data", "fair.csv", "--plot", "nowhere/b.png"], "there is no folder nowhere"),
])
def test_what_is_wrong_is_one_line_and_status_2(run, home, words, message):
    status, out, err = run(*words)
    told = errors(err) or [line for line in err.splitlines() if line.startswith("Error:")]     # click's own words, one line in the group
    assert status == 2 and len(told) == 1 and message in told[0] and not out
    assert not (home / DATABASE).exists() or journal(home) == []


def test_an_executor_that_is_none_is_one_line(run):
    status, out, err = run("hot", "--data", "fair.csv", "--executor", "ray")
    assert status == 1 and "give local or dask://host:port" in errors(err)[0] and not out


@pytest.mark.parametrize("n", [1, 2])
def test_one_draw_and_two(run, tmp_path, n):
    write_draws(simulate(n=n, seed=1), "few.csv")
    status, out, err = run("hot", "--data", "few.csv")
    assert (status, len(errors(err))) == ((2, 1), (0, 0))[n - 1] and ("two or more are needed" in err) == (n == 1)


def test_a_registered_version_beside_counts(run, home, tmp_path):
    draws, _ = read_draws("follows.csv")
    with MemoryStore(home / DATABASE) as store:
        result = ModelTrainer(store, home).train(draws, TINY)
    unseen = 300 - len(result.evaluation)
    status, out, err = run("powerball@1", "frequency", "steps", "--data", "follows.csv", "--json", "-")
    found = json.loads(out)
    assert status == 0 and found["start"] == unseen and {row["forecaster"] for row in found["results"]} == {"powerball@1", "frequency", "steps", "uniform"}
    by_name = {row["forecaster"]: row for row in found["results"]}
    assert by_name["powerball@1"]["skill_nats"] == pytest.approx(result.evaluation.skill.total.mean(), abs=1e-4)
    assert {row["n"] for row in found["results"]} == {len(result.evaluation)}
    status, out, err = run("powerball@1", "--data", "follows.csv", "--start", str(unseen - 1))
    assert status == 2 and errors(err) == [f"helios: powerball@1 has seen the draws before {unseen}; start there or later"]
    status, out, err = run("powerball", "--data", "fair.csv")
    assert status == 2 and "has seen all 200 draws" in errors(err)[0]
    status, out, err = run("powerball@7", "--data", "fair.csv")
    assert status == 2 and len(errors(err)) == 1 and "powerball" in errors(err)[0]


def test_ones_own_and_one_that_cheats(run, home):
    home.mkdir()
    (home / OWN).write_text("""
import numpy as np
from helios.forecasting import Forecaster
class Sevens(Forecaster, name="sevens"):
    def predict(self, past): return np.zeros(past.era.whites), 0.1 * (np.arange(1, 27) % 10 == 7)
class Peeks(Forecaster, name="peeks"):
    def logits(self, past, start):
        came = np.vstack([past.came, np.zeros((1, 26))])[start:]
        return np.zeros((len(came), 69)), 2.0 * came
class Broken(Forecaster, name="broken"):
    def predict(self, past): return past.nonsense
""")
    try:
        assert run("sevens", "--data", "fair.csv")[0] == 0
        for name, said in (("peeks", "peeks is refused: its forecast for draw"), ("broken", "broken fails at draws")):
            status, out, err = run(name, "--data", "fair.csv")
            assert status == 2 and not out and len(errors(err)) == 1 and said in errors(err)[0]
        assert [e["model_name"] for e in journal(home)] == ["sevens"]
        (home / OWN).write_text((home / OWN).read_text().replace("0.1", "0.2"))
        found = json.loads(run("sevens", "--data", "fair.csv", "--json", "-")[1])
        assert found["tried"] == 2 and all(name.startswith("sevens ") for name in found["tried_names"])      # another one under the same name
        (home / OWN).write_text("1 / 0")
        status, _, err = run("hot", "--data", "fair.csv")
        assert status == 2 and "ZeroDivisionError" in errors(err)[0]
    finally:
        for name in [name for name, cls in FORECASTERS.items() if cls.__module__ == "helios_own_forecasters"]:
            del FORECASTERS[name]
        sys.modules.pop("helios_own_forecasters", None)


def test_a_store_that_can_only_be_read(run, home, monkeypatch):
    from helios import own_store

    def read_only(*args):
        store = MemoryStore(*args)
        store.read_only = store._database.read_only = True
        store.notice = store._database.notice = "it can be read only"
        return store

    run("hot", "--data", "fair.csv")
    monkeypatch.setattr(own_store, "MemoryStore", read_only)
    status, out, err = run("steps", "--data", "fair.csv", "--json", "-")
    assert status == 0 and json.loads(out)["tried_names"] == ["hot", "steps"] and errors(err) == ["helios: it can be read only"]
    monkeypatch.undo()
    assert [e["model_name"] for e in journal(home)] == ["hot"]


def test_a_folder_for_walks_that_cannot_be_written(run, home):
    home.mkdir()
    (home / "backtests").write_text("a file")
    status, out, err = run("hot", "--data", "fair.csv")
    assert status == 0 and "Verdict" in out and len(errors(err)) == 1 and "a backtest that is stopped will begin anew" in errors(err)[0]


def test_a_disk_that_is_full(run, home, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))
    monkeypatch.setattr(helios.backtest, "write_atomic", full)
    status, out, err = run("hot", "--data", "fair.csv")
    assert status == 1 and not out and len(errors(err)) == 1 and "No space left on device" in errors(err)[0] and journal(home) == []


def test_walks_are_kept_for_a_month(run, home):
    run("hot", "--data", "fair.csv")
    old, new = sorted((home / "backtests").glob("*.npz"))
    os.utime(old, (1, 1))
    changed = new.stat().st_mtime_ns
    run("hot", "--data", "tiny.csv")
    assert not old.exists() and new.stat().st_mtime_ns == changed


def test_ctrl_c_says_how_to_go_on_and_it_goes_on(run, home, monkeypatch):
    walked = []
    walk_block = helios.backtest.walk_block

    def pressed(forecaster, *rest):
        if len(walked) == 2:
            raise KeyboardInterrupt
        walked.append(forecaster.name)
        return walk_block(forecaster, *rest)

    monkeypatch.setattr(helios.backtest, "walk_block", pressed)
    status, out, err = run("hot", "cold", "steps", "--data", "fair.csv")
    assert status == 1 and not out and errors(err) == ["helios: stopped; what was finished is kept, run it again to go on"]
    assert journal(home) == [] and walked == ["hot", "cold"]
    walked.clear()
    monkeypatch.setattr(helios.backtest, "walk_block", lambda forecaster, *rest: walked.append(forecaster.name) or walk_block(forecaster, *rest))
    assert run("hot", "cold", "steps", "--data", "fair.csv")[0] == 0 and walked == ["steps", "uniform"]


@pytest.mark.slow
def test_ctrl_c_at_a_terminal(home, tmp_path):
    """A real process with workers: one line, status 1, no process left, and the finished walks are there."""
    import signal
    write_draws(simulate(n=900, seed=1), tmp_path / "long.csv")
    words = ["--data", str(tmp_path / "long.csv"), "--executor", "local"]
    code = "from helios.backtest_commands import backtest; from helios.console import Commands; g = Commands('helios'); g.add_command(backtest); g()"
    with subprocess.Popen([sys.executable, "-c", code, "backtest", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as running:
        until(lambda: [*(home / "backtests").glob("*.npz")], "the first walk")
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 1 and not out and "Traceback" not in err
    assert errors(err) == ["helios: stopped; what was finished is kept, run it again to go on"]


@pytest.mark.slow
def test_on_two_workers_it_says_the_same(run, tmp_path):
    for words in (["--executor", "local", "--json", "a.json"], ["--json", "b.json"]):
        assert run("steps", "hot", "mixture", "--data", "fair.csv", *words)[0] == 0
        for kept in (tmp_path / "home" / "backtests").glob("*.npz"):
            kept.unlink()
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for found in (one, other):
        for row in found["results"]:
            row.pop("seconds")
    assert one == other


def test_real_draws_are_not_called_simulated(run, monkeypatch, tmp_path):
    """Files that Helios did not simulate carry no mark; these numbers are made up all the same."""
    lines = (tmp_path / "fair.csv").read_text().splitlines()
    (tmp_path / "plain.csv").write_text("\n".join(line for line in lines if not line.startswith("#")) + "\n")
    status, out, err = run("hot", "--data", "plain.csv", "--json", "-")
    simulated = read_draws("plain.csv")[1].simulated
    assert status == 0 and json.loads(out)["draws"]["simulated"] == simulated == ("SIMULATED" in err)


def test_help_and_names():
    said = CliRunner().invoke(backtest, ["--help"]).stdout
    for option in ("--forecaster", "--data", "--start", "--refit", "--executor", "--alpha", "--json", "--plot"):
        assert option in said
    assert "all takes PowerballNet too" in " ".join(said.split())


def test_the_command_loads_no_heavy_module():
    code = "import sys; from helios.backtest_commands import backtest; print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib', 'sqlalchemy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
