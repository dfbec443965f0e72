"""An area of routes that only the tests of the server have, and a server in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import urllib3
from flask import Response, request
from waiting import WAIT_S, until

from helios.api_base import area, services

trial = area("trial", "Routes of a test")


@trial.get("/trial/pid")
def pid():
    return {"pid": os.getpid()}


@trial.get("/trial/thread")
def thread():
    return {"thread": threading.get_ident()}


@trial.post("/trial/writes")
def write():
    return {"id": services().store.log_event("trial", {"n": request.get_json()["n"]})}, 201


@trial.post("/trial/bodies")
def body():
    return {"bytes": len(request.get_data())}


@trial.get("/trial/until-stop")
def until_stop():
    """Answers some time after the server was told to stop."""
    services().parts.setdefault("waits", threading.Event()).set()
    services().parts["stopping"].wait(WAIT_S)
    time.sleep(0.5)
    return {"finished": True}


@trial.get("/trial/stream")
def stream():
    stopping = services().parts["stopping"]
    def lines():
        yield "data: begun\n\n"
        while not stopping.wait(0.05):
            yield ": still here\n\n"
        yield "data: ended\n\n"
    return Response(lines(), mimetype="text/event-stream")


def app_with_trial(settings):
    if "TRIAL_MODULE" in os.environ:      # a file whose change is noticed
        sys.path.insert(0, os.environ["TRIAL_MODULE"])
        import trial_code  # noqa: F401
    from helios.server import AREAS, create_app
    return create_app(settings, areas=(*AREAS, trial))


def main() -> None:
    """What `helios serve` does, with the routes above; short waits, so that tests need not be long."""
    from helios import gunicorn_worker, serving
    from helios.serving import serve
    from helios.settings import load_settings
    gunicorn_worker.WAIT_S = float(os.environ.get("TRIAL_WAIT_S", "1.5"))
    if "TRIAL_CONNECTIONS" in os.environ:
        serving.CONNECTIONS = int(os.environ["TRIAL_CONNECTIONS"])
    gunicorn_worker.STAY_MS = float(os.environ.get("TRIAL_STAY_MS", gunicorn_worker.STAY_MS))
    sys.exit(serve(load_settings(port=int(os.environ.get("TRIAL_PORT", "0"))), make_app=app_with_trial))


class Running:
    """A server that runs: where it is, and ways to ask it."""

    def __init__(self, process, base, home, log):
        self.process, self.base, self.home, self.log = process, base, home, log
        self.host, self.port = base.removeprefix("http://").split(":")[0], int(base.rsplit(":", 1)[1])
        self.pool = urllib3.PoolManager(retries=False, timeout=WAIT_S, maxsize=32, headers={"Connection": "close"})

    def ask(self, method, path, **given):
        return self.pool.request(method, self.base + path, **given)

    def workers(self):
        return [child.pid for child in psutil.Process(self.process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]

    def logged(self):
        whole = Path(self.log).read_text(encoding="utf-8").rpartition("\n")[0]      # a last line may be half there
        return [json.loads(line) for line in whole.split("\n") if line.startswith("{")]


@contextmanager
def running(home, **env):
    """A server with the routes above; killed at the end, if it still runs."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    tests = str(Path(__file__).parent)
    env = os.environ | {"HELIOS_HOME": str(home), "HELIOS_RATE_LIMIT": "", "PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])} | env
    with open(log, "w", encoding="utf-8") as said:
        process = subprocess.Popen([sys.executable, "-c", "import serving_area; serving_area.main()"], env=env, stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        first = process.stdout.readline()
        assert " on http" in first, log.read_text(encoding="utf-8")
        server = Running(process, first.split(" on ")[1].split(",")[0].strip(), home, log)
        until(lambda: server.ask("GET", "/api/trial/pid").status == 200, "the server")
        yield server
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.send_signal(signal.SIGKILL)
            process.kill()
        process.wait()
        process.stdout.close()


def connected(server, text=b""):
    sock = socket.create_connection((server.host, server.port), timeout=WAIT_S)
    sock.sendall(text)
    return sock


def all_of(sock):
    """What comes until the other end closes."""
    found = b""
    while part := sock.recv(65536):
        found += part
    sock.close()
    return found


def head(path, method="GET", *more):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *more, "", ""]).encode()


def read_to(sock, mark):
    """What comes until a mark has come."""
    found = b""
    while mark not in found:
        part = sock.recv(4096)
        assert part, found
        found += part
    return found
