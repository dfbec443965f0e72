"""The distribution over sets, held to brute-force enumeration.

Enumeration is done in NumPy, apart from the code under test. Sampling is judged by chi-square tests at a level of 1e-6
each: the seeds are fixed, so they pass or fail for good, and a fresh seed would raise a false alarm once in a million.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb, fsum, inf, log, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.autograd import gradcheck, gradgradcheck

from helios.subsets import SubsetError, are_sets, entropy, inclusion_probs, log_esp, log_prob, sample, top_subsets

SIZES = [(n, k) for n in range(1, 13) for k in range(1, min(n, 5) + 1)]
ATOL = {torch.float64: 1e-10, torch.float32: 1e-5}
RTOL = {torch.float64: 1e-12, torch.float32: 1e-6}  # beside it, for log e_5 near 250: float32 holds 7 digits
EVERY = pytest.mark.parametrize(("n", "k"), SIZES)
DTYPES = pytest.mark.parametrize("dtype", ATOL, ids=["float64", "float32"])
quick = settings(deadline=None, max_examples=80, derandomize=True)


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def rows_of(n, k, dtype=torch.float64):
    """(7, n) logits: equal, normal, +-50, anywhere between, one huge, with ties, with n - k balls ruled out."""
    rng = np.random.default_rng(100 * n + k)
    huge = np.full(n, -50.0)
    huge[rng.integers(n)] = 50
    out = rng.normal(size=n)
    out[rng.permutation(n)[k:]] = -inf
    rows = [np.zeros(n), rng.normal(size=n), rng.choice([-50.0, 50.0], n), rng.uniform(-50, 50, n), huge,
            rng.integers(0, 3, n).astype(float), out]
    return tensor(np.array(rows)).to(dtype)


def all_sets(n, k):
    return np.array(list(combinations(range(n), k)))


def enumerated(logits, k):
    """(sets, log e_k, log P of each set) of one row, from the definition."""
    row = np.asarray(logits.detach().double().numpy())
    sets = all_sets(len(row), k)
    sums = np.array([fsum(row[list(s)]) if np.isfinite(row[list(s)]).all() else -inf for s in sets])
    top = sums.max()
    log_total = top + log(fsum(np.exp(sums - top)))
    return sets, log_total, sums - log_total


def indicator(sets, n):
    return (sets[:, :, None] == np.arange(n)).any(1)


def inclusion_of(logits, k):
    sets, _, log_p = enumerated(logits, k)
    return indicator(sets, len(logits)).T @ np.exp(log_p)


def entropy_of(logits, k):
    _, _, log_p = enumerated(logits, k)
    return -fsum(np.exp(v) * v for v in log_p if v > -inf)


def covariance_of(logits, k):
    sets, _, log_p = enumerated(logits, k)
    held, p = indicator(sets, len(logits)).astype(float), np.exp(log_p)
    return held.T @ (p[:, None] * held) - np.outer(held.T @ p, held.T @ p)


def same(found, truth, dtype=torch.float64):
    torch.testing.assert_close(found.detach().double(), tensor(np.asarray(truth)), atol=ATOL[dtype], rtol=RTOL[dtype])


# Against enumeration


@DTYPES
@EVERY
def test_log_esp_is_the_sum_over_all_sets(n, k, dtype):
    rows = rows_of(n, k, dtype)
    found = log_esp(rows, k)
    assert found.dtype == dtype and found.shape == (7,)
    same(found, [enumerated(row, k)[1] for row in rows], dtype)


@DTYPES
@EVERY
def test_log_prob_of_every_set(n, k, dtype):
    rows, sets = rows_of(n, k, dtype), torch.tensor(all_sets(n, k))
    found = log_prob(rows.unsqueeze(1), sets)
    assert found.dtype == dtype and found.shape == (7, comb(n, k))
    same(found, [enumerated(row, k)[2] for row in rows], dtype)


@DTYPES
@EVERY
def test_inclusion_probs_of_every_ball(n, k, dtype):
    rows = rows_of(n, k, dtype)
    truth = [inclusion_of(row, k) for row in rows]
    found = inclusion_probs(rows, k)
    assert found.dtype == dtype and not found.requires_grad
    same(found, truth, dtype)
    same(inclusion_probs(rows.clone().requires_grad_(), k), truth, dtype)  # the path that autograd follows


@DTYPES
@EVERY
def test_entropy(n, k, dtype):
    rows = rows_of(n, k, dtype)
    found = entropy(rows, k)
    assert found.dtype == dtype and found.shape == (7,)
    same(found, [entropy_of(row, k) for row in rows], dtype)


@DTYPES
@EVERY
def test_top_subsets_lists_all_in_order(n, k, dtype):
    for row in rows_of(n, k, dtype):
        sets, _, log_p = enumerated(row, k)
        order = sorted((i for i in range(len(sets)) if log_p[i] > -inf), key=lambda i: (-log_p[i], i))
        found, value = top_subsets(row, k, len(sets) + 5)
        assert found.dtype == torch.int64 and value.dtype == torch.float64
        assert found.tolist() == sets[order].tolist()
        same(value, log_p[order])


@DTYPES
@EVERY
def test_gradient_of_log_esp_is_the_inclusion(n, k, dtype):
    rows = rows_of(n, k, dtype).requires_grad_()
    scale = torch.arange(1, 8, dtype=dtype)
    grad = torch.autograd.grad((log_esp(rows, k) * scale).sum(), rows)[0] / scale[:, None]
    same(grad, [inclusion_of(row, k) for row in rows], dtype)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 3), (6, 1), (8, 3), (9, 5)])
def test_second_derivative_is_the_covariance(n, k):
    for row in rows_of(n, k):
        found = torch.autograd.functional.hessian(lambda x: log_esp(x, k), row)
        same(found, covariance_of(row, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_out(dtype):
    value = log_prob(torch.zeros(69, dtype=dtype), torch.arange(5))
    assert value.dtype == dtype
    assert float(value) == pytest.approx(-16.2349, rel=0.005)


# Against finite differences


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (4, 1), (5, 2), (5, 5), (6, 3), (7, 5)])
def test_derivatives_agree_with_finite_differences(n, k):
    row = torch.randn(n, generator=torch.Generator().manual_seed(n * k), dtype=torch.float64).requires_grad_()
    for function in (log_esp, inclusion_probs, entropy):
        assert gradcheck(lambda x, f=function: f(x, k), row)
        assert gradgradcheck(lambda x, f=function: f(x, k), row)


def test_derivatives_of_a_batch():
    rows = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    for function in (log_esp, inclusion_probs, entropy):
        assert gradcheck(lambda x, f=function: f(x, 3), rows)
        assert gradgradcheck(lambda x, f=function: f(x, 3), rows)


@pytest.mark.parametrize(("logit_shape", "set_shape"), [((5,), (4, 2)), ((3, 5), (3, 2)), ((2, 1, 5), (3, 2)),
                                                        ((1, 3, 5), (2, 1, 2)), ((3, 5), (2,))])
def test_derivatives_of_log_prob_with_broadcasting(logit_shape, set_shape):
    source = torch.Generator().manual_seed(2)
    logits = torch.randn(logit_shape, generator=source, dtype=torch.float64).requires_grad_()
    sets = torch.rand(*set_shape[:-1], 5, generator=source).argsort(-1)[..., :2]
    assert log_prob(logits, sets).shape == torch.broadcast_shapes(logit_shape[:-1], set_shape[:-1])
    assert gradcheck(lambda x: log_prob(x, sets), logits)
    assert gradgradcheck(lambda x: log_prob(x, sets), logits)


def test_derivatives_stay_finite_with_balls_ruled_out():
    free = tensor([0.3, -1.0, 0.5, 2.0]).requires_grad_()

    def padded(x):
        return torch.cat([tensor([-inf]), x, tensor([-inf, -inf])])

    for function in (log_esp, inclusion_probs, entropy):
        assert gradcheck(lambda x, f=function: f(padded(x), 2), free)
        assert gradgradcheck(lambda x, f=function: f(padded(x), 2), free)
    whole = padded(free.detach()).requires_grad_()
    for value in (log_esp(whole, 2), entropy(whole, 2), log_prob(whole, torch.tensor([1, 3]))):
        grad = torch.autograd.grad(value, whole)[0]
        assert grad.isfinite().all() and (grad[[0, 5, 6]] == 0).all()


# Precision


def test_the_size_of_the_real_game():
    flat = torch.zeros(69, dtype=torch.float64)
    same(log_esp(flat, 5), log(comb(69, 5)))
    same(log_prob(flat, torch.arange(5)), -log(comb(69, 5)))
    same(entropy(flat, 5), log(comb(69, 5)))
    same(inclusion_probs(flat, 5), np.full(69, 5 / 69))


@pytest.mark.parametrize("offset", [-1000.0, 100.0, 1000.0, 4096.0])
def test_a_common_offset_costs_no_digits_in_float32(offset):
    """The steps are such that logits plus offset are exact in float32, so nothing may change beyond rounding."""
    source = torch.Generator().manual_seed(3)
    logits = torch.randint(-1024, 1024, (20, 69), generator=source) / 1024
    sets = torch.rand(20, 69, generator=source).argsort(1)[:, :5]
    truth = log_prob(logits.double(), sets)
    worst = float((log_prob(logits + offset, sets).double() - truth).abs().max())
    assert worst < 1e-5
    worst = float((inclusion_probs(logits + offset, 5) - inclusion_probs(logits, 5)).abs().max())
    assert worst < 1e-6


def test_small_differences_survive_beside_a_large_logit():
    """0.001 and 0.002 below a logit of 50: taking 50 off in float32 would blur them."""
    row = torch.tensor([50.0, 0.001, 0.002, 0.003, 0.0045])
    found = inclusion_probs(row, 2).double()
    torch.testing.assert_close(found[1:], tensor(inclusion_of(row, 2))[1:], rtol=3e-7, atol=0)


@pytest.mark.parametrize("span", [1.0, 13.0, 15.0, 60.0, 100.0])
def test_float32_at_the_size_of_the_real_game(span):
    """Narrow and wide rows may take different ways; both agree with float64."""
    rows = torch.rand(50, 69, generator=torch.Generator().manual_seed(4)) * span - span / 2
    sets = sample(rows, 5, 1, torch.Generator().manual_seed(5))[0]
    for function in (lambda x: log_prob(x, sets), lambda x: inclusion_probs(x, 5), lambda x: entropy(x, 5)):
        torch.testing.assert_close(function(rows).double(), function(rows.double()), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("span", [150.0, 174.0, 177.5, 180.0, 182.0, 184.0, 186.0, 190.0])
def test_a_wide_span_is_exact_or_refused(span):
    """Just below the point where float64 gives 0, its last digits go first; a wrong number is worse than an error."""
    row = tensor([span, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    try:
        found = log_esp(row, 5)
    except SubsetError:
        assert span > 175
        return
    same(found, enumerated(row, 5)[1])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_promised_span_is_held(k):
    row = torch.zeros(12, dtype=torch.float64)
    row[4] = 700 / (k - 1) - 1 if k > 1 else 5000.0
    same(log_esp(row, k), enumerated(row, k)[1])
    same(inclusion_probs(row, k), inclusion_of(row, k))


# Properties


@st.composite
def games(draw):
    n = draw(st.integers(1, 12))
    values = st.floats(-50, 50, allow_nan=False, width=32)
    return tensor(draw(st.lists(values, min_size=n, max_size=n))), draw(st.integers(1, min(n, 5)))


@given(games())
@quick
def test_inclusion_probs_sum_to_k(game):
    logits, k = game
    pi = inclusion_probs(logits, k)
    assert float(pi.sum()) == pytest.approx(k, abs=1e-12)
    assert float(pi.min()) >= 0 and float(pi.max()) <= 1 + 1e-12


@given(games(), st.floats(-100, 100))
@quick
def test_a_constant_changes_nothing(game, constant):
    logits, k = game
    sets = torch.tensor(all_sets(len(logits), k))
    same(log_prob(logits + constant, sets), log_prob(logits, sets))
    same(inclusion_probs(logits + constant, k), inclusion_probs(logits, k))
    same(log_esp(logits + constant, k), log_esp(logits, k) + k * constant)


@given(games(), st.randoms(use_true_random=False))
@quick
def test_names_of_balls_do_not_matter(game, random):
    logits, k = game
    order = list(range(len(logits)))
    random.shuffle(order)
    sets, place = torch.tensor(all_sets(len(logits), k)), torch.tensor(order).argsort()
    same(inclusion_probs(logits[order], k), inclusion_probs(logits, k)[order])
    same(log_prob(logits[order], place[sets]), log_prob(logits, sets))
    same(log_prob(logits, sets.flip(-1)), log_prob(logits, sets))
    same(entropy(logits[order], k), entropy(logits, k))
    same(top_subsets(logits[order], k, 7)[1], top_subsets(logits, k, 7)[1])


@given(games(), st.integers(1, 60))
@quick
def test_top_subsets_leaves_out_nothing_better(game, m):
    logits, k = game
    sets, log_p = top_subsets(logits, k, m)
    assert len(sets) == len(log_p) == min(m, comb(len(logits), k))
    assert (log_p.diff() <= 0).all()
    assert are_sets(sets).all() and (sets.sort(-1).values == sets).all()
    same(log_prob(logits, sets), log_p)
    listed = {tuple(s) for s in sets.tolist()}
    assert len(listed) == len(sets)
    every, _, truth = enumerated(logits, k)
    outside = [p for s, p in zip(every.tolist(), truth, strict=True) if tuple(s) not in listed]
    assert not outside or max(outside) <= float(log_p[-1]) + 1e-10


@given(games())
@quick
def test_nothing_is_more_undecided_than_uniform(game):
    logits, k = game
    assert -1e-10 <= float(entropy(logits, k)) <= log(comb(len(logits), k)) + 1e-10


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**31))
@quick
def test_samples_are_sorted_sets_of_possible_balls(n, k, seed):
    k = min(n, k)
    source = torch.Generator().manual_seed(seed)
    logits = torch.rand(3, n, generator=source) * 100 - 50
    gone = torch.rand(3, n, generator=source).argsort(1)[:, k:]
    logits = logits.scatter(1, gone[:, : n - k], -inf)
    found = sample(logits, k, 20, source)
    assert found.shape == (20, 3, k) and found.dtype == torch.int64
    assert are_sets(found).all() and (found.sort(-1).values == found).all()
    assert log_prob(logits, found).isfinite().all()


# Sampling


def places_of(found, sets):
    """The row of each found set in the table of all sets, which is in the order of counting."""
    base = 1 + int(sets.max())
    weights = base ** np.arange(sets.shape[1])[::-1]
    return np.searchsorted(sets @ weights, found.numpy() @ weights)


def counts_of(found, sets):
    return np.bincount(places_of(found, sets), minlength=len(sets))


@pytest.mark.parametrize(("name", "logits", "k"), [
    ("flat", [0.0] * 6, 3), ("tilted", [0.5, -1.0, 0.0, 2.0, 0.3, -0.2, 1.1], 2),
    ("one ball", [1.0, 0.0, -1.0, 0.5], 1), ("all but one", [1.0, 0.0, -1.0, 0.5, 0.2], 4),
    ("ruled out", [0.2, -inf, 1.0, -inf, 0.0, -0.5], 2),
    ("one huge", [50.0, 0.0, 1.0, -0.5, 0.3], 3), ("far apart", [50.0, 49.0, -50.0, -49.5, -50.5], 3)])
def test_sampled_frequencies(name, logits, k):
    n_samples, row = 40_000, tensor(logits)
    sets, _, log_p = enumerated(row, k)
    other = torch.zeros_like(row)  # a second row in the batch must not disturb the first
    found = sample(torch.stack([other, row]), k, n_samples, torch.Generator().manual_seed(11))[:, 1]
    counts = counts_of(found, sets)
    expected = n_samples * np.exp(log_p)
    rare = expected < 5
    assert counts[log_p == -inf].sum() == 0
    groups = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)]
    if rare.any() and expected[rare].sum() > 1:
        groups.append((counts[rare].sum(), expected[rare].sum()))
    else:
        assert counts[rare].sum() <= 8  # of 1 expected at most; more has a chance of 1e-6
    statistic = sum((c - e) ** 2 / e for c, e in groups)
    assert statistic <= chi2.isf(1e-6, max(len(groups) - 1, 1))


def test_consecutive_samples_are_independent():
    """Pairs of neighbouring samples over the 6 x 6 table of sets: chi-square with 35 degrees of freedom."""
    row = tensor([0.4, 0.0, -0.6, 0.2])
    sets, _, log_p = enumerated(row, 2)
    drawn = places_of(sample(row, 2, 40_000, torch.Generator().manual_seed(5)), sets)
    counts = np.bincount(drawn[::2] * 6 + drawn[1::2], minlength=36)
    expected = 20_000 * np.outer(np.exp(log_p), np.exp(log_p)).ravel()
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 35)


def test_equal_seeds_give_equal_samples_and_leave_the_global_source_alone():
    row = torch.randn(9, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(4)
    untouched = torch.rand(1)
    torch.manual_seed(4)
    first = sample(row, 3, 50, torch.Generator().manual_seed(9))
    assert torch.equal(torch.rand(1), untouched)
    assert torch.equal(first, sample(row, 3, 50, torch.Generator().manual_seed(9)))
    torch.manual_seed(7)
    from_global = sample(row, 3, 50)
    torch.manual_seed(7)
    assert torch.equal(from_global, sample(row, 3, 50))
    assert not torch.equal(first, from_global)


def test_samples_carry_no_gradient():
    assert not sample(torch.zeros(5, requires_grad=True), 2, 3).requires_grad


# Shapes


@DTYPES
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (5, 5), (7, 3)])
def test_a_batch_equals_its_rows(n, k, dtype):
    rows = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype) * 9
    sets = torch.rand(2, 3, n, generator=torch.Generator().manual_seed(7)).argsort(-1)[..., :k]
    for i in range(2):
        for j in range(3):
            one = rows[i, j]  # equal but for the last digit, which vector instructions may round another way
            pairs = [(function(rows, k), function(one, k)) for function in (log_esp, inclusion_probs, entropy)]
            for whole, alone in [*pairs, (log_prob(rows, sets), log_prob(one, sets[i, j]))]:
                torch.testing.assert_close(whole[i, j], alone, rtol=RTOL[dtype], atol=ATOL[dtype])


@pytest.mark.parametrize("lead", [(0,), (3, 0), (0, 2)])
def test_an_empty_batch_gives_an_empty_answer(lead):
    rows = torch.zeros(*lead, 6, requires_grad=True)
    assert log_esp(rows, 2).shape == lead
    assert entropy(rows, 2).shape == lead
    assert inclusion_probs(rows, 2).shape == (*lead, 6)
    assert log_prob(rows, torch.zeros(*lead, 2, dtype=torch.int64)).shape == lead
    assert sample(rows, 2, 4).shape == (4, *lead, 2)
    log_esp(rows, 2).sum().backward()
    assert rows.grad.shape == (*lead, 6)


def test_no_sets_and_no_samples():
    assert log_prob(torch.zeros(6), torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)
    assert sample(torch.zeros(3, 6), 2, 0).shape == (0, 3, 2)
    sets, log_p = top_subsets(torch.zeros(6), 2, 0)
    assert sets.shape == (0, 2) and sets.dtype == torch.int64 and log_p.shape == (0,)


def test_all_balls_chosen_is_certain():
    row = torch.randn(3, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    same(log_prob(row, torch.arange(5)), np.zeros(3))
    same(entropy(row, 5), np.zeros(3))
    assert torch.equal(sample(row, 5, 2), torch.arange(5).expand(2, 3, 5))


def test_inputs_are_left_as_they_were():
    rows = rows_of(8, 3)
    before = rows.clone()
    for tracked in (rows, rows.requires_grad_()):
        log_esp(tracked, 3), inclusion_probs(tracked, 3), entropy(tracked, 3), sample(tracked, 3, 2)
        log_prob(tracked, torch.arange(3)), top_subsets(tracked[1], 3, 5)
    assert torch.equal(rows.detach(), before)


def test_views_of_any_layout_give_the_same():
    wide = torch.randn(6, 40, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    view = wide.T[::2]
    assert torch.equal(log_esp(view, 3), log_esp(view.contiguous(), 3))
    assert torch.equal(inclusion_probs(view, 3), inclusion_probs(view.contiguous(), 3))


def test_threads_do_not_disturb_each_other():
    rows = [rows_of(10, 4) * (1 + i / 40) for i in range(16)]

    def work(x):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(log_esp(leaf, 4).sum(), leaf)[0]

    alone = [work(x) for x in rows]
    with ThreadPoolExecutor(4) as pool:
        for found, truth in zip(pool.map(work, rows), alone, strict=True):
            assert torch.equal(found, truth)


def test_are_sets():
    assert are_sets(torch.tensor([[[0, 1], [1, 1]], [[5, 2], [2, 2]]])).tolist() == [[True, False], [True, False]]
    assert are_sets(torch.tensor([7])).item() is True
    assert are_sets(torch.zeros(0, 5, dtype=torch.int64)).shape == (0,)


def test_ties_come_in_the_order_of_their_balls():
    sets, _ = top_subsets(tensor([1.0, 0.0, 1.0, 0.0, 1.0]), 2, 10)
    assert sets.tolist() == [[0, 2], [0, 4], [2, 4], [0, 1], [0, 3], [1, 2], [1, 4], [2, 3], [3, 4], [1, 3]]


# Errors

FUNCTIONS = {"log_esp": log_esp, "inclusion_probs": inclusion_probs, "entropy": entropy,
             "sample": sample, "top_subsets": lambda x, k: top_subsets(x, k, 3),
             "log_prob": lambda x, k: log_prob(x, torch.arange(k))}
NAMES = pytest.mark.parametrize("name", FUNCTIONS)


def refused(call):
    with pytest.raises(SubsetError) as caught:
        call()
    assert str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@NAMES
@pytest.mark.parametrize("row", [[0.0, nan, 1.0, 2.0], [0.0, inf, 1.0, 2.0], [-inf, -inf, -inf, 2.0], [-inf] * 4,
                                 [nan] * 4], ids=["NaN", "inf", "too few balls", "no ball", "all NaN"])
def test_logits_that_have_no_distribution(name, row):
    assert "NaN or inf" in refused(lambda: FUNCTIONS[name](tensor(row), 2))


@pytest.mark.parametrize("row", [[0.0, nan, 1.0, 2.0], [-inf, -inf, -inf, 2.0]], ids=["NaN", "too few balls"])
def test_the_path_with_gradient_refuses_the_same(row):
    for function in (log_esp, inclusion_probs, entropy):
        refused(lambda f=function: f(tensor(row).requires_grad_(), 2))


@NAMES
def test_one_bad_row_spoils_the_batch(name):
    if name != "top_subsets":
        refused(lambda: FUNCTIONS[name](tensor([[0.0, 1.0, 2.0], [0.0, nan, 1.0]]), 2))


@NAMES
def test_a_span_beyond_float64(name):
    assert "span" in refused(lambda: FUNCTIONS[name](tensor([300.0, 0, 0, 0, 0, 0]), 5))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "log_prob"])
@pytest.mark.parametrize("k", [-1, 0, 5])
def test_k_out_of_range(name, k):
    assert "of 4 balls" in refused(lambda: FUNCTIONS[name](torch.zeros(4), k))


@pytest.mark.parametrize("k", [0, 5])
def test_sets_of_a_size_out_of_range(k):
    assert "of 4 balls" in refused(lambda: log_prob(torch.zeros(4), torch.zeros(2, k, dtype=torch.int64)))


@NAMES
def test_integer_logits(name):
    assert "float" in refused(lambda: FUNCTIONS[name](torch.zeros(4, dtype=torch.int64), 2))


@NAMES
def test_a_single_number_instead_of_logits(name):
    refused(lambda: FUNCTIONS[name](torch.tensor(1.0), 1))


@pytest.mark.parametrize("sets", [[0, 4], [-1, 2], [[0, 1], [2, 70]]])
def test_indices_out_of_range(sets):
    assert "from 0 to 3" in refused(lambda: log_prob(torch.zeros(4), torch.tensor(sets)))


def test_sets_that_are_not_integers():
    refused(lambda: log_prob(torch.zeros(4), torch.tensor([0.0, 1.0])))


def test_top_subsets_of_a_batch():
    refused(lambda: top_subsets(torch.zeros(2, 4), 2, 3))
