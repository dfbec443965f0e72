"""The cells of every exporting notebook run, as nbdev_test runs them; the 9x notebooks run in a real kernel (nbmake)."""

import configparser
import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPORTING = sorted((ROOT / "nbs").glob("[0-8]*.ipynb"))


class Runner:
    """A process that runs notebooks one after another, each in a fork of its own."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, Path(__file__).with_name("notebook_runner.py")], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

    def __call__(self, notebook: Path, *flags: str) -> tuple[int, str]:
        self.process.stdin.write(json.dumps([str(notebook), flags]) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def runner():
    one = Runner()
    yield one
    one.close()


def cells(notebook: Path) -> list:
    return nbformat.read(notebook, as_version=4).cells


@pytest.fixture(scope="module")
def runs(request):
    """The runs of the notebooks that this session asks for, two at a time where no other process runs tests."""
    at_a_time = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    chosen = [item.callspec.params["notebook"] for item in request.session.items if getattr(item, "originalname", "") == "test_cells_run"]
    idle = queue.Queue()
    for one in (runners := [Runner() for _ in range(min(at_a_time, len(chosen)))]):
        idle.put(one)

    def run(notebook: Path) -> tuple[int, str]:
        one = idle.get()
        try:
            return one(notebook)
        finally:
            idle.put(one)

    with ThreadPoolExecutor(at_a_time) as pool:
        futures = {notebook: pool.submit(run, notebook) for notebook in chosen}
        yield futures
        for future in futures.values():
            future.cancel()
    for one in runners:
        one.close()


@pytest.mark.parametrize("notebook", EXPORTING, ids=lambda path: path.stem)
def test_cells_run(notebook, runs):
    code, output = runs[notebook].result()
    assert code == 0, output[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [nb for nb in EXPORTING if "#| slow" in nb.read_text(encoding="utf-8")],
                         ids=lambda path: path.stem)
def test_slow_cells_run(notebook, runner):
    code, output = runner(notebook, "slow")
    assert code == 0, output[-6000:]


def test_a_failing_cell_fails(tmp_path, runner):
    """The check above can fail: a notebook whose one assertion is false does."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(notebook, tmp_path / "wrong.ipynb")
    assert runner(tmp_path / "wrong.ipynb")[0] != 0


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
