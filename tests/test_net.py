"""PowerballNet computes what its modules of torch compute, as they are usually called: outputs, losses, gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helios.draws import simulate
from helios.fitting import TrainingConfig, make_windows, net_forecast
from helios.net import Losses, NetOutput, PowerballNet, window_frequencies
from helios.recurrence import attend, dropout, kept_memory, last_state, linear
from helios.subsets import log_prob


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def usual_forward(net, whites, powerballs):
    """The net written with its modules as everybody would call them."""
    padding = powerballs == 0
    each = net.project(torch.cat([net.white_embedding(whites).sum(2), net.powerball_embedding(powerballs)], -1))
    x = each + net.position[-whites.shape[1]:]
    x = x + net.attention(x, x, x, key_padding_mask=padding if padding.any() else None, need_weights=False)[0]
    features = net.summary(torch.cat([net.lstm(x)[0][:, -1], each[:, -1]], -1))
    white, powerball = net.white_head(features), net.powerball_head(features)
    never = torch.full_like(white[:, :1], -torch.inf)
    return NetOutput(torch.cat([never, white[:, 1:]], 1), torch.cat([never, powerball[:, 1:]], 1),
                     net.frequency_head(features), net.confidence_head(features))


def usual_losses(net, window, whites, powerballs):
    """The losses over `usual_forward`."""
    out = usual_forward(net, *window)
    white, powerball = log_prob(out.white[:, 1:], whites - 1), -F.cross_entropy(out.powerball, powerballs, reduction="none")
    uniform = log_prob(torch.zeros_like(out.white[:, 1:]), whites - 1) - torch.log(torch.tensor(out.powerball.shape[1] - 1.0))
    beat = (white + powerball > uniform).detach().to(white.dtype)
    return Losses(-white.mean(), -powerball.mean(),
                  F.mse_loss(net.frequency_decoder(out.frequency), window_frequencies(net, *window).to(white.dtype)),
                  F.binary_cross_entropy_with_logits(out.confidence[:, 0], beat))


def a_net(layers, rate=0.2, hidden=32, length=20, seed=1):
    """A net whose heads say something."""
    torch.manual_seed(seed)
    net = PowerballNet(hidden=hidden, layers=layers, heads=4, sequence_length=length, dropout=rate)
    for head in (net.white_head, net.powerball_head, net.frequency_head, net.confidence_head):
        nn.init.normal_(head.weight, std=0.3)
    return net


def some_windows(batch, length, padded=0, seed=2):
    source = torch.Generator().manual_seed(seed)
    whites = torch.rand(batch, length + 1, 69, generator=source).argsort(-1)[..., :5] + 1
    powerballs = torch.randint(1, 27, (batch, length + 1), generator=source)
    whites[0, :padded], powerballs[0, :padded] = 0, 0
    return (whites[:, :-1], powerballs[:, :-1]), whites[:, -1], powerballs[:, -1]


CASES = [(layers, batch, length, padded) for layers in (1, 2, 3) for batch, length, padded in
         [(3, 20, 0), (3, 20, 6), (1, 13, 0), (1, 1, 0), (1, 9, 4), (40, 17, 3)]]


@pytest.mark.parametrize(("layers", "batch", "length", "padded"), CASES)
def test_forecasts_are_those_of_the_modules(layers, batch, length, padded):
    net, (window, *_) = a_net(layers).eval(), some_windows(batch, length, padded)
    with torch.no_grad():
        for ours, theirs in zip(net(*window), usual_forward(net, *window), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layers", "batch", "length", "padded"), CASES)
def test_losses_and_gradients_are_those_of_the_modules_under_the_same_masks(layers, batch, length, padded):
    net, batch = a_net(layers).train(), some_windows(batch, length, padded)
    found = []
    for losses in (PowerballNet.losses, usual_losses):
        torch.manual_seed(3)
        values = losses(net, *batch)
        net.zero_grad(set_to_none=True)
        sum(values).backward()
        found.append((torch.stack(values).detach(), {name: p.grad.clone() for name, p in net.named_parameters()}, torch.rand(2)))
    (ours, our_gradients, our_next), (theirs, their_gradients, their_next) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(our_next, their_next)  # as many random numbers taken
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-9, msg=name)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("length", "batch"), [(4, 2), (1, 3), (3, 1)])
def test_gradients_of_the_recurrence_in_float64(layers, length, batch):
    torch.manual_seed(4)
    lstm = nn.LSTM(3, 2, layers, bidirectional=True, dtype=torch.float64)
    x = torch.randn(length, batch, 3, dtype=torch.float64, requires_grad=True)
    weights = list(lstm.parameters())
    torch.testing.assert_close(last_state(lstm, x), lstm(x)[0][-1], rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x, *_: last_state(lstm, x), (x, *weights))


def test_gradients_of_attention_and_linear_maps_in_float64():
    torch.manual_seed(5)
    attention = nn.MultiheadAttention(4, 2, dropout=0.3, dtype=torch.float64)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)

    def seeded(x, *_):
        torch.manual_seed(6)
        return attend(attention.train(), linear(x, attention.in_proj_weight, attention.in_proj_bias))

    assert torch.autograd.gradcheck(seeded, (x, *attention.parameters()))
    assert torch.autograd.gradcheck(lambda x: linear(x, attention.out_proj.weight, None), x)


def test_a_step_in_float64_is_that_of_the_modules():
    net, batch = a_net(3).double().train(), some_windows(4, 20)
    values = []
    for losses in (PowerballNet.losses, usual_losses):
        torch.manual_seed(3)
        values.append(torch.stack([loss.double() for loss in losses(net, *batch)]))
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("hidden", [16, 64])
def test_a_draw_that_windows_share_is_read_once(length, hidden):
    """Windows as rows of a history give the losses and gradients of the windows themselves, for more draws than 32 and fewer."""
    net = a_net(2, hidden=hidden, length=20).double().train()
    windows, _ = make_windows(simulate(n=140, seed=2), TrainingConfig(sequence_length=length))
    for at in (torch.arange(0, 60, 3), torch.tensor([5]), torch.tensor([7, 7, 8])):
        found = []
        for batch in (windows.shared(at), windows.batch(at)):
            torch.manual_seed(3)
            losses = net.losses(*batch)
            found.append([torch.stack(losses).detach(), *torch.autograd.grad(sum(losses), list(net.parameters()))])
        assert len(windows.shared(at)[0][0]) == len(set((at[:, None] + torch.arange(length)).flatten().tolist()))
        for once, copied in zip(*found, strict=True):
            torch.testing.assert_close(once, copied, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(1,), (17,), (5, 7, 300), (50, 32, 64)])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_masks_are_those_of_torch(shape, rate):
    x, found = torch.randn(shape), []
    for drop in (dropout, F.dropout):
        torch.manual_seed(7)
        found.append((drop(x, rate, True), torch.rand(2)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_names_and_shapes_are_those_of_the_modules():
    """Models that are on disk since the first version must load."""
    shapes = {name: tuple(t.shape) for name, t in PowerballNet(hidden=256, layers=3).state_dict().items()}
    lstm = {f"lstm.{name}": tuple(t.shape) for name, t in nn.LSTM(256, 256, 3, bidirectional=True).state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if name.startswith("lstm.")} == lstm
    rest = {"position": (50, 256), "white_embedding.weight": (70, 128), "powerball_embedding.weight": (27, 64),
            "project.weight": (256, 192), "project.bias": (256,), "attention.in_proj_weight": (768, 256),
            "attention.in_proj_bias": (768,), "attention.out_proj.weight": (256, 256), "attention.out_proj.bias": (256,),
            "summary.0.weight": (768,), "summary.0.bias": (768,), "summary.1.weight": (128, 768), "summary.1.bias": (128,),
            "white_head.weight": (70, 128), "white_head.bias": (70,), "powerball_head.weight": (27, 128),
            "powerball_head.bias": (27,), "frequency_head.weight": (64, 128), "frequency_head.bias": (64,),
            "confidence_head.weight": (1, 128), "confidence_head.bias": (1,), "frequency_decoder.weight": (95, 64),
            "frequency_decoder.bias": (95,)}
    assert shapes == rest | lstm


def steps(seed):
    """The weights after three steps."""
    net, batch = a_net(2, hidden=64, length=20, seed=seed).train(), some_windows(16, 20)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        sum(net.losses(*batch)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_equal_seeds_give_equal_weights_whatever_ran_before():
    first = steps(8)
    junk = [torch.randn(n) for n in (1001, 77, 130_001)]  # moves what is allocated later
    windows, split = make_windows(simulate(n=120, seed=1), TrainingConfig(sequence_length=20))
    net_forecast(a_net(1), windows, split.test)
    with kept_memory():
        again = steps(8)
    assert torch.equal(first, again) and len(junk) == 3
    assert not torch.equal(first, steps(9))


def test_two_passes_before_the_gradients():
    """Nothing of the first pass is overwritten by the second."""
    net = a_net(2, rate=0.0).train()
    batches = [some_windows(4, 20, seed=seed) for seed in (1, 2)]
    together = torch.autograd.grad(sum(sum(net.losses(*batch)) for batch in batches), list(net.parameters()))
    apart = [torch.autograd.grad(sum(net.losses(*batch)), list(net.parameters())) for batch in batches]
    for both, one, other in zip(together, *apart, strict=True):
        torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-6)


def test_the_context_of_kept_memory_lets_errors_through():
    with pytest.raises(KeyError), kept_memory():
        raise KeyError("inside")
