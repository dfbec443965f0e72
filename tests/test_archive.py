"""Attacks on `import_file`: whatever is not exactly an export is refused in one line, and leaves no file and no row."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios import archive
from helios.archive import CHECKS, MANIFEST, SIDECAR, WEIGHTS, ArchiveError, Registry, pack, unpack
from helios.memory_store import MemoryStore
from helios.net import PowerballNet
from helios.registry import RegistryError
from helios.tables import context_storage, model_versions
from helios.values import StoreError
from helios.weights import save_model


def registry_in(home: Path) -> Registry:
    return Registry(MemoryStore(":memory:"), home)


def add(registry: Registry, name: str = "net", seed: int = 0, **facts) -> dict:
    torch.manual_seed(seed)
    version, path = registry.next_file(name)
    file = save_model(
        PowerballNet(hidden=8, layers=1, heads=2, sequence_length=5),
        path,
        {"name": name, "version": version, "shrink": {"white": 0.5, "powerball": 1.0}},
    )
    return registry.register(file, name=name, version=version, config={"seed": seed}, **facts)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("export")
    registry = registry_in(folder)
    add(
        registry,
        metrics={"skill": 0.1},
        evaluation={"skill_nats": 0.1},
        data={"n": 9, "last": "2026-01-01"},
        notes="a note",
        tags=["one", "two"],
        job_id="j",
    )
    registry.export("net", folder / "net.helios")
    return (folder / "net.helios").read_bytes()


def parts_of(data: bytes) -> tuple[dict, dict, bytes]:
    parts = unpack(data)
    return json.loads(bytes(parts[MANIFEST])), json.loads(bytes(parts[SIDECAR])), bytes(parts[WEIGHTS])


def forged(manifest: dict, about: dict | bytes, weights: bytes | None, **changes) -> bytes:
    """An archive whose every checksum is right, as a forger would make it."""
    if isinstance(about, dict):
        if weights is not None:
            about = about | {"weights": about["weights"] | {"sha256": sha256(weights).hexdigest()}}
        about = json.dumps(about).encode()
    parts = [(SIDECAR, about)] + ([(WEIGHTS, weights)] if weights is not None else [])
    members = {name: {"bytes": len(part), "sha256": sha256(part).hexdigest()} for name, part in parts}
    manifest = json.dumps(manifest | {"members": members} | changes).encode()
    return pack([(name.encode(), part) for name, part in [(MANIFEST, manifest), *parts]])


@pytest.fixture
def refused(tmp_path):
    """A function that imports, and looks at what is left of it."""
    registry, path = registry_in(tmp_path / "home"), tmp_path / "some.helios"

    def look(data: bytes | Path, match: str = "refused; ") -> str:
        if isinstance(data, bytes):
            path.write_bytes(data)
        with pytest.raises(ArchiveError, match=match) as caught:
            registry.import_file(path if isinstance(data, bytes) else data)
        with registry.store._transaction() as conn:
            assert conn.execute(model_versions.select()).all() == conn.execute(context_storage.select()).all() == []
        assert not (tmp_path / "home").exists()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        return str(caught.value)

    yield look
    registry.store.close()


# ---- what goes through


def test_a_model_goes_out_and_in(tmp_path, good):
    path = tmp_path / "net.helios"
    path.write_bytes(good)
    registry = registry_in(tmp_path)
    row = registry.import_file(path)
    assert (row["imported"], row["ref"], row["aliases"], row["tags"], row["notes"], row["config"]) == (
        True,
        "net@1",
        ["champion"],
        ["one", "two"],
        "a note",
        {"seed": 0},
    )
    assert (row["metrics"], row["evaluation"]) == ({"imported": {"skill": 0.1}}, {"imported": {"skill_nats": 0.1}})
    assert (
        row["parent"],
        row["job_id"],
        row["about"]["imported_from"]["name"],
        row["about"]["imported_from"]["version"],
    ) == (None, None, "net", 1)
    assert registry.load("net")[1].sidecar["shrink"] == {"white": 0.5, "powerball": 1.0}
    assert [registry.import_file(path)["imported"] for _ in range(2)] == [False, False]
    assert registry.import_file(path, again=True)["ref"] == "net@2"
    assert registry.load("net@2")[1].sidecar["version"] == 2
    assert registry.import_file(path, "other")["ref"] == "other@1"
    add(registry, "third", seed=1)
    assert registry.import_file(path, "third")["ref"] == "third@2"
    assert registry.get("third")["version"] == 1
    with pytest.raises(RegistryError, match="use up to 64 letters"):
        registry.import_file(path, "../third")
    registry.store.close()


def test_what_was_exported_here_is_here(tmp_path):
    registry = registry_in(tmp_path)
    for seed in range(2):
        add(registry, seed=seed)
    registry.export("net@2", tmp_path / "a")
    assert (registry.import_file(tmp_path / "a")["imported"], registry.import_file(tmp_path / "a")["ref"]) == (
        False,
        "net@2",
    )
    registry.delete("net@2")
    row = registry.import_file(tmp_path / "a")
    assert (row["imported"], row["deleted_at"] is None) == (False, False)
    registry.purge("net@2")
    assert registry.import_file(tmp_path / "a")["ref"] == "net@3"  # what was purged comes back under a new number
    registry.store.close()


def test_an_import_can_be_exported_again(tmp_path, good):
    registries = [registry_in(tmp_path / str(n)) for n in range(3)]
    path = tmp_path / "net.helios"
    path.write_bytes(good)
    for registry in registries:
        assert registry.import_file(path)["imported"]
        assert registry.import_file(path)["imported"] is False
        registry.export("net", path)
    assert len({registry.get("net")["sha256"] for registry in registries}) == 1
    for registry in registries:
        registry.store.close()


def test_the_same_version_gives_the_same_bytes(tmp_path, good):
    code = (
        "import sys; from pathlib import Path; from helios.archive import Registry; from helios.memory_store import MemoryStore\n"
        "with MemoryStore(sys.argv[1] + '/m.db') as store: print(Registry(store, Path(sys.argv[1])).export('net', sys.argv[1] + '/' + sys.argv[2])['sha256'])"
    )
    with MemoryStore(tmp_path / "m.db") as store:
        registry = Registry(store, tmp_path)
        add(registry, tags=["b", "a"])
        first = registry.export("net", tmp_path / "first")["sha256"]
        registry.set_alias("net", "shadow", 1)
        assert registry.export("net@1", tmp_path / "second")["sha256"] == first
    for n in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), n],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": n, "TZ": "Asia/Tokyo"},
        )
        assert said.stdout.strip() == first
    with zipfile.ZipFile(tmp_path / "first") as z:
        assert (z.testzip(), z.namelist()) == (None, [MANIFEST, SIDECAR, WEIGHTS])


def test_what_an_export_refuses(tmp_path):
    registry = registry_in(tmp_path)
    for seed in range(2):
        add(registry, seed=seed)
    with pytest.raises(ArchiveError, match="keeps for itself"):
        registry.export("net", tmp_path / "models" / "net-v1.safetensors")
    with pytest.raises(ArchiveError, match="cannot be written"):
        registry.export("net", tmp_path / "models" / ".." / "..")
    registry.delete("net@2")
    with pytest.raises(RegistryError, match="bring it back first"):
        registry.export("net@2", tmp_path / "x")
    Path(registry.get("net@1")["file_path"]).write_bytes(b"other")
    with pytest.raises(RegistryError, match="registered was"):
        registry.export("net@1", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    registry.store.close()


def test_another_architecture_brings_its_own_check(tmp_path, monkeypatch, refused):
    registry = registry_in(tmp_path / "a")
    version, path = registry.next_file("mix", ".json")
    sidecar = {"format": 1, "architecture": {"class": "Voting"}, "parts": ["net@1"]}
    path.write_text(json.dumps(sidecar))
    registry.register(SimpleNamespace(path=path, sidecar=sidecar), name="mix", version=version)
    with pytest.raises(ArchiveError, match="mix@1 is a Voting, which no import reads; export a PowerballNet or a Mixture"):
        registry.export("mix", tmp_path / "mix.helios")
    assert not (tmp_path / "mix.helios").exists()
    with monkeypatch.context() as knowing:
        knowing.setitem(CHECKS, "Voting", lambda about, weights: None)
        registry.export("mix", tmp_path / "mix.helios")
    refused((tmp_path / "mix.helios").read_bytes(), "it is a 'Voting'; what can be imported is a PowerballNet")
    monkeypatch.setitem(CHECKS, "Voting", lambda about, weights: None)
    other = registry_in(tmp_path / "b")
    row = other.import_file(tmp_path / "mix.helios")
    assert (row["ref"], row["architecture"], other.read("mix")[1].name) == ("mix@1", "Voting", "mix-v1.json")


def test_many_importing_the_same_file_make_one_version(tmp_path, good):
    path = tmp_path / "net.helios"
    path.write_bytes(good)
    with MemoryStore(tmp_path / "m.db") as store:
        with ThreadPoolExecutor(4) as pool:
            rows = list(pool.map(lambda _: Registry(store, tmp_path).import_file(path), range(8)))
        assert sum(row["imported"] for row in rows) == 1 and len({row["ref"] for row in rows}) == 1
        assert len(list((tmp_path / "models").iterdir())) == 2


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_nothing(tmp_path, good, monkeypatch, failing):
    (tmp_path / "net.helios").write_bytes(good)
    registry, calls, real = registry_in(tmp_path), [], archive.write_atomic

    def write(path, data):
        calls.append(path)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(archive, "write_atomic", write)
    with pytest.raises(StoreError, match="No space left on device"):
        registry.import_file(tmp_path / "net.helios")
    assert list((tmp_path / "models").iterdir()) == [] and registry.versions("net") == []


# ---- an ensemble, whose members travel within


def add_mix(registry: Registry, *refs: str, name: str = "mix", **facts) -> dict:
    """An ensemble of equal shares."""
    members = [{"ref": row["ref"], "sha256": row["sha256"]} for row in map(registry.get, refs)]
    shares = [1 / len(refs)] * len(refs) + [0.0]
    version, path = registry.next_file(name, ".json")
    about = {"architecture": {"class": "Mixture"}, "members": members, "white_weights": shares, "powerball_weights": shares}
    about |= {"name": name, "version": version} | facts
    path.write_text(json.dumps(about))
    config = {"members": list(refs)}
    return registry.register(SimpleNamespace(path=path, sidecar=about), name=name, version=version, config=config)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("mixed")
    registry = registry_in(folder)
    for seed in range(2):
        add(registry, seed=seed)
    add_mix(registry, "net@1", "net@2")
    registry.export("mix", folder / "mix.helios")
    return (folder / "mix.helios").read_bytes()


def shas(registry: Registry, ref: str) -> list[str]:
    return [registry.get(member["ref"])["sha256"] for member in registry.get(ref)["about"]["members"]]


def test_an_ensemble_takes_its_members_along(tmp_path, mixed):
    path = tmp_path / "mix.helios"
    path.write_bytes(mixed)
    registry = registry_in(tmp_path)
    add(registry, seed=7)  # a net@1 that is another one
    row = registry.import_file(path)
    assert (row["ref"], row["imported"], [m["ref"] for m in row["about"]["members"]]) == ("mix@1", True, ["net@2", "net@3"])
    assert row["config"]["members"] == ["net@2", "net@3"] and registry.get("net")["version"] == 1
    assert [m["sha256"] for m in row["about"]["members"]] == shas(registry, "mix")
    assert registry.import_file(path)["imported"] is False
    assert registry.import_file(path, "copy")["about"]["members"] == row["about"]["members"]  # no net twice
    assert registry.import_file(path, again=True)["ref"] == "mix@2"
    assert len(registry.versions("net")) == 3
    # and on into a third place, under the names of the second
    registry.export("mix@1", tmp_path / "on.helios")
    third = registry_in(tmp_path / "third")
    assert third.import_file(tmp_path / "on.helios")["ref"] == "mix@1" and shas(third, "mix") == shas(registry, "mix")


def test_a_deleted_version_is_no_member(tmp_path, mixed):
    path = tmp_path / "mix.helios"
    path.write_bytes(mixed)
    registry = registry_in(tmp_path)
    registry.import_file(path)
    for ref in ("mix@1", "net@2"):
        for alias in registry.get(ref)["aliases"]:
            registry.remove_alias(ref.split("@")[0], alias)
        registry.delete(ref)
    # the deleted ensemble is not here either, since it could not be restored as it is
    row = registry.import_file(path)
    assert (row["ref"], row["imported"], [m["ref"] for m in row["about"]["members"]]) == ("mix@2", True, ["net@1", "net@3"])
    registry.restore("net@2")
    assert registry.import_file(path)["ref"] == "mix@1"


def test_a_member_that_changed_is_not_exported(tmp_path):
    registry = registry_in(tmp_path)
    add(registry)
    row = add_mix(registry, "net@1")
    file = Path(row["file_path"])
    about = json.loads(file.read_text()) | {"members": [{"ref": "net@1", "sha256": "0" * 64}]}
    version, path = registry.next_file("mix", ".json")
    path.write_text(json.dumps(about))
    registry.register(SimpleNamespace(path=path, sidecar=about), name="mix", version=version)
    with pytest.raises(ArchiveError, match="mix@2 was made of another net@1"):
        registry.export("mix@2", tmp_path / "mix.helios")
    Path(registry.get("net@1")["file_path"]).write_bytes(b"other")
    with pytest.raises(RegistryError, match="net@1: .*registered was"):
        registry.export("mix@1", tmp_path / "mix.helios")
    assert not (tmp_path / "mix.helios").exists()


def test_each_changed_byte_of_an_ensemble_is_refused(refused, mixed):
    for at in [*range(0, 4000, 61), *range(4000, len(mixed), 997), *range(len(mixed) - 350, len(mixed), 5)]:
        refused(mixed[:at] + bytes([mixed[at] ^ 1 << at % 8]) + mixed[at + 1 :])


@given(at=st.integers(0, 10**6), cut=st.integers(0, 60), put=st.binary(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_edit_of_an_ensemble_is_accepted(mixed, at, cut, put):
    at %= len(mixed)
    edited = mixed[:at] + put + mixed[at + cut :]
    if edited == mixed:
        return
    with pytest.raises((ArchiveError, RegistryError, StoreError)):
        archive._checked(unpack(edited))


def remade(data: bytes, change) -> bytes:
    """The archive of an ensemble after `change` of its manifest, sidecar and members, by a forger who computes each checksum anew."""
    parts = {name: bytes(part) for name, part in unpack(data).items()}
    manifest, about = (json.loads(parts.pop(name)) for name in (MANIFEST, SIDECAR))
    manifest, about, parts = change(manifest, about, parts) or (manifest, about, parts)
    parts = {SIDECAR: json.dumps(about).encode()} | parts
    members = {name: {"bytes": len(part), "sha256": sha256(part).hexdigest()} for name, part in parts.items()}
    parts = {MANIFEST: json.dumps(manifest | {"members": members}).encode()} | parts
    return pack([(name.encode(), part) for name, part in parts.items()])


ONE, TWO, THREE = (f"member-{i}.helios" for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m, a, p: p.pop(TWO), "model.json is about other members"),
        (lambda m, a, p: p.clear(), "model.json is about other members"),
        (lambda m, a, p: p.update({ONE: p[TWO], TWO: p[ONE]}), "model.json is about other members"),
        (lambda m, a, p: p.update({THREE: p[ONE]}), "model.json is about other members"),
        (lambda m, a, p: p.update({"member-4.helios": p[ONE]}), "'member-4.helios', which is no part of a model"),
        (lambda m, a, p: p.update({"../x.helios": p[ONE]}), "which is no part of a model"),
        (lambda m, a, p: p.update({WEIGHTS: p[ONE]}), "and not the parts of a model"),
        (lambda m, a, p: (m, a, {WEIGHTS: p[ONE]}), "model.json is about other weights"),
        (lambda m, a, p: p.update({ONE: p[ONE][:-1]}), "member-1.helios: its list of members"),
        (lambda m, a, p: p.update({TWO: b""}), "member-2.helios: it is no archive"),
        (lambda m, a, p: p.update({TWO: remade(p[TWO], lambda m, a, p: (m | {"name": "../../x"}, a, p))}), "member-2.helios: model name"),
        (lambda m, a, p: p.update({TWO: remade(p[TWO], lambda m, a, p: (m | {"version": 9}, a, p))}), "about other members"),
        (lambda m, a, p: p.update({TWO: remade(p[TWO], lambda m, a, p: (m, a | {"era": "other"}, p))}), "another era"),
        (lambda m, a, p: a.update(members=[]), "about other members"),
        (lambda m, a, p: a.update(members={"ref": 1}), "about other members"),
        (lambda m, a, p: a.update(members=[a["members"][0]] * 2), "about other members"),
        (lambda m, a, p: a.update(white_weights=[0.5, 0.5]), "white_weights are no 3 shares"),
        (lambda m, a, p: a.update(powerball_weights=[0.5, 0.6, 0.0]), "powerball_weights are no 3 shares"),
        (lambda m, a, p: a.update(powerball_weights=[2.0, -1.0, 0.0]), "powerball_weights are no 3 shares"),
        (lambda m, a, p: a.update(white_weights={"a": 1}), "white_weights are no 3 shares"),
        (lambda m, a, p: (m | {"architecture": "PowerballNet"}, a | {"architecture": {"class": "PowerballNet"}}, p), "model.safetensors is missing"),
    ],
)
def test_an_ensemble_that_lies(refused, mixed, change, match):
    changed = remade(mixed, lambda m, a, p: found if isinstance(found := change(m, a, p), tuple) else None)
    refused(changed, f"refused; .*{match}")


def test_an_ensemble_of_ensembles(refused, mixed):
    """Nothing nests deeper than one, so a chain of members cannot exhaust the stack."""
    about = json.loads(bytes(unpack(mixed)[SIDECAR]))
    ref = {"ref": "mix@1", "sha256": sha256(bytes(unpack(mixed)[SIDECAR])).hexdigest()}

    def around(data: bytes) -> bytes:
        return remade(mixed, lambda m, a, p: (m, a | {"members": [ref], "white_weights": [1.0, 0.0], "powerball_weights": [1.0, 0.0]}, {ONE: data}))

    assert about["members"]
    deep = mixed
    for _ in range(50):
        deep = around(deep)
        refused(deep, "member-1.helios: a member has members of its own")


def test_a_full_disk_between_members_loses_nothing(tmp_path, mixed, monkeypatch):
    """What came in before is whole, and the next attempt goes on with it."""
    path = tmp_path / "mix.helios"
    path.write_bytes(mixed)
    registry, write, left = registry_in(tmp_path), archive.write_atomic, [3]

    def failing(where, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(where, data)

    with monkeypatch.context() as full:
        full.setattr(archive, "write_atomic", failing)
        with pytest.raises(StoreError, match="No space left"):
            registry.import_file(path)
    assert [row["ref"] for row in registry.versions("net")] == ["net@1"] and registry.versions("mix") == []
    assert sorted(file.name for file in (tmp_path / "models").iterdir()) == ["net-v1.json", "net-v1.safetensors"]
    row = registry.import_file(path)
    assert row["about"]["members"][0]["ref"] == "net@1" and len(registry.versions("net")) == 2


# ---- damage


def test_each_changed_byte_is_refused(refused, good):
    weights_at = good.index(b"model.safetensors", good.index(b"PK\3\4", 4))
    for at in [*range(0, weights_at, 41), *range(weights_at, len(good), 997), *range(len(good) - 250, len(good), 3)]:
        refused(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])


def test_each_truncation_is_refused(refused, good):
    for length in [*range(0, 200, 13), *range(200, len(good), 1999), *range(len(good) - 30, len(good))]:
        refused(good[:length])


@given(at=st.integers(0, 10**6), cut=st.integers(0, 60), put=st.binary(max_size=60))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_edit_is_accepted(good, at, cut, put):
    at %= len(good)
    edited = good[:at] + put + good[at + cut :]
    if edited == good:
        return
    with pytest.raises((ArchiveError, RegistryError, StoreError)):
        archive._checked(unpack(edited))


# ---- the container


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "..\\model.json",
        "C:\\model.json",
        "C:model.json",
        "//host/share",
        "models/net-v1.json",
        "model.json\0.png",
        "MODEL.JSON",
        "model.json/",
        "",
        ".",
        "mod\u00e9l.json",
        "notes.txt",
        "model.pkl",
    ],
)
def test_names_that_are_no_part_of_a_model(refused, good, name):
    _, about, weights = parts_of(good)
    packed = name.encode("cp437")
    refused(pack([(packed, b"{}")]), "is no part of a model")
    parts = unpack(good)
    refused(pack([*((n.encode(), bytes(part)) for n, part in parts.items()), (packed, b"x")]), "is no part of a model")


def test_members_twice_missing_or_in_another_order(refused, good):
    manifest, about, weights = ((name.encode(), bytes(part)) for name, part in unpack(good).items())
    refused(pack([manifest, about, weights, weights]), "holds model.safetensors twice")
    refused(pack([manifest, manifest]), "holds manifest.json twice")
    for members in (
        [manifest],
        [about, weights],
        [manifest, weights],
        [about, manifest, weights],
        [manifest, weights, about],
    ):
        refused(pack(members), "not the parts of a model")
    refused(pack([]))


def rezipped(
    good: bytes, method: int = zipfile.ZIP_STORED, attr: int | None = None, comment: bytes = b"", extra: bytes = b""
) -> bytes:
    """The same members from Python's own zip writer."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, part in unpack(good).items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.extra, info.external_attr = method, extra, 0o100644 << 16 if attr is None else attr
            z.writestr(info, bytes(part))
        z.comment = comment
    return out.getvalue()


def test_other_ways_to_zip_the_same(refused, good):
    refused(rezipped(good, zipfile.ZIP_DEFLATED), "compressed, encrypted or has extras")
    refused(rezipped(good, zipfile.ZIP_LZMA), "compressed, encrypted or has extras")
    refused(rezipped(good, attr=0o120777 << 16), "a link, a comment")
    refused(rezipped(good, attr=0o40755 << 16), "a link, a comment")
    refused(rezipped(good, comment=b"hello"), "a link, a comment")
    refused(rezipped(good, extra=struct.pack("<2H4s", 0x7075, 4, b"evil")), "compressed, encrypted or has extras")
    refused(b"#!/bin/sh\n" + good, "no archive of a model")
    refused(good + b"tail", "data at the end")
    refused(good + good, "data at the end")
    encrypted = bytearray(good)
    encrypted[6] |= 1
    refused(bytes(encrypted), "compressed, encrypted or has extras")


def test_two_lists_that_disagree(refused, good):
    """Another directory than the members: what one reader lists and another one reads."""
    parts = [(name.encode(), bytes(part)) for name, part in unpack(good).items()]
    body = good[: len(good) - len(archive._directory(parts))]
    refused(
        body + archive._directory([*parts[:2], (b"model.safetensors", b"other")]),
        "says something else than the members",
    )
    refused(body + archive._directory(parts[:2]), "says something else than the members")
    refused(body, "is cut off")


def test_bombs(refused, tmp_path, good):
    """What a file claims is not what is read: 2 GiB of zeros in 2 MB, and claims of 4 GiB."""
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open(MANIFEST, "w") as f:
        for _ in range(128):
            f.write(bytes(2**20))
    tracemalloc.start()
    refused(bomb, "compressed, encrypted or has extras")
    for claim in (2**24 + 1, 2**31, 2**32 - 1):
        huge = bytearray(good)
        huge[18:26] = struct.pack("<2I", claim, claim)
        refused(bytes(huge), "more than is ever read")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_no_more_than_the_cap_is_read(refused, tmp_path, good, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as f:
        f.write(good)
        f.truncate(2**36)
    tracemalloc.start()
    refused(sparse, "is larger than 1,048,576 bytes")
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_what_is_no_file(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "none", tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        refused(place, "there is no file")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(refused, tmp_path, good):
    evil, out = Evil(tmp_path / "owned"), io.BytesIO()
    torch.save({"model": evil}, out)
    refused(out.getvalue(), "is no part of a model")
    refused(pickle.dumps(evil), "no archive of a model")
    manifest, about, _ = parts_of(good)
    refused(forged(manifest, about, pickle.dumps(evil)))
    refused(forged(manifest, about, out.getvalue()))
    refused(forged(manifest, pickle.dumps(evil), None))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as t:
        t.addfile(tarfile.TarInfo("../../x"))
    refused(tar.getvalue(), "no archive of a model")
    assert not (tmp_path / "owned").exists()


# ---- the weights


def tensors(good: bytes) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(parts_of(good)[2])


def with_header(good: bytes, change) -> bytes:
    """The weights under another header."""
    weights = parts_of(good)[2]
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    changed = change(header) or header
    text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + length :]


def two_on_one(header):
    names = sorted(name for name in header if header[name]["shape"] == header["summary.0.bias"]["shape"])
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


HEADERS = {
    "overlap": two_on_one,
    "gap": lambda header: header.pop("position") and None,
    "all at 0": lambda header: [tensor.update(data_offsets=[0, 0]) for tensor in header.values()] and None,
    "negative": lambda header: header["position"].update(data_offsets=[-4, 4]),
    "past the end": lambda header: header["position"].update(data_offsets=[0, 10**9]),
    "shape": lambda header: header["position"].update(shape=[10**6, 10**6]),
    "overflowing shape": lambda header: header["position"].update(shape=[2**62, 4]),
    "shape of floats": lambda header: header["position"].update(shape=[5.0, 8.0]),
    "a true shape": lambda header: header["position"].update(shape=[True, 40]),
    "one offset": lambda header: header["position"].update(data_offsets=[0]),
    "text offsets": lambda header: header["position"].update(data_offsets="ab"),
    "null": lambda header: header.update(position=None),
    "no dtype": lambda header: header["position"].pop("dtype") and None,
    "unknown dtype": lambda header: header["position"].update(dtype="F8_E5M2"),
    "list dtype": lambda header: header["position"].update(dtype=["F32"]),
    "integers": lambda header: header["position"].update(dtype="I32"),
    "half as wide": lambda header: header["position"].update(dtype="F16"),
    "another name": lambda header: header.update({"__class__": header.pop("position")}),
    "a list": lambda header: b"[]",
    "not JSON": lambda header: b"position",
    "a key twice": lambda header: json.dumps(header).encode()[:-1] + b', "position": 1}',
    "deep": lambda header: b'{"a":' * 5000,
    "long": lambda header: json.dumps(header).encode() + b" " * 2**20,
}


@pytest.mark.parametrize("change", HEADERS)
def test_a_header_that_lies(refused, good, change):
    manifest, about, _ = parts_of(good)
    refused(forged(manifest, about, with_header(good, HEADERS[change])))


def test_a_header_longer_than_the_file(refused, good):
    manifest, about, weights = parts_of(good)
    for length in (len(weights), 2**31, 2**63, 2**64 - 1):
        refused(forged(manifest, about, struct.pack("<Q", length) + weights[8:]), "its header claims")
    for short in (b"", b"\0" * 7, b"\0" * 8):
        refused(forged(manifest, about, short))
    refused(forged(manifest, about, weights + b"\0"), "belong to no tensor")
    refused(forged(manifest, about, weights[:-1]), "belong to no tensor|does not lie")


def test_weights_of_another_net(refused, good):
    manifest, about, _ = parts_of(good)
    full = tensors(good)
    some = full.copy()
    some.pop("position")
    for other, match in (
        (some, "'position' is None"),
        (full | {"more": torch.zeros(1)}, "'more' is"),
        (full | {"position": torch.zeros(5, 9)}, r"\[5, 9\]"),
        (full | {"position": torch.zeros(5, 8, dtype=torch.float64)}, "F64"),
        (full | {"position": torch.full((5, 8), torch.nan)}, "NaN or infinity"),
        (full | {"position": torch.full((5, 8), torch.inf)}, "NaN or infinity"),
    ):
        refused(forged(manifest, about, safetensors.torch.save(other)), match)
    refused(forged(manifest, about, None), "model.safetensors is missing")


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden": 65536, "layers": 64, "sequence_length": 65536},
        {"hidden": 2**40},
        {"layers": 10**6},
        {"hidden": -8},
        {"hidden": "8"},
        {"heads": 0},
        {"hidden": 8.0},
        {"dropout": 2},
        {"layers": 0},
        {"hidden": True},
        {"hidden": None},
        {"hidden": [8]},
        {"evil": 1},
        {"picked": 70},
        {"layers": 1.5},
    ],
)
def test_a_shape_that_no_net_has(refused, good, shape):
    manifest, about, weights = parts_of(good)
    tracemalloc.start()
    refused(forged(manifest, about | {"architecture": about["architecture"] | shape}, weights))
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


# ---- the JSON


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
        b'{"a": ' + b"[" * 10**6,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"a": 1' + b"0" * 5000 + b"}",
        b'{"format": 1, "format": 1}',
        b"{}",
    ],
)
def test_a_sidecar_that_is_none(refused, good, text):
    manifest, about, weights = parts_of(good)
    refused(forged(manifest, text, weights))
    refused(
        forged(manifest, json.dumps(about).encode()[:-1] + b', "more": ' + text + b"}", weights)
        if text not in (b"null", b"[]", b"{}")
        else forged(manifest, text, weights)
    )


def test_a_json_that_is_too_long(refused, good):
    manifest, about, weights = parts_of(good)
    refused(forged(manifest, about | {"more": "x" * 2**24}, weights), "more than is ever read")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"format_version": 2},
        {"format_version": "1"},
        {"name": "../net"},
        {"name": ""},
        {"name": None},
        {"name": "a/b"},
        {"name": "a" * 65},
        {"name": ["net"]},
        {"version": 0},
        {"version": -1},
        {"version": True},
        {"version": 1.5},
        {"version": 2**31},
        {"version": None},
        {"architecture": "Oracle"},
        {"architecture": None},
        {"architecture": ["PowerballNet"]},
        {"tags": None},
        {"tags": "ab"},
        {"tags": ["a,b"]},
        {"tags": ["\x1b[31m"]},
        {"tags": [1]},
        {"tags": ["x"] * 1001},
        {"notes": 7},
        {"notes": "a\0b"},
        {"notes": "\ud800"},
        {"config": [1]},
        {"metrics": "x"},
        {"evaluation": 1},
        {"data": [1]},
        {"code_version": 1},
        {"created_at": 5},
        {"created_at": None},
        {"members": {}},
        {"members": None},
    ],
)
def test_a_manifest_that_lies(refused, good, change):
    refused(forged(*parts_of(good), **change))


def test_keys_that_are_missing(refused, good):
    manifest, about, weights = parts_of(good)
    for key in ("format", "format_version", "name", "version", "tags", "architecture", "created_at"):
        refused(forged({k: v for k, v in manifest.items() if k != key}, about, weights))
    for key in ("format", "architecture"):
        refused(forged(manifest, {k: v for k, v in about.items() if k != key}, weights))


def test_a_sidecar_of_other_weights(refused, good):
    manifest, about, weights = parts_of(good)
    refused(
        forged(manifest, json.dumps(about | {"weights": {"sha256": "0" * 64}}).encode(), weights), "about other weights"
    )
    for odd in (None, [], "x"):
        refused(forged(manifest, json.dumps(about | {"weights": odd}).encode(), weights))


# ---- an answer that is lost


def losing(registry: Registry, monkeypatch, committed: bool, then: type[Exception] | None = None) -> None:
    """Let the second write, that of the row, end with an error after its commit, or before; the ones that follow fail by `then`."""
    real, calls = registry._writing, []

    @contextmanager
    def writing(name):
        calls.append(name)
        if then and len(calls) > 2:
            raise then("the server is gone")
        with real(name) as conn:
            yield conn
            if len(calls) == 2 and not committed:
                raise StoreError("the answer was lost")
        if len(calls) == 2:
            raise StoreError("the answer was lost")

    monkeypatch.setattr(registry, "_writing", writing)


@pytest.mark.parametrize("committed, then, files", [(True, None, 2), (False, None, 0), (False, StoreError, 2), (True, StoreError, 2)])
def test_an_import_whose_answer_is_lost_never_leaves_a_row_without_files(tmp_path, good, monkeypatch, committed, then, files):
    (tmp_path / "net.helios").write_bytes(good)
    with MemoryStore(tmp_path / "m.db") as store:
        registry = Registry(store, tmp_path)
        with monkeypatch.context() as patched:
            losing(registry, patched, committed, then)
            with pytest.raises(StoreError, match="the answer was lost"):
                registry.import_file(tmp_path / "net.helios")
        assert len(list((tmp_path / "models").iterdir())) == files
        with store._transaction() as conn:
            assert len(conn.execute(model_versions.select()).all()) == committed
        if committed:
            assert registry.load("net") and registry.import_file(tmp_path / "net.helios")["imported"] is False


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_row_without_its_files_does_not_count_as_here(tmp_path, good, suffix):
    (tmp_path / "net.helios").write_bytes(good)
    registry = registry_in(tmp_path)
    assert registry.import_file(tmp_path / "net.helios")["imported"]
    (tmp_path / "models" / "net-v1").with_suffix(suffix).unlink()
    again = registry.import_file(tmp_path / "net.helios")
    assert (again["imported"], again["ref"]) == (True, "net@2")
    assert registry.load("net@2") and registry.import_file(tmp_path / "net.helios")["ref"] == "net@2"
    registry.store.close()
