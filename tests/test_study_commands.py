"""`helios simulate` and `helios ev`, and what `helios selftest` refuses: files, streams, statuses, keys.

The whole of `helios selftest --quick` runs once, in test_selftest.py.
"""

import json
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner

from helios.cli import main
from helios.draws import balls, read_draws
from helios.draws import simulate as simulated
from helios.study_commands import Day, Weights, weights_in

HELIOS = Path(sys.executable).with_name("helios")
MARK = "# SIMULATED by Helios: these draws come from a random number generator, not from a lottery"


def run(*words):
    """The command in this process; standard output and standard error apart."""
    return CliRunner().invoke(main, [str(word) for word in words])


def assert_refused(done, *said):
    """Status 2, nothing on standard output, one line of ours or click's usage, and no traceback."""
    assert done.exit_code == 2 and done.stdout == ""
    assert isinstance(done.exception, SystemExit)
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("helios: ") and all(part in last for part in said), last
    assert done.stderr.count("\n") == 1


# simulate

OPTIONS = [
    ((), {}),
    (("--seed", "5"), {"seed": 5}),
    (("--first", "2014-02-01"), {"first": date(2014, 2, 1)}),
    (("--white", "7=50,12=1.5"), {"white_weights": {7: 50.0, 12: 1.5}}),
    (("--powerball", "4=9"), {"powerball_weights": {4: 9.0}}),
    (("--follow", "0.7"), {"follow": 0.7}),
    (("--repeat", "6"), {"repeat": 6.0}),
    (("--repeat", "3=40,9=0.1"), {"repeat": {3: 40.0, 9: 0.1}}),
    (("--follow", "1", "--since", "2016-01-20"), {"follow": 1.0, "since": date(2016, 1, 20)}),
    (("--seed", "2", "--first", "2015-09-01", "--white", "7=2", "--powerball", "1=3", "--follow", "0.2", "--repeat", "2",
      "--since", "2015-10-01"),
     {"seed": 2, "first": date(2015, 9, 1), "white_weights": {7: 2.0}, "powerball_weights": {1: 3.0}, "follow": 0.2,
      "repeat": 2.0, "since": date(2015, 10, 1)}),
]


@pytest.mark.parametrize(("words", "given"), OPTIONS, ids=[" ".join(words) or "none" for words, _ in OPTIONS])
def test_the_file_holds_what_the_library_simulates(words, given, tmp_path):
    out, keys = tmp_path / "s.csv", tmp_path / "s.json"
    done = run("simulate", "--draws", 60, *words, "--out", out, "--json", keys)
    assert done.exit_code == 0 and done.stdout == "" and done.stderr == f"Written    {out}: 60 SIMULATED draws\n"
    expected = simulated(n=60, **given)
    read, report = read_draws(out, today=date(2030, 1, 1))
    assert report.simulated and not report.set_aside and read.attrs["simulated"]
    pd.testing.assert_frame_equal(read, expected)
    printed = run("simulate", "--draws", 60, *words)
    assert printed.exit_code == 0 and printed.stderr == "" and printed.stdout == out.read_text()
    result = json.loads(keys.read_text())
    days = expected.draw_date.dt.date.astype(str)
    assert list(result) == ["n", "seed", "first", "last", "bias", "file"]
    assert (result["n"], result["seed"], result["file"]) == (60, given.get("seed", 0), str(out))
    assert (result["first"], result["last"]) == (days.iloc[0], days.iloc[-1])
    bias = {"white_weights": {}, "powerball_weights": {}, "follow": 0.0, "repeat": 1.0, "since": None}
    bias |= {key: value for key, value in given.items() if key in bias}
    assert result["bias"] == json.loads(json.dumps(bias, default=str))


def test_the_defaults_are_fair_draws_under_the_current_rules(tmp_path):
    run("simulate", "--out", tmp_path / "s.csv")
    read, _ = read_draws(tmp_path / "s.csv", today=date(2030, 1, 1))
    pd.testing.assert_frame_equal(read, simulated())
    assert len(read) == 1390 and read.draw_date.iloc[0] == pd.Timestamp("2015-10-07")


def test_the_note_makes_the_same_file_again(tmp_path):
    words = ["simulate", "--draws", "40", "--seed", "9", "--white", "7=2, 12=1.5", "--since", "2015-11-01", "--repeat", "3=4"]
    first = subprocess.run([HELIOS, *words], capture_output=True, text=True)
    assert first.returncode == 0 and first.stderr == ""
    mark, note, header = first.stdout.splitlines()[:3]
    assert mark == MARK and note == "# " + shlex.join(["helios", *words]) and header.startswith("draw_date,white_1,")
    command = shlex.split(note.removeprefix("# "))
    assert command == ["helios", *words]
    again = subprocess.run([HELIOS, *command[1:]], capture_output=True, text=True)
    assert again.stdout == first.stdout
    read = tmp_path / "again.csv"
    read.write_text(first.stdout)
    drawn, _ = read_draws(read, today=date(2030, 1, 1))
    expected = simulated(n=40, seed=9, white_weights={7: 2.0, 12: 1.5}, since=date(2015, 11, 1), repeat={3: 4.0})
    assert (balls(drawn)[0] == balls(expected)[0]).all() and (balls(drawn)[1] == balls(expected)[1]).all()


def test_no_draws():
    done = run("simulate", "--draws", 0)
    assert done.exit_code == 0 and done.stdout.splitlines()[0] == MARK
    assert done.stdout.splitlines()[-1].startswith("draw_date,")


def test_no_draws_have_no_days(tmp_path):
    run("simulate", "--draws", 0, "--out", tmp_path / "s.csv", "--json", tmp_path / "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["n"], result["first"], result["last"]) == (0, None, None)


def test_json_on_standard_output_beside_a_file(tmp_path):
    done = run("simulate", "--draws", 5, "--out", tmp_path / "s.csv", "--json", "-")
    assert json.loads(done.stdout)["n"] == 5 and done.stderr.startswith("Written    ")
    done = run("simulate", "--draws", 5, "--json", tmp_path / "s.json")
    assert done.stdout.startswith(MARK) and json.loads((tmp_path / "s.json").read_text())["file"] is None


def test_an_existing_file_is_replaced_whole(tmp_path):
    out = tmp_path / "s.csv"
    for n in (50, 3):
        assert run("simulate", "--draws", n, "--out", out).exit_code == 0
        assert len(read_draws(out, today=date(2030, 1, 1))[0]) == n
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]


@pytest.mark.parametrize(("words", "said"), [
    (["--draws", "-1"], "--draws"), (["--draws", "many"], "--draws"), (["--seed", "-1"], "--seed"),
    (["--first", "2015-13-01"], "'2015-13-01' is not a date like"), (["--since", "soon"], "'soon' is not a date like"),
    (["--first", "9999-12-30"], "0 of 3 draws are due from 9999-12-30 on; begin earlier"),
    (["--white", ""], "is not like 7=2,12=1.5"), (["--white", "7"], "is not like 7=2,12=1.5"),
    (["--white", "7=2,"], "is not like 7=2,12=1.5"), (["--white", "7=2=3"], "is not like 7=2,12=1.5"),
    (["--white", "seven=2"], "is not like 7=2,12=1.5"), (["--white", "7.5=2"], "is not like 7=2,12=1.5"),
    (["--white", "70=2"], "white 70 is not a ball from 1 to 69"), (["--white", "0=2"], "white 0 is not a ball"),
    (["--white", "7=0"], "weight 0.0 of white 7"), (["--white", "7=-2"], "weight -2.0 of white 7"),
    (["--white", "7=nan"], "weight nan of white 7"), (["--white", "7=inf"], "weight inf of white 7"),
    (["--white", "60=2", "--first", "1999-01-01"], "white 60 is not a ball from 1 to 49"),
    (["--powerball", "27=2"], "powerball 27 is not a ball from 1 to 26"), (["--powerball", "3"], "is not like 7=2,12=1.5"),
    (["--follow", "1.1"], "chance 1.1"), (["--follow", "-0.1"], "chance -0.1"), (["--follow", "nan"], "chance nan"),
    (["--follow", "often"], "--follow"), (["--repeat", "0"], "weight 0.0"), (["--repeat", "nan"], "weight nan"),
    (["--repeat", "70=2"], "white 70 is not a ball"), (["--repeat", "two"], "is not like 3 or 7=2,12=1.5"),
    (["--out", "/no/such/place.csv"], "there is no folder /no/such"), (["--out", "/"], "is a folder"),
    (["--json", "/no/such/place.json"], "there is no folder /no/such"), (["--json", "-", "--out", "-"], "--out and --json are both -"),
    (["more"], "unexpected extra argument"), (["--heavy", "7"], "No such option"),
])
def test_what_cannot_be_simulated(words, said):
    assert_refused(run("simulate", "--draws", 3, *words), said)


def test_a_refusal_writes_no_file(tmp_path):
    for words in (["--white", "70=2"], ["--follow", "2"], ["--first", "9999-12-30"], ["--json", "/no/such/place"]):
        assert_refused(run("simulate", "--draws", 3, "--out", tmp_path / "s.csv", *words))
        assert list(tmp_path.iterdir()) == []


def test_one_file_by_two_paths_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run("simulate", "--draws", 3, "--out", "./s.csv", "--json", "s.csv"))


def test_two_weights_of_one_ball_are_refused():
    assert_refused(run("simulate", "--draws", 3, "--white", "7=2,7=3"))


def test_more_draws_than_the_calendar_has():
    done = run("simulate", "--draws", 2_000_000)
    assert_refused(done, "begin earlier")
    assert "None" not in done.stderr


@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_too_large_to_add():
    assert_refused(run("simulate", "--draws", 3, "--powerball", "1=1e308,2=1e308"))


@pytest.mark.filterwarnings("error")
def test_weights_too_small_to_divide_by():
    done = run("simulate", "--draws", 3, "--white", "1=1e-320")
    assert done.exit_code in (0, 2) and isinstance(done.exception, SystemExit | None)


# Words of an option

def test_weights_of_an_option():
    assert weights_in("7=2,12=1.5") == {7: 2.0, 12: 1.5} and weights_in(" 7 = 2 ") == {7: 2.0}
    for text in ("", "7", "=2", "7=", "7=2,", ",7=2", "7=2;8=3", "a=1", "1=b", "7=2=2"):
        with pytest.raises(ValueError):
            weights_in(text)


def test_kinds_of_words():
    assert Weights(bare=True).convert("3", None, None) == 3.0 and Weights(bare=True).convert("3=2", None, None) == {3: 2.0}
    assert Weights().convert({3: 2.0}, None, None) == {3: 2.0} and Weights(bare=True).convert(1.0, None, None) == 1.0
    assert Day().convert("2026-08-05", None, None) == date(2026, 8, 5) == Day().convert(date(2026, 8, 5), None, None)
    for kind, text in ((Weights(), "3"), (Weights(bare=True), "x"), (Weights(bare=True), "3=x"), (Day(), "05.08.2026")):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


# ev

EV = ["ev", "--jackpot-cash", "1e8", "--date", "2026-08-05"]
EV_KEYS = ["game", "era", "draw_date", "price", "fixed", "jackpot", "total", "expected_loss", "share", "co_winners",
           "break_even_cash", "jackpot_cash", "tax", "jackpot_odds", "tickets_sold", "tickets_sold_ci95", "power_play",
           "ten_on_wheel", "ticket", "year", "assumptions"]


def refuse_constant(word):
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.parametrize("words", [
    ["--tickets-sold", "5e7"], ["--tickets-sold", "0"], ["--winners", "1000000"], ["--winners", "0"], ["--coverage", "0.2"],
    ["--coverage", "0"], ["--tickets-sold", "5e7", "--tax", "1"], ["--tickets-sold", "5e7", "--power-play"],
    ["--tickets-sold", "5e7", "--power-play", "--no-ten"], ["--tickets-sold", "1e12", "--tax", "0.37"],
    ["--tickets-sold", "5e7", "--power-play", "--advertised", "2e8", "--ticket", "3 17 29 44 60 7"]])
def test_worth_of_a_ticket_as_json(words):
    done = run(*EV, *words, "--json", "-")
    assert done.exit_code == 0 and done.stderr == ""
    result = json.loads(done.stdout, parse_constant=refuse_constant)
    assert list(result) == EV_KEYS and result["draw_date"] == "2026-08-05"
    assert result["fixed"] == pytest.approx(3594848 / 11238513) or "--power-play" in words
    assert result["total"] == pytest.approx(result["fixed"] + result["jackpot"])
    assert result["expected_loss"] == pytest.approx(result["price"] - result["total"])
    assert result["price"] == (3 if "--power-play" in words else 2) and 0 < result["share"] <= 1
    assert result["jackpot"] == pytest.approx(1e8 * (1 - result["tax"]) * result["share"] / 292_201_338)


def test_worth_in_words_and_in_a_file_agree(tmp_path):
    out = tmp_path / "ev.json"
    plain, both = run(*EV, "--tickets-sold", "5e7"), run(*EV, "--tickets-sold", "5e7", "--json", out)
    assert plain.exit_code == both.exit_code == 0 and plain.stdout == both.stdout and plain.stdout.startswith("Draw")
    assert json.loads(out.read_text()) == json.loads(run(*EV, "--tickets-sold", "5e7", "--json", "-").stdout)


@pytest.mark.parametrize(("words", "said"), [
    ([], "give just one of tickets sold, winners"), (["--tickets-sold", "1", "--winners", "1"], "give just one"),
    (["--tickets-sold", "-1"], "tickets sold -1.0"), (["--tickets-sold", "nan"], "tickets sold nan"),
    (["--winners", "2.5"], "give a whole number"), (["--winners", "inf"], "winners inf"), (["--coverage", "1"], "below 1"),
    (["--coverage", "nan"], "coverage nan"), (["--tickets-sold", "1", "--tax", "1.5"], "tax 1.5"),
    (["--tickets-sold", "1", "--jackpot-cash", "nan"], "jackpot cash nan"),
    (["--tickets-sold", "1", "--jackpot-cash", "inf"], "jackpot cash inf"),
    (["--tickets-sold", "1", "--jackpot-cash", "-1"], "jackpot cash -1"),
    (["--tickets-sold", "1", "--date", "1990-01-01"], "1990-01-01"), (["--tickets-sold", "1", "--date", "9999-12-31"], "9999-12-31"),
    (["--tickets-sold", "1", "--date", "today"], "'today' is not a date"), (["--tickets-sold", "1", "--ticket", "1 2 3"], "'1 2 3'"),
    (["--tickets-sold", "1", "--ticket", "1 1 2 3 4 5"], "twice"), (["--tickets-sold", "1", "--popularity", "/no/such.csv"], "ticket"),
    (["--tickets-sold", "1", "--popularity", "/no/such.csv", "--ticket", "1 2 3 4 5 6"], "/no/such.csv"),
    (["--tickets-sold", "1", "--tickets-a-draw", "0"], "--tickets-a-draw"), (["--tickets-sold", "1", "--advertised", "5"], "advertised"),
    (["--tickets-sold", "1", "--json", "/no/such/place"], "there is no folder /no/such"),
])
def test_worth_that_cannot_be_stated(words, said):
    assert_refused(run(*EV, *words), said)


def test_the_jackpot_is_asked_for():
    assert_refused(run("ev", "--tickets-sold", "1"), "--jackpot-cash")


def test_popularity_and_json_in_one_file_are_refused(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("drum,ball,weight\n")
    assert_refused(run(*EV, "--tickets-sold", "1", "--ticket", "1 2 3 4 5 6", "--popularity", file, "--json", file), "name two files")
    assert file.read_text() == "drum,ball,weight\n"


# selftest

@pytest.mark.parametrize("words", [["--jobs", "0"], ["--jobs", "65"], ["--jobs", "two"], ["--json", "/no/such/place"], ["--json", "/"],
                                   ["all"], ["--seeds", "3"]])
def test_selftests_that_are_refused_before_the_work(words):
    assert_refused(run("selftest", "--quick", *words))


@pytest.mark.parametrize("loud", [False, True])
def test_status_and_streams_of_a_selftest(loud, monkeypatch, tmp_path):
    """With trials made by hand in place of the work."""
    import helios.selftest as module

    def made(todo, jobs, on_done):
        assert jobs == 3
        for history in todo:
            on_done(history)
        return [module.Trial(h.bias, h.n, h.seed, "steps", 0.1, 0.2, 0.1, 1.0 if (h.bias == module.FAIR) is not loud else 1e6)
                for h in todo]

    monkeypatch.setattr(module, "run_all", made)
    done = run("selftest", "--quick", "--jobs", 3, "--json", tmp_path / "s.json")
    assert done.exit_code == (1 if loud else 0) and done.stderr == ""
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["passed"] is not loud and done.stdout.splitlines()[-1] == f"Verdict    {result['verdict']}"
    alone = run("selftest", "--quick", "--jobs", 3, "--json", "-")
    assert alone.exit_code == done.exit_code and json.loads(alone.stdout) == result


def test_a_selftest_that_is_stopped_writes_nothing(monkeypatch, tmp_path):
    import helios.selftest as module

    def stopped(todo, jobs, on_done):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_all", stopped)
    done = run("selftest", "--quick", "--json", tmp_path / "s.json")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "helios: stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_json_on_standard_output_stands_there_alone(tmp_path):
    assert json.loads(run("simulate", "--draws", 3, "--json", "-").stdout)["n"] == 3
    done = run("simulate", "--draws", 3, "--json", "-", "--out", tmp_path / "s.csv")
    assert json.loads(done.stdout)["file"] == str(tmp_path / "s.csv") and (tmp_path / "s.csv").is_file()


def test_a_bias_that_never_begins_is_said():
    assert "nothing is planted" in run("simulate", "--draws", 3, "--follow", "1", "--since", "2100-01-01").stderr
    assert "nothing is planted" not in run("simulate", "--draws", 3, "--follow", "1").stderr
