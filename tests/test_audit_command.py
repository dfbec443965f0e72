"""`helios audit`: keys, the record of its monitor, and errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helios.cli import main
from helios.draws import read_draws, simulate, write_draws
from helios.fairness import TESTS
from helios.monitor import Monitor

SHARED = Path(__file__).resolve().parents[2] / "shared/data/powerball"
KEYS = ["test", "n", "statistic", "df", "p", "p_holm", "p_bh"]


def run(*words, status=0):
    done = CliRunner().invoke(main, ["audit", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done


def result(*words):
    return json.loads(run(*words, "--json", "-").stdout)


@pytest.fixture
def draws(tmp_path):
    write_draws(simulate(n=1390, seed=1), path := tmp_path / "draws.csv")
    return path


@pytest.fixture
def own(home):
    """An own history: the first 400 of 450 draws."""
    home.mkdir()
    write_draws(simulate(n=450, seed=2)[:400], home / "draws.csv")
    return home


def test_keys(draws, home):
    found, detectable_keys = result("--data", draws), {"era", "white_ball_bias", "powerball_bias"}
    assert {"tests", "detectable", "monitor", "verdict"} <= set(found)
    assert detectable_keys <= set(found["detectable"][0])
    assert [t["test"] for t in found["tests"]] == [t.__name__ for t in TESTS if t.__name__ != "draw_order"]
    for test in found["tests"]:
        assert test["era"] == "2015-10-07" and set(KEYS) <= set(test) and 0 <= test["p"] <= test["p_holm"] <= 1
    [detectable] = found["detectable"]
    assert detectable["era"] == "2015-10-07" and 1.5 < detectable["white_ball_bias"] < detectable["powerball_bias"] < 1.8
    assert detectable["white_ball_bias"] < detectable["white_ball_bias_corrected"] < 1.9
    assert {"white_e", "powerball_e"} <= set(found["monitor"])
    assert found["verdict"].startswith("SIMULATED draws") and not home.exists()


def test_a_planted_bias_is_found_and_said(tmp_path, home):
    write_draws(simulate(n=1390, seed=1, white_weights={7: 3}, follow=0.3), path := tmp_path / "planted.csv")
    found = result("--data", path)
    assert min(t["p_holm"] for t in found["tests"]) < 1e-6
    assert found["monitor"]["white_e"] > 1e6 and found["monitor"]["powerball_e"] > 1e6
    assert "depart from fair ones" in found["verdict"] and found["monitor"]["both_e"] > 1e6 and "evidence against fair draws at 5%" in found["verdict"]
    assert "ball 7" in found["verdict"] and "the last powerball plus 1" in found["verdict"]


def test_the_table_for_people(draws, home):
    done = run("--data", draws)
    lines = done.stdout.splitlines()
    assert lines[0] == "5/69+1/26, from 2015-10-07" and lines[-1].startswith("Verdict    SIMULATED")
    assert sum(name.__name__.replace("_", " ") in "\n".join(lines) for name in TESTS) == len(TESTS)
    assert "SIMULATED DRAWS" in done.stderr


def test_the_own_history_has_a_record_that_runs_on(own):
    first = result()["monitor"]
    record = own / "monitor.json"
    assert json.loads(record.read_text())["n"] == 400
    write_draws(simulate(n=450, seed=2), own / "draws.csv")
    second = result()["monitor"]
    whole = Monitor().extend(read_draws(own / "draws.csv")[0])
    assert second["n"] == 450 and second["white_e"] == pytest.approx(whole.white_e) and second["white_e"] != first["white_e"]


def test_a_record_is_never_made_anew_by_itself(own):
    run()
    before = (own / "monitor.json").read_bytes()
    write_draws(simulate(n=400, seed=3), own / "draws.csv")
    done = run()
    said = done.stderr.splitlines()[-1]
    assert said.startswith("helios: the monitor's record stays as it is") and "differ first in 2015-10" in said
    assert "--rebuild-record" in said and (own / "monitor.json").read_bytes() == before
    afresh = Monitor().extend(read_draws(own / "draws.csv")[0])
    assert result()["monitor"]["white_e"] == pytest.approx(afresh.white_e)
    assert "differ first" in run("--record", own / "monitor.json", status=2).stderr
    assert result("--rebuild-record")["monitor"]["rebuilt"] == 1


def test_a_named_file_leaves_no_record_unless_one_is_named(own, draws, tmp_path):
    run("--data", draws)
    assert not (own / "monitor.json").exists()
    run("--data", draws, "--record", tmp_path / "mine.json")
    assert json.loads((tmp_path / "mine.json").read_text())["n"] == 1390
    assert "no record is kept" in run("--data", draws, "--rebuild-record", status=2).stderr


@pytest.mark.parametrize("words, said", [
    (["--data", "/no/such/file"], "cannot be read"), (["--alpha", "0"], "--alpha"), (["--alpha", "0.8"], "--alpha"),
    (["--json", "/no/such/folder/x.json"], "there is no folder"), (["--era", "x"], "No such option")])
def test_what_cannot_be_done(home, words, said):
    done = run(*words, status=2)
    assert said in done.stderr and not done.stdout


def test_one_file_for_two_things_is_refused(home, draws):
    before = draws.read_bytes()
    for option in ("--json", "--record"):
        assert "name two files" in run("--data", draws, option, draws, status=2).stderr
    assert draws.read_bytes() == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real draws are not here")
def test_the_real_draws(home):
    """In front of a statistician: 44 tests, no alarm, and what could have been missed."""
    found = result("--data", SHARED / "draws.csv")
    assert len(found["tests"]) == 44 and min(t["p_holm"] for t in found["tests"]) > 0.5
    assert [d["era"] for d in found["detectable"]] == [
        "1992-04-22", "1997-11-05", "2002-10-09", "2005-08-31", "2009-01-07", "2012-01-18", "2015-10-07"]
    now = {t["test"]: t for t in found["tests"] if t["era"] == "2015-10-07"}
    assert (now["white_singles"]["statistic"], now["white_singles"]["df"]) == (pytest.approx(85.124, abs=5e-4), 68)
    assert now["power_play"]["n"] == 1370 and found["detectable"][-1]["white_ball_bias"] == pytest.approx(1.62, abs=0.005)
    assert found["monitor"]["white_e"] == pytest.approx(0.0106, abs=1e-4) and "SIMULATED" not in found["verdict"]
    assert found["verdict"].startswith("Nothing unusual: no departure from fair draws was found at level 5% after Holm over 44 tests")
    assert "the white of 5/59+1/39 on 2010-12-01 (44.5 at its highest, 7.27 at its end)" in found["verdict"]


@pytest.mark.parametrize("name", ["draws.csv", "draws_sources.json", "monitor.json", "draws.lock", "helios_memory.db", "models/x.json"])
@pytest.mark.parametrize("words", [["audit", "--json"], ["simulate", "--out"], ["ev", "--jackpot-cash", "1", "--tickets-sold", "1", "--json"]])
def test_what_helios_keeps_is_no_place_for_output(own, name, words, tmp_path):
    before = (own / "draws.csv").read_bytes()
    (own / "models").mkdir()
    (tmp_path / "link").symlink_to(own / name)
    for place in (own / name, tmp_path / "link"):
        done = CliRunner().invoke(main, [*words, str(place)])
        assert done.exit_code == 2 and "Helios keeps for itself" in done.stderr
    assert (own / "draws.csv").read_bytes() == before and not (own / "monitor.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["simulate", "--draws", "1000"], ["--help"], ["ev", "--jackpot-cash", "1", "--tickets-sold", "1"]])
def test_a_full_disk_behind_standard_output_is_one_line(home, words):
    command = [str(Path(sys.executable).with_name("helios")), *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "helios: standard output cannot be written (No space left on device); write to another place\n"
