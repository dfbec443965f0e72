"""The cells of every exporting notebook run, as nbdev_test runs them; the 9x notebooks run in a real kernel (nbmake)."""

import configparser
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPORTING = sorted((ROOT / "nbs").glob("[0-8]*.ipynb"))


def nbdev_test(notebook: Path, *flags: str) -> subprocess.CompletedProcess:
    command = Path(sys.executable).with_name("nbdev_test")
    return subprocess.run([command, "--path", notebook, "--n_workers", "0", *flags], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})


def cells(notebook: Path) -> list:
    return nbformat.read(notebook, as_version=4).cells


@pytest.fixture(scope="module")
def runs(request):
    """The runs of the notebooks that this session asks for, two at a time."""
    chosen = [item.callspec.params["notebook"] for item in request.session.items if getattr(item, "originalname", "") == "test_cells_run"]
    with ThreadPoolExecutor(2) as pool:
        futures = {notebook: pool.submit(nbdev_test, notebook) for notebook in chosen}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("notebook", EXPORTING, ids=lambda path: path.stem)
def test_cells_run(notebook, runs):
    done = runs[notebook].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [nb for nb in EXPORTING if "#| slow" in nb.read_text(encoding="utf-8")],
                         ids=lambda path: path.stem)
def test_slow_cells_run(notebook):
    done = nbdev_test(notebook, "--flags", "slow")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_failing_cell_fails(tmp_path):
    """The check above can fail: a notebook whose one assertion is false does."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(notebook, tmp_path / "wrong.ipynb")
    assert nbdev_test(tmp_path / "wrong.ipynb").returncode != 0


@pytest.mark.parametrize("notebook", EXPORTING, ids=lambda path: path.stem)
def test_notebook_opens_as_a_page(notebook):
    """Name, title, one sentence, in the first two cells; the directive names the file."""
    first, title = cells(notebook)[:2]
    name = notebook.stem.split("_", 1)[1]
    assert first.source == f"#| default_exp {name}"
    assert title.source.startswith(f"# {name}\n> ")


@pytest.mark.parametrize("notebook", EXPORTING, ids=lambda path: path.stem)
def test_directives_stand_first(notebook):
    """Elsewhere in a cell nbdev ignores them without a word."""
    for cell in cells(notebook):
        lines = cell.source.splitlines() if cell.cell_type == "code" else []
        body = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
        assert not any(line.startswith("#|") for line in lines[body:]), cell.source


def test_settings_agree_with_the_package():
    import helios
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert settings["DEFAULT"]["version"] == helios.__version__
