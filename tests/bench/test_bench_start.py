"""How long a user waits for an answer that needs no computing, beside the interpreter's own start."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "python -c pass (reference)": [sys.executable, "-c", "pass"],
    "import helios": [sys.executable, "-c", "import helios"],
    "helios --help": [Path(sys.executable).with_name("helios"), "--help"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.benchmark(group="start of a process")
def test_start(benchmark, name):
    done = benchmark.pedantic(subprocess.run, (COMMANDS[name],), {"capture_output": True}, rounds=15, warmup_rounds=2)
    assert done.returncode == 0
