"""The README's commands: each is one that the command knows, and the first works as pasted in a clean clone."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
HELIOS = [line.split("&&")[-1].strip() for line in LINES if "helios " in line]


def test_the_two_commands_stand_first():
    assert LINES[0].startswith("python3 -m venv .venv && ") and "&& helios run" in LINES[0]
    assert LINES[1].startswith("python3 -m venv .venv && ") and LINES[1].endswith("&& pytest")


@pytest.mark.parametrize("line", HELIOS)
def test_every_command_is_known(line):
    """Parsed as the command parses it, without running it: an unknown word or option raises."""
    from helios.cli import main
    words = shlex.split(line)[1:]
    if words == ["--help"]:
        return
    command = main.get_command(None, words[0])
    assert command is not None, words[0]
    command.make_context(words[0], words[1:])


def test_the_python_example_names_what_exists():
    import helios
    for name in re.findall(r"helios\.(\w+)\(", README):
        assert hasattr(helios, name), name


def test_the_table_lists_every_notebook():
    listed = re.findall(r"`(\d\d_\w+)`", README)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.slow
def test_the_first_command_as_pasted(tmp_path):
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    done = subprocess.run(["bash", "-c", LINES[0]], cwd=tmp_path / "clone", capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
                          | {"HELIOS_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Verdict    SIMULATED draws" in done.stdout
    assert "<svg" in (tmp_path / "clone/report.html").read_text()
