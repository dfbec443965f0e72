"""The server as it runs, on loopback: its start, what it refuses, and callers who are slow."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from serving_area import all_of, app_with_trial, connected, head, read_to, running
from waiting import WAIT_S, until

from helios.server_commands import serve
from helios.serving import close_app, listen, run_waitress, start_app
from helios.settings import Settings

pytestmark = pytest.mark.skipif(os.name != "posix", reason="gunicorn")
THREADS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("served"), GUNICORN_THREADS=str(THREADS), HELIOS_MAX_STREAMS="2") as server:
        yield server


def test_it_answers_and_logs_each_request(server):
    answer = server.ask("GET", "/api/health?api_key=a-secret-of-mine")
    assert answer.status in (200, 400)      # a key has no place in an address
    answer = server.ask("GET", "/api/health")
    assert answer.status == 200 and answer.json()["status"] == "healthy"
    line = until(lambda: next((found for found in server.logged() if found.get("request_id") == answer.headers["X-Request-ID"]), None))
    assert (line["logger"], line["method"], line["path"], line["status"]) == ("helios.access", "GET", "/api/health", 200)
    assert line["duration_ms"] > 0 and "a-secret-of-mine" not in server.log.read_text()


def test_a_problem_is_found_in_the_log_by_its_identifier(server):
    answer = server.ask("GET", "/api/none")
    assert answer.status == 404 and answer.headers["Content-Type"] == "application/problem+json"
    found = [line for line in server.logged() if line.get("error_id") == answer.json()["error_id"]]
    assert found and found[0]["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("sent,status", [
    (b"G\r\n\r\n", 400),
    (b"BREW\r\n\r\n", 400), (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", (414, 400)), (head("/", "GET", "X-Long: " + "a" * 9000), 431),
    (head("/", "GET", *(f"X-{n}: 1" for n in range(200))), 431), (head("/", "GET", "Bad Name: 1"), 400), (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (head("/api/trial/bodies", "POST", "Transfer-Encoding: chunked", "Content-Length: 5"), 400),
])
def test_what_is_no_request_is_a_problem_too(server, sent, status):
    said = all_of(connected(server, sent))
    first, _, body = said.partition(b"\r\n\r\n")
    assert b"Content-Type: application/problem+json" in first and b"nosniff" in first
    found = json.loads(body)["status"]
    assert found in (status if isinstance(status, tuple) else (status,)) and first.split()[1] == str(found).encode()
    assert any(line.get("error_id") == json.loads(body)["error_id"] for line in server.logged())


def test_no_line_of_the_log_can_be_forged(server):
    server.ask("GET", "/api/x%0A%7B%22level%22%3A%22ERROR%22%7D")
    paths = [line["path"] for line in until(lambda: [found for found in server.logged() if "x\n" in found.get("path", "")])]
    assert paths[0] == '/api/x\n{"level":"ERROR"}'
    assert not [line for line in server.logged() if "logger" not in line]


@pytest.mark.slow
def test_a_slow_body_holds_no_thread_for_ever(server):
    """Twice as many as there are threads; half of them say nothing more, half drip a byte now and then."""
    began = time.monotonic()
    slow = [connected(server, head("/api/trial/bodies", "POST", "Content-Length: 100000", "Content-Type: text/plain") + b"x") for _ in range(2 * THREADS)]
    stop = threading.Event()
    def drip():
        while not stop.wait(0.1):
            for sock in slow[::2]:
                try:
                    sock.sendall(b"x")
                except OSError:
                    pass      # it was cut off
    dripper = threading.Thread(target=drip)
    dripper.start()
    try:
        assert server.ask("GET", "/api/trial/pid").status == 200
        plain_s = time.monotonic() - began
        said = []
        for sock in slow[1::2]:
            said.append(all_of(sock))
    finally:
        stop.set()
        dripper.join()
    assert plain_s < 30
    assert all(text.startswith(b"HTTP/1.1 408") and b"the body came too slowly" in text for text in said)


def test_who_has_not_sent_a_head_holds_no_thread(home):
    """With a patience of ten minutes: a thread that waited for one of them would not answer."""
    whole = head("/api/trial/pid")
    texts = b"G", b"\r\n\r\n", b"GET /api/health HTTP/1.1\r\nX-A: ", whole + b"GET"
    with running(home, GUNICORN_THREADS="2", HELIOS_MAX_STREAMS="1", TRIAL_WAIT_S="600") as server:
        slow = [connected(server, text) for text in texts for _ in range(4)]
        for sock in slow[-4:]:
            assert read_to(sock, b"}").startswith(b"HTTP/1.1 200")
        assert [server.ask("GET", "/api/trial/pid").status for _ in range(5)] == [200] * 5
        slow[0].sendall(whole[1:])      # what comes in the end is answered
        slow[-1].sendall(whole[3:])
        assert {read_to(sock, b"}")[:12] for sock in (slow[0], slow[-1])} == {b"HTTP/1.1 200"}
        for sock in slow:
            sock.close()


def test_a_flood_of_line_ends_keeps_nobody_out(server):
    flood, stop = connected(server), threading.Event()

    def send():
        while not stop.is_set():
            try:
                flood.sendall(b"\r\n" * 32768)
            except OSError:
                return      # it was cut off

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert [server.ask("GET", "/api/trial/pid").status for _ in range(20)] == [200] * 20
        sender.join(WAIT_S)
        assert not sender.is_alive()
    finally:
        stop.set()
        flood.close()
        sender.join()


def test_who_does_not_close_keeps_nobody_waiting(server):
    """Ten callers who were told that the connection ends; waiting for each in turn would take twenty seconds."""
    texts = head("/api/trial/pid", "GET", "Connection: close"), b"garbage\r\n\r\n"
    open_ = [connected(server, text) for text in texts * 5]
    assert {read_to(sock, b"\r\n")[:9] for sock in open_} == {b"HTTP/1.1 "}
    began = time.monotonic()
    assert server.ask("GET", "/api/trial/pid").status == 200
    assert time.monotonic() - began < 10
    for sock in open_:
        all_of(sock)      # they end without our doing


def test_a_body_that_nobody_reads_holds_no_thread_for_long(home):
    """With a patience of ten minutes; where others wait it is two seconds."""
    with running(home, GUNICORN_THREADS="2", HELIOS_MAX_STREAMS="1", TRIAL_WAIT_S="600") as server:
        stalled = [connected(server, head(path, "POST", "Content-Length: 100000") + b"x" * size)
                   for path, size in (("/api/none", 1), ("/api/trial/bodies", 90_000)) for _ in range(3)]
        assert server.ask("GET", "/api/trial/pid").status == 200
        for sock in stalled:
            sock.close()


def test_who_never_sends_a_head_is_cut_off(server):
    slow = [connected(server, b"GET /api/health HTTP/1.1\r\nX-A: ") for _ in range(2 * THREADS)]
    assert {all_of(sock) for sock in slow} == {b""}


@pytest.mark.slow
def test_who_does_not_read_holds_no_thread_for_ever(home):
    """Each asks for much and reads nothing, twice as many as there are threads."""
    with running(home, GUNICORN_THREADS="2", HELIOS_MAX_STREAMS="1", TRIAL_WAIT_S="600") as server:
        deaf = []
        for _ in range(4):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect((server.host, server.port))
            sock.sendall(head("/api/openapi.json") * 40)
            deaf.append(sock)
        assert server.ask("GET", "/api/trial/pid").status == 200
        for sock in deaf:
            sock.close()


def test_callers_without_a_request_give_way_where_there_are_too_many(home):
    with running(home, GUNICORN_THREADS="2", HELIOS_MAX_STREAMS="1", TRIAL_WAIT_S="600", TRIAL_CONNECTIONS="20") as server:
        idle = [connected(server, b"G") for _ in range(40)]
        assert [server.ask("GET", "/api/trial/pid").status for _ in range(5)] == [200] * 5
        for sock in idle:
            sock.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="Linux")
def test_connections_that_say_nothing_hold_no_thread(server):
    idle = [connected(server) for _ in range(3 * THREADS)]
    began = time.monotonic()
    assert server.ask("GET", "/api/trial/pid").status == 200
    assert time.monotonic() - began < 10
    for sock in idle:
        sock.close()


@pytest.mark.parametrize("body", [b"", b'{"n": 1}'])
def test_a_body_that_breaks_off_is_not_taken_for_a_whole_one(server, body):
    before = server.ask("GET", "/api/memory/stats").json()
    for path in ("/api/memory/compact", "/api/trial/bodies", "/api/trial/writes"):
        sock = connected(server, head(path, "POST", "Content-Type: application/json", "Content-Length: 400") + body)
        sock.shutdown(socket.SHUT_WR)
        answer = all_of(sock)
        assert answer.startswith(b"HTTP/1.1 400") and b"the body ended before the length" in answer, answer
    assert server.ask("GET", "/api/memory/stats").json() == before


@pytest.mark.parametrize("body", [b"ZZ\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}0\r\n\r\n"])
def test_chunks_that_are_none_are_the_callers_fault(server, body):
    answer = all_of(connected(server, head("/api/trial/writes", "POST", "Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close") + body))
    assert answer.startswith(b"HTTP/1.1 400") and b"application/problem+json" in answer, answer


def test_headers_of_proxies_change_no_path(server):
    for name in ("SCRIPT_NAME", "SCRIPT-NAME", "X-Forwarded-Prefix"):
        assert server.ask("GET", "/api/trial/pid", headers={name: "/api"}).status == 200


def ask_on(sock):
    """The thread that answers, on a connection that is kept."""
    sock.sendall(head("/api/trial/thread"))
    return json.loads(read_to(sock, b"}").rpartition(b"\r\n\r\n")[2])["thread"]


@pytest.mark.slow
def test_a_thread_stays_with_its_caller_and_keeps_nobody_waiting_for_long(home):
    """With a wait of two seconds, where others have the thousandth part."""
    with running(home, GUNICORN_THREADS="2", HELIOS_MAX_STREAMS="1", TRIAL_STAY_MS="2000") as server:
        one, two = connected(server), connected(server)
        assert len({ask_on(one) for _ in range(20)}) == 1 and len({ask_on(one), ask_on(two)}) == 2
        socks = [one, two, *(connected(server) for _ in range(4))]
        with ThreadPoolExecutor(len(socks)) as callers:      # more callers than threads
            assert len(set(callers.map(ask_on, socks))) <= 2
        for sock in socks:
            sock.close()


def test_a_body_in_time_is_read_whatever_its_parts(server):
    sock = connected(server, head("/api/trial/bodies", "POST", "Content-Length: 400000", "Content-Type: text/plain", "Connection: close"))
    for _ in range(40):
        sock.sendall(b"x" * 10_000)
        time.sleep(0.05)      # together longer than a request may wait for nothing
    assert b'{"bytes":400000}' in all_of(sock)


def refused(*words):
    """The line with which `helios serve` refuses to start."""
    done = CliRunner().invoke(serve, [str(word) for word in words])
    assert (done.exit_code, done.stdout) == (2, "") and done.stderr.startswith("helios: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_in_use_is_one_line(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("--port", port)
    assert f"port {port} on 127.0.0.1 is in use by process {os.getpid()}" in said and "helios serve --port" in said
    assert not home.exists()      # nothing was made


def test_nobody_is_served_from_elsewhere_without_keys(home):
    said = refused("--host", "0.0.0.0", "--port", 0)
    assert all(part in said for part in ("other machines", "helios keys create", "HELIOS_ADMIN_KEY"))


@pytest.mark.parametrize("env,said", [
    ({"GUNICORN_THREADS": "4", "HELIOS_MAX_STREAMS": "4"}, "4 live streams at once would hold all 4 threads"), ({"GUNICORN_WORKERS": "0"}, "GUNICORN_WORKERS is '0'"),
    ({"HELIOS_STATIC": "/none"}, "no index.html"), ({"HELIOS_HOST": "a b"}, "no address"),
])
def test_settings_that_make_no_sense_are_one_line(home, monkeypatch, env, said):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert said in refused(*() if "HELIOS_HOST" in env else ("--port", 0))


def test_a_store_that_cannot_be_opened_is_one_line(home, monkeypatch):
    monkeypatch.setenv("HELIOS_DATABASE_URL", "no url")
    done = CliRunner().invoke(serve, ["--port", "0"])
    assert (done.exit_code, done.stdout) == (1, "") and done.stderr.startswith("helios: HELIOS_DATABASE_URL") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_up_checks_the_running_server(home):
    words = [sys.executable, "-c", "from helios.cli import main; main()", "up", "--port", "0", "--skip-build", "--validate", "--json", "-"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, env=os.environ | {"CORS_ORIGINS": "https://page.example"}, check=False)
    found = json.loads(done.stdout)
    assert [check["name"] for check in found["checks"]] == ["Backend Health", "Models API", "CORS Configuration", "CORS for https://page.example"]
    assert all(check["passed"] for check in found["checks"]), found["checks"]
    assert (done.returncode, found["of"], found["passed"], found["success_rate"]) == (0, 4, 4, 1)
    with pytest.raises(OSError):
        socket.create_connection((found["base"].split("//")[1].split(":")[0], int(found["base"].rsplit(":", 1)[1])), timeout=1)


def test_waitress_stops_as_gracefully(home):
    """What runs on Windows."""
    settings = Settings(threads=THREADS, max_streams=2)
    app, sock = start_app(settings, app_with_trial), listen("127.0.0.1", 0)
    base, stopping = f"http://127.0.0.1:{sock.getsockname()[1]}", app.extensions["helios"].parts["stopping"]
    import urllib3
    pool = urllib3.PoolManager(retries=False, timeout=WAIT_S)
    with ThreadPoolExecutor(3) as others:
        serving = others.submit(run_waitress, settings, sock, app)
        assert pool.request("GET", base + "/api/health").json()["status"] == "healthy"
        waiting = others.submit(pool.request, "GET", base + "/api/trial/until-stop")
        stream = pool.request("GET", base + "/api/trial/stream", preload_content=False)
        assert b"begun" in stream.read(13)
        assert app.extensions["helios"].parts.setdefault("waits", threading.Event()).wait(WAIT_S)
        stopping.set()
        assert stream.read().endswith(b"data: ended\n\n")
        assert waiting.result(WAIT_S).json() == {"finished": True}
        assert serving.result(WAIT_S) == 0
    close_app(app)
    listen("127.0.0.1", int(base.rsplit(":", 1)[1])).close()
