# SPDX-License-Identifier: Apache-2.0
"""Horovod's names: a script of theirs with its import switched, collectives, the optimizer's order and arguments, and errors."""
import os
import pathlib
import time

import pytest

torch = pytest.importorskip("torch")

if hasattr(torch, "compile"):
    import torch._dynamo  # noqa: E402, F401 - optimizers of torch 2 do so, which takes seconds: once here rather than in each rank

import isgqcoll  # noqa: E402
import isgqcoll.torch.horovod as hvd  # noqa: E402
import ranks  # noqa: E402

SCRIPT = pathlib.Path(__file__).with_name("horovod_script.py")


def script(rank, nranks, compression="none"):
    source = SCRIPT.read_text().replace("import horovod.torch as hvd", "import isgqcoll.torch.horovod as hvd")
    names = {"__name__": "__main__"}
    exec(compile(source.replace("Compression.none", f"Compression.{compression}"), str(SCRIPT), "exec"), names)
    return [parameter.detach().numpy() for parameter in names["model"].parameters()], names["history"]


def alone(rank, nranks):
    for name in ("RANK", "WORLD_SIZE", "ISGQ_RANK", "ISGQ_NRANKS", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return script(rank, nranks)


def test_script():
    """Exact sums: as one process with the whole batches, to rounding. Quantized ones: all ranks alike, and it learns."""
    (single, losses), = ranks.run(alone, 1)
    for nranks in (2, 4):
        results = ranks.run(script, nranks)
        for parameters, history in results:
            assert all((one == other).all() for one, other in zip(parameters, results[0][0]))
            assert history == pytest.approx(losses, rel=1e-4)
            assert all(abs(one - other).max() < 1e-3 for one, other in zip(parameters, single))
    assert losses[-1] < 0.8 * losses[0]
    results = ranks.run(script, 2, "isgq(bits=4)")
    assert all((one == other).all() for one, other in zip(results[0][0], results[1][0]))
    assert results[0][1] == pytest.approx(losses, rel=0.3) and results[0][1][-1] < 0.8 * results[0][1][0]


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))


def batches(step, nranks):
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(step)).chunk(nranks)


def same_as_whole(rank, nranks):
    """Steps on parts of a batch are those of one process on the batch, to rounding; also accumulated over two passes."""
    hvd.init()
    for passes in (1, 2):
        whole, mine = network(), network()
        reference = torch.optim.Adam(whole.parameters(), lr=0.01)
        optimizer = hvd.DistributedOptimizer(torch.optim.Adam(mine.parameters(), lr=0.01), backward_passes_per_step=passes)
        assert isinstance(optimizer, torch.optim.Adam) and type(optimizer).__name__ == "Adam"
        for step in range(6):
            parts = batches(step, nranks)
            torch.cat(parts)
            whole(torch.cat(parts)).square().mean().backward()
            mine(parts[rank]).square().mean().backward()
            if step % passes == passes - 1:
                reference.step()
                reference.zero_grad()
                optimizer.step()
                optimizer.zero_grad()
        for one, other in zip(mine.parameters(), whole.parameters()):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    hvd.shutdown()
    assert not hvd.is_initialized()


@pytest.mark.parametrize("nranks", [2, 4])
def test_same_as_whole(nranks):
    ranks.run(same_as_whole, nranks)


def collectives(rank, nranks):
    hvd.init()
    hvd.init()
    assert (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()) == (rank, nranks, rank, nranks)
    assert (hvd.cross_rank(), hvd.cross_size(), hvd.is_homogeneous()) == (0, 1, True)
    mean, total = (nranks - 1) / 2, sum(range(nranks))
    mine = torch.full((3, 2), float(rank))
    assert hvd.allreduce(mine)[2, 1] == mean and mine[0, 0] == rank
    assert hvd.allreduce(mine, average=False)[0, 0] == hvd.allreduce(mine, op=hvd.Sum)[0, 0] == total
    assert hvd.allreduce(mine, op=hvd.Max)[0, 0] == nranks - 1
    assert hvd.allreduce(mine, op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0)[0, 0] == 2 * total
    assert hvd.allreduce(mine.t(), op=hvd.Sum).shape == (2, 3)
    many = hvd.grouped_allreduce([mine, 2 * mine], op=hvd.Sum)
    assert many[0][0, 0] == total and many[1][0, 0] == 2 * total and mine[0, 0] == rank
    handles = [hvd.allreduce_async_(torch.full((10,), float(rank + i)), name=f"t{i}", op=hvd.Sum) for i in range(5)]
    assert [hvd.synchronize(handle)[0].item() for handle in handles] == [total + nranks * i for i in range(5)]
    assert all(hvd.poll(handle) for handle in handles)
    rows = hvd.allgather(torch.full((rank, 3), rank, dtype=torch.int16))  # rank 0 has none
    assert rows[:, 2].tolist() == [peer for peer in range(nranks) for _ in range(peer)] and rows.dtype == torch.int16
    assert hvd.allgather(torch.tensor(1.0 * rank)).tolist() == list(range(nranks))
    copy = hvd.broadcast(mine, root_rank=1)
    assert copy[0, 0] == 1 and mine[0, 0] == rank
    flag = torch.tensor([rank == 1])
    assert hvd.broadcast_(flag, 1) is flag and flag.item()
    assert hvd.broadcast_object({"rank": rank} if rank == 0 else None) == {"rank": 0}
    assert hvd.allgather_object("x" * rank) == ["x" * peer for peer in range(nranks)]
    leaf = torch.full((2, 2), float(rank), requires_grad=True)
    (hvd.allreduce(leaf, op=hvd.Sum).sum() + hvd.allgather(leaf).sum() * 10 + hvd.broadcast(leaf, 1).sum() * 100).backward()
    assert leaf.grad[0, 0] == nranks + 10 * nranks + (100 * nranks if rank == 1 else 0)
    wide = torch.randn(5000, generator=torch.Generator().manual_seed(rank))
    for compression, bound in ((hvd.Compression.fp16, 1e-3), (hvd.Compression.isgq(4), 0.3), (hvd.Compression.quantizer("uniform:bits=8"), 0.05), (Half, 2e-3)):
        near = hvd.allreduce(wide, compression=compression)
        exact = hvd.allreduce(wide)
        assert 0 < (near - exact).norm() < bound * exact.norm()
    for call in (hvd.join, lambda: hvd.alltoall(mine), lambda: hvd.allreduce(mine, op=hvd.Adasum), lambda: hvd.init(comm=[0])):
        with pytest.raises(NotImplementedError):
            call()
    hvd.shutdown()
    with pytest.raises(isgqcoll.InvalidUsage, match="hvd.init"):
        hvd.rank()


class Half:
    """A compressor of the user's own."""

    @staticmethod
    def compress(tensor):
        return tensor.half(), tensor.dtype

    @staticmethod
    def decompress(tensor, ctx):
        return tensor.to(ctx)


@pytest.mark.parametrize("nranks", [2, 4])
def test_collectives(nranks):
    ranks.run(collectives, nranks)


class Branches(torch.nn.Module):
    """Which parameters have gradients, and in which order they come, differs between ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.ways = torch.nn.ModuleList(torch.nn.Linear(600, 600) for _ in range(3))  # larger than a bucket each
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, data, order):
        for i in order:
            data = self.ways[i](data)
        return data.square().mean()


def orders(rank, nranks):
    hvd.init()
    model = Branches()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), named_parameters=model.named_parameters())
    for step in range(4):
        order = {0: (0, 1, 2), 1: (2, 1, 0) if step < 2 else (1,)}[rank]
        data = torch.randn(2, 600, generator=torch.Generator().manual_seed(10 * step + rank))
        optimizer.zero_grad()
        model(data, order).backward()
        local = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()] if step == 3 and rank else None
        optimizer.step()
    assert local is None or local[0] is None or not local[0].abs().sum()  # way 0 had no gradient here
    every = hvd.allgather_object([parameter.grad.sum().item() for parameter in model.parameters()])
    assert every[0] == every[1] and every[0][0] != 0
    hvd.shutdown()


def test_orders():
    ranks.run(orders, 2)


def arguments(rank, nranks):
    hvd.init()
    model = network()
    named = list(model.named_parameters())
    make = lambda **keywords: hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **keywords)  # noqa: E731
    for keywords, error, text in (
        ({"named_parameters": named[1:]}, ValueError, "not named"), ({"named_parameters": named + named}, ValueError, "unique"),
        ({"named_parameters": model.parameters()}, ValueError, "tuples"), ({"op": hvd.Adasum}, NotImplementedError, "Adasum"),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, ValueError, "predivide"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            make(**keywords)
    optimizer = make(compression=hvd.Compression.quantizer("onebit", exact_below=0))
    data = batches(0, nranks)[rank]
    model(data).sum().backward()
    with pytest.raises(isgqcoll.InvalidUsage, match="zero_grad"):
        optimizer.zero_grad()
    with pytest.raises(isgqcoll.InvalidUsage, match="backward_passes_per_step"):
        model(data).sum().backward()
    optimizer.synchronize()
    with pytest.warns(UserWarning, match="skip_synchronize"):
        optimizer.step()
    saved = optimizer.residuals_state_dict()
    assert sorted(saved["tensors"]) == ["allreduce.noname.0", "allreduce.noname.2"] and saved["step"] == 2
    optimizer.load_residuals_state_dict(saved)
    optimizer.zero_grad()
    assert optimizer.step(lambda: (optimizer.zero_grad(), model(data).sum())[1]) is not None
    hvd.shutdown()


def test_arguments():
    ranks.run(arguments, 2)


def dead(rank, nranks):
    hvd.init()
    model = network()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    begun = time.monotonic()
    for step in range(3):
        if (rank, step) == (1, 2):
            os._exit(3)
        if step == 2:
            with pytest.raises(isgqcoll.RemoteError, match="rank 1"):
                model(batches(step, nranks)[rank]).sum().backward()
                optimizer.step()
        else:
            optimizer.zero_grad()
            model(batches(step, nranks)[rank]).sum().backward()
            optimizer.step()
    assert time.monotonic() - begun < 20


def test_dead():
    ranks.run(dead, 2, may_die=(1,))
