"""`helios ledger`: predictions beside results, the way back-dating fails at the command line, and the status when a row was altered."""

import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import matplotlib.image
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from helios.archive import Registry
from helios.chain import LedgerError
from helios.draws import simulate, write_draws
from helios.forecast_commands import forecast
from helios.forecasters import Frequency, Uniform
from helios.game import POWERBALL
from helios.ledger import Ledger
from helios.ledger_commands import entry_lines, ledger, plot_standings
from helios.memory_store import MemoryStore
from helios.net import PowerballNet
from helios.places import DATABASE, HISTORY
from helios.scoring import Forecast
from helios.weights import save_model

DRAWS = simulate(n=70, seed=4, white_weights={7: 5.0, 9: 5.0}, powerball_weights={3: 8.0})
UNIFORM = Forecast.uniform(POWERBALL.eras[-1])


def run(*words, command=ledger):
    result = CliRunner().invoke(command, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def told(*words, command=ledger):
    result = run(*words, "--json", "-", command=command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def file(home, tmp_path):
    """A file that grows draw by draw, each draw predicted before it comes."""
    path = tmp_path / "draws.csv"
    with MemoryStore(home / DATABASE) as store:
        book = Ledger(store)
        for at in range(60, 66):
            book.settle(DRAWS[:at])
            for forecaster in (Frequency(), Uniform()):
                book.predict(forecaster.name, "0.1.0", forecaster.fit(DRAWS[:at]).forecast(), DRAWS[:at])
    write_draws(DRAWS[:65], path)
    return path


def real_file(path, n, last=None):
    """The draws up to the newest that was held, without the mark of simulated ones: only a test may do this."""
    last = last or max(day for day in POWERBALL.draw_dates(date.today() - timedelta(9), date.today() - timedelta(2)))
    days = [*POWERBALL.draw_dates(last - timedelta(4 * n), last)][-n:]
    table = simulate(n=n, seed=8, first=days[0])
    table.attrs.clear()
    write_draws(table, path)
    return table


def test_predictions_beside_results(file):
    keys = told("--data", file)
    assert [(row["forecaster"], row["state"]) for row in keys["entries"][:4]] == [
        ("uniform", "open"), ("frequency", "open"), ("uniform", "scored"), ("frequency", "scored")]
    assert {s["forecaster"]: (s["n"], s["counts"]) for s in keys["standings"]} == {
        name: (5, {"forecasts": 6, "open": 1, "late": 0, "superseded": 0}) for name in ("frequency", "uniform")}
    by_name = {s["forecaster"]: s for s in keys["standings"]}
    assert by_name["uniform"]["skill_nats"] == 0 and by_name["uniform"]["e_value"] == 1
    assert by_name["frequency"]["money"]["spent"] == 10 and by_name["frequency"]["hits"]["mean"] == pytest.approx(25 * 5 / 69)
    assert keys["head"]["n"] == 12 + 10 and keys["scored_now"] == []
    shown = run("--data", file, "--last", 3).stdout
    assert "SIMULATED draws: nothing here" in shown and "no skill: the forecasts were uniform" in shown
    assert "chance wins nothing at all with so many" in shown and "all 22 entries are as they were written" in shown
    assert max(map(len, shown.splitlines())) <= 80
    lines = [line for line in shown.splitlines() if line.startswith("20")]
    assert len(lines) == 3 and lines[-1].endswith("=open")
    only = told("--data", file, "--forecaster", "uniform", "--last", 2)
    assert [row["forecaster"] for row in only["entries"]] == ["uniform"] * 2 and [s["forecaster"] for s in only["standings"]] == ["uniform"]


def test_the_hashes_in_the_json_can_be_checked(file):
    from helios.chain import entry_hash

    for row in told("--data", file)["entries"]:
        assert entry_hash(row) == row["hash"] and (row["score"] is None or entry_hash(row["score"]) == row["score"]["hash"])


def test_an_empty_ledger_makes_no_database(home):
    for words in ((), ("verify",), ("head",), ("--forecaster", "x")):
        assert run(*words).exit_code == 0
    assert "no prediction by x yet" in run("--forecaster", "x").stdout and run("head").stdout.split() == ["0", "0" * 64]
    assert not (home / DATABASE).exists()


def test_new_draws_settle_by_themselves(file, home):
    write_draws(DRAWS[:66], file)
    keys = told("settle", "--data", file)
    assert [row["forecaster"] for row in keys["scored_now"]] == ["frequency", "uniform"]
    assert told("settle", "--data", file) == {"scored_now": []}
    assert run("settle").stdout.startswith("Nothing")
    mended = DRAWS[:66].copy()
    mended.loc[65, "powerball"] = DRAWS.powerball[65] % 26 + 1
    write_draws(mended, file)
    said = run("--data", file).stdout
    assert said.count("this replaces") + said.count("replaces the score") >= 2 and " corrected" in said


def test_an_altered_row_is_named_and_nothing_is_shown(file, home):
    with MemoryStore(home / DATABASE) as store:
        score = Ledger(store).entries("frequency")[1]["score"]
        with store._transaction("write") as conn:
            conn.exec_driver_sql(f"UPDATE ledger SET content = replace(content, '\"whites_hit\": {score['content']['whites_hit']}', '\"whites_hit\": 5') WHERE id = {score['id']}")
    for words in (("verify",), ("--data", file), ("settle", "--data", file)):
        result = run(*words)
        assert result.exit_code == 1 and f"row {score['id']} was altered" in result.stderr and result.stderr.count("\n") == 1
        assert "Draw " not in result.stdout
    result = run("verify", "--json", "-")
    assert result.exit_code == 1 and json.loads(result.stdout)["first_bad"] == score["id"]


def test_a_head_kept_elsewhere(file, home):
    n, digits = run("head").stdout.split()
    assert n == "22" and run("verify", "--head", digits[:12]).exit_code == 0
    run("add", "--forecaster", "repeats", "--data", file)
    assert run("verify", "--head", digits).exit_code == 0 and told("verify", "--head", digits)["ok"]
    with MemoryStore(home / DATABASE) as store, store._transaction("write") as conn:
        conn.exec_driver_sql("DELETE FROM ledger")
        conn.exec_driver_sql("DELETE FROM context_storage")
    run("add", "--forecaster", "repeats", "--data", file)  # begun anew
    assert run("verify").exit_code == 0
    result = run("verify", "--head", digits)
    assert result.exit_code == 1 and "none of the 1 entries" in result.stderr


def test_wrong_words(file, tmp_path):
    for words, said in ((("verify", "--head", "zz"), "no hash of an entry"), (("--last", 3, "settle"), "options of settle stand after it"),
                        (("add", "--forecaster", "oracle", "--data", file), "or name a forecaster: uniform, frequency"),
                        (("--last", 0), "0 is not in the range"), (("--plot", "-"), "would put a picture"), (("--plot", tmp_path), "is a folder"),
                        (("--plot", tmp_path / "x.png", "--forecaster", "nobody"), "nothing to see"), (("--data", tmp_path / "none.csv"), "cannot be read"),
                        (("--data", file, "--json", file), "are both"), (("add",), "Missing option")):
        result = run(*words)
        assert result.exit_code == 2 and said in result.stderr, (words, result.stderr)


def test_a_picture(file, tmp_path):
    write_draws(DRAWS[:66], file)
    assert run("--data", file, "--plot", tmp_path / "p.png").exit_code == 0
    image = matplotlib.image.imread(tmp_path / "p.png")
    assert image.shape[0] > 600 and image.shape[1] > 900 and image[..., :3].std() > 0.05
    with MemoryStore(":memory:") as store:
        book = Ledger(store)
        for at in range(60, 64):
            for i, name in enumerate("abcdefgh"):
                rng = np.random.default_rng([at, i])
                book.predict(name, "1", Forecast(torch.from_numpy(rng.normal(size=(1, 69))), torch.zeros(1, 26)), DRAWS[:at])
        book.settle(DRAWS[:64])
        above, below = plot_standings(book.summary()).axes
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels == ["no skill: E = 1", "E = 20: evidence", *"abcdef"]
    heights = [line.get_ydata()[0] for line in above.get_lines() if line.get_label().startswith("E = 20")]
    assert heights == [pytest.approx(np.log(20))]
    record = book_record = None  # the last point of a path is its record's sum
    with MemoryStore(":memory:") as store:
        book = Ledger(store)
        book.predict("a", "1", UNIFORM, DRAWS[:60])
        book.settle(DRAWS[:61])
        record = book.summary()[0].record
        book_record = plot_standings(book.summary()).axes[1].get_lines()[-1].get_ydata()
    assert book_record[-1] == record.plays[0].whites_hit


# Too late


def test_a_forecast_of_a_draw_that_was_held_is_late(home, tmp_path):
    path = tmp_path / "old.csv"
    table = real_file(path, 40, last=date(2026, 1, 3))
    added = run("add", "--forecaster", "frequency", "--data", path)
    assert added.exit_code == 0 and "it is never counted" in " ".join(added.stdout.split()) and "was held at" in added.stdout
    longer = real_file(path, 45, last=date(2026, 1, 14))
    keys = told("--data", path)
    assert [row["state"] for row in keys["entries"]] == ["late"] and keys["standings"][0]["counts"]["late"] == 1
    assert keys["standings"][0]["n"] == 0 and len(longer) == len(table) + 5
    assert "late, never counted" in run("--data", path).stdout


def test_who_owns_the_draw_cannot_name_an_older_file(home, tmp_path):
    """Also where the clock would allow it: the history in the home folder knows more than the file."""
    path = tmp_path / "file.csv"
    home.mkdir()
    table = real_file(path, 40)
    day = POWERBALL.next_draw(table.draw_date.iloc[-1].date())
    longer = simulate(n=41, seed=8, first=table.draw_date.iloc[0].date())
    longer.attrs.clear()
    write_draws(longer, home / HISTORY)
    assert longer.draw_date.iloc[-1].date() == day
    row = told("add", "--forecaster", "uniform", "--data", path)
    assert row["draw_date"] == str(day) and row["content"]["late"] and row["content"]["why"].startswith(f"the draw of {day} was known")


def test_real_predictions_stand_before_simulated_ones(home, file):
    draws = simulate(n=21, seed=8, first=date(2026, 6, 1))
    draws.attrs.clear()
    day = draws.draw_date.iloc[-1].date()
    with MemoryStore(home / DATABASE) as store:
        noon = datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=12)
        book = Ledger(store, lambda: noon)
        with store._transaction("write") as conn:
            conn.exec_driver_sql("DELETE FROM ledger")
            conn.exec_driver_sql("DELETE FROM context_storage")
        for name in ("mine", "other"):
            book.predict(name, "7", UNIFORM, draws[:20])
    run("add", "--forecaster", "frequency", "--data", file)
    write_draws(draws, home / HISTORY)
    shown = run()
    assert shown.exit_code == 0 and shown.stdout.index("mine@7") < shown.stdout.index("SIMULATED draws: nothing")
    assert shown.stdout.startswith("Scored ") and "Forecaster mine: 1 forecast, 1 counted" in shown.stdout
    assert [s["simulated"] for s in told()["standings"]] == [False, False, True]


def test_a_long_name_and_a_jackpot_fit():
    content = {"ticket": {"whites": [1, 2, 3, 4, 55], "powerball": 6}, "uniform": False, "late": False, "why": None}
    score = {"content": {"outcome": content["ticket"], "white_nats": 0.5, "powerball_nats": -0.25, "whites_hit": 5, "powerball_hit": True, "prize": None, "replaces": None}}
    row = {"draw_date": "2026-08-05", "forecaster": "a name that is long", "version": "12", "content": content, "state": "scored", "score": score}
    heading, line = entry_lines([row])
    assert len(line) <= 80 and "a name that…" in line and "JACKPOT" in line and "+0.250" in line and line.index("5+1") == heading.index("Hit")


# `helios forecast`


@pytest.fixture
def champion(home):
    with MemoryStore(home / DATABASE) as store:
        registry = Registry(store, home)
        torch.manual_seed(1)
        net = PowerballNet(hidden=16, layers=1, heads=4, sequence_length=10)
        for layer in (net.white_head, net.powerball_head):
            torch.nn.init.normal_(layer.weight)
        version, path = registry.next_file("powerball")
        about = {"name": "powerball", "version": version, "era": DRAWS.era.iloc[0], "shrink": {"white": 0.5, "powerball": 0.5}, "verdict": "none"}
        yield registry.register(save_model(net, path, about), name="powerball", version=version, config={"hidden": 16},
                                data={"n": 60, "last": "2016-01-01"}, evaluation={"skill_nats": 0.0})


def test_forecast_enters_the_ledger_and_settles(champion, home, tmp_path):
    path = tmp_path / "draws.csv"
    write_draws(DRAWS[:60], path)
    first = told("--data", path, command=forecast)
    assert told("--data", path, command=forecast)["ledger"] == first["ledger"] and not first["ledger"]["late"]
    assert first["ledger"]["hash"][:16] in run("--data", path, command=forecast).stdout
    same = told("add", "--forecaster", "powerball@1", "--data", path)
    assert same["hash"] == first["ledger"]["hash"] and same["content"]["about"] == {"ref": "powerball@1", "sha256": champion["sha256"]}
    assert same["content"]["ticket"]["whites"] == first["forecast"]["tickets"][0]["whites"]
    write_draws(DRAWS[:61], path)
    told("--data", path, command=forecast)
    assert [row["state"] for row in told("--data", path)["entries"]] == ["open", "scored"]


def test_forecast_from_an_old_file_says_that_it_never_counts(champion, tmp_path):
    path = tmp_path / "old.csv"
    real_file(path, 40, last=date(2026, 1, 3))
    result = run("--data", path, command=forecast)
    assert result.exit_code == 0 and "It stands in the ledger as late and never counts" in result.stdout


def test_forecast_is_shown_where_the_ledger_refuses(champion, home, tmp_path):
    path = tmp_path / "draws.csv"
    write_draws(DRAWS[:60], path)
    told("--data", path, command=forecast)
    with MemoryStore(home / DATABASE) as store, store._transaction("write") as conn:
        conn.exec_driver_sql("DELETE FROM ledger")
    with MemoryStore(home / DATABASE) as store, pytest.raises(LedgerError):
        Ledger(store).predict("x", "1", UNIFORM, DRAWS[:60])
    result = run("--data", path, command=forecast)
    assert result.exit_code == 0 and "It is not in the ledger: the ledger takes no entries" in " ".join(result.stdout.split())
    assert told("--data", path, command=forecast)["ledger"] is None


def test_a_database_that_is_read_only(champion, home, file, monkeypatch):
    """Everything that looks still looks; what writes says why it does not."""
    from helios import own_store

    def read_only(*args):
        store = MemoryStore(*args)
        store.read_only = store._database.read_only = True
        store.notice = store._database.notice = "it can be read only"
        return store

    n = int(run("head").stdout.split()[0])
    write_draws(DRAWS[:66], file)
    monkeypatch.setattr(own_store, "MemoryStore", read_only)
    for words in (("add", "--forecaster", "uniform", "--data", file), ("settle", "--data", file)):
        result = run(*words)
        assert result.exit_code == 1 and "it can be read only" in result.stderr
    assert told("--data", file)["head"]["n"] == n and run("verify").exit_code == 0
    said = run("--data", file, command=forecast).stdout
    assert "It is not in the ledger: the database is read only" in " ".join(said.split()) and "On record  not" in said


def test_the_command_loads_no_heavy_module():
    code = ("import sys; before = set(sys.modules); from helios.ledger_commands import ledger; "
            "print(*({'torch', 'pandas', 'scipy', 'numpy', 'rich', 'matplotlib', 'sqlalchemy'} & (set(sys.modules) - before)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
