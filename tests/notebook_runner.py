"""Runs notebooks as nbdev_test does, each in a fork of a process that has loaded the large libraries once.

Reads lines of JSON `[path, flags]` and answers each with a line `[return code, output]`.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path


def run(path: str, flags: list[str]) -> int:
    """One notebook in this process; 1 if a cell fails."""
    from nbdev.test import test_nb

    good, _ = test_nb(Path(path), skip_flags=["slow"], force_flags=flags, basepath=Path(path).resolve().parents[1])
    return 0 if good else 1


def in_a_fork(path: str, flags: list[str]) -> list:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = 1
            try:
                code = run(path, flags)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        return [os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")]


if __name__ == "__main__":
    for library in ("fastcore.test", "matplotlib", "nbdev.test", "pandas", "scipy.stats", "sqlalchemy", "torch"):
        importlib.import_module(library)   # for the forks; nothing is computed here, so no thread of torch's runs yet

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(in_a_fork(*json.loads(line))) + "\n")
        answers.flush()
