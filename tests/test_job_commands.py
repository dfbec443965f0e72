"""`helios jobs`: what it prints, its JSON, its exit statuses, and that following ends without ending the job."""

import json
import os
import signal
import subprocess
import sys

import click
import psutil
import pytest
from click.testing import CliRunner
from waiting import WAIT_S, until

from helios.console import HELP, Commands
from helios.job_commands import event_line, job_lines
from helios.job_commands import jobs as group
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.places import DATABASE

COMMAND = [sys.executable, "-c", "from helios.job_commands import jobs; jobs(prog_name='helios jobs')"]


def run(*words):
    """The command in this process; standard output and standard error apart."""
    return CliRunner().invoke(group, [str(word) for word in words])


def assert_refused(done, *said, status=2):
    """One line on standard error, nothing on standard output."""
    assert done.exit_code == status and done.stdout == ""
    assert done.stderr.startswith("helios: ") and done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in said), done.stderr


@pytest.fixture
def background(home):
    """The jobs of a home; what still runs at the end is killed."""
    with MemoryStore(home / DATABASE) as store:
        background = Jobs(store)
        yield background
        for row in store._rows(_active()):
            if row["pid"] and row["pid"] != os.getpid() and psutil.pid_exists(row["pid"]):
                os.kill(row["pid"], signal.SIGTERM if os.name != "posix" else signal.SIGKILL)


def _active():
    from helios.tables import jobs
    return jobs.select().where(jobs.c.status == "running")


def counting(background, job_id, steps=100_000):
    background.submit("check", {"steps": steps, "step_s": 0.02}, job_id=job_id)
    return until(lambda: (row := background.get(job_id))["progress"] and row)


def test_a_home_without_a_database_has_no_jobs_and_gets_none(home):
    done = run("list")
    assert (done.exit_code, done.output) == (0, "No jobs.\n") and not home.exists()
    assert_refused(run("show", "a"), "no job 'a'", "helios jobs list shows them")
    assert not home.exists()


def test_list(background, tmp_path):
    for name in ("alpha", "beta"):
        with background.here("check", {"n": name}, name) as context:
            context.progress(step=1, loss=19.123456789, note=None)
    with pytest.raises(ValueError), background.here("check", {}, "gamma"):
        raise ValueError("no\ndraws")
    lines = run("list").output.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["gamma", "check", "failed"], ["beta", "check", "completed"], ["alpha", "check", "completed"]]
    assert lines[1].endswith("ValueError: no draws") and lines[2].endswith("step 1, loss 19.123")
    keys = json.loads(run("list", "--json", "-").stdout)
    assert [row["job_id"] for row in keys["jobs"]] == ["gamma", "beta", "alpha"]
    assert keys["jobs"][1]["progress"] == {"step": 1, "loss": 19.123456789, "note": None}
    assert [row["job_id"] for row in json.loads(run("list", "--status", "completed", "--limit", 1, "--json", "-").stdout)["jobs"]] == ["beta"]
    assert run("list", "--kind", "train").output == "No jobs.\n"
    file = tmp_path / "jobs.json"
    assert run("list", "--json", file).exit_code == 0 and len(json.loads(file.read_text())["jobs"]) == 3
    assert run("list", "--status", "done").exit_code == 2
    assert_refused(run("list", "--json", tmp_path / "no" / "x.json"), "there is no folder")


def test_show_cancel_resume(background):
    counting(background, "counts")
    shown = run("show", "cou")
    assert shown.exit_code == 0 and "Job        counts, check, attempt 1\nStatus     running\n" in shown.output
    assert json.loads(run("show", "counts", "--json", "-").stdout)["folder"] == str(background.folder("counts"))
    assert_refused(run("resume", "counts"), "job counts is running")
    cancelled = run("cancel", "c", "--json", "-")
    assert cancelled.exit_code == 0 and json.loads(cancelled.stdout)["status"] == "cancelled"
    assert_refused(run("cancel", "counts"), "job counts is cancelled and cannot be cancelled")
    assert "attempt 2" in run("resume", "counts").output
    until(lambda: background.get("counts")["heartbeat_at"])
    asked = run("cancel", "counts", "--no-wait")
    assert asked.exit_code == 0 and "Status     running, asked to stop\n" in asked.output
    assert background.wait("counts", WAIT_S)["status"] == "cancelled"


def test_names_that_are_none_or_several(background):
    for name in ("alpha", "alphabet"):
        with background.here("check", {}, name):
            pass
    for command in ("show", "cancel", "resume", "logs"):
        assert_refused(run(command, "al"), "several jobs begin with 'al'", "give more letters")
        assert_refused(run(command, "x"), "no job 'x'")
        assert_refused(run(command, "../x"), "job_id is '../x'")
    assert "Job        alpha, " in run("show", "alpha").output


def test_logs(background, tmp_path):
    background.submit("check", {"steps": 2, "fail": "as asked"}, job_id="fails")
    background.wait("fails", WAIT_S)
    text = run("logs", "fails").output.splitlines()
    assert list(dict.fromkeys(line.split()[2] for line in text if " | " not in line)) == ["queued", "started", "progress", "ended"]
    assert text[-1].endswith("| ValueError: failed as asked: as asked")
    assert text[0].endswith("kind check")      # whose folder it is stands in the event for `Jobs`, not for people
    lines = [json.loads(line) for line in run("logs", "fails", "--json", "-").stdout.splitlines()]
    assert lines[0]["kind"] == "queued" and lines[-1]["kind"] == "output"
    file = tmp_path / "log.jsonl"
    written = run("logs", "fails", "--json", file)
    assert written.output.splitlines() == text and [json.loads(line) for line in file.read_text().splitlines()] == lines


def test_logs_follow_until_the_end(background):
    counting(background, "one", steps=40)
    with subprocess.Popen([*COMMAND, "logs", "one", "--follow", "--json", "-"], stdout=subprocess.PIPE, text=True) as follower:
        lines = [json.loads(line) for line in follower.stdout]
    assert follower.returncode == 0 and [line["kind"] for line in lines][:2] == ["queued", "started"]
    assert lines[-1]["kind"] == "ended" and lines[-2]["data"] == {"step": 40, "steps": 40}


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_ends_the_following_and_not_the_job(background):
    counting(background, "one")
    with subprocess.Popen([*COMMAND, "logs", "one", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert "queued" in follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=WAIT_S)
    assert (follower.returncode, said) == (0, "helios: job one goes on; helios jobs cancel one stops it\n")
    assert background.get("one")["status"] == "running"


def test_a_reader_that_goes_away_is_no_failure(background):
    counting(background, "one")
    done = subprocess.run(f"{subprocess.list2cmdline(COMMAND)} logs one --follow | head -2", shell=True, capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.count("\n") == 2 and done.stderr == ""
    assert background.get("one")["status"] == "running"


def test_check(home):
    done = run("check", "--json", "-")
    keys = json.loads(done.stdout)
    assert done.exit_code == 0 and keys["works"] and keys["cancel_s"] < 60
    assert "works" in run("check").output


def test_check_says_that_the_limit_is_reached(background, monkeypatch):
    import helios.job_commands
    counting(background, "busy")
    real = helios.job_commands._until
    monkeypatch.setattr(helios.job_commands, "_until", lambda jobs, job_id, done, timeout_s: real(jobs, job_id, done, 0))
    done = run("check")
    assert done.exit_code == 1 and "as many jobs as the limit allows are running" in done.stderr
    assert background.get("busy")["status"] == "running"


def test_a_wrong_address_is_one_line(monkeypatch, home):
    monkeypatch.setenv("HELIOS_DATABASE_URL", "no url")
    assert_refused(run("list"), "HELIOS_DATABASE_URL is 'no url'", status=1)


def test_help_is_light_and_names_every_command():
    @click.group(cls=Commands, context_settings=HELP)
    def main():
        pass

    main.add_command(group)
    words = CliRunner().invoke(main, ["jobs", "--help"]).output
    assert all(f"  {name} " in words for name in ("list", "show", "cancel", "resume", "logs", "check"))
    code = "import sys, helios.job_commands; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not {"torch", "pandas", "sqlalchemy", "psutil"} & loaded


def test_lines_for_people():
    row = dict.fromkeys(("stop_requested", "started_at", "ended_at", "memory_mb", "progress", "error_message", "result"))
    row |= {"job_id": "a", "kind": "train", "token": 2, "status": "queued", "queued_at": "2026-01-02T03:04:05.000006+00:00",
            "time_s": 60.0, "params": {"model_name": "net", "rate": 0.001}}
    assert list(job_lines(row)) == ["Job        a, train, attempt 2", "Status     queued", "Queued     2026-01-02 03:04:05 UTC",
                                    "Limits     60 s", "Params     model name net, rate 0.001", "To watch   helios jobs logs --follow a"]
    event = {"kind": "stop_requested", "timestamp": row["queued_at"], "data": {"reason": "cancelled"}}
    assert event_line(event) == "2026-01-02 03:04:05  stop requested  reason cancelled"
