"""Draws over HTTP: lists and counts, files out and in, an update that waits for no training; and what is no file of draws."""

import gzip
import io
import json
import pickle
import zipfile
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pandas as pd
import pytest
from working import ended, fields, working

import helios.draws_api
from helios.draws import draws_csv, parse_draws, read_draws, simulate
from helios.fairness import examine
from helios.game import POWERBALL
from helios.history import locked
from helios.ledger import Ledger
from helios.places import HISTORY
from helios.scoring import Forecast
from helios.value import sales, ticket_value

NY = "Draw Date,Winning Numbers,Multiplier\n07/29/2026,01 02 03 04 05 06,2\n08/01/2026,11 12 13 14 15 16,3\n"
WHOLE = simulate(n=200, seed=5)


@pytest.fixture
def app(tmp_path, monkeypatch):
    with working(tmp_path / "home", monkeypatch, n=0) as made:
        yield made


@pytest.fixture
def client(app):
    return app.test_client()


def upload(client, data, name="mine.csv"):
    return client.post("/api/draws/import", data={"file": (io.BytesIO(data), name)})


@pytest.fixture
def own(client):
    """A history of 150 simulated draws."""
    assert upload(client, draws_csv(WHOLE[:150]).encode()).status_code == 200
    return client


# What there is

def test_without_a_history_it_is_the_sample_and_says_so(client):
    for path in ("draws", "draws/stats", "audit"):
        said = client.get(f"/api/{path}").json
        assert (said["simulated"], said["source"]) == (True, "sample"), path
    assert client.get("/api/draws/export").headers["X-Helios-Simulated"] == "true"


def test_draws_are_filtered_sorted_and_paged(own):
    said = own.get("/api/draws?per_page=3").json
    assert (said["total"], said["source"], said["simulated"], said["pages"]) == (150, "own", True, 50)
    assert [row["draw_date"] for row in said["items"]] == [str(day.date()) for day in WHOLE.draw_date[149:146:-1]]
    first = own.get("/api/draws?sort=draw_date&per_page=1").json["items"][0]
    assert first["whites"] == WHOLE.iloc[0, 1:6].tolist() and first["era"] == "5/69+1/26" and first["sources"] == []
    ball = first["whites"][0]
    with_ball = own.get(f"/api/draws?ball={ball}&per_page=500").json["items"]
    assert with_ball and all(ball in row["whites"] for row in with_ball)
    assert len(with_ball) == int((WHOLE[:150].iloc[:, 1:6] == ball).any(axis=1).sum())
    day = first["draw_date"]
    assert own.get(f"/api/draws?since={day}&until={day}").json["total"] == 1
    assert own.get("/api/draws?era=5/59%2B1/39").json["items"] == []
    powerballs = [row["powerball"] for row in own.get("/api/draws?sort=powerball&per_page=500").json["items"]]
    assert powerballs == sorted(powerballs)


@pytest.mark.parametrize(("words", "field"), [("since=2026-02-30", "since"), ("until=yesterday", "until"), ("ball=0", "ball"), ("powerball=1e3", "powerball"), ("era=5/70", "era"),
                                              ("sort=white_1;DROP", "sort"), ("last=5", "last"), ("page=10000000", "page")])
def test_a_filter_is_refused_by_name(client, words, field):
    assert fields(client.get(f"/api/draws?{words}")) == (422, {field})


def test_counts_are_those_of_the_draws(own):
    said = own.get("/api/draws/stats").json
    (era,) = said["eras"]
    assert (said["n"], era["n"], said["first"], sum(era["whites"]["counts"])) == (150, 150, "2015-10-07", 750)
    assert era["powerballs"]["counts"] == [int((WHOLE.powerball[:150] == ball).sum()) for ball in range(1, 27)]
    assert era["powerballs"]["expected"] == pytest.approx(150 / 26) and said["age_days"] > 0 and len(said["sha256"]) == 64


def test_exports_are_read_back(own):
    for form in ("csv", "json", "parquet"):
        answer = own.get(f"/api/draws/export?format={form}")
        assert answer.status_code == 200 and answer.headers["Content-Disposition"] == f"attachment; filename=draws.{form}"
        if form == "csv":
            draws, read = parse_draws(answer.data, "export")
            assert read.simulated and draws.equals(WHOLE[:150])
        if form == "json":
            assert json.loads(answer.data)["simulated"] and len(answer.json["draws"]) == 150
        if form == "parquet":
            assert pd.read_parquet(io.BytesIO(answer.data)).powerball.tolist() == WHOLE.powerball[:150].tolist()
    assert fields(own.get("/api/draws/export?format=pickle")) == (422, {"format"})


# What comes in

def test_an_import_merges_reports_and_scores(app, own):
    store = app.extensions["helios"].store
    held = app.extensions["helios"].parts["draws"].get().draws
    Ledger(store).predict("mine", "1", Forecast.uniform(POWERBALL.eras[-1]), held)
    said = upload(own, draws_csv(WHOLE[140:160]).encode()).json
    assert (said["files"][0]["agreed"], len(said["files"][0]["added"]), said["draws"]["n"]) == (10, 10, 160)
    assert "1 open prediction scored" in said["ledger"]
    assert own.get("/api/draws").json["total"] == 160


def test_what_is_stored_stays(own):
    changed = WHOLE[:150].copy()
    changed.attrs.update(WHOLE.attrs)
    changed.loc[149, "powerball"] = changed.powerball[149] % 26 + 1
    said = upload(own, draws_csv(changed).encode()).json
    assert len(said["files"][0]["conflicts"]) == 1
    assert own.get("/api/draws?per_page=1").json["items"][0]["powerball"] == int(WHOLE.powerball[149])


def test_a_name_is_only_said(own, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("../../../evil.csv", "/etc/passwd", "..\\..\\evil.csv", "a\0b.csv", "\u202eevil.csv", "x" * 5000):
        answer = upload(own, draws_csv(WHOLE[:150]).encode(), name)
        assert answer.status_code == 200, name
        assert not set("/\\\0\n\u202e") & set(answer.json["files"][0]["source"]) and len(answer.json["files"][0]["source"]) <= 80
    injected = upload(own, draws_csv(WHOLE[:150]).encode(), "evil.csv\r\nX-Injected: 1")
    assert injected.status_code in (200, 422) and "X-Injected" not in injected.headers
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


class _Bomb:
    def __reduce__(self):
        return (open, ("helios-was-here", "w"))


def _zip_bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("draws.csv", b"0" * 50_000_000)
    return out.getvalue()


@pytest.mark.parametrize("data", [
    _zip_bomb(), gzip.compress(b"1" * 20_000_000), pickle.dumps(_Bomb()), pickle.dumps(_Bomb(), protocol=0), b"", b"\n\n\n", b"\xff\xfe\x00\x01", b"MZ\x90\x00",
    b"draw_date,w1,w2\n2026-01-01,1,2\n", b"<html><body>draws</body></html>", b"[" * 1_000_000, b"[" + b"{}," * 1_000_000 + b"{}]", b'[{"draw_date": NaN}]',
    b"a,b\n" * 1_000_000, b"=cmd|' /C calc'!A0\n", b'"' + b"x" * 2_000_000, "dráw_date\n".encode("latin-1"),
    b"draw_date,w1,w2,w3,w4,w5,powerball\n2026-08-05,1,2,3,4,5,99\n", b"Powerball,0,0,0,0,0,0,0,0,0\n",
])
def test_what_is_no_file_of_draws_changes_nothing(own, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fields(upload(own, data)) == (422, {"file"})
    assert own.get("/api/draws").json["total"] == 150 and not (tmp_path / "helios-was-here").exists()


def test_a_file_that_is_too_large_is_not_read(own):
    """The limit is 64 MB; a smaller one is a setting."""
    answer = upload(own, b"x" * (65 * 2**20))
    assert answer.status_code == 413 and answer.json["status"] == 413
    assert own.post("/api/train", data=b" " * (2 * 2**20), content_type="application/json").status_code == 413  # a body is no upload


def test_the_limit_is_a_setting(tmp_path, monkeypatch):
    with working(tmp_path / "other", monkeypatch, n=0, max_upload_mb=1) as made:
        assert upload(made.test_client(), draws_csv(WHOLE).encode() + b"\n" * 2**20).status_code == 413
        assert upload(made.test_client(), draws_csv(WHOLE).encode()).status_code == 200


def test_other_uploads_are_refused_by_name(own):
    file = (io.BytesIO(b"x"), "x.csv")
    answers = [own.post("/api/draws/import", data=data, content_type="multipart/form-data") for data in ({}, {"file": "text"}, {"draws": file}, {"file": (io.BytesIO(b"x"), "x.csv"), "home": "/etc"})]
    assert [fields(answer) for answer in answers] == [(422, {"file"}), (422, {"file"}), (422, {"file"}), (422, {"home"})]
    others = [own.post("/api/draws/import", **sent) for sent in ({"json": {"file": "x"}}, {"data": "draw_date,w1", "content_type": "text/csv"}, {})]
    assert all(answer.status_code == 415 and "curl -F file=@" in answer.json["detail"] for answer in others)
    broken = own.post("/api/draws/import", data=b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nno end", content_type="multipart/form-data; boundary=x")
    assert broken.status_code in (400, 413, 422)


def test_real_draws_do_not_go_into_a_simulated_history(own):
    status, named = fields(upload(own, NY.encode()))
    assert (status, named) == (422, {"file"}) and own.get("/api/draws").json["total"] == 150


def test_while_another_process_changes_the_history_it_is_tried_later(app, own, monkeypatch):
    monkeypatch.setattr(helios.draws_api, "import_upload", partial(helios.draws_api.import_upload, wait_s=0))
    with locked(app.extensions["helios"].jobs.home):
        answer = upload(own, draws_csv(WHOLE).encode())
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "5"
    assert upload(own, draws_csv(WHOLE).encode()).status_code == 200


# Updates

@pytest.fixture
def publisher(monkeypatch):
    """A local server with New York's file, which answers when it is let."""
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            body = NY.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HELIOS_NY_URL", f"http://127.0.0.1:{server.server_port}/ny.csv")
    monkeypatch.setenv("HELIOS_TEXAS_URL", "ftp://nobody")
    yield server
    server.shutdown()
    server.server_close()


def test_an_update_waits_for_no_training_and_is_done_once(app, client, publisher):
    background = app.extensions["helios"].jobs
    background.submit("check", {"steps": 100_000}, job_id="training")  # all the room there is
    waiting = background.submit("check", {"steps": 1}, job_id="behind")
    begun = client.post("/api/draws/update")
    assert (begun.status_code, begun.json["kind"], waiting["status"]) == (202, "update", "queued")
    again = client.post("/api/draws/update").json
    done = ended(client, begun.json["job_id"])
    assert done["status"] == "completed" and done["result"]["added"] == ["2026-07-29", "2026-08-01"], done["error_message"]
    assert again["job_id"] == begun.json["job_id"] or again["kind"] == "update"
    assert background._row("training")["status"] == "running" and background._row("behind")["status"] == "queued"
    said = client.get("/api/draws").json
    assert (said["total"], said["simulated"], said["items"][0]["sources"]) == (2, False, ["New York Open Data"])
    assert client.get("/api/draws/stats").json["confirmed_by"] == {"New York Open Data": 2}


def test_an_update_without_a_network_fails_in_its_job(client, monkeypatch):
    monkeypatch.setenv("HELIOS_NY_URL", "ftp://nobody")
    monkeypatch.setenv("HELIOS_TEXAS_URL", "ftp://nobody")
    job = ended(client, client.post("/api/draws/update").json["job_id"])
    assert job["status"] == "failed" and "no source could be used" in job["error_message"]
    assert client.get("/api/draws").json["source"] == "sample"


# Fairness and value

def test_the_audit_is_the_librarys_and_made_once(own, monkeypatch):
    said = own.get("/api/audit").json
    found = examine(read_draws(own.application.extensions["helios"].jobs.home / HISTORY)[0]).as_dict()
    assert {key: said[key] for key in found} == json.loads(json.dumps(found)) and said["verdict"].startswith("SIMULATED")
    monkeypatch.setattr(helios.draws_api, "examine", None)
    assert own.get("/api/audit").json == said
    monkeypatch.undo()
    assert own.get("/api/audit?alpha=0.01").json["alpha"] == 0.01
    upload(own, draws_csv(WHOLE).encode())
    assert own.get("/api/audit").json["tests"][0]["n"] == 200  # other draws, another audit
    for words, field in (("alpha=0", "alpha"), ("alpha=0.8", "alpha"), ("alpha=nan", "alpha"), ("era=all", "era"), ("record=/etc/passwd", "record")):
        assert fields(own.get(f"/api/audit?{words}")) == (422, {field})


def test_expected_value_is_the_librarys(client):
    said = client.get("/api/expected-value?jackpot_cash=4e8&tickets_sold=3e7&tax=0.37&power_play=true&ten=false&ticket=3+17+29+44+60+7&day=2026-08-05&tickets_a_draw=2").json
    value = ticket_value(4e8, sales(3e7), 0.37, True, None, "3 17 29 44 60 7", date(2026, 8, 5), 2, None, False)
    assert said == json.loads(json.dumps(value.as_dict()))


@pytest.mark.parametrize(("words", "field"), [
    ("tickets_sold=1", "jackpot_cash"), ("jackpot_cash=1", "tickets_sold"), ("jackpot_cash=1&tickets_sold=1&winners=1", "tickets_sold"), ("jackpot_cash=-1&winners=1", "jackpot_cash"),
    ("jackpot_cash=inf&winners=1", "jackpot_cash"), ("jackpot_cash=1&coverage=1", "coverage"), ("jackpot_cash=1&winners=1&tax=2", "tax"), ("jackpot_cash=1&winners=1&ten=true", "ten"),
    ("jackpot_cash=1&winners=1&day=2026-13-01", "day"), ("jackpot_cash=1&winners=1&popularity=/etc/passwd", "popularity"), ("jackpot_cash=1&winners=1&ticket=a", "ticket"),
    ("jackpot_cash=1&winners=1&tickets_a_draw=51", "tickets_a_draw"), ("jackpot_cash=1&tickets_sold=1e12", "tickets_sold")])
def test_a_question_without_an_answer_is_refused_by_name(client, words, field):
    assert fields(client.get(f"/api/expected-value?{words}")) == (422, {field})


@pytest.mark.parametrize("words", ["day=1990-01-01", "day=9999-12-31", "ticket=1+1+1+1+1+1", "power_play=true&day=2001-06-02"])
def test_what_the_rules_do_not_know_is_a_422(client, words):
    assert client.get(f"/api/expected-value?jackpot_cash=1e8&tickets_sold=1e7&{words}").status_code == 422


def test_looking_is_no_change(own, app):
    """These GETs write nothing into the home folder."""
    home = app.extensions["helios"].jobs.home
    before = {path: path.stat().st_mtime_ns for path in home.iterdir() if "helios_memory" not in path.name}
    for path in ("draws", "draws/stats", "draws/export", "audit", "expected-value?jackpot_cash=1&tickets_sold=1"):
        assert own.get(f"/api/{path}").status_code == 200
    assert {path: path.stat().st_mtime_ns for path in home.iterdir() if "helios_memory" not in path.name} == before
