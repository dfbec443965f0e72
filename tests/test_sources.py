"""Merging draw histories, keeping them on disk, and fetching them from servers that misbehave.

Nothing here touches the network: a threaded server on 127.0.0.1 plays both publishers. Each behaviour is tried on
simulated draws in the publishers' formats, so that it is tested everywhere, and the good way also on real files.
"""

import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import dataclass, field
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from helios import download, history
from helios.download import Download
from helios.draws import DrawError, draw_table, parse_draws, read_draws, simulate, write_draws
from helios.history import Provenance, import_draws, locked, read_history, remove_draws
from helios.sources import RefusedDraws, SourceError, compare, merge, shared_gaps
from helios.update import SOURCES, update

SHARED = Path(__file__).resolve().parents[2] / "shared/data/powerball"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real draws are not here")
TODAY = date(2026, 8, 6)
NY, TEXAS = (source.origin for source in SOURCES)
BALLS = [*(f"white_{i}" for i in range(1, 6)), "powerball"]


# Files as the publishers have them, of simulated draws

def ny_csv(draws: pd.DataFrame) -> bytes:
    rows = [f"{d['draw_date']:%m/%d/%Y}," + " ".join(f"{d[c]:02}" for c in BALLS) + f",{d['multiplier']},"
            for d in draws.to_dict("records")]
    return "\n".join(["Draw Date,Winning Numbers,Multiplier,double_play_winning_numbers", *rows, ""]).encode()


def texas_csv(draws: pd.DataFrame) -> bytes:
    rng, rows = np.random.default_rng(5), []
    for d in draws.to_dict("records"):
        day, whites = d["draw_date"], rng.permutation([d[c] for c in BALLS[:5]])
        rows.append(",".join(map(str, ["Powerball", day.month, day.day, day.year, *whites, d["powerball"], d["multiplier"]])))
    return "\n".join([*rows, ""]).encode()


DRAWS = simulate(n=120, seed=3, first=date(2025, 10, 29))     # the last on 2026-08-03
DRAWS.attrs["simulated"] = False                              # they play the part of real ones
OTHER = simulate(n=120, seed=4, first=date(2025, 10, 29))     # another game on the same evenings
NY_DRAWS = DRAWS.drop([10, 20]).sample(frac=1, random_state=1)      # two are missing, in no order
TEXAS_DRAWS = DRAWS[:-3]                                            # the last three are not there yet


@dataclass
class Files:
    ny: bytes
    texas: bytes
    union: int            # draws in both together
    one_source: int       # draws that one of them lacks


SIMULATED = Files(ny_csv(NY_DRAWS), texas_csv(TEXAS_DRAWS), 120, 5)


@pytest.fixture(params=["simulated", pytest.param("real", marks=real)])
def files(request):
    if request.param == "simulated":
        return SIMULATED
    return Files((SHARED / "ny_open_data.csv").read_bytes(), (SHARED / "texas_lottery.csv").read_bytes(), 1978, 1978 - 1771)


# A server that does as a test says

@dataclass
class Publisher:
    """Two addresses, `/ny` and `/texas`, each with a list of answers of which the last is repeated."""
    url: str = ""
    answers: dict[str, list] = field(default_factory=dict)
    asked: list[tuple[str, dict]] = field(default_factory=list)     # path and headers of each request
    release: threading.Event = field(default_factory=threading.Event)

    def say(self, path: str, *answers) -> None:
        self.answers[path] = list(answers)

    def n(self, path: str) -> int:
        return sum(p == path for p, _ in self.asked)

    def last(self, path: str) -> dict:
        return next(headers for p, headers in reversed(self.asked) if p == path)


def good(body: bytes, **headers):
    """Status 200 with `body`, and 304 for a request that names its ETag."""
    tag = f'"{hash(body)}"'

    def answer(request):
        if request.headers.get("If-None-Match") == tag:
            return send(request, 304, b"", ETag=tag)
        return send(request, 200, body, ETag=tag, **headers)
    return answer


def status(code: int, body: bytes = b"", **headers):
    return lambda request: send(request, code, body, **headers)


def send(request, code: int, body: bytes, **headers) -> None:
    request.send_response(code)
    headers = {"Content-Length": str(len(body)), **{key.replace("_", "-"): value for key, value in headers.items()}}
    for key, value in headers.items():
        if value is not None:
            request.send_header(key, value)
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    publisher = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            publisher.asked.append((self.path, dict(self.headers)))
            answers = publisher.answers[self.path]
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, request, address):
            """A client that hangs up is what several tests are about."""

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    died = []
    monkeypatch.setattr(threading, "excepthook", died.append)     # a download says why it failed, it never dies
    with Server(("127.0.0.1", 0), Handler) as http:
        publisher.url = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setenv("HELIOS_NY_URL", f"{publisher.url}/ny")
        monkeypatch.setenv("HELIOS_TEXAS_URL", f"{publisher.url}/texas")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield publisher
        publisher.release.set()
        http.shutdown()
    assert not died, died


def refresh(home, **kwargs):
    """An update that never sleeps."""
    return update(home, **{"today": TODAY, "sleep": lambda s: None, **kwargs})


def content(home) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.name != "draws.lock"} if home.exists() else {}


def failure(report, origin=NY) -> str:
    result = next(r for r in report.results if r.source.origin == origin)
    assert result.status == "failed", result
    return result.reason


def one_line(error) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# The good way

def test_two_sources_make_one_history(home, server, files):
    server.say("/ny", good(files.ny))
    server.say("/texas", good(files.texas))
    report = refresh(home)
    assert [len(report.draws), len(report.one_source)] == [files.union, files.one_source]
    assert not report.as_dict()["conflicts"] and report.added == [*report.draws.draw_date.dt.date]
    assert f"{files.one_source} of {files.union:,} new draws rest on one source" in "\n".join(report.lines())
    assert_frame_equal(read_draws(home / "draws.csv")[0], report.draws)
    assert "drawn_1" in report.draws and json.dumps(report.as_dict(), allow_nan=False)


def test_agreement_of_two_publishers_is_independent(home, server):
    server.say("/ny", good(SIMULATED.ny))
    server.say("/texas", good(SIMULATED.texas))
    texas = refresh(home).results[1].merged
    assert texas.independent and not texas.against and texas.agreed == 115


def test_not_changed_changes_nothing(home, server, files):
    server.say("/ny", good(files.ny, Last_Modified="Wed, 05 Aug 2026 08:00:00 GMT"))
    server.say("/texas", good(files.texas))
    refresh(home)
    before = content(home)
    report = refresh(home)
    assert [r.status for r in report.results] == ["not changed"] * 2 and content(home) == before
    assert {"If-None-Match", "If-Modified-Since"} <= set(server.last("/ny"))


def test_a_server_that_stops_sending_tags_is_not_asked_by_an_old_one(home, server):
    server.say("/ny", good(SIMULATED.ny), status(200, SIMULATED.ny))
    server.say("/texas", good(SIMULATED.texas))
    for _ in range(3):
        refresh(home)
    assert "If-None-Match" not in server.last("/ny") and server.n("/ny") == 3


@pytest.mark.parametrize("damage", ["gone", "edited"])
def test_a_history_that_was_lost_or_edited_is_fetched_whole(home, server, damage):
    """Else a source would be called unchanged although its draws are no longer here."""
    server.say("/ny", good(SIMULATED.ny))
    server.say("/texas", good(SIMULATED.texas))
    refresh(home)
    path = home / "draws.csv"
    path.unlink() if damage == "gone" else path.write_text("\n".join(path.read_text().splitlines()[:100]) + "\n")
    assert len(refresh(home).draws) == 120
    assert "If-None-Match" not in server.last("/ny")


def test_new_draws_come_with_the_next_file(home, server):
    server.say("/ny", good(ny_csv(DRAWS[:100])), good(ny_csv(DRAWS)))
    server.say("/texas", good(texas_csv(DRAWS[:110])))
    assert len(refresh(home).draws) == 110
    report = refresh(home)
    assert [*report.draws.draw_date] == [*DRAWS.draw_date] and len(report.added) == 10
    assert [r.status for r in report.results] == ["merged", "not changed"] and report.one_source == report.added


def test_a_draw_of_the_future_is_not_taken_and_not_forgotten(home, server):
    """The file that holds it must be asked for in full again, not be called unchanged."""
    server.say("/ny", good(ny_csv(DRAWS)))
    server.say("/texas", good(texas_csv(DRAWS)))
    last = DRAWS.draw_date.iloc[-1].date()
    assert len(refresh(home, today=last - timedelta(1)).draws) == 119
    assert refresh(home, today=last).added == [last]


def test_sources_that_contradict(home, server):
    wrong = DRAWS.copy()
    wrong.loc[119, "powerball"] = wrong.loc[119, "powerball"] % 26 + 1
    server.say("/ny", good(ny_csv(DRAWS)))
    server.say("/texas", status(200, texas_csv(wrong)))
    for _ in range(2):     # the same conflict again is not a second one
        report = refresh(home)
        conflict, = report.as_dict()["conflicts"]
        assert conflict["source"] == TEXAS and conflict["values"][0] != conflict["values"][1]
        assert read_history(home).provenance.conflicts == [conflict]
    assert report.draws.powerball.iloc[119] == DRAWS.powerball.iloc[119]
    assert read_history(home).provenance.origins[conflict["date"]] == [NY]


def test_rows_that_were_set_aside_are_said(home, server):
    server.say("/ny", good(changed(slice(5, 6), b"08/01/2026,1 2,,")))
    server.say("/texas", good(SIMULATED.texas))
    report = refresh(home)
    assert [row["line"] for row in report.as_dict()["sources"][0]["set_aside"]] == [6]
    assert any(line.startswith("1 of the 118 rows of New York Open Data were set aside, the first is line 6") for line in report.lines())


# Servers that misbehave: the other source is used, the refused one leaves no trace

def cut(body: bytes):
    return status(200, body[:-400], Content_Length=str(len(body)), ETag='"cut"')


def cut_chunk(request):
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"200\r\n" + SIMULATED.ny[:100])
    request.close_connection = True


def endless(request):
    request.send_response(200)
    request.end_headers()
    for _ in range(10):
        request.wfile.write(b"a" * 2**20)


def changed(rows: slice, to: bytes) -> bytes:
    lines = SIMULATED.ny.split(b"\n")
    lines[rows] = [to] * len(lines[rows])
    return b"\n".join(lines)


BAD = {
    "cut off": (cut(SIMULATED.ny), "ends before the announced length"),
    "cut off in a chunk": (cut_chunk, "breaks off|broke off|ends before"),
    "cut off without a length": (status(200, SIMULATED.ny[:-8], Content_Length=None), "cut off in the last line"),
    "perhaps cut off": (status(200, SIMULATED.ny[:-1], Content_Length=None), "cut off in the last line"),
    "cut off before it was sent": (status(200, SIMULATED.ny[:-12]), "cut off in the last line"),
    "a web page": (status(200, b"\r\n<!DOCTYPE html><title>Log in</title>", ETag='"w"'), "a web page"),
    "empty": (status(200, b"", ETag='"e"'), "the file is empty"),
    "a first line alone": (status(200, SIMULATED.ny.split(b"\n")[0] + b"\n"), "no rows"),
    "text": (status(200, b"Service temporarily unavailable\n"), "no known format"),
    "binary": (status(200, bytes(1000)), "binary"),
    "404": (status(404), "status 404"), "500": (status(500), "status 500, 4 times"),
    "206": (status(206, SIMULATED.ny[:500]), "status 206"),
    "304 to a first request": (status(304), "status 304"),
    "far away": (status(503, Retry_After="3600"), "status 503, and asks to wait for 3,600 s"),
    "redirects without end": (status(302, Location="/ny"), "more than 5 redirects"),
    "redirect to a file": (status(301, Location="file:///etc/passwd"), "is no http or https address"),
    "redirect to nowhere": (status(301, Location="mailto:me@lottery.org"), "is no http or https address"),
    "redirect without an address": (status(301), "redirects without saying where"),
    "announces 9 MB": (status(200, b"a", Content_Length=str(9 * 2**20)), "announces more than 8 MB"),
    "announces far more": (status(200, b"a", Content_Length="9" * 5000), "announces more than 8 MB"),
    "asks to wait for ever": (status(503, Retry_After="9" * 30), "asks to wait for"),
    "asks to wait for nonsense": (status(503, Retry_After="9" * 5000), "status 503, 4 times"),
    "redirect to half an address": (status(301, Location="http://[::1"), "cannot be read"),
    "sends 10 MB": (endless, "sends more than 8 MB"),
    "bomb": (status(200, gzip.compress(bytes(9 * 2**20)), Content_Encoding="gzip"), "unpacks to more than 8 MB"),
    "cut gzip": (status(200, gzip.compress(SIMULATED.ny)[:-20], Content_Encoding="gzip"), "compressed body is cut off"),
    "no gzip": (status(200, SIMULATED.ny, Content_Encoding="gzip"), "compressed body is damaged"),
    "another encoding": (status(200, SIMULATED.ny, Content_Encoding="br"), "which was not asked for"),
    "another game": (status(200, ny_csv(OTHER), ETag='"o"'), "none of .* common dates agrees: another game"),
    "another publisher": (status(200, SIMULATED.texas), "not that of New York Open Data"),
    "half of it unreadable": (status(200, changed(slice(1, 61), b"08/01/2026,1 2,")), "of its 118 rows cannot be used"),
    "far fewer draws": (status(200, ny_csv(DRAWS[-20:])), "20 draws where 116 of the same time are stored"),
}


@pytest.mark.parametrize("answer, said", BAD.values(), ids=BAD)
def test_a_bad_answer_is_refused_and_the_other_source_used(home, server, tmp_path, answer, said):
    (texas := tmp_path / "texas.csv").write_bytes(texas_csv(TEXAS_DRAWS[:-1]))
    import_draws([texas], home, today=TODAY)
    server.say("/ny", answer)
    server.say("/texas", good(texas_csv(TEXAS_DRAWS)))
    report = refresh(home)
    assert re.search(said, failure(report))
    assert len(report.draws) == 117 and report.one_source == report.added and len(report.added) == 1
    assert "nothing cross-checked the new draws: New York Open Data failed" in report.lines()
    assert all(len(line.splitlines()) == 1 for line in report.lines())
    assert list(read_history(home).provenance.urls) == [f"{server.url}/texas"]


@pytest.mark.parametrize("answer, said", [pytest.param(*BAD[name], id=name) for name in ("cut off", "a web page", "empty", "another game")])
def test_headers_of_a_refused_answer_are_not_kept(home, server, answer, said):
    """A refused body that came with an ETag must not be called unchanged the next time."""
    server.say("/ny", good(SIMULATED.ny), answer)
    server.say("/texas", good(SIMULATED.texas))
    refresh(home)
    before = content(home)
    assert re.search(said, failure(refresh(home)))
    assert content(home) == before


def test_both_sources_fail(home, server):
    server.say("/ny", good(SIMULATED.ny), status(500))
    server.say("/texas", good(SIMULATED.texas), BAD["a web page"][0])
    refresh(home)
    before = content(home)
    with pytest.raises(SourceError, match="no source could be used") as error:
        refresh(home)
    for part in (NY, TEXAS, "status 500", "a web page", "unchanged, 120 draws", "helios data import"):
        assert part in one_line(error)
    assert content(home) == before


def test_no_network_and_no_history(home, monkeypatch, server):
    for source in SOURCES:
        monkeypatch.setenv(source.variable, "http://127.0.0.1:9/")     # the port "discard": nobody listens
    with pytest.raises(SourceError, match="there is no history yet") as error:
        refresh(home, patience_s=3, retries=0)
    assert one_line(error).count("no connection") == 2 and not (home / "draws.csv").exists()


def test_a_failure_that_passes_is_tried_again(home, server):
    server.say("/ny", status(503), status(429, Retry_After="7"), good(SIMULATED.ny))
    server.say("/texas", good(SIMULATED.texas))
    waits = []
    report = refresh(home, sleep=waits.append)
    assert [waits, server.n("/ny"), report.results[0].status] == [[0.5, 7.0], 3, "merged"]


def test_pauses_double_and_end(home, server):
    server.say("/ny", status(500))
    server.say("/texas", good(SIMULATED.texas))
    waits = []
    refresh(home, sleep=waits.append)
    assert (waits, server.n("/ny")) == ([0.5, 1.0, 2.0], 4)


def test_a_pause_past_the_deadline_is_not_begun(home, server):
    server.say("/ny", status(503, Retry_After="20"))
    server.say("/texas", good(SIMULATED.texas))
    waits = []
    assert "no time is left" in failure(refresh(home, patience_s=10, sleep=waits.append))
    assert (waits, server.n("/ny")) == ([], 1)


def test_the_quick_form_tries_once(home, server):
    server.say("/ny", status(503))
    server.say("/texas", good(SIMULATED.texas))
    waits = []
    assert failure(refresh(home, patience_s=3, retries=0, sleep=waits.append)) == "it answers with status 503"
    assert (waits, server.n("/ny")) == ([], 1)


def test_a_refused_answer_is_not_asked_for_again(home, server):
    """Trying again helps against what passes; a page that is not there stays away."""
    server.say("/ny", status(404))
    server.say("/texas", good(SIMULATED.texas))
    refresh(home)
    assert server.n("/ny") == 1


def drip(server: Publisher, start: bytes):
    """One byte after the other, the next only when the test is over: to the client a server that never gets on."""
    def answer(request):
        request.wfile.write(start)
        request.wfile.flush()
        server.release.wait()
    return answer


def trickle(server: Publisher, start: bytes):
    """A byte every 20 ms without end: no single wait is long."""
    def answer(request):
        request.wfile.write(start)
        while not server.release.wait(0.02):
            request.wfile.write(b"x")
            request.wfile.flush()
    return answer


@pytest.mark.parametrize("how", [drip, trickle])
@pytest.mark.parametrize("start", [b"", b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\nContent-Length: 5000\r\n\r\n"],
                         ids=["before the status", "in a header", "in the body"])
def test_a_server_that_drips_does_not_hold_a_download(server, how, start):
    server.say("/ny", how(server, start))
    one = Download(f"{server.url}/ny", patience_s=0.25, retries=0)
    one.start()
    with pytest.raises(SourceError, match=r"no whole answer within 0.25 s|no answer in time"):
        one.result()


def test_a_server_that_drips_does_not_hold_the_update(home, server):
    """The other source has two seconds for an answer that takes a hundredth."""
    server.say("/ny", trickle(server, b"HTTP/1.0 200 OK\r\nContent-Length: 5000\r\n\r\n"))
    server.say("/texas", good(SIMULATED.texas))
    report = refresh(home, patience_s=2)
    assert "within 2 s" in failure(report) and len(report.draws) == 117


def test_a_download_that_is_given_up_ends_its_thread(server):
    server.say("/ny", trickle(server, b"HTTP/1.0 200 OK\r\nX: "))
    one = Download(f"{server.url}/ny", patience_s=0.2, sleep=lambda s: None)
    one.start()
    with pytest.raises(SourceError, match="no whole answer within 0.2 s"):
        one.result()
    one.join(10)
    assert not one.is_alive() and server.n("/ny") == 1


def test_redirects_are_followed(home, server):
    for i in range(5):
        server.say("/ny" if i == 0 else f"/{i}", status(302, Location=f"{server.url}/{i + 1}" if i % 2 else f"{i + 1}"))
    server.say("/5", good(SIMULATED.ny))
    server.say("/texas", good(SIMULATED.texas))
    assert refresh(home).results[0].status == "merged"
    assert refresh(home).results[0].status == "not changed"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 302 Found\r\nLocation: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
       st.binary(max_size=60), st.sampled_from([b"", b"\r\n\r\n"]))
def test_any_bytes_are_an_answer_or_a_refusal(server, start, some, end):
    server.say("/ny", lambda request: request.wfile.write(start + some + end))
    one = Download(f"{server.url}/ny", patience_s=10, retries=0)
    one.start()
    try:
        assert isinstance(one.result().body, bytes)
    except SourceError as e:
        assert len(str(e).splitlines()) == 1


def test_a_bomb_is_not_unpacked_to_its_end():
    """A limit that is checked afterwards would need the memory first."""
    bomb = gzip.compress(bytes(100 * 2**20), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(SourceError, match="unpacks to more than 8 MB"):
        download._unpacked(bomb, "gzip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_never_from_https_to_http():
    with pytest.raises(SourceError, match="from https to http"):
        download._checked_url("http://data.ny.gov/rows.csv", before="HTTPS://data.ny.gov/rows.csv")
    assert download._checked_url("https://b.org/", before="http://a.org/") == "https://b.org/"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a.org/x", "http://", "nonsense", "http://[::1", "http://a b/\n"])
def test_an_address_that_is_none(home, server, monkeypatch, url):
    monkeypatch.setenv("HELIOS_NY_URL", url)
    server.say("/texas", good(SIMULATED.texas))
    assert failure(refresh(home, retries=0)) and len(read_history(home).draws) == 117


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Encoding": "GZIP", "Content_Length": None}])
def test_a_compressed_answer(home, server, headers):
    server.say("/ny", status(200, gzip.compress(SIMULATED.ny), **headers))
    server.say("/texas", status(500))
    assert len(refresh(home).draws) == 118
    assert server.last("/ny")["Accept-Encoding"] == "gzip"


def test_https_that_cannot_be_trusted_is_not_tried_again(home, server, monkeypatch):
    """The server speaks no TLS."""
    monkeypatch.setenv("HELIOS_NY_URL", f"{server.url}/ny".replace("http:", "https:"))
    server.say("/texas", good(SIMULATED.texas))
    waits = []
    assert "no secure connection" in failure(refresh(home, sleep=waits.append)) and waits == []


def test_the_proxy_of_the_environment_is_used(home, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HELIOS_NY_URL", "http://lottery.invalid/ny")
    server.say("http://lottery.invalid/ny", good(SIMULATED.ny))
    server.say(f"{server.url}/texas", good(SIMULATED.texas))
    assert len(refresh(home).draws) == 120


def test_a_secret_in_an_address_is_not_shown(home, server, monkeypatch):
    for source in SOURCES:
        monkeypatch.setenv(source.variable, server.url.replace("//", "//me:hush@") + "/ny?app_token=hush")
    server.say("/ny?app_token=hush", status(404))
    with pytest.raises(SourceError) as error:
        refresh(home)
    assert "hush" not in one_line(error)


# Files on disk

@pytest.fixture
def write(tmp_path):
    """A function that writes draws in a publisher's format and gives the path."""
    def write(name: str, draws: pd.DataFrame, form=ny_csv) -> Path:
        (path := tmp_path / name).write_bytes(form(draws))
        return path
    return write


def test_an_import_is_whole_or_nothing(home, write):
    first = write("ny.csv", DRAWS[:50])
    with pytest.raises(RefusedDraws, match="another game, such as Double Play"):
        import_draws([first, write("other.csv", OTHER)], home, today=TODAY)
    assert content(home) == {}
    import_draws([first], home, today=TODAY)
    before = content(home)
    for bad in (write("none.csv", DRAWS[:0]), write("other.csv", OTHER)):
        with pytest.raises(DrawError) as error:
            import_draws([write("more.csv", DRAWS), bad], home, today=TODAY)
        assert one_line(error) and content(home) == before


@pytest.mark.parametrize("stored, new", [(True, False), (False, True)])
def test_simulated_and_real_are_never_merged(home, write, tmp_path, stored, new):
    def path(is_simulated: bool, draws: pd.DataFrame) -> Path:
        if not is_simulated:
            return write("real.csv", draws)
        write_draws(simulate(n=120, seed=3, first=date(2025, 10, 29)), tmp_path / "simulated.csv")
        return tmp_path / "simulated.csv"
    import_draws([path(stored, DRAWS[:50])], home, today=TODAY)
    before = content(home)
    with pytest.raises(RefusedDraws, match="they are never merged") as error:
        import_draws([path(new, DRAWS)], home, today=TODAY)
    assert one_line(error) and content(home) == before
    assert read_history(home).draws.attrs["simulated"] == stored


def test_a_history_without_news_is_not_written(home, write):
    """A remark that the user wrote into the file stays."""
    import_draws([path := write("ny.csv", DRAWS[:50])], home, today=TODAY)
    (file := home / "draws.csv").write_text("# checked by hand\n" + file.read_text())
    before = file.read_bytes()
    assert import_draws([path], home, today=TODAY).files[0][1].agreed == 50
    assert file.read_bytes() == before and read_history(home).in_step


def test_a_line_of_the_history_that_cannot_be_read_is_not_lost(home, write):
    """Writing the history anew would drop it without a word."""
    import_draws([write("ny.csv", DRAWS[:50])], home, today=TODAY)
    path = home / "draws.csv"
    path.write_text(path.read_text() + "2026-08-05,1,2,3,4,99,6,\n")
    before = content(home)
    with pytest.raises(DrawError, match="draws.csv, line 52: white 99") as error:
        import_draws([write("more.csv", DRAWS)], home, today=TODAY)
    assert one_line(error) and content(home) == before


DAMAGED = ["", "{", "[]", "null", '{"version": 1}', "[" * 100_000, '{"version": "1"}', "\udcff",
           '{"version": 1, "history": "", "origins": {"2026-08-01": "New York"}, "conflicts": [], "urls": {}}',
           '{"version": 1, "history": "", "origins": {}, "conflicts": [{}], "urls": {}}',
           '{"version": 1, "history": "", "origins": {"2026-08-01": [1]}, "conflicts": [], "urls": {}}',
           '{"version": 1, "history": "", "origins": {}, "conflicts": [{"date": [], "source": "", "values": ["", ""]}], "urls": {}}',
           '{"version": 1, "history": "", "origins": {}, "conflicts": [], "urls": {"http://a": {"If-None-Match": "a\\nb: c"}}}']


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_of_sources_harms_nothing(home, write, text):
    import_draws([write("ny.csv", DRAWS[:50])], home, today=TODAY)
    draws = content(home)["draws.csv"]
    (home / "draws_sources.json").write_bytes(damaged := text.encode(errors="surrogateescape"))
    report = import_draws([write("texas.csv", DRAWS[:50], texas_csv)], home, today=TODAY)
    notice, = report.notices
    assert "is damaged" in notice and len(notice.splitlines()) == 1
    assert content(home)["draws_sources.damaged.json"] == damaged
    own = read_history(home)
    assert own.in_step and set(map(tuple, own.provenance.origins.values())) == {(TEXAS,)}
    assert set(read_draws(home / "draws.csv")[0].draw_date) == set(parse_draws(draws, "")[0].draw_date)


def test_a_record_of_a_later_version_is_left_alone(home, write):
    import_draws([write("ny.csv", DRAWS[:50])], home, today=TODAY)
    (home / "draws_sources.json").write_text('{"version": 2, "new": []}')
    before = content(home)
    with pytest.raises(SourceError, match="a later Helios wrote") as error:
        import_draws([write("more.csv", DRAWS)], home, today=TODAY)
    assert one_line(error) and content(home) == before


@pytest.mark.parametrize("name", ["draws.csv", "draws_sources.json"])
def test_a_disk_that_refuses(home, write, monkeypatch, name):
    """Each of the two writes fails once; the state that stays is read, and the next run arrives where it should."""
    import_draws([write("ny.csv", DRAWS[:50])], home, today=TODAY)
    before = content(home)

    def refuse(path, data):
        if Path(path).name == name:
            raise OSError(28, "No space left on device")
        return write_atomic(path, data)
    write_atomic = history.write_atomic
    with monkeypatch.context() as m:
        for module in ("helios.history", "helios.draws"):
            m.setattr(f"{module}.write_atomic", refuse)
        with pytest.raises((SourceError, DrawError), match="No space left on device") as error:
            import_draws([write("more.csv", DRAWS, texas_csv)], home, today=TODAY)
        assert one_line(error)
    after = content(home)
    assert after["draws_sources.json"] == before["draws_sources.json"]
    assert (after["draws.csv"] == before["draws.csv"]) == (name == "draws.csv")
    assert read_history(home).in_step == (name == "draws.csv")
    assert_repaired(home, write)


def assert_repaired(home, write) -> None:
    """After the import of `more.csv` is run again: all draws, and who vouches for each."""
    import_draws([write("more.csv", DRAWS, texas_csv)], home, today=TODAY)
    own = read_history(home)
    assert own.in_step and [*own.draws.draw_date] == [*DRAWS.draw_date] and "drawn_1" in own.draws
    assert [*own.provenance.origins.values()] == [[NY, TEXAS]] * 50 + [[TEXAS]] * 70


FORKS = """
import json, os, signal, sys
from datetime import date
from helios.history import import_draws

def die_at(at):
    calls = []
    def counted(name, do):
        def call(*args):
            calls.append(name)
            if f"{name}{calls.count(name)}" == at: os.kill(os.getpid(), signal.SIGKILL)
            return do(*args)
        return call
    os.replace, os.fsync = counted("replace", os.replace), counted("fsync", os.fsync)

children = []
for path, home, at in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        if at: die_at(at)
        import_draws([path], home, today=date(2026, 8, 6), wait_s=60)
        os._exit(0)
    children.append(child)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def imports_at_once(*jobs) -> list[int]:
    """Exit statuses of processes that import at the same time; each job is (path, home, where to be killed or "")."""
    jobs = json.dumps([[str(part) for part in job] for job in jobs])
    return json.loads(subprocess.run([sys.executable, "-c", FORKS, jobs], check=True, capture_output=True, text=True).stdout)


@posix
def test_processes_killed_while_writing(tmp_path, write):
    """Before and after the data of either file is on disk, and before either file is put in its place."""
    cases = {"fsync1": False, "replace1": False, "fsync2": True, "replace2": True}     # where -> draws are written
    homes = {at: tmp_path / at for at in cases}
    for home in homes.values():
        import_draws([write("ny.csv", DRAWS[:50])], home, today=TODAY)
    before, more = content(homes["fsync1"]), write("more.csv", DRAWS, texas_csv)
    assert imports_at_once(*((more, homes[at], at) for at in cases)) == [-signal.SIGKILL] * 4
    for at, written in cases.items():
        assert len(read_draws(homes[at] / "draws.csv", strict=True)[0]) == (120 if written else 50)
        assert content(homes[at])["draws_sources.json"] == before["draws_sources.json"]
        with locked(homes[at], wait_s=0):     # its lock died with it
            pass
        assert_repaired(homes[at], write)


@posix
def test_writers_at_once_lose_nothing(home, write):
    """Four processes import a quarter each, started together on an empty folder."""
    parts = [write(f"{i}.csv", DRAWS[30 * i:30 * i + 30]) for i in range(4)]
    assert imports_at_once(*((part, home, "") for part in parts)) == [0] * 4
    own = read_history(home)
    assert own.in_step and [*own.draws.draw_date] == [*DRAWS.draw_date] and len(own.provenance.origins) == 120


def test_the_lock(home, write):
    path = write("ny.csv", DRAWS)
    with locked(home), pytest.raises(SourceError, match="another Helios is changing the history") as error:
        import_draws([path], home, today=TODAY, wait_s=0)
    assert one_line(error)
    import_draws([path], home, today=TODAY, wait_s=0)
    (home / "draws.lock").write_bytes(b"what is this " * 100)
    with pytest.raises(SourceError, match="remove that file"):
        import_draws([path], home, today=TODAY)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("with_lock", [False, True])
def test_a_folder_that_may_not_be_written(tmp_path, write, with_lock):
    path, home = write("ny.csv", DRAWS), tmp_path / "barred"
    import_draws([path], home, today=TODAY)
    if not with_lock:
        (home / "draws.lock").unlink()
    home.chmod(0o500)
    with pytest.raises(SourceError, match="the folder cannot be written .* HELIOS_HOME") as error:
        import_draws([path], home, today=TODAY)
    assert "remove" not in one_line(error)


def test_a_lock_that_cannot_be_had_is_told_by_its_cause(home, write, monkeypatch):
    """The system's answers are played, since root may write anywhere."""
    path, connect = write("ny.csv", DRAWS), sqlite3.connect
    import_draws([path], home, today=TODAY)
    folder = "barred: the folder cannot be written .*, or choose another one with HELIOS_HOME"
    readonly = sqlite3.OperationalError("attempt to write a readonly database")
    readonly.sqlite_errorname = "SQLITE_READONLY_DIRECTORY"
    assert re.search(folder, history._no_lock(Path("barred/draws.lock"), readonly))
    for barred, said in (({home, home / "draws.lock"}, "home: the folder cannot be written"), ({home / "draws.lock"}, "draws.lock: .*remove that file")):
        with monkeypatch.context() as m:
            m.setattr(history, "access", lambda path, mode, barred=barred: path not in barred)
            with pytest.raises(SourceError, match=said) as error:
                import_draws([path], home, today=TODAY)
        assert one_line(error)
    (home / "draws.lock").unlink()
    monkeypatch.setattr(history.sqlite3, "connect", lambda path, **kwargs: connect(f"file:{path}?mode=ro", uri=True, **kwargs))
    with pytest.raises(SourceError, match="home: the folder cannot be written .*unable to open") as error:
        import_draws([path], home, today=TODAY)
    assert "remove" not in one_line(error)


def test_a_home_that_is_a_file(tmp_path, write):
    (home := tmp_path / "file").write_text("")
    path = write("ny.csv", DRAWS)
    for work in (lambda: import_draws([path], home), lambda: read_history(home), lambda: update(home), lambda: remove_draws([TODAY], home)):
        with pytest.raises(SourceError, match="is a file, and the history needs a folder; set HELIOS_HOME") as error:
            work()
        assert one_line(error)
    with pytest.raises(SourceError, match="HELIOS_HOME") as error:
        import_draws([path], home / "below", today=TODAY)
    assert one_line(error)


def test_a_download_put_in_place_by_hand_vouches_for_itself(home, write):
    home.mkdir()
    (home / "draws.csv").write_bytes(SIMULATED.ny)
    import_draws([write("texas.csv", TEXAS_DRAWS, texas_csv)], home, today=TODAY)
    origins = read_history(home).provenance.origins
    assert len(origins) == 120 and origins[str(DRAWS.draw_date.iloc[0].date())] == [NY, TEXAS]


def test_who_vouched_for_a_value_that_was_changed_does_so_no_longer(home, write):
    path = write("ny.csv", DRAWS[:50])
    import_draws([path], home, today=TODAY)
    file, table = home / "draws.csv", read_history(home).draws
    table.loc[0, "powerball"] = table.loc[0, "powerball"] % 26 + 1
    write_draws(table, file)
    import_draws([path], home, today=TODAY)
    own = read_history(home)
    assert own.provenance.origins[str(DRAWS.draw_date.iloc[0].date())] == [] and len(own.provenance.conflicts) == 1
    assert own.draws.powerball[0] == table.powerball[0]


# One wrong draw, and draws that contradict themselves

def mistyped(i: int) -> pd.DataFrame:
    """One draw with another powerball."""
    return DRAWS[i:i + 1].assign(powerball=DRAWS.powerball[i] % 26 + 1)


def test_one_mistyped_draw_does_not_lock_the_history(home, write):
    import_draws([write("typo.csv", mistyped(119))], home, today=TODAY)
    full, day = write("ny.csv", DRAWS), gaps_day(119)
    report = import_draws([full], home, today=TODAY)
    assert len(report.draws) == 120 and [c.day for c in report.files[0][1].conflicts] == [day]
    assert f"if a stored draw is wrong: helios data remove {day}, then import again" in report.lines()
    assert [c["date"] for c in read_history(home).provenance.conflicts] == [str(day)]
    gone = remove_draws([day], home)
    assert [*gone.removed.draw_date.dt.date] == [day] and len(gone.draws) == 119
    own = read_history(home)
    assert own.in_step and own.provenance.conflicts == [] and str(day) not in own.provenance.origins
    assert import_draws([full], home, today=TODAY).files[0][1].added == [day]
    assert same(read_history(home).draws, DRAWS) and read_history(home).provenance.origins[str(day)] == [NY]


def test_a_small_file_of_another_game_stays_refused(home, write):
    import_draws([write("ny.csv", DRAWS[:51])], home, today=TODAY)
    before = content(home)
    with pytest.raises(RefusedDraws, match="none of 1 common dates agrees: another game.*helios data remove DATE, then import again") as error:
        import_draws([write("double.csv", OTHER[50:52])], home, today=TODAY)
    assert one_line(error) and content(home) == before


@real
def test_one_mistyped_draw_and_the_real_history(home, tmp_path):
    (path := tmp_path / "typo.csv").write_text("draw_date,w1,w2,w3,w4,w5,powerball\n2026-08-05,1,2,3,4,5,6\n")
    import_draws([path], home, today=TODAY)
    report = import_draws([SHARED / "draws.csv"], home, today=TODAY)
    assert len(report.draws) == 3838 and len(report.files[0][1].conflicts) == 1


def test_removing_is_all_or_nothing(home, write):
    import_draws([write("ny.csv", DRAWS[:9])], home, today=TODAY)
    before = content(home)
    with pytest.raises(RefusedDraws, match="no draw of 2026-08-04 is stored, nothing was removed") as error:
        remove_draws([gaps_day(3), date(2026, 8, 4)], home)
    assert one_line(error) and content(home) == before
    with locked(home), pytest.raises(SourceError, match="another Helios is changing the history"):
        remove_draws([gaps_day(3)], home, wait_s=0)
    assert content(home) == before
    remove_draws([gaps_day(i) for i in range(9)], home)
    assert not (home / "draws.csv").exists() and read_history(home).draws.empty
    assert len(import_draws([write("ny.csv", DRAWS[:9])], home, today=TODAY).draws) == 9


def test_an_update_brings_a_removed_draw_back(home, server):
    server.say("/ny", good(SIMULATED.ny))
    server.say("/texas", good(SIMULATED.texas))
    refresh(home)
    remove_draws([gaps_day(5)], home)
    assert refresh(home).added == [gaps_day(5)] and same(read_history(home).draws[["draw_date", *BALLS]], DRAWS[["draw_date", *BALLS]])


def test_a_date_that_contradicts_itself_is_not_imported(home, write):
    path = write("ny.csv", pd.concat([DRAWS[:9], mistyped(7), mistyped(3), mistyped(3)]))
    import_draws([write("stored.csv", DRAWS[3:4].assign(multiplier=pd.NA), lambda d: ny_csv(d).replace(b"None", b""))], home, today=TODAY)
    report = import_draws([path], home, today=TODAY)
    (_, merged), = report.files
    assert merged.contradicted == [gaps_day(7)] and len(report.draws) == 8
    assert f"not taken: {gaps_day(7)}; correct the file and import again" in report.lines()
    assert report.as_dict()["files"][0]["contradicted"] == [str(gaps_day(7))]
    assert pd.isna(report.draws.multiplier[3]) and merged.filled == []      # of two lines neither is believed
    assert gaps_day(3) not in merged.confirmed and str(gaps_day(7)) not in read_history(home).provenance.origins
    assert len(read_draws(path, today=TODAY)[0]) == 9                       # reading keeps the first


# Merging as such

def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return one.reset_index(drop=True).equals(other.reset_index(drop=True))


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29), max_size=3))
def test_a_merge_keeps_what_is_stored_and_adds_what_is_new(mine, theirs, wrong):
    full = DRAWS[:30]
    stored, new = full.loc[sorted(mine)], full.loc[sorted(theirs)].copy()
    changed = sorted(wrong & theirs)
    new.loc[changed, "multiplier"] = new.loc[changed, "multiplier"] % 5 + 2      # another one; the balls stay
    table, report = merge(stored, new, today=TODAY)
    assert [*table.draw_date] == [*full.loc[sorted(mine | theirs)].draw_date]
    assert same(table[table.draw_date.isin(stored.draw_date)], stored)
    assert [*full.loc[sorted(theirs - mine)].draw_date.dt.date] == report.added
    really = [i for i in changed if i in mine and stored.multiplier[i] != new.multiplier[i]]
    assert len(report.conflicts) == len(really) and report.agreed == len(mine & theirs) - len(really)
    assert {*report.confirmed} == {gaps_day(i) for i in theirs} - {gaps_day(i) for i in really}
    assert table.dtypes.equals(full.dtypes)
    again, second = merge(table, new, today=TODAY)
    assert same(again, table) and not second.added


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 29), st.integers(1, 30))
def test_the_rule_of_another_game(n_common, n_wrong):
    """More than half of the common dates in conflict: refused; of fewer than five, only with new draws, and not too many."""
    n_wrong = min(n_wrong, n_common)
    stored = DRAWS[:n_common]
    for extra in (0, 2, 80):
        new = DRAWS[:n_common + extra].copy()
        new.loc[:n_wrong - 1, "powerball"] = new.loc[:n_wrong - 1, "powerball"] % 26 + 1
        refused = n_wrong > n_common / 2 and (n_common >= 5 or 0 < extra <= 9 * n_common)
        try:
            merge(stored, new, today=TODAY)
        except RefusedDraws:
            assert refused
        else:
            assert not refused


def test_an_empty_multiplier_is_filled_only_where_the_numbers_agree():
    stored, new = DRAWS[:10].copy(), DRAWS[:10].copy()
    stored.loc[:3, "multiplier"] = pd.NA
    new.loc[0, "powerball"] = new.loc[0, "powerball"] % 26 + 1
    table, report = merge(stored, new, today=TODAY)
    assert pd.isna(table.multiplier[0]) and [*table.multiplier[1:]] == [*DRAWS.multiplier[1:10]]
    assert report.filled == [*DRAWS.draw_date.dt.date[1:4]] and len(report.conflicts) == 1


def test_an_order_drawn_is_filled_and_never_overwritten():
    texas = parse_draws(texas_csv(DRAWS[:10]), "")[0]
    table, report = merge(DRAWS[:10], texas, TEXAS, today=TODAY)
    assert len(report.filled) == 10 and report.independent
    turned = texas.copy()
    turned[["drawn_1", "drawn_2"]] = texas[["drawn_2", "drawn_1"]]
    again, second = merge(table, turned, today=TODAY)
    assert same(again, table) and second.filled == [] and second.agreed == 10


def test_what_speaks_against_independence():
    gaps, everyone = DRAWS.drop([40, 50]), {str(day): [NY] for day in DRAWS.draw_date.dt.date}
    shared = merge(gaps, gaps, TEXAS, today=TODAY)[1]
    assert "both lack the same 2 draws" in shared.against[0] and shared_gaps(gaps, DRAWS.drop([40])) == [gaps_day(40)]
    assert merge(gaps, DRAWS.drop([40, 60]), TEXAS, today=TODAY)[1].against == []
    assert "came from New York Open Data before" in merge(DRAWS, DRAWS, NY, origins=everyone, today=TODAY)[1].against[0]
    assert merge(DRAWS, DRAWS, TEXAS, origins=everyone, today=TODAY)[1].against == []
    assert "does not tell who recorded" in merge(DRAWS, DRAWS, today=TODAY)[1].against[0]
    assert merge(DRAWS[:50], DRAWS[50:], today=TODAY)[1].against == []      # nothing agrees, so nothing is to be weighed


def gaps_day(i: int) -> date:
    return DRAWS.draw_date.dt.date[i]


def test_a_date_twice_is_refused():
    with pytest.raises(RefusedDraws, match="a date stands twice"):
        compare(pd.concat([DRAWS[:2], DRAWS[:2]]), DRAWS)


def test_merging_into_nothing_and_nothing():
    nothing = draw_table([])
    nothing.attrs["simulated"] = False
    table, report = merge(nothing, DRAWS, today=TODAY)
    assert same(table, DRAWS) and len(report.added) == 120
    assert same(merge(DRAWS, nothing, today=TODAY)[0], DRAWS)


def test_the_record_survives_its_file():
    seen = Provenance("ab", {"2026-08-01": [NY]}, [{"date": "2026-08-01", "source": "é", "values": ["1", "2"]}], {"http://a": {"If-None-Match": '"x"'}})
    assert Provenance.of_json(seen.as_json()) == seen


# Real files

def read(name: str):
    return read_draws(SHARED / name, today=TODAY)


REAL = ["ny_open_data.csv", "ny_api_rows.json", "texas_lottery.csv", "powerball_com_winnums.txt", "kaggle_cc0_1992_2026.csv"]


@real
@pytest.mark.parametrize("name", REAL)
def test_the_reference_agrees_with_every_file(name):
    reference, (draws, report) = read("draws.csv")[0], read(name)
    for one, other in ((reference, draws), (draws, reference)):
        merged = merge(one, other, today=TODAY)[1]
        assert merged.conflicts == [] and merged.agreed == merged.common == len(draws) == report.rows


@real
@pytest.mark.parametrize("name, missing", [("ny_open_data.csv", 6), ("ny_api_rows.json", 6), ("kaggle_cc0_1992_2026.csv", 21), ("draws.csv", 0)])
def test_missing_draws_are_filled_from_the_reference(name, missing):
    (draws, report), reference = read(name), read("draws.csv")[0]
    assert len(report.missing) == missing
    assert set(report.missing) <= set(merge(draws, reference, today=TODAY)[1].added)


@real
def test_double_play_is_refused():
    for name in ("draws.csv", "ny_open_data.csv"):
        with pytest.raises(RefusedDraws, match="none of 24 common dates agrees: another game, such as Double Play?"):
            merge(read(name)[0], read("double_play.csv")[0], today=TODAY)


@real
def test_new_york_twice_proves_little_and_texas_much(home):
    report = import_draws([SHARED / name for name in REAL[:3]], home, today=TODAY)
    _, again, texas = (merged for _, merged in report.files)
    assert again.same_origin and "both lack the same 6 draws" in again.against[1]
    assert texas.against == [] and "order in which the balls were drawn on 1,771 dates" in texas.independent[0]
    assert (len(texas.added), len(report.draws)) == (6, 1978)


@real
def test_a_compilation_proves_little(home):
    report = import_draws([SHARED / "draws.csv", SHARED / "kaggle_cc0_1992_2026.csv"], home, today=TODAY)
    assert "does not tell who recorded its draws" in report.files[1][1].against[0]
    assert read_history(home).provenance.origins == {}
