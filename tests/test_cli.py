"""The command from outside: what it prints where, exit statuses, files, Ctrl-C."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from helios.draws import simulate, write_draws

HELIOS = Path(sys.executable).with_name("helios")
SHARED = Path(__file__).resolve().parents[2] / "shared/data/powerball"
KEYS = {
    "draws": {"n", "first", "last", "source", "simulated", "missing"},
    "audit": {"tests", "verdict"},
    "training": {"epochs", "best_epoch", "seconds", "params"},
    "evaluation": {"n", "skill_nats", "ci95", "white_skill_nats", "powerball_skill_nats", "e_value", "ece", "shrink"},
    "forecast": {"draw_date", "tickets", "white_inclusion", "powerball"},
    "model": {"name", "version", "file", "sha256"},
}


def helios(*words, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([HELIOS, *map(str, words)], capture_output=True, text=True, **kwargs)


@pytest.fixture
def draws(tmp_path):
    """A file of draws with a powerball so heavy that every preset finds it; short, so that training is quick."""
    path = tmp_path / "draws.csv"
    write_draws(simulate(n=200, seed=9, powerball_weights={7: 50}), path)
    return path


def assert_contract(result: dict) -> None:
    for key, inner in KEYS.items():
        assert inner <= set(result[key]), key
    assert isinstance(result["baseline_nats"], float) and isinstance(result["verdict"], str)
    assert set(result["evaluation"]["shrink"]) == {"white", "powerball"}
    forecast = result["forecast"]
    assert (len(forecast["white_inclusion"]), len(forecast["powerball"])) == (69, 26)
    assert sum(forecast["white_inclusion"]) == pytest.approx(5) and sum(forecast["powerball"]) == pytest.approx(1)
    for ticket in forecast["tickets"]:
        assert len(set(ticket["whites"])) == 5 and ticket["whites"] == sorted(ticket["whites"])
        assert 1 <= ticket["powerball"] <= 26 and 0 < ticket["probability"] < 1
    probabilities = [ticket["probability"] for ticket in forecast["tickets"]]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.slow
def test_json_on_standard_output_holds_nothing_else(home, draws):
    done = helios("run", "--data", draws, "--offline", "--seed", 3, "--json", "-")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and "SIMULATED" in done.stderr
    assert_contract(result)
    assert result["draws"]["simulated"] and result["verdict"].startswith("SIMULATED")
    assert result["forecast"]["tickets"][0]["powerball"] == 7
    assert result["forecast"]["draw_date"] > result["draws"]["last"]
    model = Path(result["model"]["file"])
    assert hashlib.sha256(model.read_bytes()).hexdigest() == result["model"]["sha256"]
    assert model.is_relative_to(home)


@pytest.mark.slow
def test_files_and_the_summary(home, draws, tmp_path):
    done = helios("run", "--data", draws, "--json", tmp_path / "a.json", "--report", tmp_path / "a.html")
    assert done.returncode == 0
    assert_contract(json.loads((tmp_path / "a.json").read_text()))
    assert "<svg" in (tmp_path / "a.html").read_text()
    said = done.stdout.splitlines()
    assert said[0] == "SIMULATED  draws, not those of a lottery"
    assert any(line.startswith("Verdict    SIMULATED draws, not those of a lottery; evidence of skill") for line in said)
    assert any("1 in 292,201,338" in line for line in said)


@pytest.mark.slow
def test_equal_seeds_give_equal_models(home, draws):
    runs = [json.loads(helios("run", "--data", draws, "--seed", 3, "--json", "-").stdout) for _ in range(2)]
    assert runs[0]["model"]["sha256"] == runs[1]["model"]["sha256"]
    assert runs[0]["evaluation"] == runs[1]["evaluation"]
    assert [run["model"]["version"] for run in runs] == [1, 2]


@pytest.mark.slow
def test_without_a_file_the_sample_comes_with_a_notice(home):
    done = helios("run", "--json", "-")
    assert done.returncode == 0
    assert "SIMULATED DRAWS" in done.stderr and "You named no file" in done.stderr
    assert "Draws      not updated: no source could be used" in done.stderr
    result = json.loads(done.stdout)
    assert result["draws"]["simulated"] and any("SIMULATED" in notice for notice in result["notices"])


@pytest.mark.slow
def test_offline_asks_nobody(home, draws):
    for words in (("--offline",), ("--data", draws)):
        assert "updated" not in helios("run", *words, "--json", "-").stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real draws is not here")
@pytest.mark.slow
def test_real_draws_are_told_the_truth_about(home):
    """1,390 draws of the current era; nothing has ever been found in them, and nothing may be claimed."""
    result = json.loads(helios("run", "--data", SHARED / "draws.csv", "--offline", "--json", "-").stdout)
    assert_contract(result)
    assert (result["draws"]["n"], result["draws"]["missing"], result["draws"]["simulated"]) == (3838, [], False)
    assert (result["draws"]["first"], result["draws"]["last"]) == ("1992-04-22", "2026-08-05")
    assert result["baseline_nats"] == pytest.approx(19.492954, abs=1e-6)
    assert result["evaluation"]["n"] == 268
    assert result["forecast"]["draw_date"] == "2026-08-08"
    assert result["verdict"].startswith("no skill")
    current = {t["test"]: t for t in result["audit"]["tests"] if t["era"] == "2015-10-07"}
    assert current["white_singles"]["statistic"] == pytest.approx(85.124, abs=5e-4)
    assert current["powerball_singles"]["p"] == pytest.approx(0.484, abs=5e-4)


@pytest.mark.parametrize(("content", "said"), [
    (None, "cannot be read"), (b"", "the file is empty"), (b"\0\1\2", "the file is binary"),
    (b"a,b\n1,2\n", "known formats"), (b"draw_date,w1,w2,w3,w4,w5\n2026-01-03,1,2,3,4,5\n", "'powerball' is missing"),
    (b"draw_date,w1,w2,w3,w4,w5,powerball\n2026-01-03,1,2,3,4,70,5\n", "white 70 is outside 1 to 69"),
    (b"draw_date,w1,w2,w3,w4,w5,powerball\n2026-01-03,1,2,3,4,5,5\n", "to train on"),
])
def test_bad_input_is_one_line_and_status_2(home, tmp_path, content, said):
    if content is not None:
        (tmp_path / "bad.csv").write_bytes(content)
    done = helios("run", "--data", tmp_path / "bad.csv")
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
    assert "bad.csv" in done.stderr or "to train on" in said


@pytest.mark.parametrize("words", [
    ["run", "--preset", "fast"], ["run", "--seed", "-1"], ["run", "--seed", "x"], ["fly"], ["run", "--jsno", "-"],
    ["run", "--json", "no/such/folder/a.json"], ["run", "--report", "."], ["run", "--json", "-", "--report", "-"], ["run", "--json", "a.txt", "--report", "a.txt"],
])
def test_wrong_usage_is_status_2(home, words):
    done = helios(*words)
    assert done.returncode == 2 and done.stderr and "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_one_line_and_status_1(draws, tmp_path):
    (tmp_path / "file").write_text("")
    done = helios("run", "--data", draws, env=os.environ | {"HELIOS_HOME": str(tmp_path / "file")})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("helios: ")


def test_ctrl_c_leaves_nothing_half_written_and_says_how_to_go_on(home, draws, tmp_path):
    command = [HELIOS, "run", "--data", str(draws), "--preset", "full", "--json", str(tmp_path / "a.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        for line in run.stderr:
            if line.startswith("Draws"):     # the draws are read, training follows
                run.send_signal(signal.SIGINT)
                break
        said = run.stderr.read()
        assert run.wait(60) == 1
    assert "nothing is half-written" in said and f"helios run --data {draws}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "a.json").exists()
    assert not list(home.rglob("*.part")) and not list(home.glob("models/*"))


def test_version_and_help():
    assert helios("--version").stdout == "helios, version 0.1.0\n"
    assert "run" in helios("--help").stdout
    assert "--report FILE.html" in helios("run", "--help").stdout


def test_lab_passes_words_on_to_jupyterlab(home):
    """The folder is shown, and JupyterLab itself answers."""
    done = helios("lab", "--version")
    assert done.returncode == 0 and done.stdout.strip()[0].isdigit()
    assert "nbs" in done.stderr or "notebooks" in done.stderr


def test_a_database_url_that_is_none_is_one_line_and_makes_no_file(home, draws, tmp_path):
    done = helios("run", "--data", draws, cwd=tmp_path, env=os.environ | {"HELIOS_DATABASE_URL": "nonsense"})
    assert done.returncode == 1 and "'nonsense', which is no URL" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "nonsense").exists()


def test_two_paths_of_one_file_are_refused_and_the_input_survives(home, draws):
    before = draws.read_bytes()
    for words in (["--report", draws], ["--json", draws.parent / "." / draws.name]):
        done = helios("run", "--data", draws, *words)
        assert done.returncode == 2 and "name two files" in done.stderr
    assert draws.read_bytes() == before


@pytest.mark.slow
def test_a_pipe_is_written_into_and_stays_a_pipe(home, draws, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert helios("run", "--data", draws, "--json", tmp_path / "pipe").returncode == 0
        assert_contract(json.loads(reader.stdout.read()))
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(("first", "n", "said"), [("2002-01-02", 80, "opens 5/53"), ("9999-06-01", 91, "no Powerball draw is due")])
def test_a_history_whose_next_draw_cannot_be_forecast_is_refused_at_once(home, tmp_path, first, n, said):
    """The last draws before a new matrix (2002-10-09), and the last of the calendar."""
    write_draws(simulate(n=n, seed=1, first=date.fromisoformat(first)), tmp_path / "draws.csv")
    done = helios("run", "--data", tmp_path / "draws.csv")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
