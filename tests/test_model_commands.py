"""`helios models` and `helios forecast`: words in, one line or a table out, the status, and the way back to an earlier champion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helios.archive import Registry
from helios.draws import simulate, write_draws
from helios.forecast_commands import forecast
from helios.memory_store import MemoryStore
from helios.migrations import VERSIONS
from helios.model_commands import models
from helios.net import PowerballNet
from helios.places import DATABASE
from helios.weights import save_model


@pytest.fixture
def draws(tmp_path) -> Path:
    table = simulate(n=60, seed=1)
    write_draws(table, tmp_path / "draws.csv")
    return tmp_path / "draws.csv"


@pytest.fixture
def registry(home):
    """A registry in the home folder with three versions, each with a mind of its own."""
    with MemoryStore(home / DATABASE) as store:
        registry = Registry(store, home)
        for seed in (1, 2, 3):
            add(registry, seed)
        yield registry


def add(registry: Registry, seed: int, name: str = "powerball", **facts) -> dict:
    torch.manual_seed(seed)
    net = PowerballNet(hidden=16, layers=1, heads=4, sequence_length=10)
    for head in (net.white_head, net.powerball_head):
        torch.nn.init.normal_(head.weight)
    version, path = registry.next_file(name)
    facts = {
        "config": {"hidden": 16, "seed": seed},
        "data": {"n": 60, "last": "2026-01-03"},
        "evaluation": {"skill_nats": seed / 1000},
    } | facts
    about = {
        "name": name,
        "version": version,
        "era": "2015-10-07",
        "shrink": {"white": 0.5, "powerball": 0.5},
        "verdict": "no skill",
    }
    about["era"] = simulate(n=1).era.iloc[0]
    return registry.register(save_model(net, path, about), name=name, version=version, **facts)


def helios(command, *words) -> str:
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def failing(command, *words) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("helios: "), (
        result.output
    )
    return result.exit_code, result.stderr


def told(command, *words) -> dict:
    return json.loads(helios(command, *words, "--json", "-"))


def test_a_rollback_brings_back_the_earlier_champion_and_the_next_forecast_shows_it(registry, draws):
    first = told(forecast, "--data", draws)
    assert first["model"]["ref"] == "powerball@1" and first["model"]["aliases"] == ["champion"]
    assert helios(models, "alias", "powerball", "champion", 3) == "powerball@champion is powerball@3, was powerball@1\n"
    other = told(forecast, "--data", draws)
    assert other["model"]["ref"] == "powerball@3" and other["forecast"]["tickets"] != first["forecast"]["tickets"]
    assert (
        helios(models, "rollback", "powerball", "--why", "worse")
        == "powerball@champion is powerball@1, was powerball@3\n"
    )
    assert told(forecast, "--data", draws) == first  # and on record once, under the same number
    on_record = registry.store.get_model_predictions("powerball")
    assert [(row["prediction_data"]["ref"], row["draw_date"]) for row in on_record] == [
        (ref, first["forecast"]["draw_date"]) for ref in ("powerball@3", "powerball@1")
    ]
    assert len(on_record[0]["prediction_data"]["white_logits"]) == 69
    lines = helios(forecast, "--data", draws).splitlines()
    assert lines[0].startswith("Model      powerball@1 (champion), sha256 ") and lines[2].startswith(
        "Draws      60 SIMULATED to "
    )
    assert lines[1] == "SIMULATED  These draws are SIMULATED. Nothing here says anything about a real lottery."
    assert failing(models, "rollback", "powerball") == (
        2,
        "helios: powerball@champion: no earlier version; to move it anywhere: helios models alias powerball champion VERSION\n",
    )
    assert [move["why"] for move in told(models, "alias", "powerball", "champion")["history"]] == [
        "the first version of its name",
        None,
        "worse",
    ]


def test_forecast_with_a_named_version(registry, draws):
    told_2 = told(forecast, "--model", "powerball@2", "--data", draws, "--tickets", 3)
    assert told_2["model"]["version"] == 2 and len(told_2["forecast"]["tickets"]) == 3
    assert any("is not the champion" in notice for notice in told_2["notices"])
    assert failing(forecast, "--model", "powerball@9", "--data", draws)[0] == 2
    assert failing(forecast, "--data", "no.csv")[0] == 2
    assert failing(forecast, "--model", "nobody") == (2, "helios: no model is named 'nobody'; there is powerball\n")
    Path(registry.get("powerball@2")["file_path"]).write_bytes(b"other")
    result = CliRunner().invoke(forecast, ["--model", "powerball@2", "--data", str(draws)])
    assert (result.exit_code, result.stdout) == (2, "") and "registered was" in result.stderr.splitlines()[-1]


def test_a_model_of_another_era_is_silent(registry, draws, tmp_path):
    torch.manual_seed(0)
    version, path = registry.next_file("old")
    file = save_model(
        PowerballNet(hidden=16, layers=1, heads=4), path, {"era": "2012-01-15", "shrink": {"white": 1, "powerball": 1}}
    )
    registry.register(file, name="old", version=version)
    result = CliRunner().invoke(forecast, ["--model", "old", "--data", str(draws)])
    assert (result.exit_code, result.stdout) == (
        2,
        "",
    ) and "the model was trained on 2012-01-15; train a new one" in result.stderr
    assert registry.store.get_model_predictions("old") == []


def test_list_search_show(registry):
    registry.tag("powerball@2", "spring")
    registry.note("powerball@2", "Trained \x1b[31mwithout\x1b[0m\nthe Saturday draws. " * 9)
    add(registry, 4, "a" * 64, evaluation={"imported": {"skill_nats": -0.5}}, data=None)
    table = helios(models, "list")
    assert [line.split()[0] for line in table.splitlines()] == [
        "Version",
        "a" * 64 + "@1",
        "champion",
        "powerball@3",
        "powerball@2",
        "powerball@1",
    ]
    assert "+0.0020" in table and "(-0.5000)" in table and "2026-01-03" in table
    assert [row["ref"] for row in told(models, "list", "powerball", "--limit", 2)["versions"]] == [
        "powerball@3",
        "powerball@2",
    ]
    assert [row["ref"] for row in told(models, "search", "saturday")["versions"]] == ["powerball@2"]
    assert [row["ref"] for row in told(models, "search", "--tag", "spring")["versions"]] == ["powerball@2"]
    assert [row["ref"] for row in told(models, "search", "seed=3", "--alias", "champion")["versions"]] == []
    assert helios(models, "search", "nothing like it") == "No model fits\n"
    shown = helios(models, "show", "powerball@2")
    assert "\x1b" not in shown and "Tags       spring" in shown and "hidden=16, seed=2" in shown
    for text in (table, shown):
        assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80
    assert told(models, "show", "powerball@2")["about"]["verdict"] == "no skill"
    assert (
        failing(models, "show", "powerball@9")[0]
        == failing(models, "list", "nobody")[0]
        == failing(models, "show", "../up")[0]
        == 2
    )


def test_compare(registry):
    registry.note(
        "powerball@3",
        "A note that is so long that it has no place beside the other in a table of eighty columns, not at all.",
    )
    text = helios(models, "compare", "powerball@1", "powerball@3")
    assert "config.seed" in text and "hidden" not in text and max(map(len, text.splitlines())) <= 80
    assert told(models, "compare", "powerball@1", "powerball@2", "powerball@3")["differs"]["config.seed"] == [1, 2, 3]
    assert helios(models, "compare", "powerball", "powerball@1") == "powerball@1 and powerball@1 differ in nothing\n"
    assert failing(models, "compare", "powerball")[0] == 2


def test_aliases(registry):
    helios(models, "alias", "powerball", "challenger", "latest", "--why", "newest draws")
    assert (
        helios(models, "alias", "powerball")
        == f"powerball@{'challenger':20} powerball@3\npowerball@{'champion':20} powerball@1\n"
    )
    assert (
        helios(models, "alias", "powerball", "champion", "challenger")
        == "powerball@champion is powerball@3, was powerball@1\n"
    )
    assert helios(models, "alias", "powerball", "champion", "3") == "powerball@champion is powerball@3 already\n"
    assert helios(models, "alias", "powerball", "challenger").split()[1:] == ["set", "-", "->", "3", "newest", "draws"]
    assert told(models, "alias", "powerball", "challenger", "--remove")["to"] is None
    assert told(models, "alias", "powerball")["aliases"] == {"champion": 3}
    for words in (
        ("nobody",),
        ("powerball", "nobody"),
        ("powerball", "3", "1"),
        ("powerball", "latest", "1"),
        ("powerball", "x", "9"),
        ("powerball", "--remove"),
        ("powerball", "x", "--remove"),
        ("powerball", "champion", "2", "--remove"),
    ):
        assert failing(models, "alias", *words)[0] == 2


def test_tags_notes_deleting(registry):
    assert helios(models, "tag", "powerball@2", "b", "a") == "powerball@2 has the tags a, b\n"
    assert helios(models, "untag", "powerball@2", "a", "b") == "powerball@2 has no tags\n"
    assert failing(models, "untag", "powerball@2", "a")[0] == failing(models, "tag", "powerball@2", "a,b")[0] == 2
    assert helios(models, "note", "powerball@2", "so so") == "powerball@2 has the note: so so\n"
    assert helios(models, "note", "powerball@2") == "powerball@2 has no note\n"
    assert failing(models, "delete", "powerball@1")[1].startswith(
        "helios: powerball@1 is powerball@champion; move the alias first: helios models alias"
    )
    assert (
        helios(models, "delete", "powerball@2")
        == "powerball@2 is deleted; helios models restore powerball@2 brings it back\n"
    )
    assert "powerball@2" not in helios(models, "list") and "powerball@2" in helios(models, "list", "--deleted")
    assert helios(models, "restore", "powerball@2") == "powerball@2 is back\n"
    assert failing(models, "purge", "powerball@2", "--yes")[0] == 2
    helios(models, "delete", "powerball@2")
    assert failing(models, "purge", "powerball@2")[1].endswith("add --yes, or first helios models export\n")
    assert (
        helios(models, "purge", "powerball@2", "--yes") == "powerball@2 is purged; its row stays, its files are gone\n"
    )
    assert "purged" in helios(models, "list", "--deleted") and "Purged" in helios(models, "show", "powerball@2")
    assert failing(models, "restore", "powerball@2")[0] == 2


def test_export_and_import(registry, tmp_path):
    path = tmp_path / "p.helios"
    made = told(models, "export", "powerball@2", path)
    assert path.stat().st_size == made["bytes"]
    assert helios(models, "import", path) == "It is here already as powerball@2; nothing was added\n"
    registry.delete("powerball@2")
    assert (
        helios(models, "import", path)
        == "It is here already as powerball@2, deleted; helios models restore powerball@2 brings it back; nothing was added\n"
    )
    assert (
        helios(models, "import", path, "--again")
        == "Imported   powerball@4; to use it: helios models alias powerball champion 4\n"
    )
    assert helios(models, "import", path, "--name", "other") == "Imported   other@1, the champion of its name\n"
    assert "Imported   from powerball@2; scores were measured there" in helios(models, "show", "other")
    path.write_bytes(path.read_bytes()[:-1])
    assert (
        failing(models, "import", path)[0]
        == failing(models, "import", tmp_path / "none")[0]
        == failing(models, "import", path, "--name", "a/b")[0]
        == 2
    )
    for place in (tmp_path / "no" / "folder", tmp_path, registry.home / "models" / "x.helios", "-"):
        assert failing(models, "export", "powerball", place)[0] == 2


def test_json_files(registry, tmp_path):
    for n, words in enumerate(
        (
            ["list"],
            ["search"],
            ["show", "powerball"],
            ["compare", "powerball@1", "powerball@2"],
            ["alias", "powerball", "x", "1"],
            ["tag", "powerball", "t"],
            ["untag", "powerball", "t"],
            ["note", "powerball", "n"],
            ["delete", "powerball@3"],
            ["restore", "powerball@3"],
            ["export", "powerball", tmp_path / "e"],
            ["import", tmp_path / "e"],
        )
    ):
        assert helios(models, *words, "--json", tmp_path / f"{n}.json")
        assert json.loads((tmp_path / f"{n}.json").read_text())
    assert failing(models, "list", "--json", tmp_path / "no" / "a.json")[0] == 2


def test_help_is_light_and_each_command_has_it():
    code = (
        "import sys; before = set(sys.modules); from helios.model_commands import models; from helios.forecast_commands import forecast\n"
        "print(*(set(sys.modules) - before)); print(*models.commands)"
    )
    loaded, commands = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert not {"torch", "pandas", "sqlalchemy", "numpy"} & set(loaded.split())
    assert set(commands.split()) == {
        "list",
        "show",
        "search",
        "compare",
        "alias",
        "rollback",
        "tag",
        "untag",
        "note",
        "delete",
        "restore",
        "purge",
        "export",
        "import",
    }
    for command in commands.split():
        assert "--json" in helios(models, command, "--help")


def test_in_a_process_of_its_own(registry):
    code = "from helios.model_commands import models; models()"
    said = subprocess.run(
        [sys.executable, "-c", code, "show", "powerball@7"],
        capture_output=True,
        text=True,
        env=os.environ | {"HELIOS_HOME": str(registry.home)},
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert (
        said.stderr
        == "helios: there is no powerball@7 (or it is deleted); powerball has versions 1, 2, 3 and aliases champion\n"
    )


def test_a_database_of_a_later_helios_is_only_read(registry, draws):
    with registry.store._transaction("write") as conn:
        conn.exec_driver_sql(f"UPDATE {VERSIONS} SET version_num = '9999'")
    result = CliRunner().invoke(forecast, ["--data", str(draws)])
    assert result.exit_code == 0 and "On record  not, since the database is read only" in result.stdout
    assert result.stderr.startswith("helios: ") and result.stderr.count("is of revision 9999") == 1
    assert CliRunner().invoke(models, ["list"]).exit_code == 0
    for words in (["rollback", "powerball"], ["tag", "powerball", "x"], ["delete", "powerball@2"]):
        result = CliRunner().invoke(models, words)
        assert (result.exit_code, result.stdout) == (1, ""), result.output


def test_what_learned_from_simulated_draws_is_marked(shop_of_simulated):
    """In the list, in the details, and before a forecast of real draws."""
    run, draws = shop_of_simulated
    assert "SIM" in run("models", "list") and "trained and judged on SIMULATED draws" in run("models", "list")
    assert "SIMULATED  trained and judged" in run("models", "show", "demo")
    said = run("forecast", "--model", "demo", "--data", str(draws))
    assert "SIMULATED  demo@1 was trained on SIMULATED draws" in said


def test_an_export_does_not_replace_a_file(shop_of_simulated, tmp_path):
    from click.testing import CliRunner

    from helios.cli import main
    (tmp_path / "notes.txt").write_text("dear diary")
    run = CliRunner().invoke(main, ["models", "export", "demo@1", str(tmp_path / "notes.txt")])
    assert run.exit_code == 2 and "is there already; name a new file" in run.output
    assert (tmp_path / "notes.txt").read_text() == "dear diary"


@pytest.fixture
def shop_of_simulated(home, tmp_path):
    """A model of simulated draws, and a file of draws that do not say they are."""
    from click.testing import CliRunner

    from helios.cli import main
    from helios.draws import simulate, write_draws
    from helios.fitting import TrainingConfig
    from helios.own_store import default_store
    from helios.trainer import ModelTrainer
    draws = simulate(n=150, seed=1)
    assert draws.attrs["simulated"]
    with default_store() as store:
        ModelTrainer(store, home).train(draws, TrainingConfig(hidden=16, layers=1, heads=2, sequence_length=10, epochs=1, threads=1), "demo")
    path = tmp_path / "real.csv"
    write_draws(draws, path)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "imulated" not in line and "IMULATED" not in line))
    return lambda *words: CliRunner().invoke(main, words).stdout, path
