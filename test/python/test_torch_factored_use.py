# SPDX-License-Identifier: Apache-2.0
"""Layers that send factors: bytes and errors of quantized ones, what stays of the model, and what is refused in which words."""
import copy
import io
import os
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

import isgqcoll.torch  # noqa: E402
import ranks  # noqa: E402
from torch import nn  # noqa: E402


def perceptron(*sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.out = nn.Embedding(3000, 64), nn.Linear(64, 128), nn.Linear(128, 64, bias=False)

    def forward(self, x):
        return self.out(torch.relu(self.body(self.table(x))))


def exact(model, loss):
    """The mean over ranks of what autograd says."""
    plain = copy.deepcopy(model)
    assert type(plain) in (nn.Sequential, Words) and not any(hasattr(module, "_isgq_unit") for module in plain.modules())
    loss(plain).backward()
    for param in plain.parameters():
        torch.distributed.all_reduce(param.grad)
        param.grad /= torch.distributed.get_world_size()
    return plain


def errors_and_bytes(rank, nranks):
    ranks.init_torch()
    torch.manual_seed(rank)
    model = isgqcoll.torch.factored(perceptron(784, 1000, 300, 100, 10), "isgq:bits=4")
    x, labels = torch.rand(128 // nranks, 784), torch.randint(10, (128 // nranks,))
    words = isgqcoll.torch.factored(Words(), "isgq:bits=4")
    indices = torch.randint(3000, (8 + rank, 5))
    for each, loss in (
        (model, lambda model: nn.functional.cross_entropy(model(x), labels)),
        (words, lambda model: model(indices).square().mean()),
    ):  # fmt: skip
        plain = exact(each, loss)
        loss(each).backward()
        wrong = total = 0.0
        for expected, got in zip(plain.parameters(), each.parameters()):
            wrong += float((got.grad - expected.grad).square().sum())
            total += float(expected.grad.square().sum())
        assert 0 < wrong / total < 0.01, wrong / total
    report = model.isgq_report()
    assert [row.mode for row in report] == ["exact", "factored", "factored", "factored"], str(report)
    assert "factors" in report[1].why and report[1].rows == 128 // nranks
    assert report.total.ratio >= 25, str(report)
    table = {row.layer: row for row in words.isgq_report()}
    assert table["table"].mode == "factored" and table["table"].ratio > 50 and table["table"].rows == 40 + 5 * (nranks - 1)
    return [param.grad.numpy().tobytes() for each in (model, words) for param in each.parameters()]


@pytest.mark.parametrize("nranks", [2, 4])
def test_errors_and_bytes(nranks):
    results = ranks.run(errors_and_bytes, nranks)
    assert all(result == results[0] for result in results)


def small():
    return perceptron(6, 8, 4)


def objects(rank, nranks):
    ranks.init_torch()
    plain = small()
    names = list(plain.state_dict())
    model = isgqcoll.torch.factored(plain, "none", exact_below=0)
    assert model is plain and isinstance(model, nn.Sequential) and isinstance(model[0], nn.Linear)
    assert list(model.state_dict()) == names and model.load_state_dict(small().state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is nn.Sequential and type(other[0]) is nn.Linear and torch.equal(other[0].weight, model[0].weight)
        other(torch.ones(2, 6)).sum().backward()
        assert other[0].weight.grad is not None and model[0].weight.grad is None
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.load(file, **({"weights_only": False} if torch.__version__ > "2" else {}))(torch.ones(1, 6)).shape == (1, 4)
    with pytest.raises(isgqcoll.InvalidUsage, match="factored already"):
        isgqcoll.torch.factored(model)
    assert model.isgq_remove() is model and type(model) is nn.Sequential and type(model[0]) is nn.Linear
    model(torch.full((2, 6), float(rank))).sum().backward()
    assert float(model[0].weight.grad.abs().sum()) == 0 or rank > 0
    single = isgqcoll.torch.factored(nn.Linear(3, 2), "none", exact_below=0)
    single(torch.full((1, 3), float(rank))).sum().backward()
    assert torch.equal(single.weight.grad, torch.full((2, 3), (nranks - 1) / 2)) and torch.equal(single.bias.grad, torch.ones(2))
    assert type(single.isgq_remove()) is nn.Linear


def test_objects():
    ranks.run(objects, 2)


def refusals(rank, nranks):
    ranks.init_torch()
    with pytest.raises(isgqcoll.InvalidUsage, match="call factored first"):
        isgqcoll.torch.factored(nn.parallel.DistributedDataParallel(small()))
    with pytest.raises(isgqcoll.InvalidArgument, match="powersgd sums gradients"):
        isgqcoll.torch.factored(small(), "powersgd:rank=2")
    with pytest.raises(isgqcoll.InvalidArgument, match="isgq"):
        isgqcoll.torch.factored(small(), "isgk")
    with pytest.raises(isgqcoll.InvalidUsage, match="no shape yet"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        isgqcoll.torch.factored(nn.LazyLinear(3))
    with pytest.raises(isgqcoll.Mismatch, match="ranks 0 and 1 have different models"):
        isgqcoll.torch.factored(perceptron(6, 8 + rank, 4))
    for change, words in (
        (lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones(8, 6))), "0.weight was replaced"),
        (lambda model: model.double(), "became torch.float64"),
    ):
        model = isgqcoll.torch.factored(small(), "none", exact_below=0)
        change(model)
        with pytest.raises(isgqcoll.InvalidUsage, match=words):
            model(torch.ones(2, 6))
    with pytest.raises(isgqcoll.InvalidUsage, match="all parameters of this model go factored"):
        nn.parallel.DistributedDataParallel(isgqcoll.torch.factored(small(), "none", exact_below=0))
    model = isgqcoll.torch.factored(small(), "none", exact_below=0)
    x = torch.ones(2, 6)
    with pytest.raises(RuntimeError, match="2.weight has no gradient of a gradient"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x).sum().backward(create_graph=True)
    model(x).sum().backward()  # nothing had been sent
    seen = []
    handle = model[0].weight.register_hook(lambda grad: seen.append(grad.shape))  # who looks at a gradient gets one: the layer is dense meanwhile
    model(x).sum().backward()
    handle.remove()
    model(x).sum().backward()
    assert seen == [model[0].weight.shape]
    y = model(x.requires_grad_())
    x.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    with pytest.raises(isgqcoll.InvalidUsage, match="did not come to its end"):
        model(torch.ones(2, 6))
    model = isgqcoll.torch.factored(small(), "none", exact_below=0)
    y = model(torch.ones(2, 6)).sum()
    model.isgq_communicator.finalize()
    model.isgq_communicator.destroy()
    with pytest.raises(isgqcoll.InvalidUsage, match="destroyed"):
        y.backward()
    model = isgqcoll.torch.factored(small(), "none", exact_below=0)
    if rank == 0:
        model[0].bias.requires_grad_(False)
    with pytest.raises((isgqcoll.Mismatch, isgqcoll.RemoteError), match="."):
        model(torch.ones(2, 6)).sum().backward()
    model = isgqcoll.torch.factored(small(), "none", exact_below=0)
    if rank == nranks - 1:
        os._exit(7)
    with pytest.raises(isgqcoll.RemoteError, match="rank"):
        for _ in range(1000):
            model(torch.ones(2, 6)).sum().backward()


def test_refusals():
    ranks.run(refusals, 2, may_die=(1,))
