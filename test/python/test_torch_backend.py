# SPDX-License-Identifier: Apache-2.0
"""The c10d backend: torch.distributed's collectives against what they are to give, DDP on top of it, what is quantized, and errors."""
import os
import time

import pytest

torch = pytest.importorskip("torch")

if hasattr(torch, "compile"):
    import torch._dynamo  # noqa: E402, F401 - DDP of torch 2 does so, which takes seconds: once here rather than in each rank

import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402

import isgqcoll  # noqa: E402
import isgqcoll.torch as isgq_torch  # noqa: E402
import ranks  # noqa: E402


def start(**settings):
    isgq_torch.register_backend(**settings)
    ranks.init_torch("isgq")


def values(rank, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank))


def reductions(rank, nranks):
    every = [values(peer, 30, 40) for peer in range(nranks)]
    whole = torch.stack(every)
    for op, expected in (
        (dist.ReduceOp.SUM, whole.sum(0)), (dist.ReduceOp.AVG, whole.mean(0)), (dist.ReduceOp.MAX, whole.max(0)[0]),
        (dist.ReduceOp.MIN, whole.min(0)[0]), (dist.ReduceOp.PRODUCT, whole.prod(0)),
    ):  # fmt: skip
        mine = every[rank].clone()
        dist.all_reduce(mine, op=op)
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    mine = every[rank].t()  # not contiguous
    work = dist.all_reduce(mine, async_op=True)
    assert work.wait() and work.is_completed() and work.is_success()
    torch.testing.assert_close(mine, whole.sum(0).t(), rtol=1e-5, atol=1e-6)
    future = dist.all_reduce(torch.full((5,), rank), async_op=True).get_future()
    assert future.wait()[0].tolist() == [sum(range(nranks))] * 5
    flags = torch.tensor([rank == 0, True, False])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    assert flags.tolist() == [True, True, False]
    for op, expected in ((dist.ReduceOp.BOR, 3), (dist.ReduceOp.BAND, 0), (dist.ReduceOp.BXOR, 3 if nranks == 2 else 0)):
        bits = torch.tensor([1 + rank % 2])
        dist.all_reduce(bits, op=op)
        assert bits.item() == expected
    for dtype in (torch.int16, torch.bfloat16, torch.float16, torch.float64, torch.complex64):
        ones = torch.ones(7, dtype=dtype)
        dist.all_reduce(ones)
        assert ones.dtype == dtype and ones[3].item() == nranks
    mine = torch.full((4,), float(rank + 1))
    dist.reduce(mine, dst=1)
    assert mine[0] == (sum(range(1, nranks + 1)) if rank == 1 else rank + 1)


def copies(rank, nranks):
    word = torch.tensor([rank == nranks - 1])
    dist.broadcast(word, src=nranks - 1)
    assert word.item()
    objects = [{"from": rank}]
    dist.broadcast_object_list(objects, src=1)
    assert objects == [{"from": 1}]
    parts = [torch.empty(3, 2, dtype=torch.int16) for _ in range(nranks)]
    dist.all_gather(parts, torch.full((3, 2), rank, dtype=torch.int16))
    assert [int(part[2, 1]) for part in parts] == list(range(nranks))
    names = [None] * nranks
    dist.all_gather_object(names, "x" * rank)
    assert names == ["x" * peer for peer in range(nranks)]
    together = getattr(dist, "all_gather_into_tensor", None)
    table = torch.empty(nranks * 5)
    together(table, torch.full((5,), float(rank)))
    assert table.view(nranks, 5)[:, 0].tolist() == list(range(nranks))
    gathered = [torch.empty(2) for _ in range(nranks)] if rank == 0 else None
    dist.gather(torch.full((2,), float(rank)), gathered, dst=0)
    assert rank or [part[0].item() for part in gathered] == list(range(nranks))
    mine = torch.empty(2)
    dist.scatter(mine, [torch.full((2,), 10.0 * peer) for peer in range(nranks)] if rank == 1 else None, src=1)
    assert mine[1] == 10 * rank


def parts(rank, nranks):
    every = [values(peer, nranks, 6) for peer in range(nranks)]
    mine = torch.empty(6)
    dist.reduce_scatter(mine, list(every[rank].clone()))
    torch.testing.assert_close(mine, sum(every)[rank], rtol=1e-5, atol=1e-6)
    dist.reduce_scatter_tensor(mine, every[rank].clone().flatten())
    torch.testing.assert_close(mine, sum(every)[rank], rtol=1e-5, atol=1e-6)
    outs = [torch.empty(peer + 1) for peer in range(nranks)]  # the peer sends peer + 1 elements
    dist.all_to_all(outs, [torch.full((rank + 1,), 100.0 * rank + peer) for peer in range(nranks)])
    assert [out.tolist() for out in outs] == [[100.0 * peer + rank] * (peer + 1) for peer in range(nranks)]
    out = torch.empty(2 * nranks)
    dist.all_to_all_single(out, torch.arange(2.0 * nranks) + 100 * rank)
    assert out.view(nranks, 2)[:, 1].tolist() == [100 * peer + 2 * rank + 1 for peer in range(nranks)]
    dist.barrier()
    for call in (lambda: dist.send(torch.ones(1), 1 - rank % 2), lambda: dist.recv(torch.ones(1), 1 - rank % 2)):
        with pytest.raises(NotImplementedError, match="gloo"):
            call()
    group = dist.new_group([0, nranks - 1])
    if rank in (0, nranks - 1):
        one = torch.ones(1)
        dist.all_reduce(one, group=group)
        assert one.item() == 2


def collectives(rank, nranks):
    start()
    reductions(rank, nranks)
    copies(rank, nranks)
    parts(rank, nranks)
    comm = isgq_torch.communicator()
    assert comm is dist.group.WORLD.communicator
    dist.destroy_process_group()


@pytest.mark.parametrize("nranks", [2, 4])
def test_collectives(nranks):
    ranks.run(collectives, nranks)


def network(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.ReLU(), torch.nn.Linear(60, 100)).to(dtype)


def ddp(rank, nranks):
    """DDP on the backend: exact, quantized by the group, quantized by the hook."""
    start()
    data = [values(peer, 6, 40) for peer in range(nranks)]
    local, mean = network(), 0
    for part in data:
        local.zero_grad(set_to_none=True)
        local(part).square().sum().backward()
        mean = mean + torch.cat([parameter.grad.flatten() for parameter in local.parameters()]) / nranks
    isgq_torch.register_backend(quantizer="uniform:bits=8")
    small = dist.new_group(list(range(nranks)))
    for options, hooked, dtype, bound in (
        ({}, None, torch.float32, 1e-6), ({"process_group": small}, None, torch.float32, 0.02), ({}, "isgq:bits=4", torch.float32, 0.15),
        ({}, "none", torch.bfloat16, 0.02),
    ):  # fmt: skip
        model = DDP(network(dtype), bucket_cap_mb=0.02, **options)
        if hooked:
            state = isgq_torch.State(model=model, quantizer=hooked)
            model.register_comm_hook(state, isgq_torch.hook)
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            model(data[rank].to(dtype)).square().sum().backward()
        mine = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).float()
        assert (mine - mean).norm() <= bound * mean.norm()
        assert options == {} or (mine - mean).norm() > 1e-4 * mean.norm()
        every = [None] * nranks
        dist.all_gather_object(every, mine.numpy().tobytes())
        assert len(set(every)) == 1
    loss = torch.tensor([0.1234567 * (rank + 1)])
    dist.all_reduce(loss, group=small)  # too small to be quantized
    assert loss.item() == pytest.approx(0.1234567 * sum(range(1, nranks + 1)), rel=1e-6)
    counts = torch.arange(5000)
    dist.all_reduce(counts, group=small)
    assert torch.equal(counts, torch.arange(5000) * nranks)


def test_ddp():
    ranks.run(ddp, 2)


def dead(rank, nranks):
    """A rank that dies is named by the collectives of the others, and in backward."""
    start()
    model = DDP(network())
    for _ in range(2):
        model(values(rank, 6, 40)).sum().backward()
    if rank == 1:
        os._exit(3)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1"):
        for _ in range(2):
            model(values(rank, 6, 40)).sum().backward()
    with pytest.raises(isgqcoll.RemoteError, match="rank 1"):
        dist.all_reduce(torch.ones(5))
    assert time.monotonic() - begun < 20


def test_dead():
    ranks.run(dead, 3, may_die=(1,))
