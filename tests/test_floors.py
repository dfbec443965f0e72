"""The architecture: imports run down the floors, and `import helios` stays light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {nb.stem.split("_", 1)[1]: int(nb.stem.split("_")[0]) for nb in sorted((ROOT / "nbs").glob("[0-8]*.ipynb"))}


def imported_modules(source: str) -> set[str]:
    """Modules of the package that `source` imports, anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "helios"):
            path = (node.module or "").removeprefix("helios").strip(".")
            found |= {path.split(".")[0]} if path else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("helios.")}
    return found & set(FLOORS)


def climbing(module: str, source: str) -> set[str]:
    """Imports of `module` that do not go down."""
    return {other for other in imported_modules(source) if FLOORS[other] >= FLOORS[module]}


@pytest.mark.parametrize("module", FLOORS)
def test_imports_run_down(module):
    source = (ROOT / "helios" / f"{module}.py").read_text(encoding="utf-8")
    assert climbing(module, source) == set()


@pytest.mark.parametrize("line", [
    "from .trainer import ModelTrainer", "from helios.trainer import ModelTrainer", "import helios.trainer",
    "from . import trainer", "def f():\n    from helios.trainer import ModelTrainer", "from .draws import balls",
])
def test_the_check_sees_an_import_up_or_sideways(line):
    assert climbing("draws", line)


def test_every_module_has_its_notebook():
    modules = {path.stem for path in (ROOT / "helios").glob("*.py")} - {"__init__", "_modidx"}
    assert modules == set(FLOORS)


def test_notebooks_import_by_full_name():
    """A relative import works in the exported module and fails in the cell."""
    for notebook in (ROOT / "nbs").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            assert not any(line.startswith("from .") for line in cell["source"]), notebook.name


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_helios_loads_nothing_else():
    """Under 0.1 s on any machine, since it loads one small module; tests/bench prints the time."""
    assert loaded_by("import helios") == {"helios"}


def test_names_arrive_on_first_use():
    loaded = loaded_by("import helios; helios.POWERBALL")
    assert "helios.game" in loaded and not {"torch", "pandas", "scipy"} & loaded
    assert "torch" in loaded_by("import helios; helios.PowerballNet")


def test_all_names_of_the_package_exist():
    import helios
    assert all(getattr(helios, name) is not None for name in helios.__all__)
    with pytest.raises(AttributeError, match="no attribute 'crystal_ball'"):
        helios.crystal_ball  # noqa: B018


def test_help_loads_no_heavy_module():
    loaded = loaded_by("from helios.cli import main")
    assert not {"torch", "pandas", "scipy", "numpy", "rich", "matplotlib"} & loaded
