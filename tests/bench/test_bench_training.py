"""Speed of training, beside a plain loop over the same net and beside this machine's limit for products of matrices.

The plain loop is what one would write first: `Dataset`, `DataLoader`, the modules of torch called as they are, AdamW,
the same four losses. Both loops live in processes of their own (what one leaves in its allocator must not help or hurt
the other) and train in turns, an epoch each; the ratio is the median over the epochs. They begin at the same seed, draw
the same masks of dropout, and must state the same losses epoch by epoch.

Useful arithmetic counts a multiplication and an addition as two, products of matrices only, and only those whose result
is read: the top layer of the LSTM backward takes one step, and what a draw is by itself is needed once, however many
windows of a batch hold it. Gradients cost twice the forward pass.

    pytest tests/bench/test_bench_training.py --benchmark-enable
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from helios.draws import simulate
from helios.fitting import PRESETS, FittingRun, Split, make_windows
from helios.net import NetOutput, PowerballNet, window_frequencies
from helios.recurrence import kept_memory, linear
from helios.subsets import log_prob

GROUPS = {"LSTM": ("mkldnn_rnn_layer", "lstm"), "masks of dropout": ("uniform_", "bernoulli_", "aten::lt", "aten::div_"),
          "other products": ("convolution", "aten::mm", "addmm", "bmm"),
          "optimizer and clipping": ("adamw", "AdamW", "linalg_vector_norm", "foreach", "_fused")}


class Windowed(Dataset):
    """One window and its target at a time."""

    def __init__(self, windows, at):
        self.windows, self.at = windows, at

    def __len__(self):
        return len(self.at)

    def __getitem__(self, i):
        first = int(self.at[i])
        after = first + self.windows.length
        return (self.windows.whites[first:after], self.windows.powerballs[first:after],
                self.windows.whites[after], self.windows.powerballs[after])


def plain_losses(net, whites, powerballs, target, target_powerball):
    """The four losses of the net with its modules called as they are."""
    padding = powerballs == 0
    each = net.project(torch.cat([net.white_embedding(whites).sum(2), net.powerball_embedding(powerballs)], -1))
    x = each + net.position
    x = x + net.attention(x, x, x, key_padding_mask=padding if padding.any() else None, need_weights=False)[0]
    features = net.summary(torch.cat([net.lstm(x)[0][:, -1], each[:, -1]], -1))
    white, powerball = net.white_head(features), net.powerball_head(features)
    never = torch.full_like(white[:, :1], -torch.inf)
    out = NetOutput(torch.cat([never, white[:, 1:]], 1), torch.cat([never, powerball[:, 1:]], 1),
                    net.frequency_head(features), net.confidence_head(features))
    white, powerball = log_prob(out.white[:, 1:], target - 1), -F.cross_entropy(out.powerball, target_powerball, reduction="none")
    uniform = log_prob(torch.zeros_like(out.white[:1, 1:]), target[:1] - 1) - torch.log(torch.tensor(out.powerball.shape[1] - 1.0))
    beat = (white + powerball > uniform).detach().float()
    rebuilt = net.frequency_decoder(out.frequency)
    return torch.stack([-white.mean(), -powerball.mean(), F.mse_loss(rebuilt, window_frequencies(net, whites, powerballs)),
                        F.binary_cross_entropy_with_logits(out.confidence[:, 0], beat)])


def the_task(preset, batches):
    """The net, its windows and its configuration; as many windows to train on as fill the batches."""
    config = PRESETS[preset]
    windows, split = make_windows(simulate(n=1390, seed=1), config)
    torch.manual_seed(config.seed)
    net = PowerballNet(hidden=config.hidden, layers=config.layers, heads=config.heads, dropout=config.dropout)
    spread = torch.linspace(0, len(split.train) - 1, batches * config.batch_size).long()     # over all of the training part
    return config, windows, Split(split.train[spread], split.validation, split.test), net


def plain_loop(preset, batches):
    """Epochs of the plain loop: their losses."""
    config, windows, split, net = the_task(preset, batches)
    decayed = [p for p in net.parameters() if p.dim() > 1 and p is not net.position]
    kept = [p for p in net.parameters() if p.dim() <= 1 or p is net.position]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": config.weight_decay},
                                   {"params": kept, "weight_decay": 0.0}], lr=config.learning_rate)
    weights, data = torch.tensor([1.0, 1.0, config.frequency_weight, config.confidence_weight]), Windowed(windows, split.train)
    while True:
        order, sums = torch.randperm(len(data)).tolist(), torch.zeros(4)
        net.train()
        for batch in DataLoader(data, config.batch_size, sampler=order, generator=torch.Generator()):
            optimizer.zero_grad()
            losses = plain_losses(net, *batch)
            (losses @ weights).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            sums += losses.detach() * len(batch[0])
        yield (sums / len(data)).tolist()


def helios_loop(preset, batches):
    """Epochs of the trainer's loop, without its logs and its validation: their losses."""
    config, windows, split, net = the_task(preset, batches)
    run = FittingRun(net, windows, split, replace(config, epochs=10**5, early_stopping_patience=0))
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in run.optimizer.param_groups]
    run.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    with kept_memory():
        for epoch in range(1, 10**5):
            run._begin_epoch(epoch)
            for _ in range(run.batches):
                run.step()
            yield list(run.mean_losses().values())[:4]


def shares(loop, batches):
    """Where an epoch's time goes, by groups of operations, in seconds; and the wall time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        next(loop)
        wall = time.perf_counter() - began
    found = dict.fromkeys([*GROUPS, "the rest"], 0.0)
    for event in profiler.key_averages():
        group = next((name for name, words in GROUPS.items() if any(word in event.key for word in words)), "the rest")
        found[group] += event.self_cpu_time_total / 1e6
    return {"wall": wall, "groups": found}


def serve(name, preset, batches, threads):
    """The body of a process: an epoch for each line that comes in."""
    torch.set_num_threads(threads)
    loop = {"plain": plain_loop, "helios": helios_loop}[name](preset, batches)
    for line in sys.stdin:
        began, spent = time.perf_counter(), time.process_time()
        answer = shares(loop, batches) if line.strip() == "profile" else {"losses": next(loop)}
        answer |= {"seconds": time.perf_counter() - began, "processor": time.process_time() - spent}
        print(json.dumps(answer), flush=True)


class Loop:
    """One of the two loops in its process."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def ask(self, what="epoch"):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def different_draws(preset, batches):
    """How many draws the windows of one batch hold, on average."""
    _, windows, split, _ = the_task(preset, batches)
    order = split.train[torch.randperm(len(split.train), generator=torch.Generator().manual_seed(1))]
    return statistics.mean(len(windows.shared(at)[0][0]) for at in order.split(PRESETS[preset].batch_size))


def useful_flops(preset, batches):
    """Of one batch, forward and backward, by the convention above."""
    config = PRESETS[preset]
    width, length, batch, rows = config.hidden, config.sequence_length, config.batch_size, config.hidden // 2
    draws, different = batch * length, different_draws(preset, batches)
    forward = 2 * different * (width // 2 + width // 4 + 3 * width) * width      # projection; queries, keys and values
    forward += 2 * draws * width * width + 4 * batch * length**2 * width         # the rest of attention: scores, their use, a map
    for layer in range(config.layers):
        inputs, top = width if layer == 0 else 2 * width, layer == config.layers - 1
        one_way = 2 * draws * (inputs + width) * 4 * width
        forward += one_way + (2 * batch * inputs * 4 * width if top else one_way)
    forward += 2 * batch * (3 * width * rows + rows * (70 + 27 + 64 + 1) + 64 * 95)
    return 3 * forward


def limit(threads):
    """Products of large matrices, in flops a second: the faster of torch's two ways."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b, best = torch.randn(2048, 2048), torch.randn(2048, 2048), {}
    for name, product in (("MKL", lambda: F.linear(a, b)), ("oneDNN", lambda: linear(a.view(32, 64, -1), b, None))):
        times = []
        for _ in range(12):
            began = time.perf_counter()
            product()
            times.append(time.perf_counter() - began)
        best[name] = 2 * 2048**3 / min(times)
    torch.set_num_threads(before)
    return best


@pytest.mark.parametrize(("preset", "threads"), [("full", 2), ("full", 1), ("quick", 1)])
def test_training(figure, preset, threads):
    batches, epochs = {"full": (6, 6), "quick": (20, 8)}[preset] if figure.measuring else (1, 2)
    if not figure.measuring and preset == "full":
        preset = "quick"
    with Loop("plain", preset, batches, threads) as plain, Loop("helios", preset, batches, threads) as helios:
        rounds = [(plain.ask(), helios.ask()) for _ in range(epochs)]
        for theirs, ours in rounds:
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        if not figure.measuring:
            return
        profile, products = helios.ask("profile"), limit(threads)
    kept = rounds[1:]
    step = statistics.median(ours["seconds"] for _, ours in kept) / batches
    flops = useful_flops(preset, batches)
    rate, top = flops / step, max(products.values())
    name = f"training, {preset}, {threads} thread{'s' * (threads > 1)}"
    figure(f"{name}: times a plain loop", statistics.median(t["seconds"] / o["seconds"] for t, o in kept), at_least=1.3)
    figure(f"{name}: the same in processor time", statistics.median(t["processor"] / o["processor"] for t, o in kept))
    figure(f"{name}: one batch", 1000 * step, "ms")
    figure(f"{name}: useful arithmetic", rate / 1e9, "Gflop/s")
    figure(f"{name}: share of the limit for products", rate / top)
    figure(f"{name}: greatest relative difference of a loss",
           max(abs(a - b) / abs(a) for t, o in rounds for a, b in zip(t["losses"], o["losses"], strict=True)), at_most=1e-4)
    for way, value in products.items():
        figure(f"  the limit for products by {way}", value / 1e9, "Gflop/s")
    figure("  arithmetic that is needed for a batch", flops / 1e9, "Gflop")
    for group, spent in profile["groups"].items():
        figure(f"  of a batch, {group}", 100 * spent / sum(profile["groups"].values()), "%")


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
