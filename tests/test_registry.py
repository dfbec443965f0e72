"""The registry under threads, processes, crashes, bent rows, and against a plain model of what it promises."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helios.memory_store import MemoryStore
from helios.registry import Registry, RegistryError
from helios.tables import model_aliases, model_versions, models
from helios.values import StoreError


def saved(path: Path, content: bytes, **about) -> SimpleNamespace:
    """A file as a registered one looks, without a network in it."""
    path.write_bytes(content)
    sidecar = {
        "format": 1,
        "architecture": {"class": "PowerballNet"},
        **about,
        "weights": {"file": path.name, "sha256": sha256(content).hexdigest(), "bytes": len(content)},
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return SimpleNamespace(path=path, sidecar=sidecar)


def add(registry: Registry, name: str = "net", content: bytes | None = None, **facts) -> dict:
    version, path = registry.next_file(name)
    file = saved(path, b"%s %d" % (name.encode(), version) if content is None else content, name=name, version=version)
    return registry.register(file, name=name, version=version, **facts)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    """One test, both databases."""
    place = tmp_path / "memory.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with MemoryStore(place) as store:
        yield store


@pytest.fixture
def registry(store, tmp_path) -> Registry:
    return Registry(store, tmp_path)


def moves(registry: Registry, name: str = "net", alias: str = "champion") -> list[tuple]:
    return [(move["from"], move["to"]) for move in registry.history(name, alias)]


# ---- versions


def test_versions_count_from_one_and_the_first_is_champion(registry):
    rows = [
        add(
            registry,
            config={"seed": n},
            data={"n": 9},
            metrics={"skill": 0.1},
            evaluation={"skill_nats": 0.1},
            job_id=f"job-{n}",
            notes=f"note {n}",
            tags=["spring", "a b"],
            parent="net@1" if n else None,
        )
        for n in range(3)
    ]
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert [row["aliases"] for row in map(registry.get, ("net@1", "net@2", "net@3"))] == [["champion"], [], []]
    last = registry.get("net@latest")
    assert (last["config"], last["parent"], last["job_id"], last["tags"], last["notes"]) == (
        {"seed": 2},
        "net@1",
        "job-2",
        ["a b", "spring"],
        "note 2",
    )
    assert last["code_version"] and last["about"]["version"] == 3
    assert Path(last["file_path"]) == registry.home / "models" / "net-v3.safetensors"
    assert registry.store.get_model_metadata("net")["version"] == "3"
    assert moves(registry) == [(None, 1)]


def test_a_champion_of_simulated_draws_gives_way_to_the_first_of_real_ones(registry):
    for simulated in (True, True, None, False, False, True):
        add(registry, data=None if simulated is None else {"simulated": simulated})
    assert moves(registry) == [(None, 1), (1, 4)] and "real ones" in registry.history("net")[-1]["why"]
    registry.set_alias("net", "champion", 6)
    add(registry, name="other", data={"simulated": False})
    assert registry.get("net")["version"] == 6
    add(registry, data={"simulated": False})
    assert registry.get("net")["version"] == 7


def test_registering_the_same_file_again_gives_the_same_version(registry):
    first = add(registry, job_id="j", content=b"same")
    again = registry.register(
        SimpleNamespace(path=Path(first["file_path"]), sidecar=first["about"]),
        name="net",
        version=1,
        notes="late",
        metrics={"skill": 1},
        tags=["late"],
    )
    assert (again["version"], again["notes"], again["metrics"], again["tags"]) == (1, "late", {"skill": 1}, ["late"])
    resumed = add(registry, job_id="j", content=b"same", notes="not this one")
    assert (resumed["version"], resumed["notes"]) == (1, "late")
    assert add(registry, job_id="j", content=b"other")["version"] == 3  # one job may make several models
    assert add(registry, content=b"same")["version"] == 4  # without a job, equal weights are two models


def test_a_crash_between_file_and_row_leaves_nothing_that_breaks(registry):
    add(registry)
    _, claimed = registry.next_file("net")  # dies at once
    _, path = registry.next_file("net")
    saved(path, b"x")  # dies before its row
    assert [row["version"] for row in registry.versions("net")] == [1]
    assert claimed.stat().st_size == 0
    assert add(registry)["version"] == 4
    fresh = Registry(registry.store, registry.home)
    assert [row["version"] for row in fresh.versions("net")] == [4, 1]
    assert fresh.adopt("net") == ["net@3"]  # asked for, what is whole is entered; the empty file is not


def test_numbers_are_not_given_again_after_the_database_went_back(registry):
    add(registry)
    saved(registry.home / "models" / "net-v2.safetensors", b"from the future")
    assert add(registry)["version"] == 3
    assert registry.read("net@2")[1].read_bytes() == b"from the future"  # nor is it lost
    registry.delete("net@3")
    registry.purge("net@3")
    assert add(registry)["version"] == 4


def test_what_is_not_the_saved_file_is_not_registered(registry, tmp_path):
    version, path = registry.next_file("net")
    file = saved(path, b"weights")

    def enter(file, **changes):
        return registry.register(file, **({"name": "net", "version": version} | changes))

    with pytest.raises(RegistryError, match="is not the file of net@"):
        enter(saved(tmp_path / "net-v1.safetensors", b"elsewhere"))
    with pytest.raises(RegistryError, match="is not the file of net@"):
        enter(file, version=2)
    with pytest.raises(RegistryError, match="differ"):
        enter(SimpleNamespace(path=path, sidecar=file.sidecar | {"shrink": 1}))
    path.write_bytes(b"Weights")
    with pytest.raises(RegistryError, match="differ"):
        enter(file)
    path.write_bytes(b"weights")
    with pytest.raises(RegistryError, match="use up to 64 letters"):
        enter(file, name="../net")
    with pytest.raises(RegistryError, match="no model is named 'other'"):
        enter(file, parent="other@1")
    with pytest.raises(RegistryError, match="visible characters"):
        enter(file, tags=["a,b"])
    with pytest.raises(StoreError, match="metrics.loss is nan"):
        enter(file, metrics={"loss": float("nan")})
    with registry.store._transaction() as conn:
        assert conn.execute(model_versions.select()).all() == []
    assert enter(file)["version"] == 1
    path.write_bytes(b"another")
    with pytest.raises(RegistryError, match="another model already"):
        enter(saved(path, b"another"))


def test_a_version_without_weights_of_its_own(registry):
    version, path = registry.next_file("mix", ".json")
    sidecar = {"format": 1, "architecture": {"class": "Abacus"}, "parts": ["net@1"]}
    path.write_text(json.dumps(sidecar))
    row = registry.register(SimpleNamespace(path=path, sidecar=sidecar), name="mix", version=version)
    assert (row["architecture"], row["sha256"]) == ("Abacus", sha256(path.read_bytes()).hexdigest())
    assert registry.read("mix")[1] == path
    with pytest.raises(RegistryError, match="mix@1 is a Abacus, which is not loaded here; known are PowerballNet"):
        registry.load("mix")
    assert registry.next_file("mix")[0] == 2


# ---- aliases


def test_rollback_goes_further_back_each_time_and_passes_over_what_is_gone(registry):
    for _ in range(5):
        add(registry)
    for version in (2, 3, 4, 5):
        registry.set_alias("net", "champion", version)
    registry.delete("net@4")
    registry.delete("net@2")
    registry.purge("net@2")
    assert registry.rollback("net", why="worse on new draws")["to"] == 3
    assert registry.rollback("net")["to"] == 1
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("net")
    assert registry.get("net")["version"] == 1
    registry.set_alias("net", "champion", 5)
    assert registry.rollback("net")["to"] == 1  # a new move starts from where it is
    last = registry.store.get_enhanced_journal_entries("net", "alias_moved")[0]["event_data"]
    assert last == {"alias": "champion", "from": 5, "to": 1, "why": None, "kind": "rolled_back"}


def test_rollback_of_a_model_that_is_not_there(registry):
    with pytest.raises(RegistryError, match="no model is named 'nope'"):
        registry.rollback("nope")


def test_rollback_to_a_version_it_had(registry):
    for _ in range(4):
        add(registry)
    for version in (2, 3):
        registry.set_alias("net", "champion", version)
    assert registry.rollback("net", to=1)["to"] == 1
    for never in (4, 3, 9):
        with pytest.raises(RegistryError, match=f"not pointed at version {never} before"):
            registry.rollback("net", to=never)


def test_rollback_of_a_removed_alias_and_with_a_lost_journal(registry):
    for _ in range(3):
        add(registry)
    registry.remove_alias("net", "champion")
    assert registry.get("net")["version"] == 3  # without a champion, the newest
    assert registry.rollback("net")["to"] == 1
    with registry.store._transaction("write") as conn:
        conn.execute(sa.text("DELETE FROM enhanced_journal"))
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("net")
    registry.set_alias("net", "champion", 2)  # its entry says where it came from
    assert registry.rollback("net")["to"] == 1


def test_a_move_to_where_it_is_is_none(registry):
    add(registry)
    registry.set_alias("net", "champion", 1)
    assert moves(registry) == [(None, 1)]


def test_aliases_of_aliases_are_numbers_at_once(registry):
    for _ in range(2):
        add(registry)
    registry.set_alias("net", "challenger", "latest")
    add(registry)
    registry.set_alias("net", "champion", "challenger")
    assert registry.aliases("net") == {"challenger": 2, "champion": 2}
    assert [row["version"] for row in registry.search(alias="champion")] == [2]


# ---- deleting


def test_delete_restore_purge(registry):
    for _ in range(2):
        add(registry)
    with pytest.raises(RegistryError, match="move the alias first"):
        registry.delete("net@1")
    for vague in ("net", "net@latest", "net@champion"):
        for act in (registry.delete, registry.restore, registry.purge):
            with pytest.raises(RegistryError, match="say which version"):
                act(vague)
    with pytest.raises(RegistryError, match="in use; delete it first"):
        registry.purge("net@2")
    registry.delete("net@2")
    assert registry.store.get_model_metadata("net")["version"] == "1"
    for act in (registry.load, lambda ref: registry.set_alias("net", "x", 2)):
        with pytest.raises(RegistryError, match="bring it back first: helios models restore net@2"):
            act("net@2")
    assert registry.restore("net@2")["deleted_at"] is None
    registry.delete("net@2")
    assert registry.purge("net@2")["purged_at"]
    for act in (registry.restore, registry.load):
        with pytest.raises(RegistryError, match="was purged"):
            act("net@2")
    assert sorted(path.name for path in (registry.home / "models").iterdir()) == ["net-v1.json", "net-v1.safetensors"]
    assert [row["ref"] for row in registry.search(deleted=True)] == ["net@2", "net@1"]
    said = [
        (row["event_type"], row["event_data"]["version"])
        for row in registry.store.get_enhanced_journal_entries("net")
        if row["event_type"] != "alias_moved"
    ]
    assert said == [("version_purged", 2), ("version_deleted", 2), ("version_restored", 2), ("version_deleted", 2)]
    registry.remove_alias("net", "champion")
    registry.delete("net@1")
    assert registry.store.get_model_metadata("net")["is_active"] is False
    with pytest.raises(RegistryError, match="there is no net"):
        registry.get("net")


@pytest.mark.parametrize(
    "bent",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "models/../models/net-v1.safetensors",
        "models/net-v2.safetensors",
        "",
        "models/net-v1.safetensors.json",
        "models\\net-v1.safetensors",
        "jobs/net-v1.safetensors",
        "models/sub/net-v1.safetensors",
    ],
)
def test_a_bent_path_is_neither_read_nor_deleted(tmp_path, bent):
    with MemoryStore(":memory:") as store:
        registry = Registry(store, tmp_path)
        for _ in range(2):
            add(registry)
        registry.set_alias("net", "champion", 2)
        for state, acts in ((None, (registry.load, registry.read, registry.delete)), ("2026-01-01", (registry.purge,))):
            with store._transaction("write") as conn:
                conn.execute(
                    model_versions.update()
                    .where(model_versions.c.version == 1)
                    .values(file_path=bent, deleted_at=state)
                )
            for act in acts:
                with pytest.raises(RegistryError, match="which is not its own"):
                    act("net@1")
        assert len(list((tmp_path / "models").iterdir())) == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_link_in_place_of_a_file_is_neither_read_nor_deleted(tmp_path, suffix):
    with MemoryStore(":memory:") as store:
        registry = Registry(store, tmp_path)
        for _ in range(2):
            add(registry)
        path = (tmp_path / "models" / "net-v2").with_suffix(suffix)
        os.replace(path, tmp_path / "precious")
        path.symlink_to(tmp_path / "precious")
        for act in (registry.load, registry.delete):
            with pytest.raises(RegistryError, match="is a link"):
                act("net@2")
        with store._transaction("write") as conn:
            conn.execute(model_versions.update().values(deleted_at="2026-01-01"))
        with pytest.raises(RegistryError, match="is a link"):
            registry.purge("net@2")
        assert (tmp_path / "precious").exists()


def test_the_folder_of_models_may_be_elsewhere(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "big disk")
    with MemoryStore(":memory:") as store:
        registry = Registry(store, tmp_path)
        add(registry)
        assert registry.read("net")[0]["version"] == 1


def test_a_home_can_be_moved(tmp_path):
    (tmp_path / "old").mkdir()
    with MemoryStore(tmp_path / "old" / "memory.db") as store:
        add(Registry(store, tmp_path / "old"))
    os.replace(tmp_path / "old", tmp_path / "new")
    with MemoryStore(tmp_path / "new" / "memory.db") as store:
        assert Registry(store, tmp_path / "new").read("net")[1] == tmp_path / "new" / "models" / "net-v1.safetensors"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda path: path.write_bytes(b"net 2"), "registered was"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.with_suffix(".json").unlink(), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "was changed at"),
        (lambda path: path.with_suffix(".json").write_text("[" * 3), "cannot be read"),
    ],
)
def test_files_that_changed_are_refused(tmp_path, change, said):
    with MemoryStore(":memory:") as store:
        registry = Registry(store, tmp_path)
        change(Path(add(registry)["file_path"]))
        with pytest.raises(RegistryError, match=said):
            registry.load("net")


def test_a_network_comes_back_with_its_weights(tmp_path):
    import torch

    from helios.net import PowerballNet
    from helios.weights import save_model

    torch.manual_seed(0)
    net = PowerballNet(hidden=16, layers=1, heads=4)
    with MemoryStore(":memory:") as store:
        registry = Registry(store, tmp_path)
        version, path = registry.next_file("net")
        registry.register(save_model(net, path, {"name": "net", "shrink": (1, 2)}), name="net", version=version)
        loaded, file = registry.load("net")
        assert all(map(torch.equal, loaded.state_dict().values(), net.state_dict().values()))
        assert file.path == path


# ---- finding


def test_search_and_compare(registry):
    add(registry, config={"hidden": 16, "net": {"layers": 1}}, tags=["spring"], notes="für den Mai")
    add(registry, config={"hidden": 256, "net": {"layers": 1}}, notes="100% done")
    add(registry, "other", config={"hidden": 16, "net": {"layers": 2}})

    def found(*args, **more):
        return [row["ref"] for row in registry.search(*args, **more)]

    assert found() == ["other@1", "net@2", "net@1"]
    assert found("HIDDEN=16") == ["other@1", "net@1"]
    assert found("FÜR") == ["net@1"] and found("spri") == ["net@1"] and found("other") == ["other@1"]
    assert found("%") == ["net@2"] and found("_") == []  # no wild cards
    assert found(tag="spring") == ["net@1"] and found("hidden=16", tag="spring", alias="champion") == ["net@1"]
    assert found(limit=1) == ["other@1"] and found(name="net", limit=1) == ["net@2"]
    with pytest.raises(StoreError, match="limit is 0"):
        registry.search(limit=0)
    differs = registry.compare("net@1", "net@2", "other")["differs"]
    assert differs["config.hidden"] == [16, 256, 16] and differs["config.net.layers"] == [1, 1, 2]
    assert differs["notes"] == ["für den Mai", "100% done", None]
    assert "architecture" not in differs and "about.architecture.class" not in differs
    assert registry.compare("net@1", "net@1") == {"versions": ["net@1", "net@1"], "differs": {}}


def test_many_models_are_found_at_once(tmp_path):
    """One statement for what belongs to a version, however many there are."""
    with MemoryStore(":memory:") as store:
        registry = Registry(store, tmp_path)
        add(registry, tags=["t"])
        with store._transaction("write") as conn:
            conn.execute(
                model_versions.insert(),
                [{"model_name": f"m{n}", "version": 1, "architecture": "PowerballNet"} for n in range(3000)],
            )
        assert len(registry.search(limit=10_000)) == 3001
        assert [row["ref"] for row in registry.search(tag="t")] == ["net@1"]


# ---- before the registry


def test_models_from_before_the_registry_are_adopted(store, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    about = {
        "config": {"epochs": 3},
        "data": {"n": 7},
        "evaluation": {"skill_nats": 0.1},
        "job_id": "old",
        "helios": "0.0.9",
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    for name, version in (("powerball", 1), ("powerball", 3), ("a-v2", 7)):
        saved(folder / f"{name}-v{version}.safetensors", b"%d" % version, name=name, version=version, **about)
    (folder / "powerball-v4.safetensors").touch()  # claimed by a run that died
    (folder / "broken-v1.json").write_text("{")
    (folder / "odd name-v1.json").write_text("{}")
    store.save_model_metadata("powerball", folder / "powerball-v3.safetensors", "PowerballNet", "3", about)
    registry = Registry(store, tmp_path)
    row = registry.get("powerball")
    assert (row["version"], row["config"], row["code_version"], row["job_id"], row["aliases"]) == (
        3,
        {"epochs": 3},
        "0.0.9",
        "old",
        ["champion"],
    )
    assert row["created_at"] == "2026-01-02T03:04:05.000000+00:00"
    assert registry.read("powerball@1")[0]["version"] == 1
    assert [row["ref"] for row in registry.search()] == ["a-v2@7", "powerball@3", "powerball@1"]
    assert store.get_model_metadata("powerball")["version"] == "3"
    assert add(registry, "powerball")["version"] == 5
    assert registry.get("powerball")["version"] == 3  # and stays what is used
    assert [row["ref"] for row in Registry(store, tmp_path).search(name="powerball")] == [
        "powerball@5",
        "powerball@3",
        "powerball@1",
    ]


def test_what_another_adopted_in_between_is_completed(registry):
    version, path = registry.next_file("net")
    file = saved(path, b"x", job_id="j")
    assert Registry(registry.store, registry.home).get("net")["version"] == 1  # another process looks just now
    row = registry.register(
        file, name="net", version=version, notes="mine", job_id="j", tags=["t"], metrics={"skill": 1}
    )
    assert (row["version"], row["notes"], row["metrics"], row["tags"], row["aliases"]) == (
        1,
        "mine",
        {"skill": 1},
        ["t"],
        ["champion"],
    )


# ---- many at once

WORKER = """
import json, sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from helios.memory_store import MemoryStore
from helios.registry import Registry
place, home, me, times = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with MemoryStore(place) as store:
    registry = Registry(store, home)
    for n in range(times):
        version, path = registry.next_file("net")
        content = f"{me} {n}".encode()
        path.write_bytes(content)
        sidecar = {"architecture": {"class": "PowerballNet"}, "weights": {"sha256": sha256(content).hexdigest()}}
        path.with_suffix(".json").write_text(json.dumps(sidecar))
        registry.register(SimpleNamespace(path=path, sidecar=sidecar), name="net", version=version, notes=f"{me} {n}")
        registry.set_alias("net", "newest", version, me)
"""


def test_processes_share_the_numbers(store, tmp_path):
    place = store.url.render_as_string(hide_password=False) if store.dialect == "postgresql" else store.place
    args = [sys.executable, "-c", WORKER, place, str(tmp_path)]
    workers = [subprocess.Popen([*args, str(me), "8"], stderr=subprocess.PIPE, text=True) for me in range(3)]
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
    registry = Registry(store, tmp_path)
    rows = registry.versions("net")
    assert [row["version"] for row in rows] == list(range(24, 0, -1))
    assert {row["notes"] for row in rows} == {f"{me} {n}" for me in range(3) for n in range(8)}
    assert all(registry.read(row["ref"])[1].read_bytes().decode() == row["notes"] for row in rows)
    history = moves(registry, alias="newest")
    assert [was for was, _ in history[1:]] == [now for _, now in history[:-1]] and len(history) == 24
    assert moves(registry)[0][0] is None and len(moves(registry)) == 1


def test_what_a_killed_process_registered_is_there(tmp_path):
    """kill -9 at any point: each version it spoke of is whole, and the next process goes on."""
    worker = WORKER + "        print(version, flush=True)\n"
    for round_ in range(4):
        args = [sys.executable, "-c", worker, str(tmp_path / "memory.db"), str(tmp_path), f"round {round_}", "10000"]
        with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
            spoken = [int(process.stdout.readline()) for _ in range(5 + 7 * round_)]
            time.sleep(0.003 * round_)
            process.kill()
            spoken += [int(line) for line in process.stdout if line.endswith("\n")]
        with MemoryStore(tmp_path / "memory.db") as store:
            registry = Registry(store, tmp_path)
            rows = {row["version"]: row for row in registry.versions("net")}
            assert set(spoken) <= set(rows) and len(spoken) == len(set(spoken))
            for row in rows.values():
                assert registry.read(row["ref"])[1].read_bytes().decode() == row["notes"]
            assert registry.aliases("net")["newest"] in (max(rows), spoken[-1])
            history = moves(registry, alias="newest")
            assert [was for was, _ in history[1:]] == [now for _, now in history[:-1]]


def test_threads_move_and_read_an_alias(registry):
    for _ in range(4):
        add(registry)
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            row, found = registry.get("net@champion"), registry.get("net")
            seen.append("champion" in row["aliases"] and "champion" in found["aliases"])

    def move(me):
        for n in range(15):
            registry.set_alias("net", "champion", 1 + (me + n) % 4) if n % 5 else _try(registry.rollback, "net")

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for mover in [pool.submit(move, me) for me in range(4)]:
            mover.result()
        stop.set()
        for reader in readers:
            reader.result()
    assert seen and all(seen)
    history = moves(registry)
    assert [was for was, _ in history[1:]] == [now for _, now in history[:-1]]
    assert history[-1][1] == registry.get("net@champion")["version"]


def _try(act, *args):
    try:
        return act(*args)
    except RegistryError:
        return None


def test_a_delete_and_a_move_at_once_never_leave_an_alias_on_what_is_deleted(registry):
    for _ in range(2):
        add(registry)
    for _ in range(10):
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(_try, registry.delete, "net@2"), pool.submit(_try, registry.set_alias, "net", "x", 2)]
            done = [one.result() is not None for one in both]
        assert sorted(done) == [False, True]
        assert (registry.get("net@2")["deleted_at"] is None) == (registry.aliases("net").get("x") == 2)
        if done[0]:
            registry.restore("net@2")
        else:
            registry.remove_alias("net", "x")


# ---- against a plain model

NAMES, ALIASES = st.sampled_from(["net", "other"]), st.sampled_from(["champion", "shadow"])


class Machine(RuleBasedStateMachine):
    """Any sequence of operations; what the registry says must be what a few dicts say."""

    def __init__(self):
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = MemoryStore(":memory:")
        self.registry = Registry(self.store, Path(self.folder.name))
        self.rows, self.stacks = {"net": {}, "other": {}}, {}

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    def at(self, name, alias):
        return self.stacks.get((name, alias), [None])[-1]

    def pointed(self, name):
        return {self.at(name, alias) for alias in ("champion", "shadow")}

    def live(self, name):
        return {v for v, row in self.rows[name].items() if row["state"] == "live"}

    @rule(name=NAMES, tags=st.sets(st.sampled_from("abc")))
    def register(self, name, tags):
        version = add(self.registry, name, tags=tuple(tags))["version"]
        assert version == len(self.rows[name]) + 1
        if version == 1:
            self.stacks[name, "champion"] = [1]
        self.rows[name][version] = {"state": "live", "tags": set(tags), "notes": None}

    @rule(name=NAMES, alias=ALIASES, version=st.integers(1, 6))
    def set_alias(self, name, alias, version):
        if version in self.live(name):
            self.registry.set_alias(name, alias, version)
            if self.at(name, alias) != version:
                self.stacks.setdefault((name, alias), []).append(version)
        else:
            with pytest.raises(RegistryError):
                self.registry.set_alias(name, alias, version)

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name, alias):
        if self.at(name, alias):
            self.registry.remove_alias(name, alias)
            self.stacks[name, alias].append(None)
        else:
            with pytest.raises(RegistryError):
                self.registry.remove_alias(name, alias)

    @rule(name=NAMES, alias=ALIASES)
    def rollback(self, name, alias):
        stack = self.stacks.get((name, alias), [])
        fits = [i for i, v in enumerate(stack[:-1]) if v in self.live(name) and v != stack[-1]]
        if fits:
            assert self.registry.rollback(name, alias)["to"] == stack[fits[-1]]
            del stack[fits[-1] + 1 :]
        else:
            with pytest.raises(RegistryError):
                self.registry.rollback(name, alias)

    @rule(name=NAMES, version=st.integers(1, 6))
    def delete(self, name, version):
        row = self.rows[name].get(version)
        if row and version not in self.pointed(name):
            self.registry.delete(f"{name}@{version}")
            if row["state"] == "live":
                row["state"] = "deleted"
        else:
            with pytest.raises(RegistryError):
                self.registry.delete(f"{name}@{version}")

    @rule(name=NAMES, version=st.integers(1, 6))
    def restore(self, name, version):
        row = self.rows[name].get(version)
        if row and row["state"] != "purged":
            self.registry.restore(f"{name}@{version}")
            row["state"] = "live"
        else:
            with pytest.raises(RegistryError):
                self.registry.restore(f"{name}@{version}")

    @rule(name=NAMES, version=st.integers(1, 6))
    def purge(self, name, version):
        row = self.rows[name].get(version)
        if row and row["state"] != "live":
            self.registry.purge(f"{name}@{version}")
            row["state"] = "purged"
        else:
            with pytest.raises(RegistryError):
                self.registry.purge(f"{name}@{version}")

    @precondition(lambda self: self.rows["net"])
    @rule(
        tag=st.sampled_from("abc"),
        note=st.one_of(
            st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
        ),
        data=st.data(),
    )
    def describe(self, tag, note, data):
        version = data.draw(st.sampled_from(sorted(self.rows["net"])))
        row = self.rows["net"][version]
        if tag in row["tags"]:
            self.registry.untag(f"net@{version}", tag)
        else:
            self.registry.tag(f"net@{version}", tag, tag)
        self.registry.note(f"net@{version}", note)
        row["tags"] ^= {tag}
        row["notes"] = note

    @invariant()
    def agrees(self):
        files = set()
        for name, rows in self.rows.items():
            said = {row["version"]: row for row in self.registry.versions(name, deleted=True)}
            assert said.keys() == rows.keys()
            for version, row in rows.items():
                state = "purged" if said[version]["purged_at"] else "deleted" if said[version]["deleted_at"] else "live"
                assert (state, set(said[version]["tags"]), said[version]["notes"]) == (
                    row["state"],
                    row["tags"],
                    row["notes"],
                )
                if state != "purged":
                    files |= {f"{name}-v{version}.safetensors", f"{name}-v{version}.json"}
            assert self.registry.aliases(name) == {a: v for a in ("champion", "shadow") if (v := self.at(name, a))}
            champion, live = self.at(name, "champion"), self.live(name)
            if live:
                assert self.registry.get(name)["version"] == (champion or max(live))
            entry = self.store.get_model_metadata(name)
            assert (entry and (entry["is_active"], entry["is_active"] and int(entry["version"]))) == (
                (bool(live), bool(live) and max(live)) if rows else None
            )
        folder = Path(self.folder.name) / "models"
        assert {path.name for path in folder.glob("*")} == files


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase


def test_tables_of_the_registry_are_what_they_were(registry):
    """A row that another program deleted leaves readable rows behind."""
    add(registry)
    with registry.store._transaction("write") as conn:
        conn.execute(models.delete())
        conn.execute(model_aliases.delete())
    assert registry.get("net")["version"] == 1
    assert add(registry)["version"] == 2


def test_a_purge_that_could_not_remove_can_be_repeated(registry):
    row = add(registry)
    registry.remove_alias("net", "champion")
    registry.delete("net@1")
    with patch.object(Path, "unlink", side_effect=OSError(13, "Permission denied")), pytest.raises(StoreError, match="could not be removed .*; purge it again"):
        registry.purge("net@1")
    assert Path(row["file_path"]).exists() and registry.get("net@1")["purged_at"]
    assert registry.purge("net@1")["purged_at"] == registry.get("net@1")["purged_at"]
    assert list((registry.home / "models").iterdir()) == []
    assert registry.purge("net@1")["ref"] == "net@1"


def test_a_member_of_an_ensemble_stays(registry):
    rows = [add(registry, name) for name in ("net", "net", "net", "a_b")]
    version, path = registry.next_file("mix", ".json")
    sidecar = {"architecture": {"class": "Mixture"}, "members": [{"ref": "net@2", "sha256": rows[1]["sha256"]}, {"ref": "a_b@1", "sha256": "0" * 64}]}
    path.write_text(json.dumps(sidecar))
    registry.register(SimpleNamespace(path=path, sidecar=sidecar), name="mix", version=version)
    registry.remove_alias("a_b", "champion")
    registry.delete("a_b@1")  # another file than the member was
    registry.delete("net@3")
    said = "net@2 is a member of the ensemble mix@1; delete that first: helios models delete mix@1$"
    with pytest.raises(RegistryError, match=said):
        registry.delete("net@2")
    registry.remove_alias("mix", "champion")
    registry.delete("mix@1")
    registry.delete("net@2")
    with pytest.raises(RegistryError, match="mix@1 needs its member net@2: net@2 is deleted; bring it back first"):
        registry.restore("mix@1")
    with pytest.raises(RegistryError, match="net@2 is a member of the deleted ensemble mix@1, which could be restored; purge that first: helios models purge mix@1 --yes$"):
        registry.purge("net@2")
    assert registry.get("net@2")["purged_at"] is None and Path(rows[1]["file_path"]).exists()
    registry.purge("mix@1")
    assert registry.purge("net@2")["purged_at"]
