"""The commands `helios data`: what they print where, exit statuses, JSON keys, files."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from pandas.testing import assert_frame_equal

from helios.data_commands import data
from helios.draws import read_draws, simulate, write_draws

SHARED = Path(__file__).resolve().parents[2] / "shared/data/powerball"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real draws are not here")
CHECKED = {"rows", "set_aside", "missing", "duplicates", "conflicts", "source", "format", "origin", "future", "off_calendar", "agreement"}
HEADER = "draw_date,w1,w2,w3,w4,w5,powerball,multiplier"
GOOD = ["2026-07-29,1,2,3,4,5,6,", "2026-08-01,11,12,13,14,15,16,2", "2026-08-03,21,22,23,24,25,26,3"]
NY = "Draw Date,Winning Numbers,Multiplier\n07/29/2026,01 02 03 04 05 06,4\n08/01/2026,11 12 13 14 15 16,5\n"


def run(*words, status: int = 0):
    """The command's standard output and standard error."""
    done = CliRunner().invoke(data, [*map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    if status:
        assert not done.stdout
    return done.stdout, done.stderr


def result(*words):
    """The JSON on standard output, which must hold nothing else."""
    return json.loads(run(*words, "--json", "-")[0])


@pytest.fixture
def write(tmp_path):
    def write(content, name="mine.csv") -> Path:
        text = "\n".join([HEADER, *content]) + "\n" if isinstance(content, list) else content
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return write


@pytest.fixture
def own(home, write) -> Path:
    """An own history of three draws."""
    run("import", write(GOOD))
    return home / "draws.csv"


def one_line(said: str) -> str:
    assert said.startswith("helios: ") and said.count("\n") == 1, said
    return said


# Without a history, with files that cannot be used

@pytest.mark.parametrize("words", [["show"], ["check"], ["export", "-"], ["show", "--date", "2026-08-01"]])
def test_no_history_yet(home, words):
    said = one_line(run(*words, status=2)[1])
    assert "helios data update" in said and "helios data import" in said and not home.exists()


UNUSABLE = {"missing": None, "binary": b"PK\x03\x04" + bytes(100), "empty": b"", "header alone": HEADER.encode() + b"\n",
            "other text": b"Dear customer,\nwe regret\n", "UTF-16": "draw_date".encode("utf-16")}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("verb", ["check", "import", "show", "export"])
def test_a_file_that_cannot_be_used_is_one_line(own, tmp_path, verb, content):
    before, path = own.read_bytes(), tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    words = {"show": ["show", "--data", path], "export": ["export", "-", "--data", path]}.get(verb, [verb, path])
    assert "bad.csv" in one_line(run(*words, status=2)[1]) and own.read_bytes() == before


@pytest.mark.parametrize("verb", ["check", "import"])
def test_200_mb_are_one_line(home, tmp_path, verb):
    path = tmp_path / "huge.csv"
    with path.open("wb") as file:
        file.write(HEADER.encode() + b"\n")
        file.truncate(200 * 2**20)      # a hole, which takes no disk
    assert "huge.csv" in one_line(run(verb, path, status=2)[1])


def test_a_second_file_that_cannot_be_used(own, write):
    assert "none.csv" in one_line(run("check", write(GOOD), "none.csv", status=2)[1])
    assert "none.csv" in one_line(run("import", write(GOOD), "none.csv", status=2)[1])


def test_an_output_that_cannot_be_written_is_refused_first(home, write):
    for words in (["import", write(GOOD)], ["check", write(GOOD)], ["update"]):
        assert "there is no folder" in one_line(run(*words, "--json", "none/out.json", status=2)[1])
    assert not home.exists()


@pytest.mark.parametrize("words", [["show", "--data", "mine.csv", "--json", "mine.csv"], ["check", "mine.csv", "--json", "mine.csv"],
                                   ["check", "ny.csv", "mine.csv", "--json", "mine.csv"], ["import", "ny.csv", "mine.csv", "--json", "mine.csv"],
                                   ["export", "--data", "mine.csv", "mine.csv"], ["show", "--data", "mine.csv", "--json", "link.csv"],
                                   ["check", "mine.csv", "--json", "./ny.csv/../mine.csv"]], ids=" ".join)
def test_an_output_never_replaces_an_input(own, write, tmp_path, words, monkeypatch):
    mine, before = write(GOOD), own.read_bytes()
    write(NY, "ny.csv")
    (tmp_path / "link.csv").symlink_to(mine)
    monkeypatch.chdir(tmp_path)
    said, kept = one_line(run(*words, status=2)[1]), mine.read_bytes()
    assert "name two files" in said and kept == ("\n".join([HEADER, *GOOD]) + "\n").encode() and own.read_bytes() == before


@pytest.mark.parametrize("words", [["show"], ["export", "-"], ["check"], ["check", "mine.csv"], ["import", "mine.csv"], ["remove", "2026-08-01"]])
def test_a_home_that_is_a_file(home, write, tmp_path, words, monkeypatch):
    write(GOOD)
    home.write_text("")
    monkeypatch.chdir(tmp_path)
    assert "is a file, and the history needs a folder; set HELIOS_HOME" in one_line(run(*words, status=1)[1])


def test_a_reader_who_leaves_is_no_failure(own, tmp_path):
    write_draws(simulate(n=3000, seed=1), path := tmp_path / "many.csv")
    for words in (["show", "--last", "3000", "--data", path], ["export", "-", "--data", path], ["show", "--last", "3000", "--data", path, "--json", "-"]):
        code = "import sys; from helios.data_commands import data; data(sys.argv[1:])"
        with subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout.read(1)
            process.stdout.close()
            said = process.stderr.read().decode()
        assert process.returncode == 0 and "Error" not in said and "Traceback" not in said


# Import and update

def test_import_says_what_it_did(home, write):
    assert "your history holds 3 draws from 2026-07-29 to 2026-08-03" in run("import", write(GOOD))[0]
    said = result("import", write(NY, "ny.csv"))
    file, = said["files"]
    assert (file["added"], file["filled"], file["agreed"], said["draws"]["n"]) == ([], ["2026-07-29"], 1, 3)
    assert file["conflicts"] == [{"date": "2026-08-01", "source": "New York Open Data",
                                  "values": ["11 12 13 14 15 + 16, x2", "11 12 13 14 15 + 16, x5"]}]


def test_import_of_simulated_draws_says_so_and_stays_apart(home, write, tmp_path):
    write_draws(simulate(n=9, seed=1), path := tmp_path / "simulated.csv")
    assert "SIMULATED" in run("import", path)[1]
    assert "never merged" in one_line(run("import", write(GOOD), status=2)[1])
    assert read_draws(home / "draws.csv")[1].simulated


def test_import_leaves_out_what_contradicts_itself(home, write):
    text = run("import", write([*GOOD, "2026-08-03,21,22,23,24,25,1,3"]))[0]
    assert "not taken: 2026-08-03; correct the file" in text and "your history holds 2 draws" in text


# Remove

def test_remove_and_import_again(own, write):
    text = run("remove", "2026-08-01")[0]
    assert text.splitlines() == ["removed 2026-08-01: 11 12 13 14 15 + 16, x2", "your history holds 2 draws from 2026-07-29 to 2026-08-03"]
    assert [file["added"] for file in result("import", write(GOOD))["files"]] == [["2026-08-01"]]
    said = result("remove", "2026-08-01", "2026-07-29")
    assert [gone["date"] for gone in said["removed"]] == ["2026-07-29", "2026-08-01"] and said["draws"] == {"n": 1, "simulated": False}


def test_remove_of_what_is_not_stored(own):
    before = own.read_bytes()
    assert "no draw of 2026-08-05 is stored, nothing was removed" in one_line(run("remove", "2026-08-01", "2026-08-05", status=2)[1])
    for words in (["8/1/2026"], []):
        assert "remove --help says more" in one_line(run("remove", *words, status=2)[1])
    assert own.read_bytes() == before


def test_remove_says_what_becomes_of_the_monitor(own):
    from helios.record import watch
    assert "--rebuild-record" in run("remove", "--help")[0] and "--rebuild-record" not in run("remove", "2026-07-29")[0]
    watch(read_draws(own)[0])
    assert "helios audit --rebuild-record" in run("remove", "2026-08-03")[0]


def test_update_without_a_network(own, monkeypatch):
    before = own.read_bytes()
    monkeypatch.setenv("HELIOS_NY_URL", "file:///draws.csv")      # refused before anything is opened
    monkeypatch.setenv("HELIOS_TEXAS_URL", "nonsense")
    said = run("update", status=1)[1].splitlines()
    assert said[0].startswith("Fetching") and len(said) == 2 and "no source could be used" in said[1]
    assert own.read_bytes() == before


@pytest.fixture
def new_york(monkeypatch):
    """A function that puts a file of New York on a local server."""
    files = {}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            body = files["ny"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HELIOS_NY_URL", f"http://127.0.0.1:{server.server_port}/ny.csv")
    yield lambda text: files.update(ny=text)
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_an_update_hands_new_draws_to_the_record_of_the_monitor(own, new_york):
    from helios.monitor import Monitor
    from helios.record import watch
    new_york(NY)
    assert result("update")["monitor"] is None and not (own.parent / "monitor.json").exists()
    watch(read_draws(own)[0])
    new_york(NY + "08/05/2026,14 20 59 60 61 25,2\n")
    said = run("update")[0]
    assert "watched draw by draw, E is" in said
    record = Monitor.from_dict(json.loads((own.parent / "monitor.json").read_text()))
    assert (record.n, str(record.current.last)) == (4, "2026-08-05")


def test_a_record_that_does_not_fit_is_said_and_not_made_anew(own, new_york):
    from helios.record import watch
    watch(read_draws(own)[0][1:])
    before = (own.parent / "monitor.json").read_bytes()
    new_york(NY)
    assert "the monitor has not taken the new draws" in run("update")[0]
    assert (own.parent / "monitor.json").read_bytes() == before


# Show and export

def test_show(own):
    text = run("show")[0].splitlines()
    assert len(text) == 4 and text[-1].split() == "Mon 2026-08-03 21 22 23 24 25 26 x3 5/69+1/26".split()
    assert run("show", "--last", 1)[0].splitlines()[1:] == [text[-1], f"3 draws in {own}"]
    assert run("show", "--date", "2026-08-01")[0].splitlines()[1:] == [text[2]]


def test_show_as_json(own):
    said = result("show", "--last", 2)
    assert (said["n"], said["simulated"], len(said["draws"])) == (3, False, 2)
    assert said["draws"][0] == {"draw_date": "2026-08-01", "whites": [11, 12, 13, 14, 15], "powerball": 16, "multiplier": 2,
                                "drawn": None, "era": "5/69+1/26", "sources": []}


def test_show_tells_the_order_drawn_and_who_vouches(home, write):
    run("import", write("Powerball,8,1,2026,15,13,11,12,14,16,2\n", "texas.csv"))
    draw, = result("show")["draws"]
    assert (draw["whites"], draw["drawn"], draw["sources"]) == ([11, 12, 13, 14, 15], [15, 13, 11, 12, 14], ["Texas Lottery"])


@pytest.mark.parametrize("day, said", [("2026-08-02", "none was due that day"), ("2026-08-05", "one was due"), ("1980-01-02", "none was due")])
def test_show_a_date_without_a_draw(own, day, said):
    assert said in one_line(run("show", "--date", day, status=2)[1])


@pytest.mark.parametrize("words", [["--last", 0], ["--date", "8/1/2026"], ["--last", 1, "--date", "2026-08-01"]])
def test_show_with_wrong_usage(own, words):
    assert "show --help says more" in one_line(run("show", *words, status=2)[1])


def test_export_and_read_again(own, tmp_path):
    for words in ([tmp_path / "out.csv"], [tmp_path / "out", "--format", "csv"]):
        run("export", *words)
        assert_frame_equal(read_draws(words[0])[0], read_draws(own)[0])
    assert run("export", "-")[0] == own.read_text()
    run("export", tmp_path / "out.JSON")
    assert json.loads((tmp_path / "out.JSON").read_text())["draws"] == result("show")["draws"]
    assert json.loads(run("export", "-", "--format", "json")[0])["simulated"] is False


def test_export_needs_a_format_and_a_place(own, tmp_path):
    assert "--format csv or --format json" in one_line(run("export", tmp_path / "draws.xlsx", status=2)[1])
    assert "is a folder" in one_line(run("export", tmp_path, "--format", "csv", status=2)[1])


def test_help_says_what_is_taken_and_what_is_read_back():
    for verb in ("show", "export"):
        text = " ".join(run(verb, "--help")[0].split())
        assert "by default your own history." in text and "sample" not in text
    assert "CSV is what Helios reads back; JSON is for programs." in run("export", "--help")[0]


def test_an_exported_simulation_stays_one(home, tmp_path):
    write_draws(simulate(n=9, seed=1), path := tmp_path / "simulated.csv")
    assert "SIMULATED" in run("export", tmp_path / "again.csv", "--data", path)[1]
    assert read_draws(tmp_path / "again.csv")[1].simulated


# Check

def test_check_of_a_clean_history(own):
    said = result("check")
    assert set(said) >= CHECKED and said["rows"] == 3
    assert not any(said[key] for key in ("set_aside", "missing", "duplicates", "conflicts", "future", "off_calendar", "agreement"))
    assert "nothing is wrong with it" in run("check")[0]


def test_check_finds_what_is_wrong(home, write):
    path = write([*GOOD, "2026-08-03,21,22,23,24,25,1,3", "2026-08-01,11,12,13,14,15,16,2", "2026-07-22,1,2,3,4,70,6,", "2026-07-28,1,2,3,4,5,6,"])
    said = result("check", path)
    assert [set(s) for s in said["set_aside"]] == [{"line", "value", "reason"}] * 3
    assert [s["line"] for s in said["set_aside"]] == [5, 6, 7] and "white 70" in said["set_aside"][2]["reason"]
    assert (said["rows"], said["duplicates"], said["off_calendar"]) == (7, ["2026-08-03", "2026-08-01"], ["2026-07-28"])
    conflict, = said["conflicts"]
    assert conflict == {"date": "2026-08-03", "source": f"{path}, line 5",
                        "values": ["21 22 23 24 25 + 26, x3", "2026-08-03,21,22,23,24,25,1,3"]}
    text = run("check", path)[0]
    assert "conflict on 2026-08-03" in text and "nothing is wrong" not in text


def test_check_names_missing_and_future_draws(home, write):
    said = result("check", write([GOOD[0], GOOD[2], "2999-01-02,1,2,3,4,5,6,"]))
    assert (said["missing"], said["future"]) == (["2026-08-01"], ["2999-01-02"])


def test_check_compares_further_files_and_the_own_history(own, write):
    other = write(NY, "ny.csv")
    said = result("check", other)
    assert [(a["source"], a["common"], a["agreed"]) for a in said["agreement"]] == [("your own history", 2, 1)]
    assert [c["source"] for c in said["conflicts"]] == ["your own history"] and not said["agreement"][0]["against_independence"]
    said = result("check", write(GOOD, "again.csv"), other)
    assert [(a["source"], a["agreed"]) for a in said["agreement"]] == [(str(other), 1), ("your own history", 3)]
    assert [(c["date"], c["source"]) for c in said["conflicts"]] == [("2026-08-01", str(other))]
    assert "1 of 2 common dates agree" in run("check", other)[0]


def test_check_says_which_draws_are_simulated(own, write, tmp_path):
    write_draws(simulate(n=9, seed=1), path := tmp_path / "s.csv")
    for words, said in (([path], f"the draws of {path} are simulated, those of your own history are real"),
                        ([write(GOOD), path], f"the draws of {tmp_path / 'mine.csv'} are real, those of {path} are simulated"),
                        ([own, path], f"the draws of your own history are real, those of {path} are simulated")):
        assert result("check", *words)["agreement"][0]["against_independence"][0].startswith(said)


def test_check_names_the_mend_only_for_the_own_history(own, write):
    other, mend = write(NY, "ny.csv"), "if a stored draw is wrong: helios data remove DATE, then import again"
    assert mend in run("check", other)[0] and mend in run("check", own, other)[0]
    assert mend not in run("check", write(GOOD), other)[0]


def test_check_lists_recorded_conflicts_until_they_are_mended(own, write):
    run("import", write(NY, "ny.csv"))
    assert [(c["date"], c["source"]) for c in result("check")["conflicts"]] == [("2026-08-01", "New York Open Data")]
    assert result("check")["confirmed_by"] == {"New York Open Data": 1}
    own.write_text(own.read_text().replace("15,16,2", "15,16,5"))
    assert result("check")["conflicts"] == []


def test_check_of_the_own_history_by_name_is_not_compared_with_itself(own):
    said = result("check", own)
    assert said["agreement"] == [] and said["source"] == str(own)


def test_a_damaged_record_of_sources_is_said_on_standard_error(own):
    (own.parent / "draws_sources.json").write_text("{")
    text, said = run("check")
    assert "nothing is wrong with it" in text and "draws_sources.json is damaged" in one_line(said)
    assert len(run("show")[0].splitlines()) == 4


@real
def test_check_of_real_files(home):
    said = result("check", SHARED / "ny_open_data.csv", SHARED / "texas_lottery.csv", SHARED / "ny_api_rows.json")
    assert (said["rows"], len(said["missing"]), said["conflicts"], said["origin"]) == (1972, 6, [], "New York Open Data")
    texas, again = said["agreement"]
    assert (texas["common"], texas["agreed"]) == (1771, 1771) and texas["for_independence"] and not texas["against_independence"]
    assert len(again["against_independence"]) == 2
    double = result("check", SHARED / "double_play.csv", SHARED / "draws.csv")
    assert len(double["conflicts"]) == 24 and "Double Play?" in double["agreement"][0]["against_independence"][0]


def test_help_loads_nothing_heavy():
    code = "import sys; from helios.data_commands import data; print({'torch', 'pandas', 'urllib3'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
