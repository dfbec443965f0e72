"""What somebody with bad intent sends: to all routes of the app, as the description and the map of URLs name them."""

import io
import json
import logging
import re
import socket
import threading
from contextlib import contextmanager
from urllib.parse import quote, urlencode

import pytest
import sqlalchemy as sa
from werkzeug.serving import WSGIRequestHandler, make_server

from helios.server import create_app
from helios.settings import Settings

SECRET = "what-must-not-leave-the-disk"
LIMIT_KB = 64

TRAVERSAL = ["..", "../outside.txt", "../../etc/passwd", "....//....//etc/passwd", "/etc/passwd", "..\\..\\outside.txt", "%2e%2e%2foutside.txt", "..%2f..%2fetc%2fpasswd",
             "%252e%252e%252foutside.txt", "..;/outside.txt", "outside.txt%00.json", "~/outside.txt", "file:///etc/passwd", "C:\\outside.txt", "\\\\host\\share", "CON", "."]
SQL = ["' OR '1'='1", "1; DROP TABLE models; --", "x' UNION SELECT hash FROM api_keys --", "%' OR 1=1 --", "1)) OR ((1=1", "\\'; SELECT pg_sleep(9); --", "$(reboot)", "`id`", "{{7*7}}", "${jndi:ldap://h/a}"]
UNICODE = ["ｐｏｗｅｒｂａｌｌ", "powerball\u202e", "power\u0000ball", "powerball\u200b", "Ünicode", "夜", "💥", "e\u0301", "\ufeffx", "x\u2028y", "\ud7ff", "a\r\nX-Evil: 1", "\x7f", "\x1b[31mred"]
LONG = ["a" * 65, "a" * 10_000, "-" * 200, "9" * 400, "1e999", "-1", "0", str(2**31), str(2**63), str(2**64)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("attacks")
    (place / "outside.txt").write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOS_HOME", str(place / "home"))
        yield place / "home"


@pytest.fixture(scope="module")
def app(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helios.jobs.start_queued", lambda *args, **rest: None)      # jobs are queued and none begins
        app = create_app(Settings(rate_limit="", max_body_kb=LIMIT_KB))
        yield app
        app.extensions["helios"].store.close()


@pytest.fixture(autouse=True)
def whole(app, home):
    """After each attack the tables are there, and no file stands beside the home folder."""
    yield
    assert {*home.parent.iterdir()} == {home, home.parent / "outside.txt"} and (home.parent / "outside.txt").read_text() == SECRET
    store = app.extensions["helios"].store
    with store._transaction() as conn:
        assert {"models", "api_keys", "audit_log", "jobs"} <= {*sa.inspect(conn).get_table_names()}


@contextmanager
def quiet():
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def ask(app, path, method="GET", **rest):
    answer = app.test_client().open(path, method=method, **rest)
    text = "" if answer.mimetype == "text/event-stream" else answer.get_data(as_text=True)
    answer.close()
    where = f"{method} {path[:200]}"
    assert answer.status_code != 500, f"{where}: {text[:500]}"
    assert SECRET not in text and "root:" not in text and "Traceback" not in text and 'File "' not in text, where
    if answer.status_code >= 400 and method != "HEAD" and answer.status_code != 503:
        assert answer.mimetype == "application/problem+json" and {"type", "title", "status", "detail", "error_id"} <= {*json.loads(text)}, where
    return answer


def parametric(app):
    """Path patterns with parameters, with their methods."""
    for rule in app.url_map.iter_rules():
        if rule.arguments:
            yield rule.rule, sorted(rule.methods - {"OPTIONS", "HEAD"})


def operations(app):
    """Path, method, parameters and body of each described operation; parameters in the path are filled."""
    spec = app.spec if isinstance(app.spec, dict) else json.loads(app.spec)
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post", "put", "patch", "delete"):
                yield re.sub(r"\{\w+\}", "powerball", path), method.upper(), operation.get("parameters", []), operation.get("requestBody", {}).get("content", {})


def takes_json(app):
    found = [(path, method) for path, method, _, body in operations(app) if "application/json" in body]
    assert found
    return found


# Names and files


@pytest.mark.parametrize("kind", ["traversal", "sql", "unicode", "long"])
def test_names_in_paths(app, kind):
    words = {"traversal": TRAVERSAL, "sql": SQL, "unicode": UNICODE, "long": LONG}[kind]
    asked = 0
    with quiet():
        for rule, methods in parametric(app):
            for word in words:
                for form in {word, quote(word, safe="")} if kind == "traversal" else {quote(word, safe="")}:
                    path = re.sub("<[^<>]+>", lambda _, form=form: form, rule)
                    for method in methods:
                        answer = ask(app, path, method)
                        asked += 1
                        if path.startswith("/api/") and kind != "long":
                            assert 300 <= answer.status_code < 500, f"{method} {path}: {answer.status_code}"
                        assert "X-Evil" not in answer.headers
    assert asked > 0


def test_paths_that_climb(app):
    for path in ("/../outside.txt", "/api/../../outside.txt", "/assets/../../outside.txt", "/assets/%2e%2e/%2e%2e/outside.txt", "/static/..%5c..%5coutside.txt", "/.env",
                 "/.git/config", "/api/openapi.json/../../outside.txt", "/home/helios_memory.db", "/helios_memory.db", "/etc/passwd%00", "/api%2fkeys", "/api/keys;x=1", "/\\evil.example"):
        with quiet():
            answer = ask(app, path)
        assert answer.status_code in (200, 308, 404), path
        assert answer.status_code != 308 or re.match(r"http://localhost/", answer.headers["Location"]), path  # no way to another site
        assert not answer.get_data().startswith(b"SQLite format"), path


# Filters


def test_words_in_filters(app):
    asked = 0
    with quiet():
        for path, method, parameters, _ in operations(app):
            names = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
            for name in names if method == "GET" else ():
                for word in (SQL[0], SQL[2], "a\0b", TRAVERSAL[2], "x" * 5000, "💥", "NaN", str(2**63), "1e999", "-1", "", "a\r\nX-Evil: 1"):
                    answer = ask(app, f"{path}?{urlencode({name: word})}")
                    assert "X-Evil" not in answer.headers
                    asked += 1
                assert ask(app, f"{path}?{name}=1&{name}=2").status_code == 400
                assert ask(app, f"{path}?{name}=%ff%fe").status_code != 500
    assert asked > 50


def test_a_filter_with_sql_finds_nothing_that_it_should_not(app):
    for name in ("one", "two"):
        ask(app, "/api/keys", "POST", json={"name": name})
    for word in SQL:
        found = ask(app, f"/api/audit-log?{urlencode({'actor': word})}")
        assert found.status_code == 200 and found.json["total"] == 0, word
    assert ask(app, "/api/audit-log?sort=hash;DROP TABLE models").status_code == 422
    assert ask(app, "/api/audit-log?sort=(SELECT 1)").status_code == 422


# Bodies


BROKEN = {"nothing closed": b'{"a": 1', "two values": b"{} {}", "no JSON": b"name=x", "NaN": b'{"a": NaN}', "infinity": b'{"a": -Infinity}', "too large": b'{"a": 1e999}', "a key twice": b'{"a": 1, "a": 2}',
          "no UTF-8": b'{"a": "\xff"}', "deep": b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "very deep": b"[" * 30_000, "deep objects": b'{"a":' * 9000, "long number": b'{"a": ' + b"9" * 5000 + b"}",
          "UTF-16": '{"a": 1}'.encode("utf-16"), "NUL": b'{"a": 1}\0', "single quotes": b"{'a': 1}", "comment": b'{"a": 1 /* x */}', "binary": bytes(range(256)), "gzip": b"\x1f\x8b\x08\0\0\0\0\0"}


@pytest.mark.parametrize("what", BROKEN)
def test_bodies_that_are_no_json(app, what):
    for path, method in takes_json(app):
        with quiet():
            answer = ask(app, path, method, data=BROKEN[what], content_type="application/json")
        expected = (400, 422) if what in ("UTF-16", "long number") else (400,)
        assert answer.status_code in (*expected, 404), f"{method} {path}: {answer.status_code}"


def test_bodies_that_are_no_objects(app):
    for path, method in takes_json(app):
        for body in (b"[]", b"1", b'"x"', b"null", b"true", b"[[1]]"):
            assert ask(app, path, method, data=body, content_type="application/json").status_code in (422, 404), f"{method} {path} {body}"


def test_bodies_with_names_that_nobody_asked_for(app):
    for path, method in takes_json(app):
        for name in ("__proto__", "constructor", "__class__", "is_admin", "role\0", "$where", "", "x" * 10_000):
            assert ask(app, path, method, json={name: {"x": 1}}).status_code in (422, 404, 409), f"{method} {path} {name[:20]}"


def test_bodies_of_other_types(app):
    for path, method in takes_json(app):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "application/xml", "application/json5", "application/x-python-pickle", ""):
            assert ask(app, path, method, data=b'{"a": 1}', content_type=kind).status_code in (415, 404), f"{method} {path} {kind}"
        broken = ask(app, path, method, data=b"{", content_type="application/json; charset=utf-7")
        assert broken.status_code in (400, 415, 404)


def test_bodies_that_are_too_large(app):
    body = b'{"a": "' + b"x" * (LIMIT_KB * 1024) + b'"}'
    for path, method in takes_json(app):
        said = ask(app, path, method, data=body, content_type="application/json").status_code
        assert said == 413 or (said == 404 and "powerball" in path), f"{method} {path}"      # some go by a number
        if said == 404:
            continue
        unsaid = app.test_client().open(path, method=method, content_type="application/json", input_stream=io.BytesIO(body), environ_overrides={"wsgi.input_terminated": True})
        assert unsaid.status_code == 413, f"{method} {path}, sent in pieces"
    lied = app.test_client().post("/api/goals", content_type="application/json", input_stream=io.BytesIO(b"{}"), environ_overrides={"CONTENT_LENGTH": "-5"})
    assert 400 <= lied.status_code < 500


def test_uploads_of_what_is_no_upload(app):
    for path, method, _, body in operations(app):
        if "multipart/form-data" in body:
            for data, kind in ((b"", "multipart/form-data; boundary=x"), (b"--x\r\n", "multipart/form-data; boundary=x"), (b"--x", "multipart/form-data"), (b"{}", "application/json"),
                               (b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../outside.txt"\r\n\r\n\x80\x04K\x01.\r\n--x--\r\n', "multipart/form-data; boundary=x")):
                assert 400 <= ask(app, path, method, data=data, content_type=kind).status_code < 500, f"{method} {path}"


def test_numbers_at_the_edge(app):
    for value in (2**31, 2**63, -1, 0.5, True, "1", None, [], {}, 1e308, "１"):
        assert ask(app, "/api/keys", "POST", json={"name": "x", "expires_days": value}).status_code in ((201,) if value is None else (422,)), value


def test_names_of_keys(app):
    for name in ("💥", "Žofie", SQL[0], "<script>alert(1)</script>", "=1+1"):
        made = ask(app, "/api/keys", "POST", json={"name": name})
        assert made.status_code == 201 and made.json["key"]["name"] == name and made.mimetype == "application/json"
    for name in ("a\0", "a\nb", "\u2028", " x", "x" * 101, "", "\x1b[31m"):
        assert ask(app, "/api/keys", "POST", json={"name": name}).status_code == 422, repr(name)
    half = ask(app, "/api/keys", "POST", data=b'{"name": "\\ud800"}', content_type="application/json")
    assert half.status_code in (400, 422)


# Pages elsewhere


FORMS = [("application/x-www-form-urlencoded", b"name=x&role=admin"), ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--x--\r\n'),
         ("text/plain", b'{"name": "x", "role": "admin", "x": "="}'), ("", b""), ("application/json", b'{"name": "x", "role": "admin"}')]


@pytest.mark.parametrize("sent", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
                                  {"Sec-Fetch-Site": "same-site"}, {"Referer": "https://evil.example/http://localhost/"}, {"Origin": "http://localhost.evil.example"}, {"Origin": "http://127.0.0.1:5001"}])
def test_a_form_of_another_page_changes_nothing(app, sent):
    changing = [(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods - {"GET", "HEAD", "OPTIONS"}]
    with quiet():
        for pattern, method in changing:
            for kind, body in FORMS:
                answer = ask(app, re.sub("<[^<>]+>", "1", pattern), method, headers=sent, data=body, content_type=kind)
                assert answer.status_code == 403, f"{method} {pattern} {kind}"


def test_a_form_without_any_sign_of_its_page_is_no_json(app):
    for kind, body in FORMS[:3]:
        assert ask(app, "/api/keys", "POST", data=body, content_type=kind).status_code == 415


def test_a_page_that_was_rebound(app):
    for host in ("evil.example", "evil.example:5001", "localhost.evil.example", "127.0.0.1.evil.example", "[::1].evil.example", "localhost:5001@evil.example", "localhost#.evil.example", "localhost evil.example"):
        answer = ask(app, "/api/whoami", headers={"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"})
        assert answer.status_code == 421, host


def test_headers_that_a_proxy_would_set_are_not_believed(app):
    for name in ("X-Forwarded-Host", "X-Host", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "Forwarded"):
        answer = ask(app, "/api//keys", headers={name: "evil.example"})
        assert "evil.example" not in answer.headers.get("Location", "") and answer.status_code in (401, 404), name
    assert ask(app, "/health", headers={"X-Original-URL": "/api/keys", "X-Rewrite-URL": "/api/keys"}).json["service"] == "helios-backend"


def test_another_method_than_that_of_the_request(app):
    made = ask(app, "/api/keys", "POST", json={"name": "stays"}).json["key"]["key_id"]
    for headers in ({"X-HTTP-Method-Override": "DELETE"}, {"X-HTTP-Method": "DELETE"}, {"X-Method-Override": "DELETE"}):
        assert ask(app, f"/api/keys/{made}", "POST", headers=headers).status_code == 405
        assert ask(app, f"/api/keys/{made}?_method=DELETE", "POST", headers=headers).status_code == 405
    ask(app, f"/api/keys/{made}", "GET", headers={"X-HTTP-Method-Override": "DELETE"})
    assert all(row["revoked_at"] is None for row in ask(app, "/api/keys?per_page=500").json["items"] if row["key_id"] == made)
    for method in ("TRACE", "TRACK", "CONNECT", "PROPFIND", "DEBUG", "XYZZY"):
        answer = ask(app, "/api/whoami", method, headers={"X-Secret": "echo-me"})
        assert answer.status_code == 405 and "echo-me" not in answer.text, method


# Keys and URLs


def test_a_key_in_the_url_is_none_and_is_not_logged(home, caplog):
    app = create_app(Settings(rate_limit="", require_keys=True))
    token = app.extensions["helios.guard"].desk.keys.create("x", "admin")[1]
    with caplog.at_level(logging.DEBUG):
        for query in (f"api_key={token}", f"key={token}", f"access_token={token}", f"token={token}", "api_key=x", f"X-API-Key={token}", f"authorization=Bearer%20{token}", f"x={token}"):
            answer = ask(app, f"/api/whoami?{query}")
            assert answer.status_code == 400 and token not in answer.text and "Authorization: Bearer" in answer.json["detail"], query
        assert ask(app, "/api/whoami", headers={"Referer": f"http://localhost/?api_key={token}"}).status_code == 401
        assert ask(app, "/api/whoami", "GET", data=json.dumps({"api_key": token}), content_type="application/json").status_code == 401
    assert token not in caplog.text
    app.extensions["helios"].store.close()


def test_the_same_name_twice(app):
    for query in ("page=1&page=2", "sort=name&page=1&sort=-name", "x&x", "a=1&a=1"):
        assert ask(app, f"/api/keys?{query}").status_code == 400
    assert ask(app, "/api/keys?page=1;page=2").status_code == 422
    assert ask(app, "/api/keys?page[]=1").status_code == 422
    assert ask(app, "/api/keys?page=1", headers=[("X-API-Key", "a"), ("X-API-Key", "b")]).status_code == 401


def test_long_urls_and_headers(app):
    assert ask(app, "/api/" + "a" * 100_000).status_code == 404
    assert ask(app, "/api/keys?" + "a" * 100_000).status_code == 422
    assert ask(app, "/api/keys?" + "&".join(f"a{n}=1" for n in range(3000))).status_code == 422
    for name in ("Authorization", "X-API-Key"):
        assert ask(app, "/api/whoami", headers={name: "Bearer " + "a" * 100_000}).status_code == 401
    for name in ("Cookie", "Accept", "If-None-Match", "Range", "Accept-Language", "User-Agent", "X-Request-ID", "Last-Event-ID", "If-Modified-Since"):
        for value in ("a" * 100_000, "\x80\xff", "bytes=0-,-1,999-", '"', "; ; ; =", "1" * 500, "Thu, 99 Foo 99999999999"):
            assert ask(app, "/api/whoami", headers={name: value}).status_code == 200, (name, value[:20])


# On the wire: what a client library would not send


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


@pytest.fixture(scope="module")
def port(app):
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(10)


def wire(port, text):
    """What the server says to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(text if isinstance(text, bytes) else text.encode())
        said = b""
        while piece := client.recv(65536):
            said += piece
    return said.decode("latin-1")


def head(port, line, *headers, host="localhost"):
    named = [f"Host: {host}"] if host is not None else []
    return wire(port, "\r\n".join([line, *named, *headers, "Connection: close", "", ""]))


def test_line_breaks_in_values_make_no_headers(port):
    for path in ("//etc/passwd", "/api/keys/x%0d%0aX-Evil:%201", "/api/none%0aX-Evil:%201", "/api/keys?sort=%0d%0aX-Evil:%201", "/%0d%0aX-Evil:%201", "//evil%0d%0aX-Evil:%201"):
        said = head(port, f"GET {path} HTTP/1.1")
        assert re.match(r"HTTP/1\.[01] (308|4\d\d)", said) and "\nX-Evil" not in said.split("\r\n\r\n")[0], path
    said = head(port, "GET /api/whoami HTTP/1.1", "X-Request-ID: abcdefgh\tX-Evil: 1")
    assert "X-Evil" not in said.split("\r\n\r\n")[0]


def test_hosts_on_the_wire(port):
    assert " 200 " in head(port, "GET /api/whoami HTTP/1.1").splitlines()[0]
    for host in ("evil.example", f"evil.example:{port}", "", None):
        assert " 421 " in head(port, "GET /api/whoami HTTP/1.1", host=host).splitlines()[0], host
    assert " 421 " in head(port, "GET /api/whoami HTTP/1.0", host=None).splitlines()[0]
    assert " 421 " in head(port, "GET /api/whoami HTTP/1.1", "Host: evil.example").splitlines()[0]  # twice


def test_what_is_hardly_http(port):
    for text in ("GET / HTTP/1.1\r\n\r\n", "\r\n\r\n", "GET\r\n\r\n", "GET /api/whoami HTTP/9.9\r\nHost: localhost\r\n\r\n", "X" * 70_000 + "\r\n\r\n", "GET " + "/a" * 40_000 + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "a" * 70_000 + "\r\n\r\n", "GET / HTTP/1.1\r\n" + "X: 1\r\n" * 200 + "\r\n"):
        said = wire(port, text)
        assert " 500 " not in said.split("\r\n")[0] and "Traceback" not in said, text[:40]
    assert " 200 " in head(port, "GET /api/whoami HTTP/1.1").splitlines()[0]  # still there


def test_a_body_that_is_shorter_than_said(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"POST /api/keys HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"name\"")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
