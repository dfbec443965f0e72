"""Speed of the exact distribution over sets, on one thread; nothing here fails for being slow.

    pytest tests/bench --benchmark-enable --benchmark-only

prints each time with its ratio to the fastest of the group. The reference is the recursion ball by ball in log space,
left to autograd: once as one would write it first, with a row of logits as a row of the table, and once with the batch
as the last axis, which by itself halves the time.
"""

import pytest
import torch

from helios.subsets import log_prob, top_subsets

ROWS, BALLS, PICKED = 1024, 69, 5
NEVER = -1e30  # in place of -inf, whose gradient is NaN
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_and_sets(dtype):
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, BALLS, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
    return logits, torch.rand(ROWS, BALLS, generator=source).argsort(1)[:, :PICKED].contiguous()


def by_rows(logits, sets):
    """log P(set) by the recursion in log space."""
    k = sets.shape[-1]
    table = torch.cat([logits.new_zeros(len(logits), 1), logits.new_full((len(logits), k), NEVER)], 1)
    for i in range(logits.shape[1]):
        table = torch.cat([table[:, :1], torch.logaddexp(table[:, 1:], table[:, :-1] + logits[:, i : i + 1])], 1)
    return logits.gather(1, sets).sum(1) - table[:, k]


def by_columns(logits, sets):
    """The same with the batch as the last, contiguous axis."""
    k = sets.shape[-1]
    table = logits.new_full((k + 1, len(logits)), NEVER)
    table[0] = 0
    for ball in logits.T.contiguous().unbind(0):
        table = torch.cat([table[:1], torch.logaddexp(table[1:], table[:-1] + ball)])
    return logits.gather(1, sets).sum(1) - table[k]


def value_and_gradient(function, logits, sets):
    value = function(logits, sets)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


@DTYPES
@pytest.mark.parametrize("function", [log_prob, by_rows, by_columns],
                         ids=["helios", "log space", "log space, batch last"])
def test_log_prob_and_gradient(benchmark, function, dtype):
    benchmark.group = f"log_prob and gradient, 1,024 x 69, one thread, {str(dtype).removeprefix('torch.')}"
    logits, sets = rows_and_sets(dtype)
    value, gradient = benchmark.pedantic(value_and_gradient, (function, logits, sets), rounds=100, warmup_rounds=20)
    wide = logits.detach().double().requires_grad_()
    truth, slope = value_and_gradient(by_rows, wide, sets)
    torch.testing.assert_close(value.double(), truth, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=TOLERANCE[dtype])


def test_top_1000(benchmark):
    benchmark.group = "top 1,000 of C(69, 5)"
    logits = torch.randn(BALLS, generator=torch.Generator().manual_seed(1))
    sets, log_p = benchmark(top_subsets, logits, PICKED, 1000)
    assert sets.shape == (1000, PICKED) and bool((log_p.diff() <= 0).all())
