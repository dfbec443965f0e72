"""What is installed: the wheel holds the sample, the template and the exploratory notebooks, and runs from anywhere."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"     # the build leaves folders behind
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, clone]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("helios-*.whl"))


def test_the_wheel_holds_what_the_package_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"helios/report.html.j2", "helios/page.html.j2", "helios/home.html.j2", "helios/docs.html.j2", "helios/sample_data/simulated_powerball.csv",
            "helios/notebooks/90_first_look.ipynb", "helios/cli.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "nbs"))]


def test_an_installed_copy_finds_its_sample_and_notebooks(wheel, tmp_path):
    """Unpacked where no checkout is near."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = ("import helios, helios.draws, helios.cli; assert 'site' in helios.__file__; "
            "print(len(helios.load_draws()[0]), helios.draws.sample_path(), helios.cli.notebooks_folder())")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(tmp_path / "site"), "HELIOS_HOME": str(tmp_path / "home"), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1200" and str(tmp_path / "site") in done.stdout
    assert (tmp_path / "home/notebooks/90_first_look.ipynb").is_file()
