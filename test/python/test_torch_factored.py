# SPDX-License-Identifier: Apache-2.0
"""Layers that send factors, with the quantizer "none": gradients as DistributedDataParallel over gloo makes them, whatever the model does."""
import contextlib
import copy
import functools

import pytest

torch = pytest.importorskip("torch")

import isgqcoll.torch  # noqa: E402
import ranks  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402


class Words(nn.Module):
    """An embedding, a layer used twice with three-dimensional inputs, one without bias, norms."""

    def __init__(self, sparse=False):
        super().__init__()
        self.table = nn.Embedding(40, 12, padding_idx=0, sparse=sparse)
        self.twice = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, 5, bias=False)

    def forward(self, x):
        x = self.twice(torch.tanh(self.twice(self.table(x))))
        return self.out(self.norm(x)).mean(1)


class Images(nn.Module):
    """Convolutions that pay and that do not, batch norm, a transposed convolution, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.small = nn.Conv2d(6, 40, 3, stride=2, dilation=2)
        self.up = nn.ConvTranspose2d(40, 4, 2)
        self.out = nn.Linear(36, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.out(self.up(torch.relu(self.small(x))).flatten(1))


class Tied(nn.Module):
    """Two linear layers with one weight and bias, a table that is also a layer's weight, and a weight used without its layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight, self.two.bias = self.one.weight, self.one.bias
        self.table, self.back = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.back.weight = self.table.weight
        self.plain = nn.Linear(8, 8)

    def forward(self, x):
        y = self.plain(torch.tanh(self.two(torch.tanh(self.one(self.table(x).mean(1))))))
        return self.back(nn.functional.linear(y, self.plain.weight))


class Branches(nn.Module):
    """Layers that some forwards leave out."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.never = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.which = "ab"

    def forward(self, x):
        for name in self.which:
            x = torch.tanh(getattr(self, name)(x))
        return self.norm(x)


def perceptron():
    return nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 20, bias=False), nn.Tanh(), nn.Linear(20, 5))


def both(build, **options):
    """The same model plain in DDP, and factored."""
    torch.manual_seed(torch.distributed.get_rank())
    plain = build()
    mine = copy.deepcopy(plain)
    options = {"quantizer": "none", "exact_below": 0, **options}
    return DDP(plain, find_unused_parameters=True), isgqcoll.torch.factored(mine, **options)


def compare(plain, mine, tolerance=2e-6):
    """Gradients as they are with DDP, none where it has none."""
    for (name, expected), (_, got) in zip(plain.module.named_parameters(), mine.named_parameters()):
        assert (expected.grad is None) == (got.grad is None), f"{name}: {expected.grad} {got.grad}"
        if got.grad is not None:
            assert not got.grad.requires_grad and got.grad.shape == got.shape and (got.grad.is_sparse or got.grad.is_contiguous())
            torch.testing.assert_close(*(grad.to_dense() if grad.is_sparse else grad for grad in (got.grad, expected.grad)), rtol=1e-5, atol=tolerance, msg=lambda text: f"{name}: {text}")


def step(plain, mine, *inputs, tolerance=2e-6, zero=True, loss=lambda y: y.square().mean()):
    for model in (plain, mine):
        if zero:
            model.zero_grad(set_to_none=True)
        loss(model(*inputs)).backward()
    compare(plain, mine, tolerance)


def rows(count, *shape):
    generator = torch.Generator().manual_seed(1000 * torch.distributed.get_rank() + count)
    return torch.randn(count, *shape, generator=generator)


def words(count, length, most=40):
    generator = torch.Generator().manual_seed(torch.distributed.get_rank() + count)
    return torch.randint(most, (count, length), generator=generator)


def kinds(rank, nranks):
    ranks.init_torch()
    for _ in range(2):
        plain, mine = both(perceptron)
        for count in (3, 3 + rank, 4):  # the second: other counts on every rank
            step(plain, mine, rows(count, 7))
    for sparse in (False, True):
        plain, mine = both(functools.partial(Words, sparse))
        for count in (3, 2 + rank):
            step(plain, mine, words(count, 4))
        assert mine.table.weight.grad.is_sparse == sparse
    plain, mine = both(Images)
    for count in (2, 2, 3):
        step(plain, mine, rows(count, 1, 8, 8), tolerance=1e-5)
    for (name, expected), (_, got) in zip(plain.module.named_buffers(), mine.named_buffers()):
        torch.testing.assert_close(got, expected, msg=name)
    found = {row.layer: row for row in mine.isgq_report()}
    assert found["small"].why.startswith("dense ") and found["small"].rows == 8, found["small"]  # the library was given rows
    assert "fewer bytes" in found["first"].why and "ConvTranspose2d" in found["up.weight"].why
    for skip in ((), ("one",), (nn.Linear,)):
        plain, mine = both(Tied, skip=skip)
        for _ in range(3):
            step(plain, mine, words(3, 4, 16))
        assert {row.rows > 0 for row in mine.isgq_report() if row.layer.startswith("one")} == {not skip}


@pytest.mark.parametrize("nranks", [2, 4])
def test_kinds(nranks):
    ranks.run(kinds, nranks)


def accumulation(rank, nranks):
    ranks.init_torch()
    for build, batch in (
        (perceptron, lambda n: rows(n, 7)),
        (Words, lambda n: words(n, 4)),
        (functools.partial(Words, True), lambda n: words(n, 4)),
        (Images, lambda n: rows(n, 1, 8, 8)),
    ):
        for sizes, quiet in (((2, 3), 1), ((30, 60, 2), 2), ((2, 2, 3), 0)):  # the second: more factors than gradient
            plain, mine = both(build)
            for model in (plain, mine):
                for place, size in enumerate(sizes):
                    with model.no_sync() if place < quiet else contextlib.nullcontext():
                        model(batch(size + rank)).square().mean().backward()
            compare(plain, mine, 1e-5)
            for model in (plain, mine):  # and what no_sync left behind is dropped with the gradients
                with model.no_sync():
                    model(batch(2)).square().mean().backward()
                model.zero_grad(set_to_none=sizes[0] == 2)
                model(batch(3)).square().mean().backward()
            compare(plain, mine, 1e-5)
    plain, mine = both(perceptron)
    with mine.no_sync():
        mine(rows(2, 7)).sum().backward()
    mine[0].weight.grad.add_(1)
    with pytest.raises(isgqcoll.InvalidUsage, match="0.weight was changed"):
        mine(rows(2, 7)).sum().backward()


def test_accumulation():
    ranks.run(accumulation, 2)


def unreached(rank, nranks):
    ranks.init_torch()
    plain, mine = both(Branches)
    for first, second in (("ab", "ab"), ("ab", "a"), ("a", "b"), ("b", "b"), ("aab", "ba"), ("aa", "bb")):
        for model in (plain.module, mine):
            model.which = first if rank == 0 else second
        step(plain, mine, rows(3, 6))
        step(plain, mine, rows(2, 6), zero=False)
    plain, mine = both(perceptron)
    for frozen in ([0], [], [2, 4], [4], []):
        for model in (plain.module, mine):
            for place in (0, 2, 4):
                model[place].requires_grad_(place not in frozen)
        plain = DDP(plain.module)  # it looks at requires_grad only when it is made
        step(plain, mine, rows(3, 7))
    mine[0].bias.requires_grad_(False)
    plain.module[0].bias.requires_grad_(False)
    step(DDP(plain.module), mine, rows(3, 7))


def test_unreached_and_frozen():
    ranks.run(unreached, 2)


def contexts(rank, nranks):
    ranks.init_torch()
    plain, mine = both(perceptron)
    with torch.autocast("cpu", torch.bfloat16):
        step(plain, mine, rows(4, 7), tolerance=2e-2)
    step(plain, mine, rows(4, 7))
    x = rows(4, 7).requires_grad_()  # the input's gradient alone: nothing comes to the weights
    before = [param.grad.clone() for param in mine.parameters()]
    (mine_x,) = torch.autograd.grad(mine(x).sum(), x)
    (plain_x,) = torch.autograd.grad(plain.module(x).sum(), x)
    torch.testing.assert_close(mine_x, plain_x)
    assert all(torch.equal(param.grad, old) for param, old in zip(mine.parameters(), before))
    step(plain, mine, rows(3, 7))
    for model in (plain, mine):  # one graph, two backwards
        model.zero_grad(set_to_none=True)
        y = model(rows(3, 7)).square().mean()
        y.backward(retain_graph=True)
        if model is mine:
            y.backward()
        else:
            y_twice = model(rows(3, 7)).square().mean()
            y_twice.backward()
    compare(plain, mine)
    with torch.no_grad():
        mine(rows(3, 7))
    mine.eval()
    step(plain, mine, rows(3, 7))
    for reentrant in (False, True):

        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.start, self.body, self.end = nn.Linear(7, 9), nn.Linear(9, 9), nn.Linear(9, 2)
                self.again = False

            def forward(self, x):
                x = self.start(x)
                for _ in range(2):
                    x = checkpoint(self.body, x, use_reentrant=reentrant) if self.again else self.body(x)
                return self.end(torch.tanh(x))

        plain, mine = both(Checkpointed)
        mine.again = True
        for count in (2, 3):
            step(plain, mine, rows(count, 7))
    plain, mine = both(Branches)
    wrapped = DDP(mine, find_unused_parameters=True)
    for _ in range(2):
        for model in (plain, wrapped):
            model.zero_grad(set_to_none=True)
            with model.no_sync():
                model(rows(2, 6)).square().mean().backward()
            model(rows(3 + rank, 6)).square().mean().backward()
        compare(plain, wrapped.module)
    assert [row.layer for row in mine.isgq_report() if row.mode == "DDP"] == ["norm.bias and 1 more"]


def test_contexts():
    ranks.run(contexts, 2)
