"""API keys: made once, checked in constant time, ended for good; and the commands that look after them."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from helios import keys as keys_module
from helios.audit_trail import AuditTrail
from helios.keys import (
    CACHE_S,
    LAST_USED_S,
    Caller,
    Keys,
    KeysError,
    UnknownKey,
    make_token,
    require_keys_or_loopback,
    split_token,
)
from helios.keys_commands import config, keys
from helios.memory_store import MemoryStore
from helios.places import DATABASE
from helios.settings import Settings, SettingsError
from helios.tables import api_keys
from helios.values import StoreError, utc_text


@pytest.fixture
def store(address):
    with MemoryStore(address) as store:
        yield store


def change(store, key_id, **values):
    with store._transaction("write") as conn:
        conn.execute(api_keys.update().where(api_keys.c.key_id == key_id).values(**values))


def ago(**delta):
    return utc_text(datetime.now(UTC) - timedelta(**delta))


@pytest.fixture
def reads(monkeypatch):
    """How often keys were read from a store."""
    count = []
    original = MemoryStore._rows
    monkeypatch.setattr(MemoryStore, "_rows", lambda self, query: count.append(1) or original(self, query))
    return count


# Tokens


def test_tokens_are_random_and_long_enough():
    made = [make_token() for _ in range(500)]
    secrets = {token.split("_", 2)[2] for _, token in made}
    assert len(secrets) == len({key_id for key_id, _ in made}) == 500
    assert all(len(secret) == 43 for secret in secrets)  # 256 bits as base64


@given(st.text(max_size=120))
def test_any_text_is_a_token_or_none(text):
    assert split_token(text) is None or re.fullmatch("hel_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", text)


def test_the_secret_is_nowhere_in_the_store(store):
    row, token = Keys(store).create("x", "admin")
    kept = store._rows(api_keys.select())[0]
    secret = token.split("_", 2)[2]
    assert secret not in json.dumps(kept) and token not in json.dumps(kept)
    assert kept["hash"] == split_token(token)[1] and len(kept["hash"]) == 64
    assert "hash" not in row and row["key_id"] in token


# Making


@pytest.mark.parametrize("wrong", [
    {"name": ""}, {"name": " x"}, {"name": "a\nb"}, {"name": "a\0"}, {"name": "x" * 101}, {"name": "\u2028"}, {"name": "\ud800"},
    {"role": "root"}, {"role": ""}, {"scopes": ("Draws",)}, {"scopes": ("a b",)}, {"scopes": ("x" * 41,)},
    {"expires_days": 0}, {"expires_days": -1}, {"expires_days": 10**9},
])
def test_what_cannot_be_is_refused(wrong):
    with MemoryStore(":memory:") as store, pytest.raises((KeysError, StoreError)):
        Keys(store).create(**{"name": "x"} | wrong)


def test_names_of_all_languages(store):
    for name in ("Žofie", "夜の保存", "a'; DROP TABLE api_keys; --", "x" * 100):
        row, token = Keys(store).create(name)
        assert row["name"] == name and Keys(store).check(token).name == name


# Checking


def test_a_good_key(store):
    keys = Keys(store)
    row, token = keys.create("x", "operator", ("system", "access", "system"), expires_days=1)
    assert keys.check(token) == Caller(row["key_id"], "operator", ("access", "system"), "x", row["expires_at"])


def test_everything_near_a_good_key_is_none(store):
    keys = Keys(store)
    row, token = keys.create("x")
    other = keys.create("y")[1]
    crossed = f"hel_{row['key_id']}_{other.split('_', 2)[2]}"
    near = [crossed, token[:-1], token + "A", token.upper(), token[4:], " " + token, token + "\n", token.replace("hel_", "hel-"), token.split("_", 2)[2], "", "é" * 40, "\udc80"]
    assert [keys.check(text) for text in near] == [None] * len(near)


def test_an_expired_key_ends_while_it_is_remembered(store):
    keys = Keys(store)
    row, token = keys.create("x", expires_days=1)
    assert keys.check(token)
    change(store, row["key_id"], expires_at=ago(seconds=1))
    assert Keys(store).check(token) is None
    keys._cache[row["key_id"]][0]["expires_at"] = ago(seconds=1)
    assert keys.check(token) is None


def test_a_revoked_key_ends_at_once_here_and_within_seconds_elsewhere(store, monkeypatch):
    here, there = Keys(store), Keys(store)
    row, token = here.create("x")
    assert here.check(token) and there.check(token)
    here.revoke(row["key_id"])
    assert here.check(token) is None
    assert there.check(token)  # remembered
    monkeypatch.setattr(keys_module.time, "monotonic", lambda now=keys_module.time.monotonic: now() + CACHE_S)
    assert CACHE_S <= 10 and there.check(token) is None


def test_revoking_is_for_good(store):
    keys = Keys(store)
    row, _ = keys.create("x")
    assert keys.revoke(row["key_id"])["revoked_at"]
    for key_id in (row["key_id"], "0" * 12, "nobody", "' OR 1=1 --", "\0"):
        with pytest.raises(UnknownKey):
            keys.revoke(key_id)


def test_of_many_that_revoke_at_once_one_succeeds(store):
    row, _ = Keys(store).create("x")
    start = threading.Barrier(6)

    def revoke(_):
        start.wait()
        try:
            return bool(Keys(store).revoke(row["key_id"]))
        except UnknownKey:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(revoke, range(6))) == 1


def test_a_request_does_not_wait_for_the_store(store, reads):
    keys = Keys(store)
    _, token = keys.create("x")
    keys.check(token)
    reads.clear()
    for _ in range(50):
        assert keys.check(token)
    assert reads == []


def test_made_up_identifiers_fill_no_memory(store):
    keys = Keys(store)
    good = [keys.create(str(n))[1] for n in range(3)]
    for token in (*good, *(make_token()[1] for _ in range(50))):
        keys.check(token)
    assert len(keys._cache) == 3


def test_where_guessing_is_barred_only_known_keys_are_looked_at(store, reads):
    keys = Keys(store, "the-key-of-the-settings-that-nobody-guesses")
    _, token = keys.create("x")
    reads.clear()
    assert keys.check(token, known_only=True) is None and keys.check(make_token()[1], known_only=True) is None
    assert keys.check("the-key-of-the-settings-that-nobody-guesses", known_only=True) is None
    assert reads == []
    assert keys.check(token) and keys.check("the-key-of-the-settings-that-nobody-guesses")
    assert keys.check(token, known_only=True) and keys.check("the-key-of-the-settings-that-nobody-guesses", known_only=True)


def test_last_used_is_written_now_and_then_only(store):
    row, token = Keys(store).create("x")
    Keys(store).check(token)
    first = Keys(store).get(row["key_id"])["last_used_at"]
    assert first
    for _ in range(5):
        Keys(store).check(token)
    assert Keys(store).get(row["key_id"])["last_used_at"] == first
    change(store, row["key_id"], last_used_at=ago(seconds=LAST_USED_S + 1))
    Keys(store).check(token)
    assert Keys(store).get(row["key_id"])["last_used_at"] > first


def test_a_store_that_can_only_be_read_still_knows_its_keys(path):
    with MemoryStore(path) as store:
        row, token = Keys(store).create("x")
    with MemoryStore(path) as store:
        store.read_only = True
        assert Keys(store).check(token).actor == row["key_id"] and Keys(store).get(row["key_id"])["last_used_at"] is None


def test_every_comparison_of_secrets_takes_constant_time(store, monkeypatch):
    """By construction: with a comparison that knows nobody, no key is good, so nothing else compares; and an unknown key is compared too."""
    keys = Keys(store, "the-key-of-the-settings-that-nobody-guesses")
    _, token = keys.create("x", "admin")
    compared = []
    monkeypatch.setattr(keys_module, "compare_digest", lambda a, b: bool(compared.append((len(a), len(b)))))
    for text in (token, make_token()[1], token[:-1] + "A", "the-key-of-the-settings-that-nobody-guesses"):
        compared.clear()
        assert keys.check(text) is None
        assert compared and {*compared} == {(64, 64)}
    source = (keys_module.__file__ and open(keys_module.__file__, encoding="utf-8").read())
    assert not re.search(r"hash\w*\"?\]?\s*[!=]=", source)


def test_keys_of_the_settings_must_be_long(store):
    for weak in ("admin", "x" * 23, "a b" * 20, "é" * 40, ""):
        with pytest.raises(SettingsError, match="24 and more"):
            Keys(store, weak)


# A start without keys


def test_a_server_that_others_reach_needs_a_key_to_manage_it(store):
    away, keys = Settings(host="0.0.0.0"), Keys(store)
    require_keys_or_loopback(Settings(), store)
    for made in ({"role": "operator"}, {"role": "admin", "scopes": ("system",)}):
        keys.create("x", **made)
        with pytest.raises(SettingsError, match="helios keys create NAME --role admin"):
            require_keys_or_loopback(away, store)
    row, _ = keys.create("boss", "admin", expires_days=1)
    require_keys_or_loopback(away, store)
    change(store, row["key_id"], expires_at=ago(days=1))
    with pytest.raises(SettingsError):
        require_keys_or_loopback(away, store)
    last, _ = keys.create("boss", "admin")
    keys.revoke(last["key_id"])
    for host in ("0.0.0.0", "::", "192.0.2.1", "lab.example"):
        with pytest.raises(SettingsError):
            require_keys_or_loopback(Settings(host=host), store)
    require_keys_or_loopback(Settings(host="0.0.0.0", admin_key="x" * 24), store)
    with pytest.raises(SettingsError, match="guessed"):
        require_keys_or_loopback(Settings(host="0.0.0.0", admin_key="admin"), store)


# Commands


def run(*words, command=keys):
    result = CliRunner().invoke(command, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_key_from_making_to_revoking(home):
    made = run("create", "nightly backup", "--role", "operator", "--expires-days", 30)
    token = re.search(r"hel_\S+", made.output)[0]
    listed = run("list")
    assert made.exit_code == 0 and token not in listed.output and token.split("_")[1] in listed.output
    with MemoryStore(home / DATABASE) as store:
        caller = Keys(store).check(token)
        assert (caller.name, caller.role, caller.scopes) == ("nightly backup", "operator", ())
    assert run("revoke", caller.actor).exit_code == 0
    assert "revoked on" in run("list").output
    with MemoryStore(home / DATABASE) as store:
        assert Keys(store).check(token) is None
        entries = [*AuditTrail(store).entries()]
    assert [(e["actor"], e["action"], e["target"]) for e in entries] == [("shell", "key.create", caller.actor), ("shell", "key.revoke", caller.actor)]
    assert token.split("_", 2)[2] not in json.dumps(entries)


def test_as_json(home):
    made = json.loads(run("create", "x", "--scope", "system", "--scope", "access", "--json", "-").output)
    assert made["key"]["scopes"] == ["access", "system"] and made["token"].startswith(f"hel_{made['key']['key_id']}_")
    assert json.loads(run("list", "--json", "-").output)["keys"] == [made["key"]]


@pytest.mark.parametrize("words, said", [
    (["create", "x", "--scope", "nowhere"], "is no area of the API; use "), (["create", "a\nb"], "control characters"),
    (["revoke", "nobody"], "no key 'nobody'"), (["create", "x", "--role", "root"], "root"), (["create", "x", "--expires-days", "0"], "0"),
])
def test_wrong_words_are_one_line(home, words, said):
    result = run(*words)
    assert result.exit_code == 2 and said in result.output
    if "Usage" not in result.output:
        assert result.output.count("\n") == 1


def test_listing_makes_no_database(home):
    assert "No keys." in run("list").output and not (home / DATABASE).exists()


def test_config_masks_secrets_and_says_where_values_come_from(home, monkeypatch):
    for name in ("HELIOS_ADMIN_KEY", "GEMINI_API_KEY", "REDIS_URL"):
        monkeypatch.setenv(name, "redis://user:pass-word@h/0")
    monkeypatch.setenv("PORT", "8080")
    home.mkdir()
    (home / "helios.toml").write_text("workers = 3\n")
    text, told = run(command=config), json.loads(run("--json", "-", command=config).output)
    assert "pass-word" not in text.output + json.dumps(told)
    rows = {row["name"]: row for row in told["settings"]}
    assert (rows["port"]["value"], rows["port"]["origin"], rows["workers"]["value"]) == (8080, "PORT", 3)
    assert rows["workers"]["origin"].endswith("helios.toml") and rows["admin_key"]["value"] == "set"
    monkeypatch.setenv("HELIOS_WORKERS", "many")
    wrong = run(command=config)
    assert wrong.exit_code == 2 and wrong.output.count("\n") == 1 and "HELIOS_WORKERS" in wrong.output


def test_an_empty_table_of_keys_reads_as_none(store):
    assert Keys(store).list() == [] and not Keys(store).has_admin()
    with pytest.raises(UnknownKey):
        Keys(store).get("a" * 12)
    assert store._rows(sa.select(sa.func.count().label("n")).select_from(api_keys)) == [{"n": 0}]
