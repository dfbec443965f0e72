"""Explanations with the real client library against a server on loopback: what leaves, what comes back, what is checked."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from helios.api_base import Services
from helios.draws_at_hand import DrawsAtHand
from helios.insights import AT_ONCE, InsightError, ask, outgoing
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.server import create_app
from helios.settings import load_settings
from helios.stated_numbers import check_numbers, stated
from helios.tables import jobs

KEY = "AIza-a-key-that-nobody-may-see"
TICKET = {"report_kind": "ticket_value", "parameters": {"jackpot_cash": 1e8, "tickets_sold": 2e7}}


class Service:
    """Answers as the Gemini API does."""

    def __init__(self):
        self.got, self.status, self.words, self.raw, self.hold = [], 200, "Nothing was found.", None, threading.Event()
        self.hold.set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                service.got.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
                service.hold.wait(30)
                if service.status == 200:
                    parts = [] if service.words is None else [{"text": service.words}]
                    said = {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]}
                else:
                    said = {"error": {"code": service.status, "message": f"the key {KEY} is not good", "status": "UNAUTHENTICATED"}}
                body = json.dumps(said).encode() if service.raw is None else service.raw
                self.send_response(service.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def service():
    service = Service()
    yield service
    service.hold.set()
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture
def client(service, home):
    settings = load_settings(gemini_api_key=KEY, gemini_base_url=service.url, gemini_model="gemini-example")
    store = MemoryStore(":memory:")
    app = create_app(settings, Services(settings, store, None, Jobs(store), {"draws": DrawsAtHand()}))
    yield app.test_client()
    store.close()


def agreed(client, body):
    """A request with the hash of what it would send."""
    return body | {"confirm": client.post("/api/insights/preview", json=body).json["hash"]}


# --- what leaves


def test_exactly_what_was_shown_is_sent_and_only_when_it_was_agreed_to(client, service):
    shown = client.post("/api/insights/preview", json=TICKET | {"question": "Is it worth it?"}).json
    assert (shown["to"], shown["model"]) == (service.url, "gemini-example") and "Is it worth it?" in shown["text"]
    refused = client.post("/api/insights", json=TICKET | {"question": "Is it worth it?"})
    assert (refused.status_code, refused.mimetype) == (409, "application/problem+json") and refused.json["preview"] == shown
    assert client.post("/api/insights", json=TICKET | {"confirm": shown["hash"]}).status_code == 409  # another question
    assert client.post("/api/insights", json=TICKET | {"confirm": "0" * 64, "question": "Is it worth it?"}).status_code == 409
    assert service.got == []
    answer = client.post("/api/insights", json=TICKET | {"confirm": shown["hash"], "question": "Is it worth it?"})
    assert answer.status_code == 200
    ((path, headers, body),) = service.got
    assert path == "/v1beta/models/gemini-example:generateContent"
    sent = json.loads(body)
    assert [part for content in sent["contents"] for part in content["parts"]] == [{"text": shown["text"]}]
    assert [*sent] == ["contents", "generationConfig"] and KEY not in body.decode() and KEY not in path
    assert {name.lower(): value for name, value in headers.items()}["x-goog-api-key"] == KEY


def test_a_report_that_has_changed_is_shown_anew(client, service):
    store = client.application.extensions["helios"].store
    store._insert(jobs, job_id="j1", kind="train", params={}, status="running", token=1)
    body = agreed(client, {"report_kind": "job", "parameters": {"job_id": "j1"}})
    store._update(jobs, jobs.c.job_id == "j1", status="completed")
    refused = client.post("/api/insights", json=body)
    assert refused.status_code == 409 and "has changed" in refused.json["detail"] and '"completed"' in refused.json["preview"]["text"] and service.got == []


@pytest.mark.parametrize("body", [{"report_kind": "audit"}, {"report_kind": "ledger"}, TICKET, {"report": {"a": [1, {"b": None}]}}, {"report": {}}])
def test_every_kind_of_report_can_be_shown(client, body):
    shown = client.post("/api/insights/preview", json=body)
    assert shown.status_code == 200 and json.loads(shown.json["text"].partition("as JSON:\n")[2]) is not None


@pytest.mark.parametrize("body, status", [
    ({}, 422), ({"report": {}, "report_kind": "audit"}, 422), ({"report_kind": "everything"}, 422), ({"report_kind": "job"}, 422), ({"report": [1]}, 422),
    ({"report_kind": "ticket_value", "parameters": {"jackpot_cash": 1e8}}, 422), ({"report_kind": "job", "parameters": {"job_id": "nobody"}}, 404),
    ({"report_kind": "job", "parameters": {"job_id": "../x"}}, 422), ({"report": {"x": "y" * 200_000}}, 413), ({"report": {}, "question": "q" * 1001}, 422),
    ({"report": {}, "api_key": "mine"}, 422), ({"report": {}, "model": "other"}, 422),
])
def test_wrong_requests(client, service, body, status):
    for path in ("/api/insights/preview", "/api/insights"):
        assert client.post(path, json=body).status_code == status
    assert service.got == []


def test_without_a_key_or_the_package_the_reason_is_told(home, monkeypatch, client):
    store = MemoryStore(":memory:")
    bare = create_app(load_settings(), Services(load_settings(), store, None, Jobs(store))).test_client()
    for path in ("/api/insights", "/api/insights/preview"):
        answer = bare.post(path, json={"report": {}})
        assert answer.status_code == 501 and "GEMINI_API_KEY" in answer.json["detail"]
    monkeypatch.setattr("helios.insights.find_spec", lambda name: None)
    answer = client.post("/api/insights/preview", json={"report": {}})
    assert answer.status_code == 501 and "helios[gemini]" in answer.json["detail"]
    store.close()


# --- what comes back


def test_an_answer_is_marked_and_its_numbers_are_checked(client, service):
    service.words = "On average $0.32 of the $2 come back in fixed prizes; the jackpot is 1 in 292,201,338. You win once in 4,711 tries, or 12.3%."
    said = client.post("/api/insights", json=agreed(client, TICKET)).json
    assert said["generated"] is True and said["model"] == "gemini-example" and "Generated by gemini-example" in said["notice"]
    assert said["numbers"] == [{"text": "$0.32", "found": True}, {"text": "$2", "found": True}, {"text": "1 in 292,201,338", "found": True},
                               {"text": "4,711", "found": False}, {"text": "12.3%", "found": False}]
    assert said["unsupported"] == 2 and "4,711" in said["warning"] and said["text"] == service.words
    service.words = "On average $0.32 come back."
    said = client.post("/api/insights", json=agreed(client, TICKET)).json
    assert (said["unsupported"], said["warning"]) == (0, None)


@pytest.mark.parametrize("status, words, raw, detail", [
    (400, "", None, "answered 400 UNAUTHENTICATED"), (401, "", None, "answered 401"), (403, "", None, "answered 403"), (429, "", None, "answered 429"), (500, "", None, "answered 500"),
    (503, "", b"<html>busy " + KEY.encode(), "answered 503"), (200, None, None, "gave no text"), (200, "  ", None, "gave no text"), (200, "", b"no json " + KEY.encode(), "could not be read"),
    (200, "", b"", "service"), (200, "", b"[]", "service"), (200, "", b'{"candidates": 7}', "service"), (302, "", b"", "service"),
])
def test_errors_of_the_service_are_told_in_a_line_that_holds_no_secret(client, service, caplog, capfd, status, words, raw, detail):
    caplog.set_level(logging.DEBUG)
    body = agreed(client, {"report": {"skill_nats": 0.0}})
    service.status, service.words, service.raw = status, words, raw
    answer = client.post("/api/insights", json=body)
    assert answer.status_code == 502 and detail in answer.json["detail"] and len(answer.json["detail"]) < 120
    out = capfd.readouterr()
    for place in (answer.text, caplog.text, out.out, out.err):
        assert KEY not in place and "Traceback" not in place


def test_a_service_that_is_not_there(client, service):
    body = agreed(client, {"report": {}})
    service.server.shutdown()
    service.server.server_close()
    answer = client.post("/api/insights", json=body)
    assert (answer.status_code, answer.json["detail"]) == (502, "the service cannot be reached")


def test_a_silent_service_is_left_and_only_few_may_wait(service, client):
    service.hold.clear()
    settings = load_settings(gemini_api_key=KEY, gemini_base_url=service.url)
    sent = outgoing(settings, {})
    with pytest.raises(InsightError, match="did not answer within"):
        ask(settings, sent, wait_s=0.3)
    before, failed = len(service.got), []

    def wait():
        try:
            ask(settings, sent, wait_s=20)
        except InsightError as e:
            failed.append(str(e))

    waiting = [threading.Thread(target=wait) for _ in range(AT_ONCE)]
    for thread in waiting:
        thread.start()
    until(lambda: len(service.got) == before + AT_ONCE, "all who may ask")
    answer = client.post("/api/insights", json=agreed(client, {"report": {}}))
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"
    service.hold.set()
    for thread in waiting:
        thread.join()
    assert failed == [] and client.post("/api/insights", json=agreed(client, {"report": {}})).status_code == 200


def test_the_key_is_nowhere_in_the_description_or_the_settings_shown(client):
    from helios.settings import described

    assert KEY not in client.get("/api/openapi.json").text
    assert KEY not in json.dumps(described(client.application.extensions["helios"].settings))


# --- numbers


@given(st.floats(1e-6, 1e12), st.integers(2, 6), st.booleans())
def test_a_rounded_number_of_the_report_is_found(value, digits, negative):
    value = -value if negative else value
    report = {"deep": [{"value": value}]}
    plain = f"{float(f'{value:.{digits - 1}e}'):.12f}".rstrip("0").rstrip(".")
    if abs(value) < 1e6:  # longer whole numbers are rounded in words
        assert [row["found"] for row in check_numbers(f"It is {plain}.", report)] == [True], plain
    assert [row["found"] for row in check_numbers(f"It is {value:.{digits}e}", report)] == [True]


@given(st.floats(0.001, 0.999))
def test_a_chance_is_found_in_every_form(p):
    for said in (f"{p:.4f}", f"{100 * p:.2f}%", f"{100 * p:.1f} percent" if p > 0.01 else f"{p:.5f}", f"1 in {1 / p:,.1f}", f"one in {1 / p:.2f}"):
        assert [row["found"] for row in check_numbers(said, {"p": p})] == [True], said


@given(st.floats(0.01, 9e4), st.sampled_from([1.12, 0.88, 2, 0.5, 10]))
def test_another_number_is_not(value, factor):
    assert [row["found"] for row in check_numbers(f"It is {value * factor:.6g}", {"value": value})] == [False]


@given(st.text(max_size=300))
def test_any_text_can_be_read(text):
    assert all(said.text in text for said in stated(text))
    assert all(isinstance(row["found"], bool) for row in check_numbers(text, {"said": text, text: [1, True, None, 10**400]}))


@pytest.mark.parametrize("text, report, found", [
    ("a gain of +0.02", {"x": -0.02}, False), ("a loss of 0.02", {"x": -0.02}, True), ("-0.02", {"x": -0.02}, True), ("17%", {"balls": 17}, False), ("17%", {"share_percent": 17}, True),
    ("95% interval", {"ci95": [0, 1]}, True), ("8 tests", {"tests": list("abcdefgh")}, True), ("9 tests", {"tests": list("abcdefgh")}, False), ("on 2026-08-05", {"last": "2026-08-05"}, True),
    ("on 2026-08-06", {"last": "2026-08-05"}, False), ("in 2026", {"last": "2026-08-05"}, True), ("1.2 million", {"x": 1234567}, True), ("1.3 million", {"x": 1234567}, False),
    ("0", {"x": 0.004}, False), ("0.00", {"x": 0.004}, True), ("0", {"x": 0}, True), ("true is 1", {"x": True}, False), ("1e999", {"x": 1}, False), ("1 in 0", {"x": 1}, False),
])
def test_what_counts_as_found(text, report, found):
    assert [row["found"] for row in check_numbers(text, report)] == [found]
