"""A served API whose jobs really run, for tests: what still runs at the end of a test is ended before its home goes."""

from contextlib import contextmanager

import psutil
from waiting import until

import helios.jobs
from helios.draws import simulate, write_draws
from helios.memory_store import ENDED
from helios.places import HISTORY
from helios.server import create_app
from helios.settings import Settings


def _home_of(process) -> str:
    try:
        return process.environ().get("HELIOS_HOME", "")
    except psutil.Error:
        return ""


@contextmanager
def working(home, patch, n=150, **settings):
    """An app on a home of its own with `n` simulated draws as its history, none for 0."""
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {"HELIOS_HOME": str(home), "OMP_NUM_THREADS": "1", "HELIOS_JOBS_LIMIT": "1"}.items():
        patch.setenv(name, value)
    if n:
        write_draws(simulate(n=n, seed=5, powerball_weights={3: 9}), home / HISTORY)
    app = create_app(Settings(rate_limit="", draws_max_age_days=36500, **settings))
    try:
        yield app
    finally:
        left = [process for process in psutil.process_iter() if process.pid != psutil.Process().pid and _home_of(process) == str(home)]
        for process in left:
            process.kill()
        helios.jobs.reap()
        psutil.wait_procs(left, timeout=10)
        app.extensions["helios"].store.close()


def ended(client, job_id, *path):
    """The job once it has ended, as the API tells it."""
    where = f"/api/{'/'.join(path) or 'jobs'}/{job_id}"
    return until(lambda: (job := client.get(where).json)["status"] in ENDED and job, f"the end of {job_id}", 120)


def fields(answer):
    """Status and the names of the fields that were refused."""
    return answer.status_code, {problem["field"] for problem in answer.json["errors"]}
