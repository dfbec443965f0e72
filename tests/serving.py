"""A server of a test's own on loopback, and what listens to it."""

import http.client
import json
import threading
from contextlib import contextmanager

from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    """Handles requests and says nothing of it."""

    protocol_version = "HTTP/1.1"

    def log(self, *args):
        """Nothing."""


class Served:
    """An app behind real sockets, a thread for each request."""

    def __init__(self, app):
        self.app, self.found = app, app.extensions["helios"]
        self.server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of one request."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = None if body is None else json.dumps(body)
        conn.request(method, path, sent, headers | ({"Content-Type": "application/json"} if body is not None else {}))
        answer = conn.getresponse()
        data = answer.read()
        conn.close()
        return answer.status, answer.headers, data

    def stream(self, path, **headers):
        """An open stream."""
        return Stream(self.port, path, headers)

    def close(self):
        """End streams and threads, then the server."""
        if "stopping" in self.found.parts:
            self.found.parts["stopping"].set()
        for part in ("webhooks", "news"):
            if thread := getattr(self.found.parts.get(part), "_thread", None):
                thread.join(20)
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def served(app):
    """The address of an app, for the length of a `with`."""
    one = Served(app)
    try:
        yield f"http://127.0.0.1:{one.port}"
    finally:
        one.close()


class Stream:
    """Server-sent events, read one by one."""

    def __init__(self, port, path, headers):
        self.conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.conn.request("GET", path, headers={name.replace("_", "-"): str(value) for name, value in headers.items()})
        self.answer = self.conn.getresponse()
        self.status, self.headers = self.answer.status, self.answer.headers

    def block(self):
        """The next block as a dict of its fields; None at the end."""
        found = {}
        while line := self.answer.readline():
            if line == b"\n":
                return found
            name, _, value = line.decode().rstrip("\n").partition(":")
            found[name or "comment"] = value.removeprefix(" ")
        return None

    def event(self):
        """The next event, heartbeats and the beginning left out; None at the end."""
        while (found := self.block()) is not None:
            if "event" in found:
                return found | {"data": json.loads(found["data"])}
        return None

    def events(self):
        """All events to the end."""
        return iter(self.event, None)

    def close(self):
        """Go away without a word."""
        self.answer.close()
        self.conn.close()
