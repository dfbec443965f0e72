"""A run that is put down and taken up again, anywhere and any number of times, ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.checkpoints import Checkpoints
from helios.draws import simulate
from helios.fitting import PRESETS, FitStopped, FittingRun, TrainingConfig, fit, make_windows
from helios.net import PowerballNet
from helios.weights import ModelError, load_state, save_state

CONFIG = TrainingConfig(hidden=16, layers=2, heads=4, epochs=4, sequence_length=8, batch_size=16, dropout=0.3, learning_rate=0.01,
                        early_stopping_patience=0, seed=5, threads=1)
DRAWS = simulate(n=110, seed=3, powerball_weights={3: 9})


def new_net(config=CONFIG, seed=None):
    torch.manual_seed(config.seed if seed is None else seed)
    return PowerballNet(hidden=16, layers=config.layers, heads=4, sequence_length=config.sequence_length, dropout=config.dropout)


def weights_of(net):
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def told(reports):
    return [replace(report, seconds=0.0) for report in reports]


def uninterrupted(config=CONFIG, draws=DRAWS):
    steps, net = [], new_net(config)
    reports = fit(net, *make_windows(draws, config), config, on_step=steps.append)
    return weights_of(net), told(reports), len(steps)


def in_pieces(path, pieces, config=CONFIG, draws=DRAWS):
    """The run through a file, each piece so many steps long, in a net and a generator of its own; the last goes to the end."""
    kept, windows, split = Checkpoints(path, keep=False), *make_windows(draws, config)
    for n, length in enumerate([*pieces, None]):
        net, steps = new_net(config, None if n == 0 else 1000 + n), []
        torch.rand(n)                                     # other randomness than that of the run

        def stop(steps=steps, length=length):
            return "a pause" if length is not None and len(steps) >= length else None

        if n == 0:
            torch.manual_seed(config.seed)
            net = new_net(config)
        try:
            reports = fit(net, windows, split, config, state=kept.load(), stop=stop, on_step=steps.append,
                          save=lambda run, must: kept.save(run) if must else None)
        except FitStopped as e:
            assert e.reason == "a pause"
        else:
            return weights_of(net), told(reports)
    raise AssertionError("the last piece has no end")


@pytest.fixture(scope="module")
def whole():
    return uninterrupted()


@pytest.mark.slow
def test_a_stop_at_every_step(tmp_path, whole):
    """Before the first step, after each, and in between: one run for each place, and one stopped everywhere."""
    weights, reports, n = whole
    assert n == 4 * 4 + 5                                 # 4 epochs of 4 batches, 5 validations
    for at in range(n):
        got = in_pieces(tmp_path / f"{at}.safetensors", [at])
        assert same(got[0], weights) and got[1] == reports, at
    everywhere = in_pieces(tmp_path / "all.safetensors", [1] * (n - 1))
    assert same(everywhere[0], weights) and everywhere[1] == reports


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(0, 9), max_size=8))
@pytest.mark.slow
def test_any_sequence_of_interruptions(tmp_path_factory, whole, pieces):
    got = in_pieces(tmp_path_factory.mktemp("run") / "state.safetensors", pieces)
    assert same(got[0], whole[0]) and got[1] == whole[1]


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_looks_back_over_interruptions(tmp_path, patience):
    config = replace(CONFIG, epochs=40, early_stopping_patience=patience, seed=1)
    draws = simulate(n=110, seed=1)
    weights, reports, n = uninterrupted(config, draws)
    assert reports[-1].epoch == reports[-1].best_epoch + patience < 40
    for pieces in ([5] * 40, [n - 2], [n - 1], [n]):
        got = in_pieces(tmp_path / f"{len(pieces)}-{pieces[0]}.safetensors", pieces, config, draws)
        assert same(got[0], weights) and got[1] == reports


def test_a_stop_within_a_validation(tmp_path, whole):
    """It is broken off between its batches, and begun anew when the run goes on."""
    windows, split = make_windows(DRAWS, CONFIG)
    kept, asked, net = Checkpoints(tmp_path / "s.safetensors"), [], new_net()

    def stop():
        asked.append(1)
        return "a pause" if len(asked) == 8 else None        # validation 0 asks twice, four batches once each, then the next twice

    with pytest.raises(FitStopped):
        fit(net, windows, split, CONFIG, stop=stop, save=lambda run, must: kept.save(run) if must else None)
    facts = kept.load()[1]
    assert (facts["epoch"], facts["batch"], len(facts["reports"])) == (1, 4, 1)
    again = new_net(seed=9)
    reports = fit(again, windows, split, CONFIG, state=kept.load())
    assert told(reports) == whole[1] and same(weights_of(again), whole[0])


def test_the_best_weights_survive_when_they_are_not_the_last(tmp_path, whole):
    """Epoch 0 wins on fair draws, so the weights at the end are those of the beginning."""
    draws = simulate(n=110, seed=1)
    weights, reports, n = uninterrupted(draws=draws)
    best = reports[-1].best_epoch
    assert best < reports[-1].epoch
    assert same(in_pieces(tmp_path / "s.safetensors", [n - 1], draws=draws)[0], weights)


def test_a_finished_state_is_not_trained_on(tmp_path, whole):
    """Killed after the last step and before the model was saved."""
    windows, split = make_windows(DRAWS, CONFIG)
    net, kept = new_net(), Checkpoints(tmp_path / "s.safetensors")
    fit(net, windows, split, CONFIG, save=lambda run, must: kept.save(run) if run.ended else None)
    again, steps = new_net(seed=9), []
    reports = fit(again, windows, split, CONFIG, state=kept.load(), on_step=steps.append)
    assert steps == [] and told(reports) == whole[1] and same(weights_of(again), whole[0])


def test_threads_are_those_of_the_run(tmp_path):
    """Sums depend in their last bits on the number of threads."""
    before = torch.get_num_threads()
    try:
        windows, split = make_windows(DRAWS, CONFIG)
        torch.set_num_threads(2)
        run = FittingRun(new_net(), windows, split, CONFIG)
        save_state(tmp_path / "s.safetensors", *run.state())
        torch.set_num_threads(1)
        FittingRun(new_net(), windows, split, CONFIG).restore(*load_state(tmp_path / "s.safetensors"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("change", [{"seed": 6}, {"epochs": 5}, {"dropout": 0.2}, {"batch_size": 8}])
def test_a_state_of_another_run_is_refused(tmp_path, change):
    windows, split = make_windows(DRAWS, CONFIG)
    run = FittingRun(new_net(), windows, split, CONFIG)
    save_state(tmp_path / "s.safetensors", *run.state())
    other = replace(CONFIG, **change)
    with pytest.raises(ModelError, match=f"is of another run .*{next(iter(change))}"):
        fit(new_net(other), windows, split, other, state=load_state(tmp_path / "s.safetensors"))


def test_a_state_that_lacks_a_part_is_refused(tmp_path):
    windows, split = make_windows(DRAWS, CONFIG)
    run = FittingRun(new_net(), windows, split, CONFIG)
    for _ in range(3):
        run.step()
    tensors, facts = run.state()
    for prefix in ("net/", "best/", "generator", "sums"):
        cut = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
        with pytest.raises(ModelError, match="does not hold a whole run"):
            fit(new_net(), windows, split, CONFIG, state=(cut, facts))
    for name in ("epoch", "reports", "threads"):
        with pytest.raises(ModelError, match="does not hold a whole run"):
            fit(new_net(), windows, split, CONFIG, state=(tensors, {k: v for k, v in facts.items() if k != name}))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_changed_byte_is_trained_on(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    save_state(path, {"a": torch.arange(7.0), "generator": torch.arange(9, dtype=torch.uint8)}, {"epoch": 3, "note": "a b"})
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    path.write_bytes(content)
    with pytest.raises(ModelError, match="delete it and the run begins anew"):
        load_state(path)


def test_a_disk_that_refuses_leaves_the_state_before(tmp_path, monkeypatch, caplog):
    windows, split = make_windows(DRAWS, CONFIG)
    run, kept = FittingRun(new_net(), windows, split, CONFIG), Checkpoints(tmp_path / "s.safetensors")
    kept.save(run)

    def full(*_):
        raise OSError(28, "No space left on device")

    run.step()
    monkeypatch.setattr("helios.weights.write_atomic", full)
    for _ in range(3):
        kept.save(run)
    assert kept.load()[1]["epoch"] == 0
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["no checkpoint"]
    monkeypatch.undo()
    kept.save(run)
    assert kept.load()[1]["epoch"] == 1 and not list(tmp_path.glob(".*"))


def test_what_a_killed_save_left_is_cleared(tmp_path):
    (tmp_path / ".s.safetensors.4711.part").write_bytes(b"half")
    (tmp_path / ".other.part").write_bytes(b"not ours")
    assert Checkpoints(tmp_path / "s.safetensors").load() is None
    assert [p.name for p in tmp_path.iterdir()] == [".other.part"]


LOOP = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_resume import CONFIG, DRAWS, new_net
from helios.checkpoints import Checkpoints
from helios.fitting import fit, make_windows
from helios.weights import save_model
from dataclasses import replace
config = replace(CONFIG, epochs=12)
path = Path(sys.argv[1])
kept = Checkpoints(path, share=1.0)
net = new_net(config)
print("ready", flush=True)
fit(net, *make_windows(DRAWS, config), config, state=kept.load(), save=lambda run, must: kept.save(run))
print(save_model(net, path.with_name("end.safetensors"), {{}}).sha256, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_random_moments(tmp_path, seed):
    """A state after every step, and a process killed at moments that fall into steps and into saves."""
    rng, code = random.Random(seed), LOOP.format(tests=str(Path(__file__).parent))
    path, env = tmp_path / "s.safetensors", os.environ | {"OMP_NUM_THREADS": "1"}
    expected = None
    for place, kills in (("whole", 0), ("killed", 12)):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "s.safetensors"
        while True:
            process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=env)
            assert process.stdout.readline() == "ready\n"
            if kills:
                time.sleep(rng.uniform(0.0, 0.25))
                process.kill()
            said, _ = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills -= 1
        if expected is None:
            expected = said
        assert said == expected and len(said) == 65
    assert not list(path.parent.glob(".*.part"))


def test_the_file_is_plain_safetensors_with_json(tmp_path):
    """Readable without Helios, and without pickle."""
    from safetensors import safe_open
    windows, split = make_windows(DRAWS, CONFIG)
    save_state(tmp_path / "s.safetensors", *FittingRun(new_net(), windows, split, CONFIG).state())
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["about"])["config"]["seed"] == 5
        assert "net/position" in file.keys()
    assert PRESETS["quick"].threads == 1
