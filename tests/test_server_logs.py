"""Logs: a line is a line whatever is sent, secrets stay out, and nothing that was written goes missing."""

import io
import json
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from helios.exchanges import Exchange
from helios.server_logs import AccessRecord, Cover, JsonLines, LogStream, PlainLines, set_up_logs
from helios.settings import Settings

TEXT = st.text(max_size=60) | st.text(alphabet="\n\r\t\x1b\x00\x85\u2028\u2029\"\\{}%", max_size=12)


@pytest.fixture
def logs():
    """The server's log as a text, and the root logger as it was, afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    out = io.StringIO()
    yield lambda **given: (set_up_logs(Settings(**given), out), out)
    for handler in [h for h in root.handlers if isinstance(h, LogStream)]:
        handler.close()
    root.handlers, root.level = before, level


def exchange(**given):
    return Exchange(**{"method": "GET", "path": "/", "began": 0.0, "status": 200} | given)


@given(TEXT, TEXT, TEXT)
def test_an_access_line_is_one_line_and_says_what_was_asked(path, method, job):
    record = AccessRecord(exchange(path=path, method=method, job_id=job, request_id="0123456789abcdef", caller="local"))
    line = JsonLines(lambda text: text).format(record)
    assert line.isascii() and line.isprintable()
    found = json.loads(line)
    assert (found["path"], found["method"], found.get("job_id", ""), found["status"]) == (path, method, job, 200)
    plain = PlainLines(lambda text: text).format(record)
    assert len(plain.splitlines()) == 1 and plain.isprintable()


@given(TEXT, TEXT)
def test_any_record_is_one_line(message, extra):
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "%s", "args": (message,), "request_id": extra, "path": extra})
    line = JsonLines(Cover()).format(record)
    assert len(line.splitlines()) == 1 and json.loads(line)["request_id"] == extra
    assert len(PlainLines(Cover()).format(record).splitlines()) == 1


def test_the_same_fields_as_any_record():
    """The line that an access record makes by itself is the one that the general way makes."""
    record = AccessRecord(exchange(path="/api/x", job_id="a", request_id="b" * 16, caller="local"))
    own = json.loads(JsonLines(Cover()).format(record))
    record.__class__ = logging.LogRecord
    assert own == json.loads(JsonLines(Cover()).format(record))


def test_an_error_shows_its_traceback_and_cannot_forge_a_line(logs):
    handler, out = logs(log_json=False)
    try:
        raise ValueError("no\n00:00:00.000 ERROR   forged\npassword=hunter2")
    except ValueError:
        logging.getLogger("helios.x").exception("failed at\nthis")
    lines = out.getvalue().splitlines()
    assert "failed at\\nthis" in lines[0] and all(line.startswith("    | ") for line in lines[1:]) and len(lines) > 3
    assert "hunter2" not in out.getvalue()


@pytest.mark.parametrize("text,secret", [
    ("Authorization: Bearer hel_0123456789ab_secretpart", "secretpart"), ("X-API-Key: secretpart", "secretpart"), ("GET /x?key=secretpart&a=1", "secretpart"),
    ("https://user:secretpart@db.example/x", "secretpart"), ('{"password": "secretpart"}', "secretpart"), ("token=secretpart", "secretpart"),
    ("GEMINI_API_KEY=secretpart", "secretpart"), ("cookie: secretpart", "secretpart"), ("the admin's own is-long-and-mine", "is-long-and-mine")])
def test_secrets_are_covered(logs, text, secret):
    handler, out = logs(admin_key="is-long-and-mine")
    logging.getLogger("helios.x").warning("it said %s", text)
    logging.getLogger("helios.x").warning("it said", exc_info=ValueError(text))
    assert secret not in out.getvalue() and out.getvalue().count("***") >= 2


def test_what_is_no_secret_stays(logs):
    handler, out = logs()
    for text in ("3 of 7 keys", "monkey: 3", "tokens are counted", "http://127.0.0.1:5001/api/health", "a=1, b=2"):
        logging.getLogger("helios.x").warning(text)
        assert json.loads(out.getvalue().splitlines()[-1])["message"] == text


def test_access_lines_come_soon_in_order_and_all_of_them(logs):
    handler, out = logs()
    log = logging.getLogger("helios.access")
    def many(n):
        for i in range(500):
            log.handle(AccessRecord(exchange(path=f"/{n}/{i}")))
    threads = [threading.Thread(target=many, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: out.getvalue().count("\n") == 2000, "the lines", timeout_s=20)
    paths = [json.loads(line)["path"] for line in out.getvalue().splitlines()]
    for n in range(4):
        assert [path for path in paths if path.startswith(f"/{n}/")] == [f"/{n}/{i}" for i in range(500)]


def test_what_waits_is_written_at_the_end_and_others_at_once(logs, monkeypatch):
    monkeypatch.setattr("helios.server_logs.BATCH_S", 60)
    handler, out = logs()
    logging.getLogger("helios.access").handle(AccessRecord(exchange(path="/waits")))
    logging.getLogger("helios.x").warning("at once")
    assert "at once" in out.getvalue() and "/waits" not in out.getvalue()
    handler.close()
    assert "/waits" in out.getvalue()


def test_a_stream_that_takes_no_more_holds_back_who_writes(logs, monkeypatch):
    """Nothing piles up: past a bound, the caller writes itself."""
    monkeypatch.setattr("helios.server_logs.BATCH_S", 60)
    monkeypatch.setattr("helios.server_logs.MOST_WAITING", 10)
    handler, out = logs()
    for i in range(25):
        logging.getLogger("helios.access").handle(AccessRecord(exchange(path=f"/{i}")))
    assert len(handler._waiting) <= 10 and out.getvalue().count("\n") >= 15


def test_the_level_is_kept_to(logs):
    handler, out = logs(log_level="WARNING")
    from flask import Flask

    from helios.server_logs import log_requests
    app = Flask("x")
    log_requests(app)
    app.test_client().get("/none", buffered=True)
    handler.close()
    assert out.getvalue() == ""
