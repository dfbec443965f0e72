"""`helios assess`: the figures, the lines, the picture, and one line for what is wrong."""

import json

import pytest
from click.testing import CliRunner

from helios.assess_commands import assess
from helios.draws import simulate, write_draws
from helios.memory_store import MemoryStore
from helios.places import DATABASE

KEYS = {"model", "version", "skill_nats", "ci95", "e_value", "calibration", "overfit_nats", "drift", "uncertainty", "detectable", "strategy",
        "reasons", "gaps", "sharpness_nats", "freshness", "patterns", "history", "statements", "notices"}


@pytest.fixture
def biased(tmp_path):
    path = tmp_path / "draws.csv"
    write_draws(simulate(n=300, seed=3, white_weights={3: 6, 17: 6, 29: 6}), path)
    return str(path)


def said(*words):
    return CliRunner().invoke(assess, [str(word) for word in words])


def test_the_figures(home, biased, tmp_path):
    done = said("frequency", "--data", biased, "--json", tmp_path / "out.json", "--plot", tmp_path / "out.png")
    keys = json.loads((tmp_path / "out.json").read_text())
    assert done.exit_code == 0, done.output
    assert keys.keys() >= KEYS and {"p", "at"} <= keys["drift"].keys() and {"reducible_nats", "irreducible_nats"} <= keys["uncertainty"].keys()
    assert (keys["model"], keys["version"], keys["overfit_nats"]) == ("frequency", None, None)
    assert keys["ci95"][0] < keys["skill_nats"] < keys["ci95"][1] and keys["e_value"] > 20
    assert 1 < keys["detectable"]["white_ball_bias"] < 4 and keys["detectable"]["draws_needed"]["white"] > 300
    assert [s["confidence"] for s in keys["statements"]][:2] == [0.8, 0.8] and keys["notices"][0].startswith("These draws are SIMULATED")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert f"Written    {tmp_path / 'out.png'}" in done.stdout


def test_the_lines_fit_and_name_what_counts(home, biased):
    done = said("frequency", "--data", biased)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for label in ("Model", "SIMULATED", "Draws", "Skill", "80% sure", "Calibrated", "Patterns", "Uncertain", "Hidden", "Fresh", "Fit", "Unknown", "Strategy", "Reason"):
        assert any(line.startswith(label) for line in lines), label
    assert "SIMULATED DRAWS" in done.stderr


def test_json_alone_goes_to_standard_output(home, biased):
    assert json.loads(said("uniform", "--data", biased, "--json", "-").stdout)["skill_nats"] == 0


def test_the_sample_stands_in_and_is_marked(home):
    done = said("uniform")
    assert done.exit_code == 0 and "You named no file" in " ".join(done.stderr.split()) and "abstain" in done.stdout


def test_it_remembers_unless_told_not_to(home, biased):
    assert said("uniform", "--data", biased, "--no-record").exit_code == 0
    assert not (home / DATABASE).exists()
    said("uniform", "--data", biased)
    said("frequency", "--data", biased)
    with MemoryStore(home / DATABASE) as store:
        assert [e["model_name"] for e in store.get_enhanced_journal_entries(event_type="assessment")] == ["frequency", "uniform"]
        assert {f["fragment_type"] for f in store.get_knowledge_fragments("frequency")} == {"skill", "pattern"}


def test_options_reach_the_engine(home, biased):
    keys = json.loads(said("frequency", "--data", biased, "--start", 250, "--level", 0.9, "--prior", 0.5, "--bias", 3, "--today", "2020-01-01", "--json", "-").stdout)
    assert keys["draws"]["judged"] == 50 and [s["confidence"] for s in keys["statements"]][:2] == [0.9, 0.9]
    assert keys["detectable"]["bias"] == 3 and keys["freshness"]["today"] == "2020-01-01"
    assert "1 model in 2 before" in keys["statements"][-1]["claim"]


@pytest.mark.parametrize(("words", "message"), [
    (("oracle",), "no model is named 'oracle'"), (("powerball@3",), "no model is named 'powerball'"), (("uniform", "--start", "301"), "cannot start at draw 301 of 300"),
    (("uniform", "--start", "300"), "no draw is left after the first 300"), (("uniform", "--level", "0.4"), "'--level'"), (("uniform", "--bias", "1"), "'--bias'"),
    (("uniform", "--plot", "/nowhere/x.png"), "there is no folder /nowhere"), (("uniform", "--today", "soon"), "is not a date"),
])
def test_what_is_wrong_is_one_line_and_status_2(home, biased, words, message):
    done = said(*words, "--data", biased)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_one_file_is_not_two(home, biased):
    done = said("uniform", "--data", biased, "--json", "x.json", "--plot", "x.json")
    assert done.exit_code == 2 and "are both x.json" in done.stderr
    assert said("uniform", "--data", "/nowhere.csv").exit_code == 2


def test_a_disk_that_refuses_the_picture_is_status_1(home, biased, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("helios.places.write_atomic", full)
    done = said("uniform", "--data", biased, "--plot", tmp_path / "x.png")
    assert done.exit_code == 1 and "No space left on device" in done.stderr
