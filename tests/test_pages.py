"""The pages: the small one, the description, and a stand-in for a build; in a browser too, under the policy that forbids everything else."""

import os
import re
from contextlib import contextmanager

import pytest
from flask import request
from serving import served

from helios.pages import with_nonce
from helios.server import create_app
from helios.settings import Settings

POLICY = ("default-src 'none'; script-src 'nonce-{0}'; style-src 'self' 'nonce-{0}'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
          "base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
BUILD = {
    "index.html": '<!doctype html><html><head><meta property="csp-nonce" nonce="X"><link rel="modulepreload" href="/assets/part-0a1b2c3d.js">'
                  '<link rel="stylesheet" href="/assets/app-Zz9_yx-w.css"><script type="module" crossorigin src="/assets/app-1a2b3c4d.js"></script></head><body><div id="root"></div></body></html>',
    "assets/app-1a2b3c4d.js": 'import("./part-0a1b2c3d.js").then(part => { document.getElementById("root").textContent = part.said + " at " + location.pathname; });',
    "assets/part-0a1b2c3d.js": 'export const said = "built";', "assets/app-Zz9_yx-w.css": "#root { color: rgb(1, 2, 3); }", "assets/plain.js": "1",
    "logo.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>', "robots.txt": "0123456789", ".env": "KEY=secret", ".git/config": "secret", "deep/.hidden/x": "secret"}


@contextmanager
def app_with(home, **given):
    app = create_app(Settings(**given))
    app.after_request(lambda answer: guarded(answer))
    yield app
    app.extensions["helios"].store.close()


def guarded(answer):
    """With the policy that the server sends, for the browser to keep to."""
    if answer.mimetype == "text/html":
        answer.headers["Content-Security-Policy"] = POLICY.format(request.environ.get("helios.nonce", "none"))
    return answer


@pytest.fixture
def client(home):
    with app_with(home) as app:
        yield app.test_client()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "build"
    for name, text in BUILD.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "outside.txt").write_text("secret")
    if os.name == "posix":
        (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
        (folder / "assets/out").symlink_to(tmp_path)
    return folder


@pytest.fixture
def built(home, folder):
    with app_with(home, static_folder=folder) as app:
        yield app.test_client()


# --- a build ---

@pytest.mark.parametrize("path", ["/", "/index.html", "/models", "/models/powerball", "/train?job=1", "/apis", "/healthy", "/a.b/c", "/%E2%9C%93"])
def test_the_pages_own_addresses_are_its_index(built, path):
    answer = built.get(path)
    assert answer.status_code == 200 and answer.mimetype == "text/html" and 'id="root"' in answer.text
    assert answer.headers["Cache-Control"] in ("no-cache", "no-store") and "ETag" not in answer.headers


def test_every_answer_has_its_own_nonce_in_every_tag(built):
    nonces = []
    for _ in range(3):
        answer = built.get("/")
        nonce = re.search("script-src 'nonce-([^']+)'", answer.headers["Content-Security-Policy"])[1]
        tags = re.findall(r"<(?:script|link|meta)[^>]*>", answer.text)
        assert len(tags) == 4 and all(tag.count(f'nonce="{nonce}"') == tag.count("nonce=") == 1 for tag in tags)
        nonces.append(nonce)
    assert len(set(nonces)) == 3 and min(map(len, nonces)) >= 20


def test_tags_that_are_left_alone():
    html = b'<meta charset="utf-8"><p title="<script">&lt;script&gt;</p></script><linked>'
    assert with_nonce(html, "N").count(b"nonce") <= 1      # a browser would not see a tag there either
    assert with_nonce(b"<scripted><metal>", "N") == b"<scripted><metal>"
    assert with_nonce(b"<SCRIPT SRC=a></SCRIPT><style\n>", "N") == b'<SCRIPT SRC=a nonce="N"></SCRIPT><style\n nonce="N">' or b'nonce="N"' in with_nonce(b"<style\n>", "N")


def test_hashed_files_are_kept_for_a_year_and_others_asked_for_again(built):
    for path in ("/assets/app-1a2b3c4d.js", "/assets/app-Zz9_yx-w.css"):
        answer = built.get(path)
        assert answer.status_code == 200 and answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert built.get("/assets/app-1a2b3c4d.js").mimetype == "text/javascript"
    for path in ("/logo.svg", "/assets/plain.js", "/robots.txt"):
        assert built.get(path).headers["Cache-Control"] == "no-cache"


def test_a_file_that_is_not_there(built):
    for path in ("/assets/app-00000000.js", "/assets/", "/assets/deep/none.css", "/assets"):
        answer = built.get(path)
        assert answer.status_code == 404 and answer.mimetype == "application/problem+json" and answer.json["error_id"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/api/none", "/api/", "/api", "/api/models/x/none", "/metrics/none", "/health/none"])
def test_an_unknown_path_of_the_api_is_none_for_every_method(built, method, path):
    answer = built.open(path, method=method)
    assert answer.status_code == 404 and answer.mimetype == "application/problem+json"


def test_a_page_takes_no_other_method(built):
    answer = built.post("/models/powerball")
    assert answer.status_code == 405 and answer.mimetype == "application/problem+json" and "GET" in answer.headers["Allow"]


@pytest.mark.parametrize("path", [
    "/../outside.txt", "/%2e%2e/outside.txt", "/..%2foutside.txt", "/assets/../../outside.txt", "/assets/%2e%2e%2f%2e%2e%2foutside.txt", "/....//outside.txt",
    "/..%5coutside.txt", "//outside.txt", "/%2foutside.txt", "/link.txt", "/assets/out/outside.txt", "/.env", "/.git/config", "/deep/.hidden/x", "/logo.svg%00.txt",
    "/" + "a" * 5000, "/" + "a/" * 500, "/C:/outside.txt", "/assets/..", "/%ff%fe"])
def test_nothing_outside_is_read(built, path):
    answer = built.get(path, follow_redirects=True)
    assert answer.status_code in (200, 400, 404, 421) and b"secret" not in answer.data
    assert answer.status_code != 200 or 'id="root"' in answer.text


def test_a_whole_path_on_the_disk_is_no_way_in(built, tmp_path):
    for path in (f"/{tmp_path}/outside.txt", f"/%2f{tmp_path}/outside.txt"):
        assert b"secret" not in built.get(path, follow_redirects=True).data


def test_head_ranges_and_unchanged_files(built):
    whole = built.get("/robots.txt")
    head = built.head("/robots.txt")
    assert head.status_code == 200 and head.data == b"" and head.headers["Content-Length"] == "10"
    part = built.get("/robots.txt", headers={"Range": "bytes=2-4"})
    assert part.status_code == 206 and part.data == b"234" and part.headers["Content-Range"] == "bytes 2-4/10"
    assert built.get("/robots.txt", headers={"Range": "bytes=50-"}).status_code == 416
    for name, value in (("If-None-Match", whole.headers["ETag"]), ("If-Modified-Since", whole.headers["Last-Modified"])):
        again = built.get("/robots.txt", headers={name: value})
        assert again.status_code == 304 and again.data == b""
    assert built.head("/models").status_code == 200


# --- the small page ---

def test_the_small_page_says_how_things_are(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
    for word in ("SIMULATED", "1,200", "No model has been trained yet", "database", "healthy", "/api/docs", "/api/openapi.json"):
        assert word in answer.text
    assert re.findall(r'(?:src|href)="(?!/|#)', answer.text) == []


def test_the_verdict_of_the_newest_champion_is_escaped(client, monkeypatch):
    row = {"ref": "powerball@3", "about": {"verdict": "no skill <script>alert(1)</script>"}, "aliases": ["champion"], "created_at": "2026-08-05T00:00:00",
           "data": {"last": "2026-08-03", "simulated": True}}
    registry = client.application.extensions["helios"].registry
    monkeypatch.setattr(type(registry), "search", lambda self, *_, alias=None, **__: [row] if alias == "champion" else [])
    text = client.get("/").text
    assert "SIMULATED draws: no skill &lt;script&gt;" in text and "<script>alert" not in text and "powerball@3" in text and "the champion" in text


def test_a_forwarded_request_and_a_closed_server_are_told_less(client, home):
    for headers in ({"X-Forwarded-For": "192.0.2.7"}, {"Forwarded": "for=192.0.2.7"}):
        text = client.get("/", headers=headers).text
        assert "1,200" not in text and "Last verdict" not in text and "healthy" in text
    with app_with(home, require_keys=True) as app:
        text = app.test_client().get("/").text
        assert "1,200" not in text and "asks for a key" in text and "MB free" not in text


def test_an_unknown_path_is_a_problem(client):
    for path in ("/none", "/assets/app-1a2b3c4d.js", "/index.html", "/.env"):
        assert client.get(path).mimetype == "application/problem+json"


# --- the description ---

def test_the_description_has_every_route_and_loads_nothing(client):
    text, spec = client.get("/api/docs").text, client.get("/api/openapi.json").json
    for path, item in spec["paths"].items():
        for method in item:
            if method in ("get", "post", "put", "patch", "delete"):
                assert f'id="{re.sub(r"[^a-zA-Z0-9_]+", "-", f"{method}-{path}").strip("-")}"' in text, (method, path)
    for name in spec["components"]["schemas"]:
        assert f'id="shape-{name}"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert re.findall(r'(?:src|href)="(?!/|#)', text) == [] and "style=" not in text and "onclick" not in text


# --- in a browser ---

@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def tab(browser, **given):
    """A tab of the browser; that anything was refused, failed or asked for elsewhere fails the test."""
    context, said = browser.new_context(**given), []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda asked: said.append(asked.url))
    yield page
    context.close()
    assert said == []


@pytest.mark.parametrize("width,scheme", [(1280, "light"), (390, "dark")])
def test_the_pages_in_a_browser(client, browser, width, scheme):
    with served(client.application) as base, tab(browser, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        page.goto(base + "/")
        assert page.get_by_text("SIMULATED draws:").is_visible()
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (min(map(int, re.findall(r"\d+", ground)[:3])) > 200) == (scheme == "light")
        page.get_by_role("link", name="/api/docs").click()
        page.get_by_text("Whether every part works").click()
        assert page.get_by_text(f"curl {base}/api/health", exact=True).is_visible()
        page.wait_for_url("**/api/docs#get-api-health")
        page.get_by_role("link", name="Health", exact=True).first.click()
        assert page.locator("#shape-Health table").is_visible()
        page.get_by_label("Find a route").fill("no such route")
        assert page.locator("details.op:visible").count() == 0
        page.get_by_label("Find a route").fill("health every")
        assert page.locator("details.op:visible").count() == 1
        for path in ("/", "/api/docs"):
            page.goto(base + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_build_runs_under_the_policy(built, browser):
    with served(built.application) as base, tab(browser) as page:
        page.goto(base + "/models/powerball")
        page.get_by_text("built at /models/powerball").wait_for()
        assert page.evaluate("getComputedStyle(document.getElementById('root')).color") == "rgb(1, 2, 3)"
