"""The ledger: a chain that names what was altered, predictions that cannot be back-dated, scores that come by themselves."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from helios.chain import GENESIS, HASHED, Chain, LedgerError, entry_hash
from helios.draws import balls, simulate
from helios.forecasters import Frequency, Uniform
from helios.game import POWERBALL
from helios.ledger import Ledger, forecast_from_json, forecast_to_json, held_at
from helios.memory_store import MemoryStore
from helios.mixtures import mixture
from helios.scoring import Forecast, drawn_matrix
from helios.tables import context_storage, ledger
from helios.values import StoreError

ERA = POWERBALL.eras[-1]
UNIFORM = Forecast.uniform(ERA)


def real_draws(n=20, seed=5, first=date(2026, 6, 1)):
    """Simulated draws without their mark: only a test may do this."""
    table = simulate(n=n, seed=seed, first=first)
    table.attrs.clear()
    return table


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def store(address):
    with MemoryStore(address) as store:
        yield store


def noon_before(draws):
    """Noon, UTC, of the day on which the next draw is held."""
    return datetime.combine(POWERBALL.next_draw(draws.draw_date.iloc[-1].date()), datetime.min.time(), UTC) + timedelta(hours=12)


def note(chain, text, forecaster="me"):
    return chain.append(lambda conn, made_at: {"kind": "note", "draw_date": "2026-08-05", "forecaster": forecaster, "version": "1",
                                               "content": {"text": text}})[0]


def change(store, *statements):
    with store._transaction("write") as conn:
        for statement in statements:
            conn.execute(statement if not isinstance(statement, str) else sa.text(statement))


def row_of(store, row_id):
    return store._rows(ledger.select().where(ledger.c.id == row_id))[0]


def rehash(store, row_id, **values):
    """Alter a row and give it the hash that fits: what a careful forger does."""
    row = row_of(store, row_id) | values
    content = json.dumps(row["content"])
    change(store, ledger.update().where(ledger.c.id == row_id).values(row | {"content": content, "hash": entry_hash(row)}))


# The chain


def test_a_chain_that_nobody_touched(store):
    chain = Chain(store)
    assert chain.head() == {"n": 0, "hash": GENESIS} and chain.verify().ok and chain.verify(GENESIS).ok
    rows = [note(chain, "é\u2028 ☂" * i) for i in range(7)]
    assert chain.verify() == chain.verify(rows[2]["hash"]) == chain.verify(rows[-1]["hash"][:12].upper())
    assert (chain.verify().n, chain.head()) == (7, {"n": 7, "hash": rows[-1]["hash"]})
    assert [row_of(store, row["id"]) for row in rows] == rows


def test_the_hash_can_be_computed_without_helios(store):
    import hashlib

    row = note(Chain(store), "x")
    text = json.dumps({name: row[name] for name in HASHED}, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == row["hash"]


ALTERED = {"kind": "'score'", "draw_date": "'2026-08-08'", "forecaster": "'you'", "version": "'2'", "made_at": "'2020-01-01'",
           "content": "replace(content, 't3', 't4')", "hash": f"'{'a' * 64}'", "previous": f"'{'b' * 64}'"}


@pytest.mark.parametrize("column", ALTERED)
def test_each_altered_column_of_any_row_is_named(store, column):
    chain = Chain(store)
    ids = [note(chain, f"t{i}")["id"] for i in range(6)]
    change(store, f"UPDATE ledger SET {column} = {ALTERED[column]} WHERE id = {ids[3]}")
    found = chain.verify()
    assert not found.ok and found.first_bad == ids[3] and f"row {ids[3]} was altered" in found.why


def test_the_first_of_several_is_named(store):
    chain = Chain(store)
    ids = [note(chain, f"t{i}")["id"] for i in range(6)]
    change(store, f"UPDATE ledger SET version = '9' WHERE id IN ({ids[4]}, {ids[1]})")
    assert chain.verify().first_bad == ids[1]


def test_removed_moved_and_inserted_rows(store):
    chain = Chain(store)
    rows = [note(chain, f"t{i}") for i in range(8)]
    ids = [row["id"] for row in rows]

    def after(*statements):
        with store._transaction("write") as conn:
            nested = conn.begin_nested()
            for statement in statements:
                conn.execute(sa.text(statement) if isinstance(statement, str) else statement)
            found = chain.verify()
            nested.rollback()
        return found

    gone = after(f"DELETE FROM ledger WHERE id IN ({ids[2]}, {ids[3]})")
    assert gone.first_bad == ids[4] and "entries numbered 3 to 4 were removed" in gone.why
    assert after(f"DELETE FROM ledger WHERE id = {ids[0]}").first_bad == ids[1]
    swap = [f"UPDATE ledger SET id = {a} WHERE id = {b}" for a, b in ((-1, ids[2]), (ids[2], ids[5]), (ids[5], -1))]
    moved = after(*swap)
    assert moved.first_bad == ids[2] and "another place" in moved.why
    extra = {**rows[3], "id": ids[-1] + 1, "previous": rows[-1]["hash"], "content": {"n": 9, "text": "forged"}}
    extra["hash"] = entry_hash(extra)
    inserted = after(ledger.insert().values(extra | {"content": json.dumps(extra["content"])}))
    assert not inserted.ok and "not the one that was written last" in inserted.why
    tail = after(f"DELETE FROM ledger WHERE id >= {ids[6]}")
    assert not tail.ok and tail.first_bad is None and "8 were" in tail.why
    assert not after("DELETE FROM ledger").ok
    assert not after("DELETE FROM context_storage").ok
    assert after("DELETE FROM ledger", "DELETE FROM context_storage").ok  # as if it had never been: only a head that stands elsewhere helps
    with store._transaction("write") as conn:
        nested = conn.begin_nested()
        conn.execute(ledger.delete())
        conn.execute(context_storage.delete())
        assert not chain.verify(rows[4]["hash"]).ok
        nested.rollback()
    assert chain.verify().ok


def test_a_careful_forger_is_found_too(store):
    chain = Chain(store)
    ids = [note(chain, f"t{i}")["id"] for i in range(5)]
    rehash(store, ids[2], version="2")
    found = chain.verify()
    assert found.first_bad == ids[2] and "given a new hash" in found.why


def test_a_forger_of_all_is_found_by_a_head_written_down(store):
    chain = Chain(store)
    rows = [note(chain, f"t{i}") for i in range(5)]
    written_down = chain.head()["hash"]
    previous = rows[1]["hash"]
    for row in rows[2:]:
        rehash(store, row["id"], version="2", previous=previous)
        previous = row_of(store, row["id"])["hash"]
    store.store_context("ledger", "head", {"n": 5, "hash": previous})
    assert chain.verify().ok and not chain.verify(written_down).ok and chain.verify(rows[1]["hash"]).ok


def test_damage_that_no_text_could_be_is_named(path):
    with MemoryStore(path) as store:
        chain = Chain(store)
        ids = [note(chain, f"t{i}")["id"] for i in range(4)]
        for content in ("CAST(x'7bff7d' AS TEXT)", "'no json'", "'[1]'", "'{\"n\": NaN}'", "'" + "[" * 100_000 + "'"):
            change(store, f"UPDATE ledger SET content = {content} WHERE id = {ids[2]}")
            assert chain.verify().first_bad == ids[2]


def test_nothing_is_appended_after_a_cut(store):
    chain = Chain(store)
    rows = [note(chain, f"t{i}") for i in range(4)]
    change(store, f"DELETE FROM ledger WHERE id = {rows[-1]['id']}")
    with pytest.raises(LedgerError, match="takes no entries, since the newest row is"):
        note(chain, "over it")
    assert not chain.verify().ok


def test_many_threads_write_one_chain(store):
    chain, start = Chain(store), threading.Barrier(6)

    def write(i):
        start.wait()
        return [note(chain, f"{i} {k}")["hash"] for k in range(10)]

    with ThreadPoolExecutor(6) as pool:
        hashes = sum(pool.map(write, range(6)), [])
    assert len({*hashes}) == 60 and chain.verify() == type(chain.verify())(60, None, None)
    numbers = [row["content"]["n"] for row in store._rows(ledger.select().order_by(ledger.c.id))]
    assert numbers == [*range(1, 61)]


_WRITER = """
import sys
from helios.chain import Chain
from helios.memory_store import MemoryStore
with MemoryStore(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for k in range(15):
        entry = {"kind": "note", "draw_date": "2026-08-05", "forecaster": sys.argv[2], "version": "1", "content": {"text": str(k)}}
        Chain(store).append(lambda conn, made_at: entry)
"""


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_two_processes_write_one_chain(kind, request, path):
    address = request.getfixturevalue("postgres_url") if kind == "postgresql" else str(path)
    MemoryStore(address).close()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, address, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for who in "ab"]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    with MemoryStore(address) as store:
        assert Chain(store).verify().ok and Chain(store).head()["n"] == 30
        assert {row["forecaster"] for row in store._rows(ledger.select())} == {"a", "b"}


# Predictions


def test_what_goes_in_comes_out_with_the_same_scores(store):
    draws = real_draws(60)
    whites, powerballs = balls(draws)
    rng = np.random.default_rng(1)
    logits = [torch.from_numpy(rng.normal(size=(1, n))) for n in (69, 26, 69, 26)]
    parts = [Forecast(*logits[:2]), Forecast(*logits[2:]), UNIFORM]
    clock = Clock(noon_before(draws))
    book = Ledger(store, clock)
    for i, forecast in enumerate((parts[0], mixture(parts, [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]), UNIFORM)):
        row = book.predict(f"f{i}", "1", forecast, draws, about={"sha256": "ab"})
        stored = forecast_from_json(book.entries(f"f{i}")[0]["content"]["forecast"])
        for t in range(20):
            one = whites[t : t + 1], powerballs[t : t + 1]
            assert stored.skill(*one).total == forecast.skill(*one).total
        best = forecast.top_tickets(1)[0]
        assert row["content"]["ticket"] == {"whites": list(best.whites), "powerball": best.powerball, "probability": best.probability}
        assert row["content"]["about"] == {"sha256": "ab"} and row["content"]["uniform"] == (i == 2)
        assert row["content"]["draws"]["last"] == str(draws.draw_date.iloc[-1].date()) and row["content"]["draws"]["n"] == 60
    assert forecast_to_json(UNIFORM)["format"] == 1 and book.verify().ok


def test_one_prediction_for_the_same_draw_forecaster_version_and_draws(store):
    draws = real_draws()
    book = Ledger(store, Clock(noon_before(draws)))
    first = book.predict("a", "1", UNIFORM, draws)
    assert book.predict("a", "1", Frequency().fit(draws).forecast(), draws) == first  # the first word stands
    mended = draws.copy()
    mended.loc[3, "powerball"] = draws.powerball[3] % 26 + 1
    others = [book.predict("a", "2", UNIFORM, draws), book.predict("b", "1", UNIFORM, draws), book.predict("a", "1", UNIFORM, mended)]
    assert len({row["hash"] for row in (first, *others)}) == 4 and book.head()["n"] == 4


def test_many_threads_predict_once(store):
    draws = real_draws()
    book, start = Ledger(store, Clock(noon_before(draws))), threading.Barrier(6)

    def enter(_):
        start.wait()
        return book.predict("a", "1", UNIFORM, draws)["hash"]

    with ThreadPoolExecutor(6) as pool:
        assert len({*pool.map(enter, range(6))}) == 1
    assert book.head()["n"] == 1


def test_what_is_no_forecast_is_refused():
    draws = real_draws()
    day = draws.draw_date.iloc[-1].date()
    with MemoryStore(":memory:") as store:
        book = Ledger(store, Clock(noon_before(draws)))
        sure = torch.full((1, 69), 1e308, dtype=torch.float64)
        sure[0, 30:] = -1e308
        for forecast, said in ((Forecast.uniform(ERA, 2), "2 forecasts"), (Forecast.uniform(POWERBALL.eras[-2]), "5 of 59 whites"),
                               (Forecast(sure, torch.zeros(1, 26)), "rules nothing out")):
            with pytest.raises(LedgerError, match=said):
                book.predict("a", "1", forecast, draws)
        for when, said in ((draws.draw_date.iloc[-2].date(), "knows what came after"), (day + timedelta(1), "no draw of Powerball is due")):
            with pytest.raises(LedgerError, match=said):
                book.predict("a", "1", UNIFORM, draws, draw_date=when)
        for name in ("", "a\0"):
            with pytest.raises(StoreError, match="forecaster is"):
                book.predict(name, "1", UNIFORM, draws)
        with pytest.raises(LedgerError, match="no draws"):
            book.predict("a", "1", UNIFORM, draws[:0])
        assert book.head()["n"] == 0


# Too late


def test_the_hour_of_the_draw_decides(store):
    draws = real_draws()
    held = held_at(POWERBALL.next_draw(draws.draw_date.iloc[-1].date()))
    for i, (before, late) in enumerate(((60, False), (1, False), (0, True), (-86_400, True))):
        with_clock = Ledger(store, Clock(held - timedelta(seconds=before)))
        row = with_clock.predict(f"f{i}", "1", UNIFORM, draws)
        assert row["content"]["late"] is late and (row["content"]["why"] is not None) is late


def test_no_way_to_back_date(store):
    """The draw is known to the caller, to the user's history, to the ledger; the clock is set back; each alone is enough."""
    full = real_draws(21)
    draws, day = full[:20], full.draw_date[20].date()
    clock = Clock(noon_before(draws))
    book = Ledger(store, clock)
    assert not book.predict("honest", "1", UNIFORM, draws)["content"]["late"]
    clock.now += timedelta(days=1)
    assert book.predict("late by the clock", "1", UNIFORM, draws)["content"]["late"]
    assert book.predict("knows it", "1", UNIFORM, full, draw_date=day)["content"]["late"]
    clock.now -= timedelta(days=1)
    said = book.predict("the clock is set back", "1", UNIFORM, draws)["content"]
    assert said["late"] and "knew the draw" in said["why"]  # "knows it" is there
    assert book.predict("and again", "1", UNIFORM, draws)["content"]["late"]
    with pytest.raises(LedgerError, match="not held yet by this clock"):
        book.predict("lives in the future", "1", UNIFORM, full)
    clock.now += timedelta(days=1)
    assert book.predict("owns the draw", "1", UNIFORM, draws, known=full)["content"]["why"].startswith(f"the draw of {day} was known")
    assert [row["forecaster"] for row in book.settle(full)] == ["honest"]
    clock.now -= timedelta(days=1)
    assert "knew the draw" in book.predict("after the score", "1", UNIFORM, draws)["content"]["why"]
    clock.now += timedelta(days=3)
    assert book.settle(full) == []
    counts = {s.forecaster: s.counts for s in book.summary()}
    assert [name for name, c in counts.items() if not c["late"]] == ["honest"]
    assert all(len(s.record) == (s.forecaster == "honest") for s in book.summary())


def test_a_clock_set_back_is_said_and_stays_said(store):
    draws = real_draws()
    clock = Clock(noon_before(draws))
    book = Ledger(store, clock)
    book.predict("a", "1", UNIFORM, draws)
    clock.now -= timedelta(seconds=30)  # two machines may differ by so much
    assert not book.predict("b", "1", UNIFORM, draws)["content"]["late"]
    clock.now -= timedelta(hours=2)
    for name in "cd":  # an entry of the clock that was set back makes it no better
        assert "the clock was set back" in book.predict(name, "1", UNIFORM, draws)["content"]["why"]
    clock.now += timedelta(hours=3)
    assert not book.predict("e", "1", UNIFORM, draws)["content"]["late"]


def test_a_machine_without_time_zones_says_so(monkeypatch):
    import zoneinfo

    def missing(key):
        raise zoneinfo.ZoneInfoNotFoundError(key)

    monkeypatch.setattr("helios.ledger.ZoneInfo", missing)
    with pytest.raises(LedgerError, match="no time zone America/New_York.*pip install tzdata"):
        held_at(date(2026, 8, 5))


# Scores


def test_a_ticket_and_its_prize():
    draws = real_draws(21)
    whites, powerballs = balls(draws[20:])
    wrong = [b for b in range(1, 70) if b not in whites[0]]
    with MemoryStore(":memory:") as store:
        clock = Clock(noon_before(draws[:20]))
        book = Ledger(store, clock)
        for n in range(6):
            for also in (True, False):
                white, powerball = torch.zeros(1, 69), torch.zeros(1, 26)
                white[0, [b - 1 for b in (*whites[0][:n], *wrong[: 5 - n])]] = 3.0
                powerball[0, (int(powerballs[0]) if also else int(powerballs[0]) % 26 + 1) - 1] = 3.0
                book.predict(f"{n}{'+' if also else ''}", "1", Forecast(white, powerball), draws[:20])
        clock.now += timedelta(days=1)
        got = {row["forecaster"]: row["content"] for row in book.settle(draws)}
    prizes = {"0": 0, "0+": 4, "1": 0, "1+": 4, "2": 0, "2+": 7, "3": 7, "3+": 100, "4": 100, "4+": 50_000, "5": 1_000_000, "5+": None}
    assert {name: content["prize"] for name, content in got.items()} == prizes
    assert all((c["whites_hit"], c["powerball_hit"], c["price"]) == (int(name[0]), "+" in name, 2) for name, c in got.items())
    nats = [got[str(n)]["white_nats"] for n in range(6)]
    assert nats == sorted(nats) and nats[0] < 0 < nats[5] and got["5+"]["powerball_nats"] > 0 > got["5"]["powerball_nats"]


def test_two_threads_settle_once(store):
    draws = simulate(n=30, seed=1)
    book, start = Ledger(store), threading.Barrier(4)
    for name in "abc":
        book.predict(name, "1", UNIFORM, draws[:29])

    def settle(_):
        start.wait()
        return len(book.settle(draws))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(settle, range(4))) == 3
    assert book.head()["n"] == 6 and book.verify().ok


def test_a_correction_is_said_and_replaces(store):
    draws = simulate(n=30, seed=1)
    book = Ledger(store)
    book.predict("a", "1", Frequency().fit(draws[:29]).forecast(), draws[:29])
    (first,) = book.settle(draws)
    mended = draws.copy()
    mended.loc[29, "powerball"] = draws.powerball[29] % 26 + 1
    (second,) = book.settle(mended)
    assert (second["content"]["how"], second["content"]["replaces"]) == ("corrected", first["hash"])
    assert book.settle(mended) == [] and book.entries()[0]["score"]["hash"] == second["hash"] and len(book.summary()[0].record) == 1
    assert book.verify().ok and book.head()["n"] == 3


def test_simulated_and_real_are_never_mixed(store):
    draws, fake = real_draws(21), simulate(n=21, seed=5, first=date(2026, 6, 1))
    assert draws.equals(fake)  # the same numbers: only the mark differs
    clock = Clock(noon_before(draws[:20]))
    book = Ledger(store, clock)
    book.predict("a", "1", UNIFORM, draws[:20])
    book.predict("a", "1", UNIFORM, fake[:20])
    clock.now += timedelta(days=1)
    assert [row["content"]["simulated"] for row in book.settle(fake)] == [True]
    assert [row["content"]["simulated"] for row in book.settle(draws)] == [False]
    assert [(s.simulated, s.counts["forecasts"], len(s.record)) for s in book.summary()] == [(False, 1, 1), (True, 1, 1)]
    assert [row["content"]["simulated"] for row in book.entries(simulated=True)] == [True]


def test_the_last_word_before_the_draw_counts(store):
    full = real_draws(22)
    clock = Clock(noon_before(full[:20]))
    book = Ledger(store, clock)
    day = full.draw_date[21].date()
    book.predict("a", "1", UNIFORM, full[:20], draw_date=day)
    clock.now = noon_before(full[:21])
    book.predict("a", "2", Frequency().fit(full[:21]).forecast(), full[:21], draw_date=day)
    last = book.predict("a", "3", Frequency().fit(simulate(n=60, seed=1, white_weights={5: 9.0})).forecast(), full[:21], draw_date=day)
    clock.now += timedelta(days=1)
    scored = book.settle(full)
    assert len(scored) == 3
    (standing,) = book.summary()
    assert standing.counts == {"forecasts": 3, "open": 0, "late": 0, "superseded": 2} and len(standing.record) == 1
    counted = next(row for row in scored if row["content"]["entry"] == last["hash"])
    assert standing.record.plays[0].white_nats == counted["content"]["white_nats"]


def test_the_best_of_many_needs_more(store):
    """Holm over the real forecasters that ever differed from uniform; simulated ones and the uniform one are no tries."""
    draws, fake = real_draws(21), simulate(n=21, seed=5, first=date(2026, 6, 1))
    rng = np.random.default_rng(3)
    clock = Clock(noon_before(draws[:20]))
    book = Ledger(store, clock)
    for name in "abc":
        book.predict(name, "1", Forecast(torch.from_numpy(rng.normal(size=(1, 69))), torch.zeros(1, 26)), draws[:20])
    book.predict("uniform", "1", UNIFORM, draws[:20])
    book.predict("a", "1", Frequency().fit(fake[:20]).forecast(), fake[:20])
    clock.now += timedelta(days=1)
    book.settle(draws)
    book.settle(fake)
    needed = {(s.forecaster, s.simulated): s.needed for s in book.summary()}
    assert needed == {("a", False): 60.0, ("b", False): 60.0, ("c", False): 60.0, ("uniform", False): 20.0, ("a", True): 20.0}
    assert [s.needed for s in book.summary("b")] == [60.0]


def test_an_altered_row_is_never_summed_up(store):
    draws = simulate(n=30, seed=1)
    book = Ledger(store)
    book.predict("a", "1", UNIFORM, draws[:29])
    (score,) = book.settle(draws)
    change(store, ledger.update().where(ledger.c.id == score["id"]).values(content=json.dumps(score["content"] | {"white_nats": 9.0})))
    for read in (book.summary, book.entries, lambda: book.settle(draws)):
        with pytest.raises(LedgerError, match=f"row {score['id']} of the ledger was altered"):
            read()


def test_fair_draws_raise_no_alarm_and_a_planted_bias_does():
    """8 fair ledgers of 20 draws: each raises a false alarm with a chance of at most 5%, so three or more of them with at most 0.6%."""

    def e_value(seed, **bias):
        draws = simulate(n=140, seed=seed, **bias)
        whites, powerballs = balls(draws)
        came = torch.from_numpy(drawn_matrix(whites, 69).cumsum(0)), torch.from_numpy(np.eye(26)[powerballs - 1].cumsum(0))
        with MemoryStore(":memory:") as store:
            book = Ledger(store)
            for at in range(120, 140):  # balls that came more often are taken for heavier, with caution
                one = Forecast((came[0][at - 1 : at] + 50.0).log(), (came[1][at - 1 : at] + 20.0).log())
                book.predict("counts", "1", one, draws[:at])
            book.settle(draws)
            return book.summary()[0].record.process.final

    assert sum(e_value(seed) >= 20 for seed in range(8)) <= 2
    assert all(e_value(seed, white_weights={7: 6.0, 9: 6.0}, powerball_weights={4: 12.0}) >= 20 for seed in range(2))


def test_pages(store):
    draws = simulate(n=30, seed=1)
    book = Ledger(store)
    for i in range(7):
        book.predict(f"f{i}", "1", Uniform().fit(draws[:29]).forecast(), draws[:29])
    names = [row["forecaster"] for row in book.entries(limit=None)]
    assert names == [f"f{i}" for i in reversed(range(7))]
    assert [row["forecaster"] for page in range(4) for row in book.entries(limit=2, offset=2 * page)] == names
    assert book.entries("nobody") == [] and book.summary("nobody") == []
