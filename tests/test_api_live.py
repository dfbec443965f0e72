"""Streams over real HTTP, and the feed that they read: nothing lost, nothing twice, whoever writes."""

import random
import threading
import time

import pytest
import sqlalchemy as sa
from serving import Served
from waiting import WAIT_S, until

from helios.api_base import Services
from helios.draws import sample_path
from helios.draws_at_hand import DrawsAtHand
from helios.job_rows import add_event, end_job
from helios.jobs import Jobs
from helios.memory_store import MemoryStore
from helios.news import News, settled
from helios.places import HISTORY, write_atomic
from helios.server import create_app
from helios.settings import load_settings
from helios.tables import decisions, job_events, jobs, ledger, system_events

HEARTBEAT_S = 0.3


@pytest.fixture
def served(home, tmp_path):
    """A server with three places for streams, which looks for news often."""
    settings = load_settings(max_streams=3, heartbeat_s=HEARTBEAT_S)
    store = MemoryStore(tmp_path / "live.db")
    stopping = threading.Event()
    found = Services(settings, store, None, Jobs(store), {"draws": DrawsAtHand(), "stopping": stopping})
    found.parts["news"] = News(store, None, found.parts["draws"], stopping, poll_s=0.02)
    served = Served(create_app(settings, found))
    yield served
    served.close()
    store.close()


@pytest.fixture
def both(request, tmp_path):
    """Addresses of a store that several processes can open."""
    return request.getfixturevalue("postgres_url") if request.param == "postgresql" else str(tmp_path / "shared.db")


def job(store, job_id="j1", status="running", kind="train"):
    store._insert(jobs, job_id=job_id, kind=kind, params={}, status=status, token=1)


def tell(store, kind, data=None, job_id="j1"):
    with store._transaction("write") as conn:
        add_event(conn, job_id, kind, data or {})


def end(store, job_id="j1", status="completed"):
    with store._transaction("write") as conn:
        assert end_job(conn, job_id, 1, status)


def taken(served):
    return served.found.parts["streams"].taken


# --- the events of a job


def test_a_job_is_followed_to_its_end(served):
    store = served.found.store
    job(store)
    tell(store, "started")
    stream = served.stream("/api/train/j1/events")
    assert (stream.status, stream.headers["Content-Type"].partition(";")[0]) == (200, "text/event-stream")
    assert (stream.headers["Cache-Control"], stream.headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert stream.block() == {"retry": "3000", "id": "0"}
    assert stream.event()["event"] == "started"
    tell(store, "progress", {"epoch": 1, "said": "two\nlines"})
    got = stream.event()
    assert (got["event"], got["id"], got["data"]["data"]) == ("progress", "2", {"epoch": 1, "said": "two\nlines"})
    end(store)
    assert stream.event()["event"] == "ended"
    last = stream.event()
    assert (last["event"], last["data"]) == ("end", {"job_id": "j1", "status": "completed"}) and "id" not in last
    assert stream.event() is None
    until(lambda: taken(served) == 0, "the place to be given back")


def test_an_ended_job_is_told_at_once_and_again(served):
    job(served.found.store)
    tell(served.found.store, "started")
    end(served.found.store, status="failed")
    assert [e["event"] for e in served.stream("/api/train/j1/events").events()] == ["started", "ended", "end"]
    assert [e["event"] for e in served.stream("/api/train/j1/events", Last_Event_ID=2).events()] == ["end"]


def test_a_job_that_was_taken_up_again_goes_on(served):
    store = served.found.store
    job(store)
    end(store, status="interrupted")
    with store._transaction("write") as conn:
        conn.execute(jobs.update().values(status="running"))
    stream = served.stream("/api/train/j1/events")
    assert stream.event()["event"] == "ended"
    tell(store, "started")
    assert stream.event()["event"] == "started"
    end(store)
    assert [e["event"] for e in stream.events()] == ["ended", "end"]


def test_nothing_is_lost_or_twice_over_broken_connections(served):
    store, n, chance = served.found.store, 400, random.Random(1)
    job(store)
    job(store, "j2")

    def write():
        for number in range(n):
            tell(store, "progress", {"number": number})
            if number % 3 == 0:
                tell(store, "noise", job_id="j2")
        end(store)

    writing = threading.Thread(target=write)
    writing.start()
    got, breaks = [], 0
    while not got or got[-1]["event"] != "end":
        place = {"Last_Event_ID": got[-1]["id"]} if got else {}
        stream = served.stream("/api/train/j1/events", **place)
        if stream.status == 503:  # the place of the one that broke off is not free yet
            stream.close()
            continue
        for _ in range(chance.randrange(1, 60)):
            if (event := stream.event()) is None:
                break
            got.append(event)
        stream.close()
        breaks += 1
    writing.join()
    assert [e["data"]["data"]["number"] for e in got if e["event"] == "progress"] == list(range(n))
    assert [e["event"] for e in got[n:]] == ["ended", "end"] and breaks > 5


def test_a_slow_reader_costs_no_memory(served, monkeypatch):
    """What it has not read yet waits in the database."""
    store, n, fetched, news = served.found.store, 3000, [], served.found.parts["news"]
    real = news.job_items

    def counted(*args, **rest):
        rows = real(*args, **rest)
        fetched.append(len(rows))
        return rows

    monkeypatch.setattr(news, "job_items", counted)
    job(store)
    with store._transaction("write") as conn:
        for number in range(n):
            add_event(conn, "j1", "progress", {"number": number, "said": "x" * 4000})
    stream = served.stream("/api/train/j1/events")
    until(lambda: len(fetched) > 1, "the first pages")
    time.sleep(0.3)  # in which nothing may happen: the reader takes nothing
    assert sum(fetched) < n and max(fetched) <= 100
    end(store)
    got = [*stream.events()]
    assert [e["data"]["data"]["number"] for e in got[:n]] == list(range(n)) and got[-1]["event"] == "end"


def test_a_real_job_tells_of_itself_from_its_own_process(served):
    news = served.stream("/api/events")
    news.block()
    job_id = served.found.jobs.submit("check", {"steps": 3, "step_s": 0.01})["job_id"]
    kinds = [e["event"] for e in served.stream(f"/api/train/{job_id}/events").events()]
    assert kinds[0] == "queued" and "progress" in kinds and kinds[-2:] == ["ended", "end"]
    got = news.event()
    assert (got["event"], got["data"]["data"]["job_id"], got["data"]["data"]["status"]) == ("job.ended", job_id, "completed")
    news.close()


# --- wrong requests


def test_wrong_ids_and_jobs_are_told_apart(served):
    job(served.found.store)
    tell(served.found.store, "started")
    assert served.ask("GET", "/api/train/nobody/events")[0] == 404
    assert served.ask("GET", "/api/train/a%00b/events")[0] == 404
    for wrong in ("x", "-1", "1.5", "99999999999999999999", ""):
        assert served.ask("GET", "/api/events", **{"Last-Event-ID": wrong})[0] == 422, wrong
    for wrong in ("last_event_id=x", "last_event_id=-1", "last_event_id=", "since=1"):
        assert served.ask("GET", f"/api/train/j1/events?{wrong}")[0] == 422, wrong
    status, headers, body = served.ask("GET", "/api/train/j1/events?last_event_id=2")
    assert (status, headers["Content-Type"]) == (409, "application/problem+json") and b"another database" in body
    assert served.ask("GET", "/api/events", **{"Last-Event-ID": "7"})[0] == 409
    assert served.found.parts.get("streams") is None or taken(served) == 0


def test_the_header_counts_before_the_query(served):
    job(served.found.store)
    for _ in range(3):
        tell(served.found.store, "progress")
    stream = served.stream("/api/train/j1/events?last_event_id=0", Last_Event_ID=2)
    assert stream.event()["id"] == "3"
    stream.close()


def test_an_id_is_known_after_its_row_was_tidied_away(served):
    store = served.found.store
    job(store)
    tell(store, "started")
    end(store)
    with store._transaction("write") as conn:
        conn.execute(job_events.delete())
    assert [e["event"] for e in served.stream("/api/train/j1/events", Last_Event_ID=2).events()] == ["end"]


# --- places


def test_past_the_cap_streams_are_refused_at_once_and_plain_requests_stay_fast(served):
    streams = [served.stream("/api/events") for _ in range(3)]
    assert [s.status for s in streams] == [200] * 3
    began = time.monotonic()
    status, headers, body = served.ask("GET", "/api/events")
    assert (status, headers["Retry-After"], headers["Content-Type"]) == (503, "5", "application/problem+json")
    assert served.ask("GET", "/api/webhooks")[0] == 200
    assert time.monotonic() - began < 30
    for stream in streams:
        stream.close()


def test_a_client_that_has_gone_gives_its_place_back(served):
    streams = [served.stream("/api/events") for _ in range(3)]
    for stream in streams:
        stream.block()
        stream.close()
    until(lambda: taken(served) == 0, "three places")


def test_a_head_request_takes_no_place(served):
    for _ in range(5):
        assert served.ask("HEAD", "/api/events")[0] == 200
    until(lambda: taken(served) == 0, "the places")


def test_a_stream_without_news_says_that_it_lives(served):
    stream = served.stream("/api/events")
    stream.block()
    began = time.monotonic()
    assert stream.block() == {"comment": "heartbeat"} == stream.block()
    assert 1.5 * HEARTBEAT_S < time.monotonic() - began < 10
    stream.close()


def test_streams_end_at_once_when_the_server_stops(served):
    job(served.found.store)
    open_ = [served.stream("/api/events"), served.stream("/api/train/j1/events")]
    for stream in open_:
        stream.block()
    began = time.monotonic()
    served.found.parts["stopping"].set()
    assert [[*stream.events()] for stream in open_] == [[], []]
    assert time.monotonic() - began < 30
    until(lambda: taken(served) == 0, "the places")


def test_streams_without_news_ask_the_database_no_more_than_one(served):
    asked, news = [], served.found.parts["news"]
    engine = served.found.store._database.engine

    def count():
        asked.clear()
        start = news.polls
        until(lambda: news.polls >= start + 20, "20 looks")
        return len(asked) / (news.polls - start)

    first = served.stream("/api/events")
    first.block()
    sa.event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    alone = count()
    more = [served.stream("/api/events") for _ in range(2)]
    for stream in more:
        stream.block()
    assert count() <= alone * 1.2 + 0.1 and alone <= 3, asked[:8]
    for stream in (first, *more):
        stream.close()


# --- the feed


def test_news_of_every_kind_come_whoever_wrote_them(served, home):
    stream = served.stream("/api/events")
    stream.block()
    with MemoryStore(served.found.store.path) as elsewhere:  # such as the command line
        job(elsewhere, "j7", kind="sweep")
        end(elsewhere, "j7", "cancelled")
        got = stream.event()
        assert (got["event"], got["data"]["data"]) == ("job.ended", {"job_id": "j7", "kind": "sweep", "status": "cancelled", "error_message": None})
        assert got["id"] == str(got["data"]["id"]) and got["data"]["event"] == "job.ended"
        elsewhere._insert(ledger, kind="forecast", draw_date="2026-08-05", forecaster="uniform", version="1", content={}, previous="a", hash="b")
        elsewhere._insert(ledger, kind="score", draw_date="2026-08-05", forecaster="uniform", version="1", content={"white_nats": 0.0, "powerball_nats": 0.0},
                          previous="b", hash="c")
        got = stream.event()
        assert got["event"] == "prediction.scored" and got["data"]["data"]["white_nats"] == 0.0
        elsewhere._insert(decisions, kind="abstain", model_name="powerball", state={}, options=[], choice="abstain", confidence=0.9, rationale="why not", status="verified")
        got = stream.event()
        assert got["event"] == "decision.made" and got["data"]["data"]["rationale"] == "why not"
    lines = sample_path().read_text().splitlines(keepends=True)
    write_atomic(home / HISTORY, "".join(lines[:-2]))
    got = stream.event()
    assert got["event"] == "draws.added" and got["data"]["data"]["added"] == got["data"]["data"]["n"]
    write_atomic(home / HISTORY, "".join(lines))
    got = stream.event()
    assert got["data"]["data"]["added"] == 2 and len(got["data"]["data"]["latest"]["whites"]) == 5
    stream.close()


def test_the_feed_is_taken_up_where_it_broke_off(served):
    store = served.found.store
    stream = served.stream("/api/events")
    begin = stream.block()["id"]
    stream.close()
    for number in range(3):
        job(store, f"j{number}")
        end(store, f"j{number}")
    again = served.stream("/api/events", Last_Event_ID=begin)
    assert [again.event()["data"]["data"]["job_id"] for _ in range(3)] == ["j0", "j1", "j2"]
    again.close()


def test_a_new_server_announces_nothing_old_and_misses_nothing_between(tmp_path):
    with MemoryStore(tmp_path / "a.db") as store:
        job(store, "old")
        end(store, "old")
        first = News(store)
        first.poll()
        assert first.items(0) == []
        job(store, "new")
        end(store, "new")  # while no server runs
        second = News(store)
        second.poll()
        assert [i["data"]["job_id"] for i in second.items(0)] == ["new"]
        News(store).poll()
        second.poll()
        assert len(second.items(0)) == 1


def test_the_newest_news_stay_and_other_events_too(tmp_path, monkeypatch):
    monkeypatch.setattr("helios.news.KEPT", 5)
    with MemoryStore(tmp_path / "helios.db") as store:
        news = News(store)
        news.poll()
        store.log_event("backup", {"file": "a"})
        for i in range(12):
            job(store, f"j{i}")
            end(store, f"j{i}")
            news.poll()
        assert [item["data"]["job_id"] for item in news.items(0)] == [f"j{i}" for i in range(7, 12)]
        assert [row["event_type"] for row in store._rows(system_events.select())].count("backup") == 1


@pytest.mark.parametrize("both", ["sqlite", "postgresql"], indirect=True)
def test_many_lookers_enter_each_thing_once(both):
    n, writers, lookers = 20, 3, 3
    with MemoryStore(both) as store:
        for number in range(writers * n):
            job(store, f"j{number}")
        News(store).poll()
        done, newest = threading.Event(), []

        def write(part):
            with MemoryStore(both) as own:
                for number in range(part, writers * n, writers):
                    tell(own, "progress", job_id=f"j{number}")
                    end(own, f"j{number}")

        def look(got):
            with MemoryStore(both) as own:
                news, last = News(own), 0
                end = time.monotonic() + WAIT_S
                while not (done.is_set() and last >= newest[0]) and time.monotonic() < end:      # it may look later than the one who knows the end
                    news.poll()
                    for item in news.items(last):
                        got.append(item)
                        last = item["id"]

        seen = [[] for _ in range(lookers)]
        looking = [threading.Thread(target=look, args=(got,)) for got in seen]
        writing = [threading.Thread(target=write, args=(part,)) for part in range(writers)]
        for thread in looking + writing:
            thread.start()
        for thread in writing:
            thread.join()
        final = News(store)
        until(lambda: final.poll() and len(final.items(0, 1000)) >= writers * n, "all news")
        newest.append(final.items(0, 1000)[-1]["id"])
        done.set()
        for thread in looking:
            thread.join()
        names = [item["data"]["job_id"] for item in final.items(0, 1000)]
        assert sorted(names) == sorted(f"j{number}" for number in range(writers * n))
        ids = [item["id"] for item in final.items(0, 1000)]
        assert ids == sorted(ids)
        for got in seen:
            assert [item["id"] for item in got] == ids


def test_a_number_that_is_taken_and_not_yet_seen_is_waited_for(postgres_url):
    """On PostgreSQL the second of two writers may be seen first."""
    with MemoryStore(postgres_url) as store, MemoryStore(postgres_url) as other:
        job(store)
        tell(store, "first")
        news = News(store)
        news.poll()
        with other._transaction("write") as conn:
            add_event(conn, "j1", "second", {})
            tell(store, "third")  # by another connection, and committed before
            news.poll()
            assert [row["kind"] for row in news.job_items("j1", 0)] == ["first"]
        news.poll()
        assert [row["kind"] for row in news.job_items("j1", 0)] == ["first", "second", "third"]


def test_a_number_that_was_rolled_back_is_asked_about_once(postgres_url):
    with MemoryStore(postgres_url) as store:
        marks = settled(store, {})
        with pytest.raises(ZeroDivisionError), store._transaction("write") as conn:
            add_event(conn, "j1", "never", {})
            raise ZeroDivisionError
        tell(store, "kept")
        asked = []
        sa.event.listen(store._database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
        marks = settled(store, marks)
        assert sum("LOCK TABLE" in text for text in asked) == 1 and marks["job_events"] == 2
        asked.clear()
        assert settled(store, marks) == marks and not any("LOCK TABLE" in text for text in asked)


def test_a_dead_job_is_news_though_nobody_asks(home):
    with MemoryStore(home / "helios_memory.db") as store:
        background = Jobs(store)
        news = News(store, background)
        news.poll()
        job(store, "gone")
        with store._transaction("write") as conn:
            conn.execute(jobs.update().values(host="another machine/1", heartbeat_at="2020-01-01T00:00:00.000000+00:00"))
        news._round()
        assert [(i["event"], i["data"]["status"]) for i in news.items(0)] == [("job.ended", "interrupted")]


def test_a_store_that_is_away_is_waited_for(served, caplog):
    news = served.found.parts["news"]
    stream = served.stream("/api/events")
    stream.block()
    real = news.store
    broken = MemoryStore(":memory:")
    broken.close()
    news.store = broken
    start = news.polls
    until(lambda: news.polls > start + 3, "looks that fail")
    news.store = real
    job(real)
    end(real)
    assert stream.event()["event"] == "job.ended"
    assert sum("news have to wait" in line for line in caplog.messages) == 1
    stream.close()


def test_other_events_of_the_system_are_no_news(served):
    store, news = served.found.store, served.found.parts["news"]
    news.poll()
    store.log_event("started", {"x": 1})
    news.poll()
    assert news.items(0) == [] and news.newest == 1
    assert store._rows(sa.select(system_events.c.event_type))[0]["event_type"] == "started"
