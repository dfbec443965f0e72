"""What stands before and behind every route: asked over all routes of the app, not over a list of them."""

import json
import logging
import re
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis
import sqlalchemy as sa
from flask import Response, g
from waiting import until

from helios import counts as counts_module
from helios.audit_trail import AuditTrail
from helios.keys import Keys
from helios.memory_store import MemoryStore
from helios.places import DATABASE
from helios.security import REFUSED, nonce
from helios.server import create_app
from helios.settings import Settings, SettingsError
from helios.shield import HEADERS
from helios.values import StoreError

OPEN = {"/health", "/api/health", "/api/ready"}  # of what is no page or file, what asks for no key
ROLES = ("viewer", "operator", "admin")


@contextmanager
def serving(**settings):
    app = create_app(Settings(**settings))
    try:
        yield app
    finally:
        app.extensions["helios"].store.close()


@pytest.fixture
def local(home):
    """An app that is open on loopback."""
    with serving(rate_limit="") as app:
        yield app


@pytest.fixture
def keyed(home):
    """An app that asks for keys."""
    with serving(rate_limit="", require_keys=True) as app:
        yield app


def make_key(app, role="admin", *scopes):
    """Headers with a new key."""
    return {"Authorization": f"Bearer {app.extensions['helios.guard'].desk.keys.create(role, role, scopes)[1]}"}


def trail(app):
    return AuditTrail(app.extensions["helios"].store)


def routes(app):
    """Path, method and view of each route, with something in place of its parameters."""
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for name, converter in rule._converters.items():
            path = re.sub(rf"<[^<>]*\b{name}>", "1" if "int" in type(converter).__name__.lower() else "powerball", path)
        for method in sorted(rule.methods - {"OPTIONS"}):
            yield path, method, app.view_functions[rule.endpoint], rule.endpoint


def role_of(view, method):
    return getattr(view, "helios_role", "viewer" if method in ("GET", "HEAD") else "operator")


def ask(app, path, method="GET", address="127.0.0.1", **rest):
    """The answer, read to its end so that no stream stays open."""
    answer = app.test_client().open(path, method=method, environ_overrides={"REMOTE_ADDR": address}, **rest)
    answer.get_data()
    return answer


def status(app, path, method="GET", **rest):
    return ask(app, path, method, **rest).status_code


# All routes


def test_there_are_routes_to_ask(local):
    assert len([*routes(local)]) > 10


def test_every_route_asks_for_a_key(keyed):
    for path, method, view, _ in routes(keyed):
        if role_of(view, method) is None:
            assert path in OPEN or not path.startswith("/api/") or path == "/api/docs", f"{method} {path} asks for no key"
            continue
        answer = ask(keyed, path, method)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer"), f"{method} {path}: {answer.status_code}"


def test_what_is_not_there_asks_for_a_key_too(keyed):
    for path, method in (("/api/none", "GET"), ("/api", "GET"), ("/api/", "GET"), ("/api/none/../x", "POST"), ("/api/keys", "PUT"), ("/api/openapi.json", "GET"),
                         ("/api//health", "GET"), ("/api/health/", "GET"), ("/api/whoami", "TRACE"), ("/api/whoami", "OPTIONS")):
        assert status(keyed, path, method) == 401, (path, method)
    viewer = make_key(keyed, "viewer")
    assert [status(keyed, path, headers=viewer) for path in ("/api/none", "/api/openapi.json")] == [404, 200]
    assert status(keyed, "/api/keys", "PUT", headers=viewer) == 405
    assert status(keyed, "/api/whoami", "OPTIONS", headers=viewer) == 200
    assert status(keyed, "/nothing/here") == 404


@pytest.mark.parametrize("role", ROLES)
def test_every_route_looks_at_the_role(keyed, role):
    key = make_key(keyed, role)
    asked = 0
    for path, method, view, _ in routes(keyed):
        needed = role_of(view, method)
        if needed is None or ROLES.index(needed) <= ROLES.index(role):
            continue
        asked += 1
        answer = ask(keyed, path, method, headers=key)
        assert answer.status_code == 403 and (method == "HEAD" or needed in answer.json["detail"]), f"{method} {path}: {answer.status_code}"
    assert asked > 0 or role == "admin"


def test_every_route_looks_at_the_scope(keyed):
    key = make_key(keyed, "admin", "nothing")
    for path, method, view, endpoint in routes(keyed):
        if role_of(view, method) is None:
            continue
        if endpoint.startswith("openapi.") or endpoint == "access.whoami":
            assert status(keyed, path, method, headers=key) == 200
        else:
            assert status(keyed, path, method, headers=key) == 403, f"{method} {path}"
    assert status(keyed, "/api/keys", headers=make_key(keyed, "admin", "access")) == 200


def test_every_route_looks_at_the_host(local):
    for path, method, *_ in routes(local):
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:5001"):
            assert status(local, path, method, headers={"Host": host}) == 421, f"{method} {path}"


def test_every_route_looks_at_the_page_that_asks(local):
    for path, method, *_ in routes(local):
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:3000"}, {"Sec-Fetch-Site": "cross-site"},
                        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}):
            answer = ask(local, path, method, headers=headers)
            assert answer.status_code == 403, f"{method} {path} {headers}"
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_every_route_is_closed_to_other_machines(local):
    for path, method, view, _ in routes(local):
        if role_of(view, method) is None:
            continue
        assert status(local, path, method, address="192.0.2.1") == 401, f"{method} {path}"
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"):
            assert status(local, path, method, headers={name: "127.0.0.1"}) == 401, f"{method} {path} {name}"


def test_every_answer_has_the_headers(local, keyed):
    def check(answer, what):
        for name, value in HEADERS:
            assert answer.headers.getlist(name) == [value], f"{what}: {name}"
        policy = answer.headers.getlist("Content-Security-Policy")
        assert len(policy) == 1 and policy[0].startswith("default-src 'none'") and "unsafe" not in policy[0] and "frame-ancestors 'none'" in policy[0], what
        assert re.fullmatch("[A-Za-z0-9._-]{8,64}", answer.headers["X-Request-ID"]) and "Server" not in answer.headers, what
        if what[1].startswith("/api") or answer.status_code >= 400:
            assert answer.headers["Cache-Control"] == "no-store", what

    for path, method, view, _ in routes(keyed):
        check(ask(keyed, path, method), (method, path, "refused"))
        if method == "GET" and role_of(view, method) is None:
            check(ask(local, path), (method, path, "open"))
    for path, method, headers in (("/", "GET", {}), ("/none", "GET", {}), ("/api/none", "GET", {}), ("/api/health", "PUT", {}), ("/api/whoami", "OPTIONS", {}),
                                  ("/api/whoami", "HEAD", {}), ("/api/keys", "GET", {"Host": "evil.example"}), ("/api/openapi.json", "GET", {}), ("/api/audit-log/export", "GET", {}),
                                  ("/api/keys?page=x", "GET", {}), ("/api//keys", "GET", {})):
        check(ask(local, path, method, headers=headers), (method, path))


def test_files_streams_and_failures_have_the_headers_too(home, tmp_path):
    with serving(rate_limit="") as app:
        (tmp_path / "x.js").write_text("1")

        def stream():
            return Response((f"data: {n}\n\n" for n in range(3)), mimetype="text/event-stream")

        def file():
            from flask import send_from_directory
            return send_from_directory(tmp_path, "x.js", max_age=3600)

        def bug():
            raise RuntimeError("secret of the inside")

        def page():
            return f"<script nonce={nonce()}></script>"

        for path, view in (("/api/stream", stream), ("/assets/x.js", file), ("/api/bug", bug), ("/page", page)):
            app.add_url_rule(path, path, view)
        file.helios_role = page.helios_role = None
        for path, expected, cached in (("/api/stream", 200, "no-store"), ("/assets/x.js", 200, "max-age=3600"), ("/assets/y.js", 404, "no-store"), ("/api/bug", 500, "no-store")):
            logging.disable(logging.CRITICAL)
            answer = ask(app, path)
            logging.disable(logging.NOTSET)
            assert answer.status_code == expected and cached in answer.headers["Cache-Control"], path
            assert all(answer.headers[name] == value for name, value in HEADERS) and answer.headers["Content-Security-Policy"].startswith("default-src 'none'; base-uri"), path
            assert "secret" not in answer.text and "Traceback" not in answer.text
        pages = [ask(app, "/page") for _ in range(3)]
        nonces = [re.search("nonce=(.+?)>", answer.text)[1] for answer in pages]
        assert len({*nonces}) == 3 and all(len(text) >= 22 for text in nonces)
        for answer, text in zip(pages, nonces, strict=True):
            assert f"script-src 'nonce-{text}';" in answer.headers["Content-Security-Policy"] and answer.headers["Cache-Control"] == "no-store"


# Host and page


def test_links_to_pages_work(local):
    def page():
        return "<p>here</p>"

    page.helios_role = None
    local.add_url_rule("/somewhere", "somewhere", page)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert status(local, "/somewhere", headers=link) == 200
    assert status(local, "/somewhere", headers=link | {"Sec-Fetch-Dest": "iframe"}) == 403
    assert status(local, "/api/whoami", headers=link) == 403
    assert status(local, "/api/whoami", headers=link | {"Sec-Fetch-User": "?1"}) == 200
    assert status(local, "/api/keys", "POST", headers=link | {"Sec-Fetch-User": "?1"}, json={"name": "x"}) == 403
    for own in ({"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        assert status(local, "/api/whoami", headers=own) == 200


@pytest.mark.parametrize("settings, good, bad", [
    ({}, ["localhost", "127.0.0.1:5001", "[::1]:5001"], ["lab.example", "192.0.2.1", "0.0.0.0"]),
    ({"allowed_hosts": ("lab.example",)}, ["lab.example:8080", "localhost"], ["evil.example", "x.lab.example"]),
    ({"host": "127.0.0.2"}, ["127.0.0.2:5001"], ["127.0.0.3"]),
    ({"host": "0.0.0.0"}, ["anything.example", "192.0.2.1:80"], ["a b", "a/b", ""]),
    ({"host": "0.0.0.0", "allowed_hosts": ("lab.example", "10.0.0.5:8080", "::2")}, ["lab.example", "10.0.0.5", "[::2]:1", "localhost"], ["evil.example", "10.0.0.6"]),
])
def test_hosts_by_settings(home, settings, good, bad):
    with serving(rate_limit="", **settings) as app:
        assert {host: status(app, "/health", headers={"Host": host}) == 421 for host in good + bad} == dict.fromkeys(good, False) | dict.fromkeys(bad, True)


def test_a_request_without_a_host_is_refused(local):
    environ = local.test_request_context("/api/whoami").request.environ
    del environ["HTTP_HOST"]
    said = []
    b"".join(local.wsgi_app(environ, lambda status, headers, exc_info=None: said.append(status)))
    assert said[0].startswith("421")


def test_pages_of_cors_origins_may_call_and_nobody_else(home):
    with serving(rate_limit="", cors_origins="https://page.example,http://[::1]:3000", require_keys=True) as app:
        key = make_key(app, "viewer")
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type, x-evil"}
        for origin in ("https://page.example", "http://[::1]:3000"):
            before = ask(app, "/api/whoami", "OPTIONS", headers={"Origin": origin} | asking)
            assert before.status_code == 200 and before.headers["Access-Control-Allow-Origin"] == origin
            assert before.headers["Access-Control-Allow-Headers"] == "authorization, content-type" and "Origin" in before.headers["Vary"]
            called = ask(app, "/api/whoami", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"} | key)
            assert called.status_code == 200 and called.headers["Access-Control-Allow-Origin"] == origin
            assert "Access-Control-Allow-Credentials" not in called.headers
            assert ask(app, "/api/whoami", headers={"Origin": origin}).headers["Access-Control-Allow-Origin"] == origin  # the refusal can be read too
        for origin in ("https://page.example.evil.example", "https://pageXexample", "http://page.example", "https://page.example:8443", "http://1:3000", "null", "*", ""):
            for method in ("GET", "OPTIONS", "POST"):
                answer = ask(app, "/api/whoami", method, headers={"Origin": origin} | asking | key)
                assert answer.status_code == 403 and "Access-Control-Allow-Origin" not in answer.headers, origin
        assert "Access-Control-Allow-Origin" not in ask(app, "/api/whoami", headers=key).headers


# Keys


def test_an_open_server_knows_its_own_user(local):
    assert ask(local, "/api/whoami").json == {"actor": "local", "role": "admin", "scopes": [], "name": "this machine", "expires_at": None}


def test_who_shows_a_key_is_judged_by_it(local):
    viewer = make_key(local, "viewer")
    assert ask(local, "/api/whoami", headers=viewer).json["role"] == "viewer"
    assert status(local, "/api/keys", headers=viewer) == 403
    assert status(local, "/api/whoami", headers={"X-API-Key": "hel_mistyped"}) == 401
    assert status(local, "/api/whoami", address="192.0.2.1", headers=viewer) == 200


def test_both_ways_to_send_a_key(keyed):
    key = make_key(keyed)["Authorization"].removeprefix("Bearer ")
    other = make_key(keyed)["Authorization"].removeprefix("Bearer ")
    good = [{"Authorization": f"Bearer {key}"}, {"Authorization": f"bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"Bearer {key}", "X-API-Key": key}]
    bad = [{"Authorization": key}, {"Authorization": f"Basic {key}"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": f"Token {key}"}, {"X-API-Key": ""},
           {"Cookie": f"api_key={key}"}, {"Authorization": f"Bearer {key}", "X-API-Key": other}, {"Authorization": "Bearer é"}, {"X-API-Key": f"{key},{key}"}]
    assert [status(keyed, "/api/whoami", headers=headers) for headers in good] == [200] * 4
    assert [status(keyed, "/api/whoami", headers=headers) for headers in bad] == [401] * len(bad)
    assert 'error="invalid_token"' in ask(keyed, "/api/whoami", headers={"X-API-Key": "no"}).headers["WWW-Authenticate"]


def test_the_key_of_the_settings(home):
    secret = "a-key-of-the-settings-0123456789"
    with serving(host="0.0.0.0", admin_key=secret) as app:
        assert status(app, "/api/keys") == 401
        answer = ask(app, "/api/whoami", headers={"X-API-Key": secret}, address="192.0.2.1")
        assert (answer.json["actor"], answer.json["role"]) == ("admin-key", "admin")


def test_a_key_that_was_revoked_through_the_api_ends_at_once(keyed):
    boss, other = make_key(keyed), make_key(keyed, "viewer")
    key_id = ask(keyed, "/api/whoami", headers=other).json["actor"]
    assert status(keyed, f"/api/keys/{key_id}", "DELETE", headers=boss) == 200
    assert status(keyed, "/api/whoami", headers=other) == 401


def test_a_key_made_elsewhere_works(keyed, home):
    with MemoryStore(home / DATABASE) as store:
        token = Keys(store).create("x")[1]
    assert status(keyed, "/api/whoami", headers={"X-API-Key": token}) == 200


def test_bad_keys_are_limited_by_address(keyed):
    known, unknown = make_key(keyed, "viewer"), make_key(keyed, "viewer")
    assert status(keyed, "/api/whoami", headers=known, address="192.0.2.1") == 200
    said = [ask(keyed, "/api/whoami", headers={"X-API-Key": f"no{n}"}, address="192.0.2.1") for n in range(12)]
    assert [answer.status_code for answer in said] == [401] * 10 + [429] * 2
    assert 1 <= int(said[-1].headers["Retry-After"]) <= 61 and said[-1].json["status"] == 429
    assert status(keyed, "/api/whoami", headers=unknown, address="192.0.2.1") == 200  # a good one, though not seen before
    assert status(keyed, "/api/whoami", headers=known, address="192.0.2.1") == 200  # but nobody is locked out who was in
    assert status(keyed, "/api/whoami", headers=unknown, address="192.0.2.2") == 200
    assert status(keyed, "/health", address="192.0.2.1") == 200


def test_an_ipv6_network_is_one_address(keyed):
    said = [status(keyed, "/api/whoami", headers={"X-API-Key": "no"}, address=f"2001:db8:0:1::{n}") for n in range(1, 13)]
    assert said == [401] * 10 + [429] * 2


def test_bad_keys_from_many_threads_are_all_counted(keyed):
    start = threading.Barrier(8)

    def guess(n):
        start.wait()
        return [status(keyed, "/api/whoami", headers={"X-API-Key": f"no{n}"}, address="192.0.2.5") for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        said = sum(pool.map(guess, range(8)), [])
    assert 10 <= said.count(401) <= 17 and said.count(401) + said.count(429) == 40  # those under way may end


def test_a_store_that_is_away_is_503_and_never_a_way_in(keyed, monkeypatch):
    key = make_key(keyed)

    def away(*_):
        raise StoreError("no database") from sa.exc.OperationalError("x", {}, Exception("gone"))

    monkeypatch.setattr(MemoryStore, "_rows", away)
    logging.disable(logging.CRITICAL)
    answer = ask(keyed, "/api/whoami", headers=key)
    logging.disable(logging.NOTSET)
    assert answer.status_code == 503 and answer.headers["Retry-After"]


# Limits


def test_calls_are_limited_by_key(home):
    with serving(rate_limit="5 per minute", require_keys=True) as app:
        first, second = make_key(app, "viewer"), make_key(app, "viewer")
        said = [ask(app, path, headers=first) for path in ("/api/whoami", "/api/none", "/api/whoami", "/api/openapi.json", "/api/whoami", "/api/whoami")]
        assert [answer.status_code for answer in said] == [200, 404, 200, 200, 200, 429]
        assert 1 <= int(said[-1].headers["Retry-After"]) <= 61 and said[-1].mimetype == "application/problem+json"
        assert status(app, "/api/whoami", headers=second) == 200
        assert {status(app, path) for path in ("/health", "/api/health") for _ in range(5)} <= {200, 503}  # not counted


def test_exports_tell_nothing_of_the_machine(keyed):
    found = keyed.extensions["helios"]
    with found.jobs.here("check", {}, "one"):
        pass
    viewer = make_key(keyed, "viewer")
    for table in ("jobs", "job_events", "models"):
        text = ask(keyed, f"/api/exports/{table}?format=json", headers=viewer).text
        assert str(found.jobs.home) not in text and '"pid"' not in text and '"host"' not in text and '"file_path"' not in text, text


def test_a_key_with_an_end_makes_no_key_without(keyed):
    guard = keyed.extensions["helios.guard"]
    admin = {"Authorization": f"Bearer {guard.desk.keys.create('short', 'admin', (), 10)[1]}"}
    assert [ask(keyed, "/api/keys", "POST", headers=admin, json={"name": "a", "role": "admin", "expires_days": days}).status_code for days in (None, 11, 5)] == [403, 403, 201]


def test_a_good_key_is_let_in_beside_a_guesser(keyed):
    for _ in range(15):
        status(keyed, "/api/whoami", headers={"Authorization": "Bearer nonsense"})
    assert status(keyed, "/api/whoami", headers={"Authorization": "Bearer nonsense"}) == 429
    assert status(keyed, "/api/whoami", headers=make_key(keyed)) == 200      # never seen here before


def test_an_answer_echoes_no_more_than_a_little(local):
    answers = [ask(local, "/api/goals", "POST", json=body) for body in ({"k" * 500_000: 1}, {f"k{n}": n for n in range(20_000)})]
    assert all(answer.status_code == 422 and len(answer.data) < 5000 for answer in answers)


def test_a_key_can_be_limited_to_any_area(keyed):
    areas = [name for name in keyed.blueprints if name != "openapi"]
    assert "ab-tests" in areas and len(areas) > 15
    for area in areas:
        path = next(path for path, method, _, endpoint in routes(keyed) if endpoint.startswith(f"{area}."))
        assert ask(keyed, path, "OPTIONS", headers=make_key(keyed, "admin", area)).status_code < 400, area
        assert ask(keyed, "/api/whoami", headers=make_key(keyed, "admin", area)).json["scopes"] == [area]


def test_strangers_are_limited_by_address(home):
    with serving(rate_limit="3 per minute", require_keys=True) as app:
        assert [status(app, "/api/none", address="192.0.2.1") for _ in range(5)] == [401] * 3 + [429] * 2
        assert status(app, "/api/none", address="192.0.2.2") == 401


def test_no_limit_where_none_is_wanted(local):
    assert {status(local, "/api/whoami") for _ in range(50)} == {200}


@pytest.mark.parametrize("settings", [{"rate_limit": "lots"}, {"rate_limit": "-1 per day"}, {"redis_url": "nowhere"}, {"redis_url": "ftp://x"}, {"admin_key": "admin"}])
def test_settings_that_cannot_be_used_are_said_at_the_start(home, settings):
    with pytest.raises(SettingsError):
        create_app(Settings(**settings))


def test_without_redis_a_process_counts_for_itself(home, caplog):
    with serving(redis_url="redis://127.0.0.1:9/0", rate_limit="3 per minute") as app:
        assert [status(app, "/api/whoami") for _ in range(5)] == [200] * 3 + [429] * 2
        assert len([record for record in caplog.records if "shared counter is away" in record.message]) == 1


def test_redis_is_asked_again(home, monkeypatch):
    with serving(redis_url="redis://127.0.0.1:9/0", rate_limit="100 per minute") as app:
        counts = app.extensions["helios.guard"].counts
        status(app, "/api/whoami")
        asked = []
        monkeypatch.setattr(counts.shared, "hit", lambda *_: not asked.append(1))
        status(app, "/api/whoami")
        assert asked == []
        monkeypatch.setattr(counts_module, "time", lambda now=counts_module.time: now() + counts_module.AWAY_S)
        assert status(app, "/api/whoami") == 200 and asked == [1]


def forwarded(app, chain):
    return status(app, "/api/none", address="10.0.0.7", headers={"X-Forwarded-For": chain})


def test_a_trusted_proxy_tells_callers_apart_and_nobody_else_does(home):
    with serving(rate_limit="3 per minute", require_keys=True, trusted_proxies=1) as app:
        assert [forwarded(app, "192.0.2.1") for _ in range(4)] == [401] * 3 + [429]
        assert forwarded(app, "192.0.2.2") == 401 and forwarded(app, "192.0.2.9, 192.0.2.1") == 429      # the proxy wrote the last one
    with serving(rate_limit="3 per minute", require_keys=True) as app:
        assert [forwarded(app, f"192.0.2.{n}") for n in range(4)] == [401] * 3 + [429]
    with serving(trusted_proxies=1) as app:
        assert forwarded(app, "127.0.0.1") == 401      # a server that is open on its own machine is not opened by a header


@pytest.fixture
def redis_server():
    """A Redis of this test: where it is, and how to start and stop it."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server here")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    running = []

    def start():
        running.append(subprocess.Popen([server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL))
        client = redis.Redis(port=port)
        until(lambda: suppressed(redis.ConnectionError, client.ping), "redis")
        client.close()

    def stop():
        running[-1].kill()
        running[-1].wait()

    start()
    yield f"redis://127.0.0.1:{port}/0", start, stop
    stop()


def suppressed(error, act):
    try:
        return act()
    except error:
        return None


def test_processes_share_their_counts_in_redis(home, redis_server, monkeypatch, caplog):
    """Two apps with one store, as two workers are; Redis goes away and comes back."""
    url, start, stop = redis_server
    with serving(redis_url=url, rate_limit="4 per hour") as one, serving(redis_url=url, rate_limit="4 per hour") as two:
        assert [status(app, "/api/whoami") for app in (one, two) * 3] == [200] * 4 + [429] * 2
        answer = ask(one, "/api/whoami")
        assert 1 <= int(answer.headers["Retry-After"]) <= 3601
        stop()
        assert [status(app, "/api/whoami") for app in (one, two)] == [200] * 2      # each counts for itself
        assert len([record for record in caplog.records if "shared counter is away" in record.message]) == 2
        start()
        monkeypatch.setattr(counts_module, "time", lambda now=counts_module.time: now() + counts_module.AWAY_S)
        assert [status(app, "/api/whoami") for app in (one, two) * 3] == [200] * 4 + [429] * 2


def test_counts_of_many_callers_fill_no_memory(monkeypatch):
    monkeypatch.setattr(counts_module, "MOST", 100)
    held = counts_module.HeldCounts()
    for n in range(1000):
        held.incr(f"k{n}", 3600)
    assert len(held._held) <= 100 and held.get("k999") == 1
    monkeypatch.setattr(counts_module, "time", lambda now=counts_module.time: now() + 3601)
    assert held.incr("k999", 60) == 1 and len(held._held) == 1


# Request identifiers


def test_the_identifier_is_in_the_answer_the_request_and_the_log(local):
    seen = []
    local.view_functions["access.whoami"] = (lambda view: lambda: seen.append(g.request_id) or view())(local.view_functions["access.whoami"])
    answer = ask(local, "/api/whoami", headers={"X-Request-ID": "from-the-caller.1"})
    assert answer.headers["X-Request-ID"] == "from-the-caller.1" == seen[0]
    for given in ("", "short", "x" * 65, "a b c d e f", "é" * 10, "<script>alert(1)</script>", "-starts-wrong"):
        made = ask(local, "/api/whoami", headers={"X-Request-ID": given}).headers["X-Request-ID"]
        assert made != given and re.fullmatch("[0-9a-f]{16}", made) and made == seen[-1]
    made = ask(local, "/api/keys", "POST", json={"name": "x"})
    assert [*trail(local).entries()][-1]["content"]["request_id"] == made.headers["X-Request-ID"]


# The audit log


def test_a_change_is_on_record(keyed):
    boss = make_key(keyed)
    made = ask(keyed, "/api/keys", "POST", json={"name": "new", "role": "operator"}, headers=boss, address="192.0.2.7")
    key_id = made.json["key"]["key_id"]
    ask(keyed, f"/api/keys/{key_id}", "DELETE", headers=boss)
    first, second = trail(keyed).entries()
    actor = ask(keyed, "/api/whoami", headers=boss).json["actor"]
    assert (first["actor"], first["action"], first["target"]) == (actor, "key.create", key_id)
    assert first["content"] | {"request_id": 0} == {
        "n": 1, "before": None, "after": made.json["key"], "role": "admin", "name": "admin", "address": "192.0.2.7", "request_id": 0, "method": "POST", "path": "/api/keys", "status": 201}
    assert second["content"]["before"]["revoked_at"] is None and second["content"]["after"]["revoked_at"]
    assert made.json["token"].split("_", 2)[2] not in json.dumps([first, second])
    assert trail(keyed).verify().ok


def test_what_is_no_change_is_not(keyed):
    viewer = make_key(keyed)
    for path, method in (("/api/whoami", "GET"), ("/api/keys", "HEAD"), ("/api/none", "POST"), ("/api/keys", "PUT"), ("/api/whoami", "OPTIONS")):
        ask(keyed, path, method, headers=viewer)
    assert status(keyed, "/api/keys", "POST", json={"name": 1}, headers=viewer) == 422
    assert status(keyed, "/api/keys/0123456789ab", "DELETE", headers=viewer) == 404
    assert [*trail(keyed).entries()] == []


def test_a_route_that_notes_nothing_is_on_record_with_its_answer(local):
    def make():
        return {"made": 1, "webhook_secret": "s3cret"}

    def large():
        return {"rows": ["x" * 100] * 1000}

    def stream():
        return Response((str(n) for n in range(3)), mimetype="text/plain")

    for view in (make, large, stream):
        local.add_url_rule(f"/api/{view.__name__}/<int:n>", view.__name__, lambda n, view=view: view(), methods=["POST"])
    assert [status(local, f"/api/{name}/7", "POST") for name in ("make", "large", "stream")] == [200] * 3
    entries = [*trail(local).entries()]
    assert [(e["action"], e["target"]) for e in entries] == [(f"POST /api/{name}/<int:n>", f"/api/{name}/7") for name in ("make", "large", "stream")]
    assert entries[0]["content"]["after"] == {"made": 1, "webhook_secret": "(not kept)"}
    assert entries[1]["content"]["after"]["bytes"] > 100_000 and entries[2]["content"]["after"] == {"bytes": None}


def test_a_change_before_a_failure_is_on_record(local):
    from helios.api_base import note_change

    def half():
        note_change("half.done", "x", 1, 2)
        raise RuntimeError("then it failed")

    local.add_url_rule("/api/half", "half", half, methods=["POST"])
    logging.disable(logging.CRITICAL)
    assert status(local, "/api/half", "POST") == 500
    logging.disable(logging.NOTSET)
    entry = next(trail(local).entries())
    assert (entry["action"], entry["content"]["status"]) == ("half.done", 500)


def test_a_log_that_takes_nothing_makes_changes_fail_loudly(local):
    assert status(local, "/api/keys", "POST", json={"name": "first"}) == 201
    with local.extensions["helios"].store._transaction("write") as conn:
        conn.exec_driver_sql("DELETE FROM audit_log")
    logging.disable(logging.CRITICAL)
    answer = ask(local, "/api/keys", "POST", json={"name": "second"})
    logging.disable(logging.NOTSET)
    assert answer.status_code == 503 and "the change is done" in answer.json["detail"] and "not be written to the audit log" in answer.json["detail"]
    assert "token" not in answer.json and "Retry-After" not in answer.headers  # nobody shall do it again
    verdict = ask(local, "/api/audit-log/verify").json
    assert verdict["ok"] is False and "removed" in verdict["why"]


def test_a_store_that_can_only_be_read_refuses_changes_before_they_begin(local, monkeypatch):
    done = []
    local.add_url_rule("/api/outside", "outside", lambda: done.append(1) or {}, methods=["POST"])
    monkeypatch.setattr(local.extensions["helios"].store, "read_only", True)
    logging.disable(logging.CRITICAL)
    answer = ask(local, "/api/outside", "POST")
    logging.disable(logging.NOTSET)
    assert answer.status_code == 503 and done == [] and answer.headers["Retry-After"]
    assert status(local, "/api/whoami") == 200


def test_refused_changes_are_on_record_until_there_are_many(keyed):
    viewer, most = make_key(keyed, "viewer"), REFUSED[0].amount
    assert status(keyed, "/api/keys", "POST", headers=viewer, json={"name": "x"}) == 403
    assert status(keyed, "/api/keys", "POST", headers={"Origin": "https://evil.example"}) == 403
    assert status(keyed, "/api/keys") == 401  # reading is no change
    for _ in range(most + 20):
        assert status(keyed, "/api/keys", "POST") == 401
    entries = [*trail(keyed).entries()]
    assert len(entries) == most and {e["action"] for e in entries} == {"refused"} and trail(keyed).verify().ok
    assert entries[0]["content"]["role"] == "viewer" and "asks for the role admin" in entries[0]["content"]["after"]["why"]
    assert entries[1]["actor"] == "anonymous" and "evil.example" in entries[1]["content"]["after"]["why"]
    keyed.extensions["helios.guard"].counts.own.storage.reset()
    keyed.extensions["helios.guard"].counts.shared.storage.reset()
    status(keyed, "/api/keys", "POST")
    assert [*trail(keyed).entries()][-1]["content"]["after"]["left_out"] == 22


def test_changes_of_many_threads_are_all_on_record(local):
    start = threading.Barrier(6)

    def make(n):
        start.wait()
        return [status(local, "/api/keys", "POST", json={"name": f"{n} {k}"}) for k in range(5)]

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(make, range(6)), []) == [201] * 30
    assert trail(local).verify().ok and trail(local).head()["n"] == 30


# The log and the keys through the API


def test_the_audit_log_through_the_api(local):
    for name in "abc":
        ask(local, "/api/keys", "POST", json={"name": name})
    page = ask(local, "/api/audit-log?per_page=2").json
    assert (page["total"], page["pages"], [row["content"]["after"]["name"] for row in page["items"]]) == (3, 2, ["c", "b"])
    assert ask(local, "/api/audit-log?sort=made_at&page=2&per_page=2").json["items"][0]["content"]["after"]["name"] == "c"
    assert ask(local, f"/api/audit-log?target={page['items'][0]['target']}&actor=local&action=key.create").json["total"] == 1
    assert ask(local, "/api/audit-log?until=2020-01-01").json["total"] == 0
    verdict = ask(local, "/api/audit-log/verify").json
    assert verdict == {"ok": True, "entries": 3, "first_bad": None, "why": None, "head": page["items"][0]["hash"]}
    assert ask(local, f"/api/audit-log/verify?head={'a' * 12}").json["ok"] is False
    lines = ask(local, "/api/audit-log/export")
    assert [json.loads(line)["id"] for line in lines.text.splitlines()] == [1, 2, 3] and lines.mimetype == "application/x-ndjson"
    table = ask(local, "/api/audit-log/export?format=csv&since=2020-01-01")
    assert table.mimetype == "text/csv" and table.text.count("\n") == 4 and "attachment" in table.headers["Content-Disposition"]


def test_a_limited_administrator_makes_only_limited_keys(keyed):
    limited = make_key(keyed, "admin", "access")
    assert status(keyed, "/api/keys", "POST", json={"name": "x"}, headers=limited) == 403
    assert status(keyed, "/api/keys", "POST", json={"name": "x", "scopes": ["system"]}, headers=limited) == 403
    assert status(keyed, "/api/keys", "POST", json={"name": "x", "scopes": ["access", "system"]}, headers=limited) == 403
    assert status(keyed, "/api/keys", "POST", json={"name": "x", "scopes": ["access"]}, headers=limited) == 201


def test_the_description_names_the_operations(local):
    spec = ask(local, "/api/openapi.json").json
    for path, methods in {"/api/keys": ["get", "post"], "/api/keys/{key_id}": ["delete"], "/api/audit-log": ["get"], "/api/audit-log/verify": ["get"],
                          "/api/audit-log/export": ["get"], "/api/whoami": ["get"]}.items():
        for method in methods:
            operation = spec["paths"][path][method]
            assert operation["x-helios-role"] == ("viewer" if path == "/api/whoami" else "admin") and operation["security"]
    assert {*spec["paths"]["/api/audit-log/export"]["get"]["responses"]["200"]["content"]} == {"text/csv", "application/x-ndjson"}
