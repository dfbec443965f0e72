"""The known-answer test: equal wherever it runs, its sums on trials made by hand, what it says, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from helios.draws import Bias, balls, simulate
from helios.fitting import PRESETS
from helios.forecasters import FORECASTERS
from helios.forecasting import ForecasterError, walk
from helios.game import POWERBALL
from helios.scoring import e_process
from helios.selftest import (
    AIMS,
    BIASES,
    FAIR,
    FULL,
    MIXTURE,
    NET,
    QUICK,
    History,
    Plan,
    Selftest,
    SelftestError,
    Trial,
    histories,
    run_all,
    run_history,
    selftest,
    tried,
)
from helios.truth import expected_skill, truth

HELIOS = Path(sys.executable).with_name("helios")
TINY = replace(PRESETS["quick"], hidden=8, heads=1, epochs=2)
SMALL = Plan((160,), seeds=1, net_seeds=0, fair=3, fair_net=1, config=TINY)
LEARNING = ["frequency", "recency", "steps", "markov", "repeats", "mixture"]
THREE = ["frequency", "steps", "repeats"]


# Histories and trials

@pytest.fixture(scope="module")
def here() -> Selftest:
    return selftest(SMALL, jobs=1)


@pytest.mark.slow
def test_two_processes_say_what_one_says(here):
    done, todo = [], histories(SMALL)
    assert len(todo) == 7 + 3 and todo[0].with_net
    assert sum(t.forecaster == NET for t in here.trials) == 1
    assert run_all(todo[:4], 2, done.append) == here.trials[:4 * len(LEARNING) + 1]
    assert len(done) == 4 and set(done) == set(todo[:4])


@pytest.mark.slow
def test_trials_come_in_the_order_of_the_histories(here):
    expected = [(h.bias, h.n, h.seed, name) for h in histories(SMALL) for name in LEARNING + [NET] * h.with_net]
    assert [(t.bias, t.n, t.seed, t.forecaster) for t in here.trials] == expected
    seen = []
    again = run_all(histories(SMALL)[:3], 1, seen.append)
    assert seen == histories(SMALL)[:3] and again == here.trials[:len(again)]


@pytest.mark.slow
def test_a_history_is_what_it_says_by_hand():
    for bias in ("three powerballs at weight 3", "whites repeat at weight 2", FAIR):
        planted = BIASES.get(bias, Bias())
        draws = simulate(n=160, seed=3, **vars(planted))
        start = 136                                            # the last 15%
        law = truth(planted, POWERBALL.eras[-1], *balls(draws))[start:]
        trials = run_history(History(bias, 160, 3, False))
        assert [t.forecaster for t in trials] == LEARNING
        for trial in trials:
            forecast = walk(FORECASTERS[trial.forecaster](), draws, start)
            sampled = forecast.skill(*(x[start:] for x in balls(draws))).total
            assert trial.skill_nats == expected_skill(forecast, law).total.mean()
            assert trial.oracle_nats == law.skill.total.mean() and trial.sampled_nats == sampled.mean()
            assert trial.e_value == e_process(sampled).final
            assert trial.skill_nats <= trial.oracle_nats + 1e-12


def test_trials_are_plain_values(here):
    for trial in here.trials:
        kinds = [type(value) for value in asdict(trial).values()]
        assert kinds == [str, int, int, str, float, float, float, float]


@pytest.mark.slow
def test_seeds_matter_and_no_more_than_they():
    one, same, other = (run_history(History(FAIR, 150, seed, True, TINY)) for seed in (1, 1, 2))
    assert one == same and one != other


def test_planned_histories():
    for plan in (QUICK, FULL, SMALL, Plan((200, 300), 2, 1, 4, 2)):
        todo = histories(plan)
        assert len(set(todo)) == len(todo)
        planted = [h for h in todo if h.bias != FAIR]
        fair = [h for h in todo if h.bias == FAIR]
        assert {(h.bias, h.n) for h in planted} == set(product(BIASES, plan.sizes))
        assert len(planted) == len(BIASES) * len(plan.sizes) * plan.seeds and len(fair) == plan.fair
        assert sum(h.with_net for h in planted) == len(BIASES) * len(plan.sizes) * plan.net_seeds
        assert sum(h.with_net for h in fair) == min(plan.fair_net, plan.fair)
        assert not {h.seed for h in fair} & {h.seed for h in planted} and {h.n for h in fair} <= {plan.sizes[0]}
        nets = [h.with_net for h in todo]
        assert nets == sorted(nets, reverse=True)


@pytest.mark.parametrize("plan", [Plan(()), Plan((149,)), Plan((1000, 20)), Plan(seeds=0), Plan(seeds=-1)])
def test_plans_that_cannot_be_run(plan):
    with pytest.raises(SelftestError, match="give 150 draws or more, and a seed"):
        selftest(plan)


def test_a_shortest_plan_runs_without_fair_histories(monkeypatch):
    monkeypatch.setattr("helios.selftest.tried", lambda: {name: FORECASTERS[name] for name in THREE})
    result = selftest(Plan((150,), 1, 0, 0, 0), jobs=1)
    assert len(result.cases) == 7 * 3 and result.false_alarms["histories"] == 0


# Sums, by hand

def trial(bias="powerball follows with chance 0.5", n=600, seed=1, forecaster="steps", skill=0.5, oracle=1.0, sampled=0.4, e=1e9):
    return Trial(bias, n, seed, forecaster, skill, oracle, sampled, e)


def planted_everywhere(e=100.0):
    return [trial(bias, 1390, seed, name, e=e) for bias in BIASES for seed in (100, 101) for name in THREE]


def fair(alarms, of, names=("frequency", "steps"), loud=100.0):
    return [trial(FAIR, 1390, 10_000 + i, name, -0.001, 0.0, -0.002, loud if i < alarms else 0.5) for i in range(of) for name in names]


KEYS = ["bias", "n", "forecaster", "seeds", "skill_nats", "oracle_nats", "recovered", "e_value", "alarm"]


def test_keys_of_the_result(here):
    result = here.as_dict()
    assert set(result) == {"cases", "false_alarms", "aims", "missed", "passed", "verdict"}
    for case in result["cases"]:
        assert [key for key in case if key in KEYS] == KEYS
        assert set(case) == {*KEYS, "spread", "sampled_nats"}
    assert set(result["false_alarms"]) == {"histories", "alarms", "alpha", "allowed", "with_net", "largest_e", "mean_skill_nats", "by_forecaster"}
    assert [*result["false_alarms"]["by_forecaster"]] == [NET, *LEARNING] or [*result["false_alarms"]["by_forecaster"]] == [*LEARNING, NET]
    assert all(set(fair) == {"histories", "alarms", "mean_skill_nats"} for fair in result["false_alarms"]["by_forecaster"].values())
    assert [(aim["bias"], aim["n"], aim["wanted"], aim["met"]) for aim in result["aims"]] == [(bias, 160, None, None) for bias in BIASES]
    assert all(set(aim) == {"bias", "n", "recovered", "wanted", "met", "best", "best_recovered"} for aim in result["aims"])
    assert all(set(missed) == {"bias", "n"} for missed in result["missed"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_order_of_cases():
    names = [*LEARNING, NET]
    mixed = [trial(bias, n, seed, name) for bias in BIASES for n in (1390, 400) for seed in (2, 1) for name in names]
    mixed = [mixed[i] for i in np.random.default_rng(1).permutation(len(mixed))] + fair(0, 3)
    cases = Selftest(mixed).cases
    assert [(c.n, c.bias, c.forecaster) for c in cases] == list(product((400, 1390), BIASES, names))
    assert all(sorted(c.seeds) == [1, 2] for c in cases)


def test_a_case_by_hand():
    trials = [trial(seed=s, skill=k, oracle=o, sampled=m, e=e) for s, k, o, m, e in
              [(1, 0.1, 0.5, 0.0, 1.0), (2, 0.3, 0.6, 0.2, 30.0), (3, 0.2, 0.1, 0.7, 5e8)]]
    (case,) = Selftest(trials).cases
    assert case.seeds == [1, 2, 3] and case.n == 600 and case.forecaster == "steps"
    assert case.skill_nats == pytest.approx(0.2) and case.oracle_nats == pytest.approx(0.4)
    assert case.recovered == pytest.approx(0.2 / 0.4)
    shares = [0.2, 0.5, 2.0]
    assert case.spread == pytest.approx(np.std(shares, ddof=1))
    assert case.sampled_nats == pytest.approx(0.3) and case.e_value == 30.0 and case.alarm is True
    (one,) = Selftest(trials[:1]).cases
    assert one.spread is None and one.recovered == pytest.approx(0.2) and one.alarm is False


@pytest.mark.parametrize(("e", "alpha", "alarm"), [(20.0, 0.05, True), (19.99, 0.05, False), (100.0, 0.01, True), (99.0, 0.01, False)])
def test_an_alarm_is_e_of_one_over_alpha(e, alpha, alarm):
    result = Selftest([trial(e=e)], alpha)
    assert result.cases[0].alarm is alarm and (result.missed == []) is alarm and result.passed is alarm
    result = Selftest([replace(t, bias=FAIR) for t in [trial(e=e)]], alpha)
    assert result.false_alarms["alarms"] == alarm


def test_a_bias_is_found_by_the_mean_over_forecasters_and_the_median_over_seeds():
    def of(*rows):
        return Selftest([trial(seed=seed, forecaster=name, e=e) for seed, row in enumerate(rows)
                         for name, e in zip(THREE, row, strict=True)])
    assert of((59, 0.5, 0.5), (59, 0.5, 0.5), (0, 0, 0)).missed == []                 # means 20, 20, 0
    assert of((59, 0.5, 0.5), (58, 0.5, 0.5), (0, 0, 0)).missed == [("powerball follows with chance 0.5", 600)]
    assert of((59, 0.5, 0.5), (1e300, 0, 0)).missed == []
    assert of((1e300, 1e300, 1e300), (0, 0, 0), (0, 0, 0)).passed is False
    assert Selftest([trial(e=1e9, n=600), trial(e=1.0, n=700)]).missed == [("powerball follows with chance 0.5", 700)]


@pytest.mark.parametrize("of", [1, 5, 60, 200])
def test_fair_histories_may_alarm_as_often_as_chance_allows(of):
    allowed = Selftest(fair(0, of)).false_alarms["allowed"]
    assert binom.sf(allowed, of, 0.05) <= 0.001 < binom.sf(allowed - 1, of, 0.05)
    for alarms in {0, min(allowed, of), min(allowed + 1, of)}:
        result = Selftest(planted_everywhere() + fair(alarms, of))
        counted = result.false_alarms
        assert (counted["histories"], counted["alarms"], counted["alpha"], counted["with_net"]) == (of, alarms, 0.05, 0)
        assert counted["largest_e"] == (100.0 if alarms else 0.5) and counted["mean_skill_nats"] == pytest.approx(-0.001)
        assert result.passed is (alarms <= allowed)
        assert result.verdict.startswith("passed: all 7" if result.passed else "FAILED: all 7")


def test_a_fair_alarm_goes_by_the_mean_over_forecasters():
    assert Selftest(fair(1, 1, loud=20.0)).false_alarms["alarms"] == 1
    one_loud = [trial(FAIR, seed=1, forecaster=name, e=e) for name, e in (("frequency", 30), ("steps", 9))]
    assert Selftest(one_loud).false_alarms["alarms"] == 0
    with_net = [*one_loud, trial(FAIR, seed=1, forecaster=NET, e=22.0)]
    counted = Selftest(with_net).false_alarms
    assert (counted["histories"], counted["alarms"], counted["with_net"]) == (1, 1, 1)


def test_verdicts():
    result = Selftest(planted_everywhere() + fair(1, 60))
    assert result.verdict == ("passed: all 7 planted biases were found; 1 alarm on 60 fair histories, "
                              "0 of them with the network (a rate of 5% stays at 9 or fewer 999 times in 1,000; largest E 100)")
    assert "; no alarms on 60 fair histories, 0 of them" in Selftest(planted_everywhere() + fair(0, 60)).verdict
    loud = Selftest(planted_everywhere() + fair(60, 60))
    assert loud.verdict.startswith("FAILED: all 7 planted biases were found; 60 alarms on 60 fair histories")
    blind = Selftest(planted_everywhere(e=1.0) + fair(0, 60))
    assert blind.verdict.startswith("FAILED: 7 of 7 planted biases were MISSED: five whites at weight 2 (n 1390), ten whites")
    assert [m[0] for m in blind.missed] == list(BIASES)
    assert "a rate of 1% stays" in Selftest(planted_everywhere(), 0.01).verdict


def test_without_fair_or_without_planted_histories():
    only_planted = Selftest(planted_everywhere())
    assert only_planted.passed and only_planted.false_alarms == {
        "histories": 0, "alarms": 0, "alpha": 0.05, "allowed": 0, "with_net": 0, "largest_e": 1.0, "mean_skill_nats": 0.0, "by_forecaster": {}}
    only_fair = Selftest(fair(0, 10))
    assert only_fair.cases == [] and only_fair.missed == [] and only_fair.passed
    assert [line[:13] for line in only_fair.lines()] == ["on fair draws", "on fair draws", "Verdict    pa"]
    for result in (only_planted, only_fair, Selftest([])):
        json.dumps(result.as_dict(), allow_nan=False)
        assert result.verdict in "\n".join(result.lines())


def test_huge_evidence_stays_finite_in_json():
    most = e_process(np.full(10_000, 1.0)).final
    assert 1e300 < most < np.inf
    trials = [replace(t, e_value=most) for t in planted_everywhere() + fair(3, 3)]
    trials += [replace(t, forecaster=NET) for t in trials]
    result = Selftest(trials)
    text = json.dumps(result.as_dict(), allow_nan=False)
    assert json.loads(text)["cases"][0]["e_value"] == most
    assert all("inf" not in line.lower().split() and "nan" not in line.lower().split() for line in result.lines())


def test_what_is_tried_are_the_forecasters_that_learn():
    assert [*tried()] == LEARNING and all(tried()[name] is FORECASTERS[name] for name in LEARNING)
    assert MIXTURE in LEARNING and NET not in tried()


def test_aims_by_hand():
    bias, other = [*BIASES][:2]
    trials = [trial(bias, 1440, s, name, skill=k) for s, k, name in
              [(1, 0.9, MIXTURE), (2, 0.7, MIXTURE), (1, 0.85, "steps"), (2, 0.85, "steps")]]       # a mean of 0.8 is enough
    trials += [trial(bias, 5000, 1, MIXTURE, skill=0.94), trial(other, 1440, 1, MIXTURE, skill=0.79), trial(other, 700, 1, MIXTURE, skill=0.1)]
    trials += [trial(other, 5000, 1, "steps", skill=1.0)] + fair(0, 3)
    found = {(aim["bias"], aim["n"]): aim for aim in Selftest(trials).aims}
    assert AIMS == {1440: 0.80, 5000: 0.95}
    assert found[bias, 1440] == {"bias": bias, "n": 1440, "recovered": pytest.approx(0.8), "wanted": 0.80, "met": True, "best": "steps",
                                 "best_recovered": pytest.approx(0.85)}
    assert [found[key]["met"] for key in ((bias, 5000), (other, 1440), (other, 700), (other, 5000))] == [False, False, None, None]
    assert found[other, 5000]["recovered"] is None and found[other, 700]["wanted"] is None
    (line,) = [line for line in Selftest(trials).lines() if line.startswith("Aims")]
    assert line == f"Aims       the mixture met 1 of 3; missed: {other} (n 1440) 79.0% of 80%, {bias} (n 5000) 94.0% of 95%"
    assert not [line for line in Selftest(planted_everywhere()).lines() if line.startswith("Aims")]


def test_fair_draws_by_forecaster():
    trials = [*fair(2, 5), *fair(0, 3, ("steps",)), *planted_everywhere()]
    counted = Selftest(trials).false_alarms["by_forecaster"]
    assert counted == {"frequency": {"histories": 5, "alarms": 2, "mean_skill_nats": pytest.approx(-0.001)},
                       "steps": {"histories": 8, "alarms": 2, "mean_skill_nats": pytest.approx(-0.001)}}
    lines = [line for line in Selftest(trials).lines() if line.startswith("on fair draws")]
    assert lines == ["on fair draws frequency       2 alarms in 5, mean skill -0.00100 nats a draw",
                     "on fair draws steps           2 alarms in 8, mean skill -0.00100 nats a draw"]


def test_lines_show_every_case():
    result = Selftest(planted_everywhere() + fair(0, 60))
    lines = list(result.lines())
    assert len(lines) == 1 + 7 * 3 + 1 + 2 + 1                   # a head, cases, what the numbers are, two forecasters on fair draws, the verdict
    for case, line in zip(result.cases, lines[1:], strict=False):
        assert line.startswith(case.bias) and case.forecaster in line and line.endswith("alarm") is case.alarm


# How it ends

def test_an_error_in_a_history_is_raised(tmp_path):
    bad = History(FAIR, 60, 1, True)        # the net learns from 51
    for jobs in (1, 2):
        with pytest.raises(ForecasterError, match="51 draws give 1 windows of 50"):
            run_all([bad], jobs)


ENDLESS = """
import sys
from dataclasses import replace
from helios.fitting import PRESETS
from helios.selftest import History, run_all

if __name__ == "__main__":
    slow = replace(PRESETS["quick"], epochs=100_000, early_stopping_patience=0)
    last = [History("none", 60, 9, True)] if sys.argv[1] == "error" else []
    todo = [History("none", 160, 1, False), History("none", 1390, 2, True, slow), *last,
            *(History("none", 1390, seed, True, slow) for seed in (3, 4, 5))]
    run_all(todo, 2, lambda history: print(history.seed, flush=True))
"""


def running_in(group: int) -> list[int]:
    """Running processes of a group."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of = place.joinpath("stat").read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:      # it has ended meanwhile
            continue
        if int(of) == group and state != "Z":
            found.append(int(place.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", ["interrupt", "interrupt all", "error", "kill"])
def test_the_pool_ends_with_an_interrupt_or_error(how, tmp_path):
    """Two histories that would take days are under way; nobody waits for them, and no process is left."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    running = subprocess.Popen([sys.executable, script, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        assert running.stdout.readline() == "1\n"
        if how != "error":      # Ctrl-C in a terminal goes to every process of the group
            (os.killpg if how == "interrupt all" else os.kill)(running.pid, signal.SIGKILL if how == "kill" else signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode != 0 and {"error": "ForecasterError", "kill": ""}.get(how, "KeyboardInterrupt") in said
        for _ in range(100):    # helpers of multiprocessing end once they see that their parent is gone
            if not running_in(running.pid):
                break
            time.sleep(0.2)
        assert running_in(running.pid) == []
    finally:
        if running_in(running.pid):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


# The whole of it

@pytest.mark.slow
def test_the_quick_plan_passes(tmp_path):
    """`helios selftest --quick`: every planted bias is found, and no fair history raises an alarm.

    The network takes most of its time and finds least; here it forecasts one fair history and no planted ones.
    """
    out = tmp_path / "selftest.json"
    code = ("import helios.selftest as selftest; from dataclasses import replace; from helios.cli import main; "
            "selftest.QUICK = replace(selftest.QUICK, net_seeds=0, fair_net=1); main(prog_name='helios')")
    done = subprocess.run([sys.executable, "-c", code, "selftest", "--quick", "--json", out], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    result = json.loads(out.read_text())
    assert result["passed"] and result["missed"] == [] and result["false_alarms"]["alarms"] == 0
    assert result["false_alarms"]["histories"] == 20 and result["false_alarms"]["with_net"] == 1
    assert -0.003 < result["false_alarms"]["mean_skill_nats"] <= 0
    assert done.stdout.splitlines()[-1] == f"Verdict    {result['verdict']}"
    oracle = {case["bias"]: case["oracle_nats"] for case in result["cases"]}
    assert list(oracle) == list(BIASES)
    for found, stated in zip(oracle.values(), (0.1157, 0.0605, 0.0840, 0.1013, 0.2418, 1.0182), strict=False):
        assert found == pytest.approx(stated, abs=1e-4)
    for case in result["cases"]:
        first = 100 * (1 + list(BIASES).index(case["bias"]))
        assert case["seeds"] == [first, first + 1]
        assert case["recovered"] == pytest.approx(case["skill_nats"] / case["oracle_nats"])
        assert case["skill_nats"] <= case["oracle_nats"] + 1e-12
    best = {bias: max(c["recovered"] for c in result["cases"] if c["bias"] == bias) for bias in BIASES}
    mixed = {case["bias"]: case["recovered"] for case in result["cases"] if case["forecaster"] == MIXTURE}
    assert min(best.values()) > 0.8 and min(mixed.values()) > 0.7, (best, mixed)
    assert [aim["recovered"] for aim in result["aims"]] == [*mixed.values()]
