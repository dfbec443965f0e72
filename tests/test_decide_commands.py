"""`helios decide` and `helios goals`: words in, one line or a table out, the status, and what stays in the store."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from waiting import until

from helios.decide_commands import decide, goals
from helios.draws import simulate, write_draws
from helios.memory_store import MemoryStore
from helios.places import DATABASE


@pytest.fixture
def draws(tmp_path, home) -> str:
    write_draws(simulate(n=300, seed=1, follow=0.3), tmp_path / "draws.csv")
    return str(tmp_path / "draws.csv")


def said(command, *words, status=0) -> str:
    ended = CliRunner().invoke(command, [str(word) for word in words])
    assert ended.exit_code == status, ended.output
    return ended.output if status else ended.stdout


def found(command, *words) -> dict:
    return json.loads(said(command, *words, "--json", "-"))


def test_a_proposal_as_json(draws):
    row = found(decide, "--data", draws)["decision"]
    assert {"id", "kind", "options", "choice", "confidence", "rationale", "reversible", "status"} <= set(row)
    assert row["choice"] in [o["action"] for o in row["options"]] and 0 <= row["confidence"] <= 1
    assert {"action", "utility", "parts"} <= set(row["options"][0])
    assert {o["kind"] for o in row["options"]} >= {"abstain", "strategy", "ab", "retrain"}


def test_a_table_of_options(draws):
    text = said(decide, "--data", draws)
    assert text.startswith("Decision   1, proposed: ") and "Next       helios decide --approve 1" in text
    assert sum(line.startswith("         * ") for line in text.splitlines()) == 1
    assert max(map(len, text.splitlines())) <= 110


def test_the_life_of_a_decision(draws):
    said(decide, "--data", draws)
    assert "approved: try steps" in said(decide, "--approve", 1, "--choose", "strategy:steps")
    assert found(decide, "--execute", 1, "--data", draws)["decision"]["status"] == "executed"
    assert "Waits      0 of 5 draws have come" in said(decide, "--verify", 1, "--data", draws)
    assert found(decide, "--undo", 1)["decision"]["status"] == "undone"
    said(decide, "--data", draws)
    assert found(decide, "--reject", 2)["decision"]["status"] == "rejected"
    rows = found(decide, "history")["decisions"]
    assert [(r["id"], r["status"]) for r in rows] == [(2, "rejected"), (1, "undone")]
    assert len(found(decide, "history", "--status", "undone", "--limit", 1)["decisions"]) == 1


@pytest.mark.parametrize(("words", "line"), [
    (("--approve", 5), "no decision 5; helios decide history shows them"),
    (("--execute", 5), "no decision 5"),
    (("--approve", 1, "--undo", 1), "exclude each other"),
    (("--choose", "abstain"), "--choose goes with --approve ID"),
    (("--plot", "-"), "--plot writes a PNG"),
    (("--plot", "/nowhere/x.png"), "there is no folder /nowhere"),
    (("history", "--status", "dreamt"), "status is 'dreamt'; use one of proposed"),
    (("autonomous", "start", "--budget", "-1"), "Invalid value for '--budget'"),
    (("autonomous", "rehearse", "--rounds", "9999"), "too few for 9999 rounds"),
])
def test_what_is_wrong_is_one_line_and_status_2(home, words, line):
    text = said(decide, *words, status=2)
    assert line in text and "Traceback" not in text


def test_too_short_a_history(tmp_path, home):
    write_draws(simulate(n=20, seed=1), tmp_path / "short.csv")
    assert "40 are the least to decide on" in said(decide, "--data", tmp_path / "short.csv", status=2)


def test_a_plot(draws, tmp_path):
    from matplotlib.image import imread

    found(decide, "--data", draws, "--plot", tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").shape[1] > 1000


def test_a_look_makes_nothing(home):
    assert "no decisions yet" in said(decide, "history") and "never started" in said(decide, "autonomous", "status")
    assert "Nothing has happened yet" in said(decide, "autonomous", "story") and "no goals yet" in said(goals, "list")
    assert not (home / DATABASE).exists()


def test_goals(draws):
    assert found(goals, "add", "see", "--metric", "skill_nats", "--target", 0.05, "--priority", 1, "--deadline", "2030-01-01")["goal"]["status"] == "open"
    said(goals, "add", "current", "--metric", "draws_behind", "--target", 0)
    first, second = found(goals, "list", "--data", draws)["goals"]
    assert (first["name"], first["progress"]["reached"], second["progress"]["reached"]) == ("see", False, True)
    row = found(decide, "--data", draws)["decision"]
    assert "fetch" not in [o["kind"] for o in row["options"]]   # it would not add to a file
    assert max(o["parts"]["goal_bonus"] for o in row["options"]) > 0
    assert found(goals, "done", "see")["goal"]["status"] == "done"
    assert [g["name"] for g in found(goals, "list", "--status", "open")["goals"]] == ["current"]
    found(goals, "remove", "see")
    for words, line in ((("remove", "see"), "no goal 'see'"), (("add", "current", "--metric", "log_e", "--target", 1), "is there already"),
                        (("add", "x", "--metric", "luck", "--target", 1), "use one of skill_nats"),
                        (("add", "x", "--metric", "log_e", "--target", 1, "--priority", 0), "priority is 0")):
        assert line in said(goals, *words, status=2)


def test_an_afternoon_that_is_rehearsed_leaves_nothing(draws, home):
    told = found(decide, "autonomous", "rehearse", "--data", draws, "--rounds", 20)
    assert told["rehearsal"]["rounds"] == 20 and told["story"][0].endswith("actions an hour.")
    assert not (home / DATABASE).exists()


@pytest.mark.slow
def test_the_mode_runs_until_another_command_stops_it(draws, home):
    """One process works, is killed and works again; a second one says stop, and the first ends by itself."""
    said(decide, "autonomous", "start", "--budget", 100, "--per-hour", 1000)
    assert "is on already" in said(decide, "autonomous", "start", status=2)
    words = [sys.executable, "-c", "from helios.decide_commands import decide; decide()", "autonomous", "run", "--data", draws, "--every", "0.05"]
    env = os.environ | {"HELIOS_HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}

    def spent() -> float:
        return found(decide, "autonomous", "status")["autonomous"]["spent_s"]

    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    until(lambda: spent() > 0, "a first round")
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = spent()
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    until(lambda: spent() > before, "another round after the restart")
    said(decide, "autonomous", "stop")
    assert "off: autonomous mode is off" in process.communicate(timeout=60)[0] and process.returncode == 0
    story = found(decide, "autonomous", "story")["story"]
    assert "Autonomous mode is on" in story[0]
    off = next(i for i, line in enumerate(story) if "Autonomous mode is off: it was asked to" in line)
    assert sum("is executed" in line for line in story[off:]) <= 1  # what had begun before the call may end after it
    with MemoryStore(home / DATABASE) as store:
        assert not [e for e in store.get_enhanced_journal_entries(limit=1000) if "Traceback" in json.dumps(e["event_data"])]
