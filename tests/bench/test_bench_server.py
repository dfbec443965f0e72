"""What a request costs: a trivial route of the whole server beside one of a bare Flask app under the same gunicorn, asked in turns."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
from serving_area import head, running  # noqa: E402 - the tests' own folder

BARE = """
import sys
from flask import Flask
from gunicorn.app.base import BaseApplication
app = Flask("bare")
@app.get("/api/trial/pid")
def pid(): return {"pid": 1}
worker = "gthread"
if sys.argv[3:]: from helios.gunicorn_worker import PatientWorker as worker
class Application(BaseApplication):
    def load_config(self):
        for name, value in {"bind": "127.0.0.1:" + sys.argv[1], "threads": 16, "worker_class": worker, "keepalive": 5, "worker_tmp_dir": sys.argv[2] or None}.items(): self.cfg.set(name, value)
    def load(self): return app
Application().run()
"""


@contextmanager
def bare(*more):
    """A bare app under gunicorn; its port. With a word more it has the server's own worker."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else ""
    process = subprocess.Popen([sys.executable, "-c", BARE, str(port), memory, *more], stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Line:
    """One connection that is kept, to ask the same again and again with as little work as can be."""

    def __init__(self, port):
        self.sock, self.asked = socket.create_connection(("127.0.0.1", port), timeout=30), head("/api/trial/pid")

    def ask(self, times):
        for _ in range(times):
            self.sock.sendall(self.asked)
            found = self.sock.recv(65536)
            while b"}" not in found:
                part = self.sock.recv(65536)
                assert part, "the connection was closed"
                found += part
            assert found.startswith(b"HTTP/1.1 200")
        return found


def test_a_trivial_route_beside_bare_flask(figure, tmp_path):
    from waiting import until
    with running(tmp_path / "home", GUNICORN_THREADS="16", HELIOS_RATE_LIMIT="1000000 per minute") as server, bare() as port, bare("own") as other:
        until(lambda: answers(port) and answers(other), "the bare apps")
        def beside(other_port):
            """Seconds of a request to the whole server, and to another."""
            lines, times = (Line(server.port), Line(other_port)), 200 if figure.measuring else 20
            for line in lines:
                assert json.loads(line.ask(times).rpartition(b"\r\n\r\n")[2])["pid"]
            both = figure.medians(lambda: lines[0].ask(times), lambda: lines[1].ask(times), 25 if figure.measuring else 3)
            for line in lines:
                line.sock.close()
            return [s / times for s in both]

        own_s, bare_s = beside(port)
        again_s, other_s = beside(other)
        figure("a trivial route, of the whole server", 1e3 * own_s, "ms")
        figure("the same of bare Flask", 1e3 * bare_s, "ms")
        figure("bare Flask's time over the server's", bare_s / own_s, at_least=0.8)
        figure("the same, where the server's own gunicorn worker runs both", other_s / again_s)
    assert own_s > 0


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True

