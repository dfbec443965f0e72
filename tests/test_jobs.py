"""Background jobs with real processes: killed, stopped, starved, fenced out and taken up again.

The jobs are of the kind `check`, which counts; it is built in, so a job's process finds it without any help.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from waiting import WAIT_S, until

import helios.job_context
import helios.job_rows
import helios.jobs
from helios.job_rows import JobError
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.processes import host_identity, start_of, tree_memory_mb
from helios.tables import jobs as table
from helios.values import StoreError, utc_now, utc_text

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Where the store is: core tests run on both databases."""
    return f"sqlite:///{tmp_path / 'helios.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def file_url(tmp_path):
    return f"sqlite:///{tmp_path / 'helios.db'}"


@pytest.fixture
def make(request, tmp_path, monkeypatch):
    """Make `Jobs` on a database; whatever still runs at the end of the test is killed before the database goes."""
    if "url" in request.fixturenames:
        request.getfixturevalue("url")
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "5")
    with ExitStack() as stack:
        made = []

        def new(url, limit=1):
            made.append(Jobs(stack.enter_context(MemoryStore(url)), tmp_path / "home", limit))
            return made[-1]

        yield new
        left = [process for process in psutil.process_iter() if _home_of(process) == str(tmp_path / "home")]
        for process in left:
            process.kill()
        helios.jobs.reap()
        psutil.wait_procs(left, timeout=10)


def _home_of(process) -> str:
    try:
        return process.environ().get("HELIOS_HOME", "")
    except psutil.Error:
        return ""


def row_of(jobs, job_id):
    """The row as it stands: a look that heals nothing."""
    return jobs._row(job_id)


def counting(jobs, job_id, steps=100_000, step_s=0.02, **more):
    """A job that has begun to count."""
    limits = {name: more.pop(name) for name in ("memory_mb", "time_s", "files") if name in more}
    jobs.submit("check", {"steps": steps, "step_s": step_s, **more}, job_id=job_id, **limits)
    return until(lambda: (row := jobs.get(job_id))["progress"] and row, "the first step")


def kill(row, how=signal.SIGKILL if os.name == "posix" else signal.SIGTERM):
    os.kill(row["pid"], how)


def gone(row):
    """Whether the process has ended (a zombie has)."""
    return not psutil.pid_exists(row["pid"]) or psutil.Process(row["pid"]).status() == psutil.STATUS_ZOMBIE


def kinds(jobs, job_id):
    return [event["kind"] for event in jobs.events(job_id)]


# From the start to the end

def test_a_job_runs_and_its_row_tells_all(make, url):
    jobs = make(url)
    row = jobs.submit("check", {"steps": 3}, job_id="one", files={"draws.csv": b"1,2"})
    assert row["status"] == "running" and row["pid"] != os.getpid() and row["token"] == 1
    row = jobs.wait("one", WAIT_S)
    assert (row["status"], row["error_message"]) == ("completed", None)
    assert row["result"]["steps"] == 3 and row["progress"] == {"step": 3, "steps": 3}
    assert row["queued_at"] <= row["started_at"] <= row["ended_at"]
    assert (jobs.folder("one") / "draws.csv").read_bytes() == b"1,2"
    told = list(jobs.follow("one"))
    assert [event["kind"] for event in told if event["kind"] != "progress"] == ["queued", "started", "ended"]
    assert told[-1]["data"] == {"status": "completed", "error_message": None} and told[-2]["data"]["step"] == 3
    assert [event["id"] for event in told] == sorted({event["id"] for event in told})
    until(lambda: gone(row), "the end of the process")


def test_a_job_that_raises_has_failed(make, url):
    jobs = make(url)
    jobs.submit("check", {"steps": 1, "fail": "no\0 luck"}, job_id="bad")
    row = jobs.wait("bad", WAIT_S)
    assert (row["status"], row["error_message"]) == ("failed", "ValueError: failed as asked: no luck")
    assert "Traceback" in (jobs.folder("bad") / "log.txt").read_text()


def test_the_training_session_of_the_same_name_says_the_same(make, url):
    jobs = make(url)
    jobs.store.create_training_session("one", "net", {})
    row = counting(jobs, "one")
    assert jobs.store.get_training_session("one")["status"] == "running"
    kill(row)
    until(lambda: jobs.get("one")["status"] == "interrupted")
    session = jobs.store.get_training_session("one")
    assert session["status"] == "interrupted" and "without a word" in session["error_message"] and session["end_time"]
    jobs.resume("one")
    session = jobs.store.get_training_session("one")
    assert session["status"] in ("queued", "running") and session["error_message"] is session["end_time"] is None


def test_what_cannot_be_submitted(make, file_url):
    jobs = make(file_url)
    for wrong, said in (({"kind": "os"}, "kind is 'os'"), ({"params": {"x": {1}}}, "params.x"), ({"params": []}, "give a dict"),
                        ({"job_id": "../up"}, "job_id is"), ({"job_id": "nul"}, "job_id is"), ({"memory_mb": 0.5}, "memory_mb"),
                        ({"time_s": float("nan")}, "time_s"), ({"files": {"..": b""}}, "file name"),
                        ({"files": {"log.txt": b""}}, "file name"), ({"files": {"a/b": b""}}, "file name")):
        given = {"kind": "check", "params": {}} | wrong
        with pytest.raises(JobError, match=said):
            jobs.submit(given.pop("kind"), given.pop("params"), **given)
    assert jobs.list() == [] and not (jobs.home / "jobs").exists()
    jobs.submit("check", {}, job_id="one")
    with pytest.raises(JobError, match="is taken"):
        jobs.submit("check", {}, job_id="one")
    with MemoryStore(":memory:") as memory, pytest.raises(JobError, match="open one in a file"):
        Jobs(memory, jobs.home).submit("check", {})
    for limit in (0, "two", 1.5):
        with pytest.raises(JobError, match="limit of jobs"):
            Jobs(jobs.store, jobs.home, limit)


def test_a_refused_row_leaves_no_folder(make, file_url):
    jobs = make(file_url)
    with jobs.here("check", {}, "taken"):
        pass
    with pytest.raises(StoreError, match="'taken' is taken"):
        jobs.submit("check", {}, job_id="taken")
    assert not jobs.folder("taken").exists()


def test_a_file_named_like_a_module_is_not_code(make, file_url):
    jobs = make(file_url)
    jobs.submit("check", {"steps": 1}, job_id="one", files={"json.py": b"raise SystemExit(9)", "helios.py": b"raise SystemExit(9)"})
    assert jobs.wait("one", WAIT_S)["status"] == "completed"


@posix
def test_the_process_has_no_terminal_no_input_and_no_password_in_its_words(make, url):
    jobs = make(url)
    row = counting(jobs, "one")
    process = psutil.Process(row["pid"])
    assert os.getsid(process.pid) == process.pid and process.terminal() is None and process.nice() > psutil.Process().nice()
    assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull
    assert "://" not in " ".join(process.cmdline())


# Outliving the starter

STARTER = """
import sys, time
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
jobs = Jobs(MemoryStore(sys.argv[1]), sys.argv[2])
jobs.submit("check", {"steps": 60, "step_s": 0.02}, job_id="one")
print("started", flush=True)
time.sleep(1000)
"""


@posix
def test_a_job_survives_kill_9_of_its_starter(make, url):
    jobs = make(url)
    with subprocess.Popen([sys.executable, "-c", STARTER, url, str(jobs.home)], stdout=subprocess.PIPE) as starter:
        assert starter.stdout.readline() == b"started\n"
        starter.kill()
    row = jobs.wait("one", WAIT_S)
    assert (row["status"], row["result"]["attempt"]) == ("completed", 1)


@posix
def test_a_job_survives_a_closed_terminal(make, file_url):
    import fcntl
    import termios
    jobs, (outer, inner) = make(file_url), os.openpty()

    def take_terminal():
        fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

    with subprocess.Popen([sys.executable, "-c", STARTER, file_url, str(jobs.home)], stdin=inner, stdout=inner, stderr=inner,
                          start_new_session=True, preexec_fn=take_terminal) as starter:
        os.close(inner)
        until(lambda: jobs.list())
        os.close(outer)
        starter.wait(WAIT_S)
        assert starter.returncode == -signal.SIGHUP
    assert jobs.wait("one", WAIT_S)["status"] == "completed"


# Dead or alive

def test_a_killed_job_is_interrupted_at_the_next_look_and_goes_on_where_it_was(make, url):
    jobs = make(url)
    row = counting(jobs, "one", steps=60)
    kill(row)
    until(lambda: gone(row))
    (found,) = jobs.reconcile()
    assert found["job_id"] == "one" and jobs.reconcile() == []
    row = jobs.get("one")
    assert row["status"] == "interrupted" and f"process {row['pid']} ended without a word" in row["error_message"]
    assert kinds(jobs, "one")[-1] == "ended"
    at = json.loads((jobs.folder("one") / "state.json").read_text())["step"]
    assert jobs.resume("one")["token"] == 2
    row = jobs.wait("one", WAIT_S)
    assert (row["status"], row["error_message"]) == ("completed", None)
    assert row["result"] == {"steps": 60, "first": at, "attempt": 2, "memory_mb": 0}


def test_a_zombie_is_dead(make, file_url, monkeypatch):
    jobs = make(file_url)
    row = counting(jobs, "one")
    monkeypatch.setattr(helios.jobs, "reap", lambda: None)   # this process is the parent, and does not ask
    kill(row)
    until(lambda: psutil.Process(row["pid"]).status() == psutil.STATUS_ZOMBIE)
    assert jobs.get("one")["status"] == "interrupted"


def test_a_number_used_again_is_another_process(make, url):
    jobs, me = make(url), os.getpid()
    old = utc_text(datetime.now(UTC) - timedelta(seconds=10))
    for job_id, started in (("mine", start_of(me)), ("other", start_of(me) - 60)):
        jobs.store._insert(table, job_id=job_id, kind="check", params={}, status="running", token=1, host=host_identity(),
                           pid=me, pid_started=started, heartbeat_at=old)
    assert [found["job_id"] for found in jobs.reconcile()] == ["other"]
    assert jobs.get("mine")["status"] == "running"


def test_another_machine_is_judged_by_its_signs_of_life(make, url):
    jobs, now = make(url), datetime.now(UTC)
    for job_id, seconds in (("fresh", 0), ("silent", 6), ("ahead", -60)):
        jobs.store._insert(table, job_id=job_id, kind="check", params={}, status="running", token=1, host="far/boot/pid",
                           pid=os.getpid(), pid_started=start_of(os.getpid()), heartbeat_at=utc_text(now - timedelta(seconds=seconds)))
    found = {row["job_id"]: row["error_message"] for row in jobs.reconcile()}
    assert set(found) == {"silent", "ahead"} and "from far" in found["silent"]


@pytest.mark.slow
def test_a_job_that_was_taken_for_dead_takes_its_row_back(make, url):
    jobs = make(url)
    row = counting(jobs, "one", steps=150)
    with jobs.store._transaction("write") as conn:
        assert helios.job_rows.end_job(conn, "one", 1, "interrupted", error_message="silent", before=("running",))
    until(lambda: row_of(jobs, "one")["status"] == "running", "its next sign of life")
    assert jobs.wait("one", WAIT_S)["status"] == "completed" and jobs.get("one")["pid"] == row["pid"]
    assert "found_alive" in kinds(jobs, "one")


@pytest.mark.slow
def test_a_running_job_finds_another_one_dead_without_anybody_looking(make, url):
    jobs = make(url, limit=2)
    row = counting(jobs, "dies")
    counting(jobs, "lives")
    kill(row)
    killed = time.monotonic()
    until(lambda: row_of(jobs, "dies")["status"] == "interrupted")
    assert time.monotonic() - killed < 30
    assert row_of(jobs, "lives")["status"] == "running"


def test_signs_of_life_come_without_progress(make, url):
    jobs = make(url)
    jobs.submit("check", {"steps": 1, "step_s": 30}, job_id="one")
    first = until(lambda: row_of(jobs, "one")["heartbeat_at"])
    until(lambda: row_of(jobs, "one")["heartbeat_at"] > first)


def test_a_process_that_dies_on_the_way_is_found_with_its_last_words(make, file_url, monkeypatch):
    jobs = make(file_url)
    dies = [sys.executable, "-c", "raise SystemExit('no module named torch')"]
    monkeypatch.setattr(helios.jobs, "python_command", lambda module, words: dies)
    jobs.submit("check", {}, job_id="one")
    row = until(lambda: (row := jobs.get("one"))["status"] != "running" and row)
    assert row["status"] == "interrupted" and row["error_message"].endswith("its last line was: no module named torch")


def test_a_process_that_cannot_be_started_is_a_failure(make, file_url, monkeypatch):
    jobs = make(file_url)

    def refuse(*args):
        raise OSError(11, "out of processes")

    monkeypatch.setattr(helios.jobs, "launch", refuse)
    row = jobs.submit("check", {}, job_id="one")
    assert row["status"] == "failed" and "out of processes" in row["error_message"]


# The queue

@pytest.mark.slow
def test_one_at_a_time_first_in_first_out_and_nobody_looks(make, url):
    jobs = make(url)
    for name in "abcd":
        jobs.submit("check", {"steps": 2, "step_s": 0.01}, job_id=name)
    rows = until(lambda: all(row_of(jobs, name)["ended_at"] for name in "abcd") and [row_of(jobs, name) for name in "abcd"])
    assert [row["status"] for row in rows] == ["completed"] * 4
    assert all(before["ended_at"] <= after["started_at"] for before, after in zip(rows, rows[1:], strict=False))


def test_of_many_lookers_one_starts_a_job(make, url, monkeypatch):
    """Eight lookers with a store each, 4 queued jobs, a limit of 3: three starts, each of another job, the oldest."""
    lookers, started = [make(url, limit=3) for _ in range(8)], []
    me = os.getpid()
    monkeypatch.setattr(Jobs, "_start", lambda self, job_id, token: None)
    for name in "abcd":
        lookers[0].submit("check", {}, job_id=name)
    monkeypatch.setattr(Jobs, "_start", lambda self, job_id, token: started.append(job_id) or (me, start_of(me)))
    barrier = threading.Barrier(len(lookers))

    def look(jobs):
        barrier.wait()
        for _ in range(5):
            jobs.reconcile()

    threads = [threading.Thread(target=look, args=(jobs,)) for jobs in lookers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == ["a", "b", "c"]
    assert [row_of(lookers[0], name)["status"] for name in "abcd"] == ["running"] * 3 + ["queued"]


def test_a_job_whose_folder_is_elsewhere_waits_for_its_home(make, url, tmp_path):
    here, there = make(url), make(url)
    there.home = tmp_path / "another"
    counting(here, "first")
    here.submit("check", {"steps": 1}, job_id="second")
    kill(row_of(here, "first"))
    until(lambda: there.get("first")["status"] == "interrupted")
    assert there.get("second")["status"] == "queued"
    assert here.wait("second", WAIT_S)["status"] == "completed"


@pytest.mark.slow
def test_a_job_that_another_one_started_is_not_part_of_it(make, file_url, monkeypatch):
    """The first job starts the second, which is its child; it is neither charged for it nor ended with it."""
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0.3")
    jobs = make(file_url, limit=2)
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0.3")
    first = counting(jobs, "first", deaf=True)
    jobs.folder("second").mkdir()
    jobs.store._insert(table, job_id="second", kind="check", params={"steps": 100_000, "allocate_mb": 300}, status="queued", token=1)
    second = until(lambda: (row := row_of(jobs, "second"))["progress"] and row)
    assert psutil.Process(second["pid"]).ppid() == first["pid"]
    assert tree_memory_mb(first["pid"]) < 300 < tree_memory_mb(second["pid"])
    jobs.cancel("first")
    until(lambda: gone(first))
    assert jobs.get("first")["status"] == "cancelled" and jobs.get("second")["status"] == "running" and not gone(second)


@contextmanager
def answers_lost(monkeypatch, also_reads=False):
    """Each commit happens, and its answer is lost; with `also_reads` nobody can ask afterwards."""
    real, lost = MemoryStore._transaction, []

    @contextmanager
    def losing(self, mode="read", conflict=None, durable=True):
        if also_reads and lost:
            raise StoreError("the server is away")
        with real(self, mode, conflict, durable) as conn:
            yield conn
        if mode == "write":
            lost.append(mode)
            raise StoreError("the server closed the connection")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "_transaction", losing)
        yield


@pytest.mark.parametrize("also_reads", [False, True])
def test_a_submission_whose_answer_is_lost_keeps_its_folder_and_runs(make, url, monkeypatch, also_reads):
    jobs = make(url)
    with answers_lost(monkeypatch, also_reads), pytest.raises(StoreError, match="closed the connection"):
        jobs.submit("check", {"steps": 1}, job_id="one", files={"draws.csv": b"1,2"})
    assert (jobs.folder("one") / "draws.csv").read_bytes() == b"1,2"
    assert jobs.wait("one", WAIT_S)["status"] == "completed"


def test_a_queued_job_whose_folder_is_removed_fails_at_its_own_home_only(make, url, tmp_path):
    jobs, there = make(url), make(url)
    there.home = tmp_path / "another"
    (there.home / "jobs").mkdir(parents=True)
    with jobs.here("check", {}, "first"):      # fills the only place
        jobs.submit("check", {"steps": 1}, job_id="gone")
        jobs.submit("check", {"steps": 1}, job_id="next")
        (jobs.home / "jobs").rename(tmp_path / "unmounted")
        assert jobs.get("gone")["status"] == "queued"          # the disk is away, not the folder
        (tmp_path / "unmounted").rename(jobs.home / "jobs")
        jobs.folder("gone").rmdir()
        assert there.get("gone")["status"] == "queued"
        row = jobs.get("gone")
        assert row["status"] == "failed" and "was removed while it was queued; submit it anew" in row["error_message"]
        assert jobs.get("next")["status"] == "queued" and kinds(jobs, "gone")[-1] == "ended"
    assert jobs.wait("next", WAIT_S)["status"] == "completed"


def test_a_resumed_job_whose_folder_goes_meanwhile_does_not_wait_for_ever(make, file_url, monkeypatch):
    """The folder goes just before the look inside the transaction, and in another run just after it."""
    jobs, real, looks = make(file_url), Path.is_dir, []
    for name, after in (("before", False), ("after", True)):
        jobs.submit("check", {"steps": 1, "fail": "x"}, job_id=name)
        assert jobs.wait(name, WAIT_S)["status"] == "failed"

        def vanishing(self, name=name, after=after):
            there = real(self)
            if self.name == name and there:
                looks.append(name)
                for file in self.iterdir():
                    file.unlink()
                self.rmdir()
                return after
            return there

        with monkeypatch.context() as patched:
            patched.setattr(Path, "is_dir", vanishing)
            if after:
                assert jobs.resume(name)["token"] == 2
            else:
                with pytest.raises(JobError, match="has no folder"):
                    jobs.resume(name)
    assert looks == ["before", "after"] and (jobs.get("before")["status"], jobs.get("before")["token"]) == ("failed", 1)
    row = jobs.get("after")
    assert row["status"] == "failed" and "was removed while it was queued" in row["error_message"]


# Cancelling

def test_cancel(make, url):
    jobs = make(url)
    row = counting(jobs, "one")
    jobs.submit("check", {}, job_id="two")
    assert jobs.cancel("two")["status"] == "cancelled"
    asked = time.monotonic()
    jobs.cancel("one")
    done = jobs.wait("one", WAIT_S)
    assert time.monotonic() - asked < 30
    state = json.loads((jobs.folder("one") / "state.json").read_text())
    assert (done["status"], done["error_message"]) == ("cancelled", None) and done["progress"]["step"] == state["step"]
    assert jobs.store.get_context("job_check", "one")["context_data"]["step"] == state["step"]
    until(lambda: gone(row))
    with pytest.raises(JobError, match="job one is cancelled and cannot be cancelled"):
        jobs.cancel("one")
    with pytest.raises(JobError, match="no job 'nobody'"):
        jobs.cancel("nobody")


def test_a_job_that_is_still_starting_is_cancelled_at_once(make, url):
    jobs = make(url)
    row = jobs.submit("check", {}, job_id="one")
    assert row["heartbeat_at"] is None and jobs.cancel("one")["status"] == "cancelled"
    until(lambda: gone(row))
    jobs.resume("one")
    assert jobs.wait("one", WAIT_S)["status"] == "completed"


def test_a_deaf_job_is_ended_after_the_grace_and_the_row_says_so(make, url, monkeypatch):
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0.3")
    jobs = make(url)
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0.3")
    row = counting(jobs, "one", deaf=True)
    jobs.cancel("one")
    until(lambda: row_of(jobs, "one")["ended_at"])
    done = row_of(jobs, "one")
    assert done["status"] == "cancelled" and "did not stop within 0.3 s" in done["error_message"]
    until(lambda: gone(row))
    assert not (jobs.folder("one") / "outcome.json").exists()


@pytest.mark.slow
@posix
def test_a_stopped_job_is_ended_by_whoever_looks(make, url, monkeypatch):
    jobs = make(url)
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0")
    row = counting(jobs, "one", step_s=0.5)   # so that it is not stopped within a write, which would lock the file
    kill(row, signal.SIGSTOP)
    assert jobs.cancel("one")["status"] == "running"
    done = jobs.wait("one", WAIT_S)
    assert done["status"] == "cancelled" and "so it was killed" in done["error_message"]
    until(lambda: gone(row))


@posix
def test_a_look_that_cannot_write_kills_nobody(make, url, monkeypatch):
    """Neither a read-only store nor a write that fails; the next look that can write says so first, then kills."""
    jobs, told = make(url), []
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0")
    row = counting(jobs, "one", step_s=0.5)
    kill(row, signal.SIGSTOP)
    jobs.cancel("one")
    asked = helios.jobs.job_events.c.kind == "stop_requested"
    with jobs.store._transaction("write") as conn:     # long ago
        conn.execute(helios.jobs.job_events.update().where(asked).values(timestamp=utc_text("2026-01-01")))
    jobs.store.read_only = True
    assert jobs.get("one")["status"] == "running" and not gone(row)
    jobs.store.read_only = False
    real, real_kill = MemoryStore._transaction, helios.jobs.kill_tree

    @contextmanager
    def refuse(self, mode="read", *args, **kwargs):
        with real(self, mode, *args, **kwargs) as conn:
            yield conn
            if mode == "write":
                raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "_transaction", refuse)
        assert jobs.get("one")["status"] == "running" and not gone(row)
    monkeypatch.setattr(helios.jobs, "kill_tree", lambda *args: told.append(row_of(jobs, "one")["status"]) or real_kill(*args))
    assert jobs.get("one")["status"] == "cancelled" and told == ["cancelled"]
    until(lambda: gone(row))


@posix
def test_sigterm_interrupts_with_the_state_saved(make, url):
    jobs = make(url)
    row = counting(jobs, "one", steps=60)
    kill(row, signal.SIGTERM)
    done = jobs.wait("one", WAIT_S)
    assert (done["status"], done["error_message"]) == ("interrupted", None)
    assert "Traceback" not in (jobs.folder("one") / "log.txt").read_text()
    jobs.resume("one")
    again = jobs.wait("one", WAIT_S)
    assert again["status"] == "completed" and again["result"]["first"] == done["progress"]["step"]


@posix
def test_a_hangup_is_nothing(make, file_url):
    jobs = make(file_url)
    kill(counting(jobs, "one", steps=30), signal.SIGHUP)
    assert jobs.wait("one", WAIT_S)["status"] == "completed"


# Limits

def test_the_time_limit_names_itself_and_the_state_is_kept(make, url):
    jobs = make(url)
    jobs.submit("check", {"steps": 100_000, "step_s": 0.02}, job_id="one", time_s=0.5)
    row = jobs.wait("one", WAIT_S)
    assert row["status"] == "failed" and "time limit of 0.5 s reached after 0." in row["error_message"]
    assert json.loads((jobs.folder("one") / "state.json").read_text())["step"] > 0


def test_a_job_that_ran_into_its_limit_goes_on_with_a_larger_one(make, file_url):
    jobs = make(file_url)
    jobs.submit("check", {"steps": 100, "step_s": 0.02}, job_id="one", time_s=0.5)
    assert jobs.wait("one", WAIT_S)["status"] == "failed"
    assert jobs.resume("one", time_s=60)["time_s"] == 60
    row = jobs.wait("one", WAIT_S)
    assert row["status"] == "completed" and row["result"]["first"] > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_process_whose_output_has_no_room_still_ends_its_job():
    """Where the log's disk is full, saying so must not be what ends the process."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", "from helios.job_context import _tell; _tell('no room'); print('went on')"],
                              stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_the_memory_limit_names_itself_with_the_figure(make, file_url):
    jobs = make(file_url)
    jobs.submit("check", {"steps": 100_000, "allocate_mb": 300}, job_id="one", memory_mb=250)
    row = jobs.wait("one", WAIT_S)
    assert row["status"] == "failed" and "memory limit of 250 MB exceeded: the process and its children took" in row["error_message"]


def test_a_deaf_job_over_its_limit_is_ended(make, file_url, monkeypatch):
    jobs = make(file_url)
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0.3")
    jobs.submit("check", {"steps": 100_000, "deaf": True}, job_id="one", time_s=0.3)
    row = jobs.wait("one", WAIT_S)
    assert row["status"] == "failed" and "time limit" in row["error_message"] and "so it was killed" in row["error_message"]


# Taking up again

def test_resume_is_for_jobs_that_ended_early(make, url):
    jobs = make(url)
    counting(jobs, "one")
    with pytest.raises(JobError, match="job one is running"):
        jobs.resume("one")
    jobs.submit("check", {"steps": 0}, job_id="two")
    with pytest.raises(JobError, match="job two is queued"):
        jobs.resume("two")
    jobs.cancel("one")
    assert jobs.wait("two", WAIT_S)["status"] == "completed"
    with pytest.raises(JobError, match="job two is completed"):
        jobs.resume("two")
    for file in jobs.folder("one").iterdir():
        file.unlink()
    jobs.folder("one").rmdir()
    with pytest.raises(JobError, match="has no folder"):
        jobs.resume("one")


@posix
def test_a_revived_attempt_cannot_write(make, url, monkeypatch):
    """The first attempt is stopped, another machine takes it for dead and resumes it; then the first wakes up."""
    jobs = make(url)
    first = counting(jobs, "one", step_s=0.5)   # so that it is not stopped within a write, which would lock the file
    kill(first, signal.SIGSTOP)
    with jobs.store._transaction("write") as conn:
        conn.execute(table.update().values(heartbeat_at=utc_text(datetime.now(UTC) - timedelta(seconds=30))))
    elsewhere = "/".join(["elsewhere", *host_identity().split("/")[1:]])
    for module in (helios.jobs, helios.job_rows):
        monkeypatch.setattr(module, "host_identity", lambda: elsewhere)
    assert jobs.get("one")["status"] == "interrupted"
    assert jobs.resume("one")["token"] == 2
    second = until(lambda: (row := row_of(jobs, "one"))["progress"] and row["pid"] != first["pid"]
                   and jobs.store.get_context("job_check", "one")["context_data"]["attempt"] == 2 and row)
    kill(first, signal.SIGCONT)
    seen = set()
    until(lambda: seen.add(jobs.store.get_context("job_check", "one")["context_data"]["attempt"]) or gone(first), "the end of the first attempt")
    assert seen == {2}
    row = row_of(jobs, "one")
    assert (row["status"], row["token"], row["pid"]) == ("running", 2, second["pid"])
    said = (jobs.folder("one") / "log.txt").read_text()   # by its pulse, or by the fence at its next write
    assert "attempt 1 of job one has been replaced" in said or "was taken up again (token 2)" in said


# When the store is away

@contextmanager
def away(monkeypatch):
    """No transaction works."""
    def refuse(*args, **kwargs):
        raise StoreError("the server is away")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "_transaction", refuse)
        yield


def test_a_store_that_is_away_stops_nothing_and_loses_nothing(make, url, monkeypatch):
    jobs = make(url)
    with jobs.here("check", {}, "one") as context:
        context.progress(step=1)
        until(lambda: row_of(jobs, "one")["progress"])
        with away(monkeypatch):
            context.event("note", {"n": 1})
            for step in range(2, 50):
                context.progress(step=step)
            context.event("note", {"n": 2})
            time.sleep(0.3)   # the pulse tries, and fails
        until(lambda: "note" in kinds(jobs, "one"))
    told = [(event["kind"], event["data"]) for event in jobs.events("one")]
    assert told[2:-1] == [("note", {"n": 1}), ("progress", {"step": 49}), ("note", {"n": 2})]
    assert row_of(jobs, "one")["progress"] == {"step": 49}


def test_the_outcome_waits_in_a_file_and_is_told_once(make, url, monkeypatch):
    jobs = make(url)
    monkeypatch.setattr(helios.job_context, "PATIENCE_S", {True: 0, False: 0})
    context = jobs.here("check", {}, "one")
    inside = context.__enter__()
    inside.result = {"n": 7}
    with away(monkeypatch):
        context.__exit__(None, None, None)
        assert json.loads((jobs.folder("one") / "outcome.json").read_text())["status"] == "completed"
    assert row_of(jobs, "one")["status"] == "running"   # its process, this one, is alive: only the file tells
    assert [found["status"] for found in jobs.reconcile()] == ["completed"]
    assert jobs.reconcile() == [] and row_of(jobs, "one")["result"] == {"n": 7}
    assert not (jobs.folder("one") / "outcome.json").exists() and kinds(jobs, "one").count("ended") == 1


def test_an_outcome_of_an_older_attempt_says_nothing(make, file_url):
    jobs = make(file_url)
    counting(jobs, "one")
    (jobs.folder("one") / "outcome.json").write_text(json.dumps({"token": 0, "status": "completed", "result": None, "error_message": None}))
    assert jobs.get("one")["status"] == "running"


def test_a_damaged_outcome_is_set_aside_and_nothing_else_suffers(make, file_url, caplog):
    jobs = make(file_url)
    with pytest.raises(helios.job_context.Stopped), jobs.here("check", {}, "one") as context:
        for text in ("{}", "null", '{"token": 1, "status": "done", "result": null, "error_message": null}'):
            (jobs.folder("one") / "outcome.json").write_text(text)
            jobs.store.read_only = True        # a look that cannot write moves no file either
            pulse_reads = jobs.list()
            jobs.store.read_only = False
            assert [row["status"] for row in pulse_reads] == ["running"] == [row["status"] for row in jobs.list()]
            assert (jobs.folder("one") / "outcome.json.damaged").read_text() == text
            assert not (jobs.folder("one") / "outcome.json").exists()
        jobs.cancel("one")
        raise helios.job_context.Stopped(until(context.stop_requested))
    assert jobs.get("one")["status"] == "cancelled"
    assert "is damaged and was set aside as outcome.json.damaged" in caplog.text


def test_the_pulse_lives_on_after_an_unexpected_error_and_says_it_once(make, file_url, monkeypatch, caplog):
    jobs, calls = make(file_url), []
    monkeypatch.setattr(Jobs, "reconcile", lambda self: calls.append(1) or {}["no such key"])
    with pytest.raises(KeyError, match="no such key"), jobs.here("check", {}, "one") as context:
        until(lambda: len(calls) >= 2)
        assert context._threads[0].is_alive()
        with jobs.store._transaction("write") as conn:
            conn.execute(table.update().values(stop_requested="cancelled"))
        assert until(context.stop_requested) == "cancelled"
    assert [record.exc_info[0] for record in caplog.records if "unexpected error in its pulse" in record.message] == [KeyError]


@pytest.mark.slow
def test_events_are_told_once_and_in_order_after_a_lock_of_eight_seconds(make, file_url, tmp_path):
    """The pulse waits for the lock with one event, the function ends with another; both are written, once."""
    import sqlite3
    jobs = make(file_url)
    lock = sqlite3.connect(tmp_path / "helios.db", isolation_level=None, check_same_thread=False)
    with jobs.here("check", {}, "one") as context:
        context.event("zero", {})
        until(lambda: "zero" in kinds(jobs, "one"))
        lock.execute("BEGIN IMMEDIATE")
        release = threading.Timer(8, lock.execute, ("COMMIT",))
        release.start()
        context.event("first", {})
        until(lambda: not context._outbox, "the pulse to take it")
        context.event("second", {})
    release.join()
    lock.close()
    assert kinds(jobs, "one") == ["started", "zero", "first", "second", "ended"]
    assert row_of(jobs, "one")["status"] == "completed" and not context.lost


def test_a_pulse_that_comes_late_neither_revives_a_job_nor_calls_it_replaced(make, url):
    jobs = make(url)
    with pytest.raises(KeyboardInterrupt), jobs.here("check", {}, "one") as context:
        raise KeyboardInterrupt
    context._outbox.append(("late", {}, utc_now()))
    context._beat(True)
    assert row_of(jobs, "one")["status"] == "interrupted" and not context.lost and "late" not in kinds(jobs, "one")


@posix
def test_ctrl_c_while_the_end_is_written_does_not_leave_the_row_running(make, url):
    jobs, heard = make(url), threading.Event()

    def hear(*_):
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        with pytest.raises(KeyboardInterrupt), jobs.here("check", {}, "one") as context:
            settle = context._settle

            def pressed(*args):
                until(lambda: os.kill(os.getpid(), signal.SIGINT) or heard.wait(0.1))   # one that comes just before Python waits is not heard
                return settle(*args)

            context._settle = pressed
    finally:
        signal.signal(signal.SIGINT, before)
    assert row_of(jobs, "one")["status"] == "completed" and kinds(jobs, "one") == ["started", "ended"]


@posix
def test_a_job_whose_database_is_away_at_its_end(make, file_url, tmp_path):
    """Its next write fails, so it fails, and the row learns that when the file is back."""
    jobs, database = make(file_url), tmp_path / "helios.db"
    counting(jobs, "one")
    jobs.store.close()
    for name in ("helios.db", "helios.db-wal", "helios.db-shm"):
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / f"away-{name}")
    until(lambda: (jobs.folder("one") / "outcome.json").exists(), "the outcome")
    for name in ("helios.db-wal", "helios.db-shm", "helios.db"):
        if (tmp_path / f"away-{name}").exists():
            (tmp_path / f"away-{name}").rename(tmp_path / name)
    assert database.exists()
    again = make(file_url)
    row = again.wait("one", WAIT_S)
    assert row["status"] == "failed" and "the file is gone" in row["error_message"]
    until(lambda: not (jobs.folder("one") / "outcome.json").exists())
    assert kinds(again, "one").count("ended") == 1


@pytest.mark.slow
def test_a_server_that_is_restarted_under_a_job(make, postgres_server):
    """It goes on counting while the server is away, ends meanwhile, and is found completed afterwards."""
    import psycopg
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as conn:   # closed before the server is stopped
        conn.execute("CREATE SCHEMA restarted")
    jobs = make(f"{postgres_server.get_uri()}&options=-csearch_path%3Drestarted")
    jobs.submit("check", {"steps": 60, "step_s": 0.05, "quiet": True}, job_id="one")
    until(lambda: row_of(jobs, "one")["progress"])
    postgres_server.stop()
    try:
        with pytest.raises(StoreError):
            jobs.get("one")
        until(lambda: (jobs.folder("one") / "outcome.json").exists(), "the outcome")
    finally:
        postgres_server.start()
    row = jobs.wait("one", WAIT_S)
    assert (row["status"], row["result"]["steps"], row["token"]) == ("completed", 60, 1)
    assert kinds(jobs, "one").count("ended") == 1
    until(lambda: not (jobs.folder("one") / "outcome.json").exists())


def test_a_store_that_cannot_be_written_still_answers(make, file_url, monkeypatch):
    jobs = make(file_url)
    row = counting(jobs, "one")
    kill(row)
    until(lambda: gone(row))
    real = MemoryStore._transaction

    def refuse(self, mode="read", *args, **kwargs):
        if mode == "write":
            raise StoreError("the file is read-only")
        return real(self, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "_transaction", refuse)
        assert jobs.get("one")["status"] == "interrupted"
        assert [row["status"] for row in jobs.list()] == ["interrupted"]
        assert jobs.list("running") == [] and len(jobs.list("interrupted")) == 1
        with pytest.raises(StoreError, match="read-only"):
            jobs.resume("one")
        with pytest.raises(StoreError, match="read-only"):
            jobs.submit("check", {}, job_id="two")
        assert not jobs.folder("two").exists()
    assert row_of(jobs, "one")["status"] == "running"   # nothing was written


# The current process as a job

def test_here(make, url):
    jobs = make(url)
    for error, status, message in ((None, "completed", None), (KeyboardInterrupt(), "interrupted", "stopped by the user"),
                                   (ValueError("no draws"), "failed", "ValueError: no draws")):
        try:
            with jobs.here("check", {"n": 1}, status) as context:
                assert jobs.get(status)["status"] == "running" and context.attempt == 1
                if error:
                    raise error
        except (KeyboardInterrupt, ValueError) as e:
            assert e is error
        assert (jobs.get(status)["status"], jobs.get(status)["error_message"]) == (status, message)
    with pytest.raises(JobError, match="'completed' is taken by a check job that is completed"), jobs.here("check", {}, "completed"):
        pass
    with jobs.here("check", {}, "failed") as context:
        assert context.attempt == 2
    with pytest.raises(JobError, match="kind is 'os'"), jobs.here("os", {}):
        pass


def test_here_is_asked_to_stop_and_never_killed(make, url, monkeypatch):
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "0")
    jobs, other = make(url), make(url)
    with pytest.raises(helios.job_context.Stopped), jobs.here("check", {}, "one") as context:
        other.cancel("one")
        reason = until(context.stop_requested)
        with jobs.store._transaction("write") as conn:   # asked long ago
            conn.execute(helios.jobs.job_events.update().values(timestamp=utc_text("2026-01-01")))
        assert other.get("one")["status"] == "running"
        raise helios.job_context.Stopped(reason)
    assert jobs.get("one")["status"] == "cancelled"


def test_here_hears_that_it_was_replaced(make, url):
    jobs = make(url)
    with pytest.raises(JobError, match="was taken up elsewhere"), jobs.here("check", {}, "one") as context:
        with jobs.store._transaction("write") as conn:
            conn.execute(table.update().values(token=2))
        with pytest.raises(JobError, match="attempt 1 has been replaced"):
            context.check()
        until(context.stop_requested)
    assert row_of(jobs, "one")["status"] == "running"


@posix
def test_a_foreground_run_that_is_killed_is_interrupted(make, url):
    jobs = make(url)
    code = STARTER.replace('jobs.submit("check", {"steps": 60, "step_s": 0.02}, job_id="one")',
                           'context = jobs.here("check", {}, "one"); context.__enter__()')
    with subprocess.Popen([sys.executable, "-c", code, url, str(jobs.home)], stdout=subprocess.PIPE) as starter:
        assert starter.stdout.readline() == b"started\n"
        assert jobs.get("one")["status"] == "running"
        starter.kill()
    assert jobs.get("one")["status"] == "interrupted"


def test_a_foreground_run_fills_a_place_and_its_end_starts_the_next(make, url):
    jobs = make(url)
    with jobs.here("check", {}, "one"):
        assert jobs.submit("check", {"steps": 1}, job_id="two")["status"] == "queued"
    assert row_of(jobs, "two")["status"] == "running"
    assert jobs.wait("two", WAIT_S)["status"] == "completed"


# Asking

def test_list_and_find(make, url):
    jobs = make(url)
    for name in ("alpha", "alphabet", "beta"):
        with jobs.here("check", {}, name):
            pass
    assert [row["job_id"] for row in jobs.list()] == ["beta", "alphabet", "alpha"]
    assert [row["job_id"] for row in jobs.list("completed", "check", 1)] == ["beta"] and jobs.list("failed") == []
    assert (jobs.find("alpha"), jobs.find("alphab"), jobs.find("b")) == ("alpha", "alphabet", "beta")
    for text, said in (("alp", "several jobs begin"), ("x", "no job"), ("al%", "job_id is"), ("al_", "no job")):
        with pytest.raises(JobError, match=said):
            jobs.find(text)
    with pytest.raises(JobError, match="status is 'done'"):
        jobs.list("done")


def test_wait_gives_up_when_the_time_is_up(make, file_url):
    jobs = make(file_url)
    counting(jobs, "one")
    assert jobs.wait("one", 0.05)["status"] == "running"


def test_progress_is_written_at_most_four_times_a_second_and_the_last_is_kept(make, file_url):
    jobs = make(file_url)
    with jobs.here("check", {}, "one") as context:
        began = time.monotonic()
        for step in range(100_000):
            context.progress(step=step)
        took = time.monotonic() - began
    told = [event["data"]["step"] for event in jobs.events("one") if event["kind"] == "progress"]
    assert told[-1] == 99_999 and len(told) <= 2 + 4.5 * (took + 1) and utc_now() > row_of(jobs, "one")["ended_at"]


def test_the_environment_sets_limit_and_grace(make, file_url, monkeypatch):
    make(file_url)
    monkeypatch.setenv("HELIOS_JOBS_LIMIT", "3")
    with MemoryStore(":memory:") as store:
        assert Jobs(store, Path("x")).limit == 3
        monkeypatch.setenv("HELIOS_JOBS_LIMIT", "many")
        with pytest.raises(JobError, match="limit of jobs is 'many'"):
            Jobs(store, Path("x"))
    monkeypatch.setenv("HELIOS_JOBS_GRACE_S", "soon")
    with pytest.raises(JobError, match="HELIOS_JOBS_GRACE_S is 'soon'"):
        helios.job_context.grace_s()
