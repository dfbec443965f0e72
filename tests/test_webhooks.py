"""Webhooks against real receivers: what is sent, what is refused, and what becomes of a delivery."""

import hashlib
import hmac
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from serving import Served
from waiting import until

from helios.api_base import Services
from helios.job_rows import end_job
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.news import News
from helios.server import create_app
from helios.settings import load_settings
from helios.tables import jobs, webhook_deliveries, webhooks
from helios.targets import SendError, TargetError, check_target, post, resolve
from helios.values import utc_hours_ago, utc_now
from helios.webhooks import LEASE_S, MAX_ATTEMPTS, WebhookError, Webhooks
from helios.webhooks_api import start_webhooks

SECRET = "a-secret-between-two"


class Receiver:
    """A server that keeps what it gets, and answers as it is told."""

    def __init__(self, answer=lambda n: (204, {}, b""), context=None):
        self.got, self.busy, self.overlaps, self.lock = [], set(), 0, threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event_id = self.headers.get("Helios-Event-Id")
                with receiver.lock:
                    receiver.overlaps += event_id in receiver.busy
                    receiver.busy.add(event_id)
                    receiver.got.append((self.headers, body, self.path))
                    n = len(receiver.got)
                status, headers, content = answer(n)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with receiver.lock:
                    receiver.busy.discard(event_id)
                self.wfile.write(content)

            def do_GET(self):
                receiver.got.append((self.headers, b"", self.path))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *args: None
        self.port = self.server.server_port
        self.url = f"http://localhost:{self.port}/in?team=7"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


class Feed(SimpleNamespace):
    """What `Webhooks` needs of the news, told by the test."""

    def __init__(self):
        super().__init__(told=[], newest=0, version=0, stopping=threading.Event())

    def tell(self, event="job.ended", **data):
        self.newest += 1
        self.told.append({"id": self.newest, "event": event, "created_at": utc_now(), "data": data})
        self.version += 1

    def items(self, after, limit=100):
        return [item for item in self.told if item["id"] > after][:limit]

    def start(self):
        pass

    def wait(self, version, timeout_s):
        self.stopping.wait(0.01)


@pytest.fixture
def feed():
    return Feed()


@pytest.fixture
def hooks(feed, tmp_path):
    with MemoryStore(tmp_path / "hooks.db") as store:
        hooks = Webhooks(store, feed, allow_private=True)
        hooks.work()  # from now on
        yield hooks


def due(hooks):
    """Time passes."""
    hooks._resting.clear()
    hooks.store._update(webhook_deliveries, webhook_deliveries.c.status.in_(("pending", "sending")), next_at=utc_now())


def seconds_until(moment):
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


def log(hooks):
    return hooks.store._rows(webhook_deliveries.select().order_by(webhook_deliveries.c.id))


# --- what is sent


def test_a_delivery_is_signed_and_says_what_it_is(hooks, feed):
    with Receiver() as receiver:
        hook = hooks.add(receiver.url, ["job.ended"], SECRET)
        feed.tell(job_id="j1", status="completed")
        feed.tell("draws.added", n=1)  # not asked for
        assert hooks.work() == 1
    ((headers, body, path),) = receiver.got
    stamp, signature = (part.split("=")[1] for part in headers["Helios-Signature"].split(","))
    assert hmac.compare_digest(signature, hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest())
    assert abs(time.time() - int(stamp)) < 60 and path == "/in?team=7"
    said = json.loads(body)
    assert [*said] == ["id", "event", "created_at", "data"] and said["id"] == headers["Helios-Event-Id"] == "news-1"
    assert said["data"] == {"job_id": "j1", "status": "completed"} and headers["Helios-Event"] == "job.ended" and headers["Host"] == f"localhost:{receiver.port}"
    (row,) = log(hooks)
    assert (row["status"], row["attempts"], row["response_status"], row["error"], row["next_at"], row["webhook_id"]) == ("delivered", 1, 204, None, None, hook["id"])


def test_switched_off_means_nothing_is_kept_and_what_waits_waits(hooks, feed):
    with Receiver(lambda n: (500, {}, b"")) as receiver:
        hook = hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        hooks.work()
        hooks.change(hook["id"], is_active=False)
        due(hooks)
        feed.tell(job_id="j2")
        assert hooks.work() == 0 and len(log(hooks)) == 1
        with pytest.raises(WebhookError, match="switched off"):
            hooks.test(hooks.get(hook["id"]))
        hooks.change(hook["id"], is_active=True)
        due(hooks)
        assert hooks.work() == 1


# --- what is tried again


def test_what_fails_is_tried_eight_times_with_growing_waits(hooks, feed):
    with Receiver(lambda n: (500, {}, b"out of\norder" + b"!" * 9000)) as receiver:
        hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        waits = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            assert hooks.work() == 1 and hooks.work() == 0
            (row,) = log(hooks)
            assert row["attempts"] == attempt and row["error"].startswith("it answered 500: out of order!") and len(row["error"]) < 250
            if row["next_at"]:
                waits.append(seconds_until(row["next_at"]))
            due(hooks)
        assert row["status"] == "failed" and len(receiver.got) == MAX_ATTEMPTS and hooks.work() == 0
        assert len(waits) == MAX_ATTEMPTS - 1
        for number, wait_s in enumerate(waits):
            longest = min(15 * 3**number, 10800)
            assert longest / 2 - 5 <= wait_s <= longest + 2
        assert len({headers["Helios-Event-Id"] for headers, *_ in receiver.got}) == 1
        hooks.replay(1, 1)
        assert hooks.work() == 1 and log(hooks)[0]["attempts"] == 1
        with pytest.raises(WebhookError, match="has not ended"):
            hooks.replay(1, 1)


def test_who_is_gone_is_not_asked_again_and_who_asks_for_time_gets_it(hooks, feed):
    answers = [(410, {}, b""), (429, {"Retry-After": "3600"}, b"")]
    with Receiver(lambda n: answers[n - 1]) as receiver:
        hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        assert hooks.work() == 1 and log(hooks)[0]["status"] == "failed"
        feed.tell(job_id="j2")
        assert hooks.work() == 1
        row = log(hooks)[1]
        assert row["status"] == "pending" and 3500 < seconds_until(row["next_at"]) < 3700 and len(receiver.got) == 2


def test_a_redirect_is_not_followed(hooks, feed):
    with Receiver() as inside, Receiver(lambda n: (307, {"Location": inside.url}, b"")) as receiver:
        hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        hooks.work()
        assert inside.got == [] and log(hooks)[0]["error"] == "it answered 307"


def test_a_dead_receiver_does_not_hold_up_the_others(hooks, feed):
    with socket.socket() as dead, Receiver() as receiver:
        dead.bind(("127.0.0.1", 0))  # and nobody listens
        hooks.add(f"http://localhost:{dead.getsockname()[1]}/", ["job.ended"])
        hooks.add(receiver.url, ["job.ended"])
        for number in range(5):
            feed.tell(job_id=f"j{number}")
        assert hooks.work() == 6 and len(receiver.got) == 5
        assert [row["error"] for row in log(hooks) if row["attempts"] and row["webhook_id"] == 1] == ["no connection"]


# --- never by two at once


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_several_processes_send_each_delivery_once(where, request, tmp_path, feed):
    n = 30
    address = request.getfixturevalue("postgres_url") if where == "postgresql" else tmp_path / "many.db"
    with MemoryStore(address) as store, Receiver() as receiver:
        Webhooks(store, feed, allow_private=True).work()
        Webhooks(store, feed, allow_private=True).add(receiver.url, ["job.ended"], SECRET)
        for number in range(n):
            feed.tell(job_id=f"j{number}")
        stores = [MemoryStore(address) for _ in range(3)]
        several = [Webhooks(own, feed, allow_private=True, poll_s=0.01) for own in stores]
        for hooks in several:
            hooks.start()
        until(lambda: [row["status"] for row in log(several[0])] == ["delivered"] * n, "all deliveries")
        feed.stopping.set()
        for hooks in several:
            hooks._thread.join(10)
        for own in stores:
            own.close()
        assert sorted(headers["Helios-Event-Id"] for headers, *_ in receiver.got) == sorted(f"news-{i}" for i in range(1, n + 1))
        assert receiver.overlaps == 0


def test_what_a_killed_sender_had_claimed_is_sent_by_another(hooks, feed):
    with Receiver() as receiver:
        hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        hooks.spread()
        delivery, _ = hooks._claim()  # and its process is killed
        assert hooks.work() == 0 and log(hooks)[0]["status"] == "sending" and log(hooks)[0]["next_at"] > utc_now()
        assert LEASE_S > 3 * 10
        due(hooks)
        assert hooks.work() == 1 and log(hooks)[0]["status"] == "delivered" and log(hooks)[0]["attempts"] == 2
        hooks._settle(delivery, None, "late", False)  # the killed one was only slow: what it says counts no more
        assert log(hooks)[0]["status"] == "delivered"


def test_what_was_claimed_too_often_has_failed(hooks, feed):
    with Receiver() as receiver:
        hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        hooks.spread()
        hooks.store._update(webhook_deliveries, webhook_deliveries.c.id == 1, status="sending", attempts=MAX_ATTEMPTS)
        assert hooks.work() == 1 and receiver.got == [] and log(hooks)[0]["status"] == "failed"


def test_news_from_before_a_webhook_and_a_second_reading_make_no_deliveries(hooks, feed):
    feed.tell(job_id="before")
    hooks.work()
    hooks.add("http://localhost:9009/", ["job.ended"])
    feed.tell(job_id="after")
    assert (hooks.spread(), hooks.spread(), Webhooks(hooks.store, feed).spread()) == (1, 0, 0)
    assert log(hooks)[0]["payload"]["data"] == {"job_id": "after"}


def test_old_deliveries_are_forgotten(hooks, feed):
    hooks.add("http://localhost:9009/", ["job.ended"])
    for number in range(3):
        feed.tell(job_id=f"j{number}")
    hooks.spread()
    hooks.store._update(webhook_deliveries, webhook_deliveries.c.id == 1, status="delivered", updated_at=utc_hours_ago(24 * 31))
    hooks.store._update(webhook_deliveries, webhook_deliveries.c.id == 2, status="delivered")
    hooks._pruned_at = -1e9
    hooks._prune()
    assert [row["id"] for row in log(hooks)] == [2, 3]


# --- where nothing is sent


@pytest.fixture
def names(monkeypatch):
    """A resolver that knows what the test says; the names it was asked for."""
    known, asked, real = {}, [], socket.getaddrinfo

    def look(host, port, *args, **rest):
        if host in known:
            asked.append(host)
            found = known[host].pop(0) if isinstance(known[host][0], list) else known[host]
            return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]
        if all(c in "0123456789abcdef.:" for c in host) or host == "localhost":
            return real(host, port, *args, **rest)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return SimpleNamespace(known=known, asked=asked)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "172.20.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "240.0.0.1", "::1", "fe80::1", "fc00::1",
    "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "fd00:ec2::254", "168.63.129.16", "::",
])
def test_a_name_that_leads_inside_is_refused_and_not_tried_again(address, tmp_path, feed, names):
    names.known["hooks.example.org"] = ["93.184.216.34", address]  # one public address does not make it better
    with MemoryStore(tmp_path / "a.db") as store:
        hooks = Webhooks(store, feed)
        hooks.work()
        hooks.add("http://hooks.example.org/", ["job.ended"])
        feed.tell(job_id="j1")
        assert hooks.work() == 1
        (row,) = log(hooks)
        assert row["status"] == "failed" and "leads to" in row["error"] and address not in row["error"]


def test_the_name_is_resolved_once_and_its_address_is_connected_to(names):
    """A name that leads outside when it is checked and inside when it is used is a trick as old as the check."""
    with Receiver() as checked, Receiver() as other:
        names.known["hooks.example.org"] = [["127.0.0.1"], ["127.0.0.2"]]
        target = check_target(f"http://hooks.example.org:{checked.port}/x", allow_private=True)
        assert post(target, resolve(target, allow_private=True), b"{}", {}).status == 204
        assert names.asked == ["hooks.example.org"] and len(checked.got) == 1 and other.got == []
        assert checked.got[0][0]["Host"] == f"hooks.example.org:{checked.port}"


def test_proxies_of_the_environment_are_not_used(hooks, feed, monkeypatch):
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        hooks.add(receiver.url, ["job.ended"])
        feed.tell(job_id="j1")
        hooks.work()
        assert len(receiver.got) == 1 and proxy.got == []


def test_a_name_that_is_nowhere_is_tried_again(hooks, feed, names):
    hooks.add("http://nowhere.example.org/", ["job.ended"])
    feed.tell(job_id="j1")
    hooks.work()
    assert log(hooks)[0]["status"] == "pending" and "cannot be found" in log(hooks)[0]["error"]


@pytest.mark.parametrize("url", [
    "ftp://example.org/", "file:///etc/passwd", "http://", "http:///x", "https://user:secret@example.org/", "https://@example.org/", "http://example.org:22/",
    "http://example.org:0/", "http://example.org:65536/", "http://127.0.0.1/", "http://127.0.0.1.:80/", "http://0/", "http://2130706433/", "http://017700000001/",
    "http://0x7f000001/", "http://0x7f.0.0.1/", "http://127.1/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://db.local/", "http://metadata.google.internal/", "http://exa mple.org/",
    "http://example.org\r\nX: y/", "http://example.org/\x00", "http://exämple.org/", "http://example.org#@10.0.0.1/", "http://10.0.0.1\\@example.org/", "http://-a.org/",
    "http://a..org/", "http://169.254.169.254/latest/", "http://[64:ff9b::7f00:1]/", "//example.org/", "example.org", "", "http://example.org/" + "a" * 2000,
])
def test_addresses_that_are_refused_by_their_text(url):
    with pytest.raises(TargetError):
        check_target(url)


@pytest.mark.parametrize("url, origin", [
    ("https://hooks.example.org", "https://hooks.example.org"), ("http://hooks.example.org:8080/a//b?c=d&e=%20", "http://hooks.example.org:8080"),
    ("https://8.8.8.8:8443/", "https://8.8.8.8:8443"), ("https://[2606:4700:4700::1111]/", "https://[2606:4700:4700::1111]"), ("HTTPS://Hooks.Example.ORG:5000/", "https://hooks.example.org:5000"),
])
def test_addresses_that_are_taken(url, origin):
    assert check_target(url).origin == origin


# --- slow, endless and false receivers


def drip(port_box, pieces, pause_s, done):
    """A server that sends a piece now and then."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port_box.append(server.getsockname()[1])
        conn, _ = server.accept()
        with conn:
            conn.recv(65536)
            for piece in pieces:
                try:
                    conn.sendall(piece)
                except OSError:
                    break
                if done.wait(pause_s):
                    break


@pytest.mark.parametrize("pieces", [[b"H", b"T", b"T", b"P"] * 50, [b"HTTP/1.1 200 OK\r\nX: "] + [b"y"] * 200], ids=["status", "headers"])
def test_a_receiver_that_drips_is_left_after_the_time_for_all(pieces):
    box, done = [], threading.Event()
    thread = threading.Thread(target=drip, args=(box, pieces, 0.1, done))
    thread.start()
    until(lambda: box, "the port")
    target = check_target(f"http://localhost:{box[0]}/", allow_private=True)
    began = time.monotonic()
    with pytest.raises(SendError, match=r"no whole answer within 0\.6 s"):
        post(target, "127.0.0.1", b"{}", {}, total_s=0.6)
    assert time.monotonic() - began < 3
    done.set()
    thread.join()


def test_an_endless_body_is_not_read_to_its_end():
    box, done = [], threading.Event()
    pieces = [b"HTTP/1.1 200 OK\r\n\r\n"] + [b"x" * 1000] * 100_000
    thread = threading.Thread(target=drip, args=(box, pieces, 0, done))
    thread.start()
    until(lambda: box, "the port")
    answer = post(check_target(f"http://localhost:{box[0]}/", allow_private=True), "127.0.0.1", b"{}", {})
    assert answer.status == 200 and answer.line == "x" * 200
    done.set()
    thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl") or pytest.skip("openssl is missing; install your system's package openssl")
    subprocess.run([openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=hooks.example.org",
                    "-addext", "subjectAltName=DNS:hooks.example.org", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True)
    return folder


def test_the_certificate_is_checked_for_the_name_not_the_address(certificate, names):
    context, seen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda sock, name, ctx: seen.append(name)
    names.known |= {"hooks.example.org": ["127.0.0.1"], "other.example.org": ["127.0.0.1"]}
    with Receiver(context=context) as receiver:
        trust = str(certificate / "cert.pem")
        target = check_target(f"https://hooks.example.org:{receiver.port}/")
        assert post(target, "127.0.0.1", b"{}", {}, trust).status == 204 and seen == ["hooks.example.org"]
        with pytest.raises(SendError, match="not trusted, or is for another name"):
            post(check_target(f"https://other.example.org:{receiver.port}/"), "127.0.0.1", b"{}", {}, trust)
        with pytest.raises(SendError, match="not trusted"):
            post(target, "127.0.0.1", b"{}", {})  # by nobody that the system trusts


# --- over HTTP


@pytest.fixture
def served(home, tmp_path):
    settings = load_settings()
    store, stopping = MemoryStore(tmp_path / "served.db"), threading.Event()
    found = Services(settings, store, None, Jobs(store), {"stopping": stopping})
    found.parts["news"] = News(store, None, None, stopping, poll_s=0.02)
    found.parts["webhooks"] = Webhooks(store, found.parts["news"], allow_private=True, poll_s=0.02)
    served = Served(create_app(settings, found))
    yield served
    served.close()
    store.close()


def asked(served, *args, **rest):
    status, _, body = served.ask(*args, **rest)
    return status, json.loads(body) if body else None


def test_from_a_job_to_its_receiver_and_the_log(served):
    with Receiver() as receiver:
        start_webhooks(served.found)
        store = served.found.store
        until(lambda: store.get_context("webhooks", "read"), "the first look")
        status, made = asked(served, "POST", "/api/webhooks", {"url": receiver.url, "events": ["job.ended"], "secret": SECRET, "description": "mine"})
        assert status == 201 and made["secret"] == SECRET
        store._insert(jobs, job_id="j1", kind="train", params={}, status="running", token=1)
        with store._transaction("write") as conn:
            end_job(conn, "j1", 1, "completed")
        until(lambda: receiver.got, "the delivery")
        until(lambda: asked(served, "GET", "/api/webhooks/1/deliveries?status=delivered")[1]["total"] == 1, "the log")
        status, row = asked(served, "POST", "/api/webhooks/1/test")
        assert status == 202 and row["event"] == "webhook.test"
        until(lambda: len(receiver.got) == 2, "the test")
        until(lambda: asked(served, "GET", "/api/webhooks/1/deliveries?status=delivered")[1]["total"] == 2, "the log")
        assert asked(served, "POST", "/api/webhooks/1/deliveries/1/replay")[0] == 202
        until(lambda: len(receiver.got) == 3, "the replay")
        assert receiver.got[0][0]["Helios-Event-Id"] == receiver.got[2][0]["Helios-Event-Id"]
    page = asked(served, "GET", "/api/webhooks/1/deliveries?per_page=1&page=2&sort=-id")[1]
    assert (page["total"], page["pages"], [row["id"] for row in page["items"]]) == (2, 2, [1])


def test_a_secret_is_shown_once(served):
    status, headers, body = served.ask("POST", "/api/webhooks", {"url": "https://hooks.example.org/services/T0/hidden-path", "events": ["draws.added"]})
    made = json.loads(body)
    assert status == 201 and headers["Location"] == f"/api/webhooks/{made['id']}" and len(made["secret"]) > 40
    for path in ("/api/webhooks", f"/api/webhooks/{made['id']}"):
        assert made["secret"].encode() not in served.ask("GET", path)[2]
    assert b"secret" not in served.ask("PATCH", "/api/webhooks/1", {"secret": "another-secret-of-two"})[2]
    assert served.found.parts["webhooks"].get(1)["secret"] == "another-secret-of-two"


def test_the_log_of_changes_gets_no_secret_and_no_path(served):
    from flask import g

    kept = []

    @served.app.after_request
    def keep(answer):
        kept.extend(g.get("changes", []))
        return answer

    served.ask("POST", "/api/webhooks", {"url": "https://hooks.example.org/services/T0/hidden-path", "events": ["draws.added"], "secret": SECRET})
    served.ask("PATCH", "/api/webhooks/1", {"secret": "another-secret-of-two", "is_active": False})
    served.ask("DELETE", "/api/webhooks/1")
    assert [change["action"] for change in kept] == ["webhook.create", "webhook.change", "webhook.delete"]
    said = json.dumps(kept)
    assert "https://hooks.example.org" in said and not any(word in said for word in ("hidden-path", SECRET, "another-secret"))


@pytest.mark.parametrize("body", [
    {}, {"url": "https://a.example.org/"}, {"url": "https://a.example.org/", "events": []}, {"url": "https://a.example.org/", "events": ["everything"]},
    {"url": "https://a.example.org/", "events": ["job.ended"], "secret": "short"}, {"url": "https://a.example.org/", "events": ["job.ended"], "secret": "line\nbreak" * 3},
    {"url": "https://a.example.org/", "events": ["job.ended"], "description": "nul\0"}, {"url": "https://a.example.org/", "events": ["job.ended"], "is_active": True},
    {"url": "ftp://a.example.org/", "events": ["job.ended"]}, {"url": "https://user@a.example.org/", "events": ["job.ended"]}, {"url": 7, "events": ["job.ended"]},
])
def test_wrong_bodies_are_told_by_field(served, body):
    status, said = asked(served, "POST", "/api/webhooks", body)
    assert status == 422 and said["errors"]


def test_the_switch_for_tests_is_out_of_reach(home, tmp_path, monkeypatch):
    """No setting, no environment and no request lets a webhook lead inside."""
    for name in ("HELIOS_ALLOW_PRIVATE", "ALLOW_PRIVATE", "HELIOS_WEBHOOKS_ALLOW_PRIVATE"):
        monkeypatch.setenv(name, "1")
    with MemoryStore(tmp_path / "a.db") as store:
        client = create_app(load_settings(), Services(load_settings(), store, None, Jobs(store))).test_client()
        for url in ("http://127.0.0.1:5001/", "http://localhost:5001/", "http://[::1]:5001/", "http://169.254.169.254/"):
            assert client.post("/api/webhooks", json={"url": url, "events": ["job.ended"]}).status_code == 422
        assert client.post("/api/webhooks", json={"url": "http://127.0.0.1/", "events": ["job.ended"], "allow_private": True}).status_code == 422
        made = client.post("/api/webhooks", json={"url": "https://a.example.org/", "events": ["job.ended"]}).json
        assert client.patch(f"/api/webhooks/{made['id']}", json={"url": "http://10.0.0.1/"}).status_code == 422


def test_what_is_not_there_is_404_and_what_is_too_much_409(served):
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries"), ("POST", "/deliveries/1/replay")):
        for id in ("7", "0", str(2**31), str(10**30)):
            assert served.ask(method, f"/api/webhooks/{id}{path}", {} if method == "PATCH" else None)[0] == 404, (method, path, id)
    for _ in range(50):
        served.found.store._insert(webhooks, url="https://a.example.org/", events=["job.ended"], secret=SECRET, is_active=True)
    assert served.ask("POST", "/api/webhooks", {"url": "https://a.example.org/", "events": ["job.ended"]})[0] == 409
    assert served.ask("POST", "/api/webhooks/1/deliveries/9/replay")[0] == 404
    assert asked(served, "GET", "/api/webhooks?per_page=7&page=8&sort=created_at&is_active=true")[1]["pages"] == 8
    assert served.ask("GET", "/api/webhooks?sort=secret")[0] == 422


def test_all_of_it_asks_for_an_admin(served):
    spec = asked(served, "GET", "/api/openapi.json")[1]
    roles = {item[method]["x-helios-role"] for path, item in spec["paths"].items() if path.startswith("/api/webhooks") for method in item if method in ("get", "post", "patch", "delete")}
    assert roles == {"admin"}
