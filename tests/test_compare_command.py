"""`helios compare`: on files, with a picture and JSON, and A/B tests from start to end; what is wrong is one line and status 2."""

import json

import pytest
from click.testing import CliRunner

from helios.compare_commands import compare
from helios.draws import simulate, write_draws

HISTORY = simulate(n=700, seed=5, powerball_weights={7: 6})


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    """Run the command in a home of its own, in a folder with histories."""
    monkeypatch.chdir(tmp_path)
    write_draws(HISTORY, "all.csv")
    write_draws(HISTORY[:300], "early.csv")
    write_draws(simulate(n=400, seed=2), "fair.csv")
    def say(*words):
        result = CliRunner().invoke(compare, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr
    return say


def test_names_are_compared_at_once(run, tmp_path):
    status, out, err = run("uniform", "frequency", "steps", "--data", "all.csv", "--start", "300", "--json", "out.json", "--plot", "pairs.png")
    assert status == 0 and "SIMULATED" in err and "frequency is better" in out and out.splitlines()[-1].startswith("Verdict    skill is shown by frequency")
    assert max(map(len, out.splitlines())) < 130
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["n"] == 400 and found["simulated"] and len(found["pairs"]) == 3
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_fair_draws_have_no_winner(run):
    status, out, _ = run("--data", "fair.csv", "uniform", "frequency", "repeats")
    assert status == 0 and "Verdict    nobody shows skill; no pair differs" in out and "Ensemble   whites: uniform 1.00 (uniform)" in out


def test_json_alone_on_standard_output(run):
    status, out, _ = run("uniform", "steps", "--data", "fair.csv", "--json", "-")
    assert status == 0 and json.loads(out)["names"] == ["uniform", "steps"]


def test_a_start_by_date(run):
    status, out, _ = run("uniform", "--data", "all.csv", "--start", str(HISTORY.draw_date[600].date()), "--json", "-")
    assert status == 0 and json.loads(out)["n"] == 100


@pytest.mark.parametrize("words, message", [
    (["wizard", "--data", "fair.csv"], "no forecaster 'wizard'"),
    (["uniform", "uniform", "--data", "fair.csv"], "named twice"),
    (["uniform", "--data", "fair.csv", "--start", "400"], "start is draw 400"),
    (["uniform", "--data", "fair.csv", "--plot", "x.svg"], "not a PNG"),
    (["uniform", "--data", "fair.csv", "--json", "fair.csv"], "are both"),
    (["uniform", "--data", "none.csv"], "none.csv"),
    (["ab", "start", "duel", "uniform", "wizard", "--data", "fair.csv"], "no forecaster 'wizard'"),
    (["ab", "start", "duel", "uniform", "uniform", "--data", "fair.csv"], "both uniform"),
    (["ab", "observe", "duel", "--data", "fair.csv"], "no A/B test is named 'duel'"),
    (["ab", "stop", "duel"], "no A/B test is named 'duel'"),
    (["ab", "start", "duel", "uniform", "steps", "--delta", "0"], "delta"),
    (["uniform", "--start", "soon", "--data", "fair.csv"], "not a date"),
])
def test_what_is_wrong_is_one_line(run, words, message):
    status, out, err = run(*words)
    lines = [line for line in err.splitlines() if line.startswith("helios:")]
    assert status == 2 and len(lines) == 1 and message in lines[0] and not out


def test_an_ab_test_from_start_to_end(run):
    assert "No A/B test" in run("ab", "status")[1]
    status, out, _ = run("ab", "start", "duel", "frequency", "uniform", "--data", "early.csv", "--json", "-")
    assert status == 0 and json.loads(out)["n"] == 0
    assert json.loads(run("ab", "observe", "duel", "--data", "early.csv", "--json", "-")[1])["n"] == 0
    status, out, _ = run("ab", "observe", "duel", "--data", "all.csv")
    assert status == 0 and "A is better: frequency" in out
    assert run("ab", "observe", "duel", "--data", "all.csv")[1] == out == run("ab", "status", "duel")[1]
    assert "decided already" in run("ab", "stop", "duel")[2]
    run("ab", "start", "other", "steps", "uniform", "--data", "early.csv")
    assert run("ab", "stop", "other", "--why", "no need")[0] == 0
    states = json.loads(run("ab", "status", "--json", "-")[1])["tests"]
    assert [(s["name"], s["status"]) for s in states] == [("duel", "decided"), ("other", "stopped")]
