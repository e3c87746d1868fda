# SPDX-License-Identifier: Apache-2.0
"""The hook of DistributedDataParallel: averages against those of plain DDP and of single calls, what is remembered, policies, and errors."""
import contextlib
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

dist._DEFAULT_FIRST_BUCKET_BYTES = 8192  # DDP's first bucket is 1 MiB otherwise, all of these networks


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.ReLU(), torch.nn.Linear(60, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))


def batch(rank, step):
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(100 * step + rank))


def loss(model, data):
    return model(data).square().sum()


def wrap(model, *, ddp=None, **state):
    """DDP in several small buckets, with the hook."""
    wrapped = DDP(model, bucket_cap_mb=0.02, **(ddp or {}))
    made = isgq_torch.State(model=wrapped, **state)
    wrapped.register_comm_hook(made, isgq_torch.hook)
    return wrapped, made


def gradients(wrapped, rank, step):
    wrapped.zero_grad(set_to_none=False)
    loss(wrapped, batch(rank, step)).backward()
    return [parameter.grad.clone() for parameter in wrapped.parameters()]


def flat(tensors):
    return torch.cat([tensor.flatten().float() for tensor in tensors])


def same_on_all(tensors):
    """The same bits on all ranks?"""
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, flat(tensors).numpy().tobytes())
    return len(set(every)) == 1


# ---- averages ----


def exact(rank, nranks):
    ranks.init_torch()
    for options in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"find_unused_parameters": True}):
        plain = DDP(network(), bucket_cap_mb=0.02, **options)
        hooked, state = wrap(network(), ddp=options, quantizer="none")
        for step in range(3):
            for mine, expected in zip(gradients(hooked, rank, step), gradients(plain, rank, step)):
                torch.testing.assert_close(mine, expected, rtol=0 if nranks == 2 else 1e-6, atol=0 if nranks == 2 else 1e-6)
        assert state.step == 3


@pytest.mark.parametrize("nranks", [2, 4])
def test_exact(nranks):
    ranks.run(exact, nranks)


class Planted(torch.nn.Module):
    """Its gradients are the data, in any type: half-precision products are not for every CPU."""

    def __init__(self, dtype):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((30, 40), (40,)))

    def forward(self, data):
        return (self.weight * data[:30] + self.bias * data[30]).sum()


def types(rank, nranks):
    ranks.init_torch()
    for dtype, unit in ((torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8), (torch.float64, 2.0**-50)):
        if dtype is torch.bfloat16 and not hasattr(torch, "compile"):
            continue  # gloo of torch 1.13 cannot broadcast the model; test_torch_backend.py has this case
        for text, bound in (("none", 2 * unit), ("uniform:bits=8", 2 * unit if dtype is torch.float64 else 0.02)):
            hooked, _ = wrap(Planted(dtype), quantizer=text)
            data = [torch.randn(31, 40, generator=torch.Generator().manual_seed(peer)).to(dtype) for peer in range(nranks)]
            hooked(data[rank]).backward()
            mean = sum(part.double() for part in data) / nranks
            assert hooked.module.weight.grad.dtype == dtype and same_on_all([hooked.module.weight.grad])
            assert (hooked.module.weight.grad.double() - mean[:30]).norm() <= bound * mean[:30].norm()
            assert (hooked.module.bias.grad.double() - mean[30] * 30).norm() <= 32 * unit * mean[30].norm() * 30
    hooked, state = wrap(network(), quantizer="uniform:bits=8")
    before = state.communicator.stats().fallback_calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(hooked, batch(rank, 0))
    value.backward()
    assert same_on_all([parameter.grad for parameter in hooked.parameters()]) and state.communicator.stats().fallback_calls == before


def test_types():
    ranks.run(types, 2)


def quantized(rank, nranks):
    """Errors are bounded, all ranks have the same bits, and fewer bits an element are fewer bytes."""
    ranks.init_torch()
    sent = {}
    for text, bound in (("none", 1e-6), ("uniform:bits=8", 0.02), ("isgq:bits=4", 0.15), ("isgq:bits=2", 0.6)):
        hooked, state = wrap(network(), quantizer=text)
        plain = DDP(network())
        before = state.communicator.stats()
        for step in range(3):
            mine, expected = gradients(hooked, rank, step), gradients(plain, rank, step)
            assert (flat(mine) - flat(expected)).norm() <= bound * flat(expected).norm()
            for layer in (1, 3, 5):
                torch.testing.assert_close(mine[layer], expected[layer], rtol=1e-5, atol=1e-5)  # biases are exact
            assert same_on_all(mine)
        sent[text] = state.communicator.stats().wire_bytes - before.wire_bytes
    assert sent["none"] > 2 * sent["uniform:bits=8"] and sent["uniform:bits=8"] > 1.1 * sent["isgq:bits=4"] > 1.3 * sent["isgq:bits=2"], sent


@pytest.mark.parametrize("nranks", [2, 4])
def test_quantized(nranks):
    ranks.run(quantized, nranks)


def accumulated(rank, nranks):
    """no_sync: the hook sees the sum of what was accumulated, and only synchronized steps count."""
    ranks.init_torch()
    hooked, state = wrap(network(), quantizer="none")
    plain = DDP(network(), bucket_cap_mb=0.02)
    for model in (hooked, plain):
        for step in range(4):
            with model.no_sync() if step % 2 == 0 else contextlib.nullcontext():
                loss(model, batch(rank, step)).backward()
    for mine, expected in zip(hooked.parameters(), plain.parameters()):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=0, atol=0)
    assert state.step == 2


def test_no_sync():
    ranks.run(accumulated, 2)


def overlap(rank, nranks):
    """Backward goes on while a slower rank keeps the first bucket waiting."""
    ranks.init_torch()
    hooked = DDP(network(), bucket_cap_mb=0.02)
    state, futures = isgq_torch.State(model=hooked, quantizer="isgq:bits=4"), []

    def spy(state, bucket):
        futures.append(isgq_torch.hook(state, bucket))
        if rank == 0 and state.step == 2:  # the last bucket of the second step: DDP's first one has few
            assert len(futures) > 1 and not any(future.done() for future in futures)
            open(os.environ["TEST_STORE"] + ".last", "w").close()
        return futures[-1]

    spy.__annotations__.update(isgq_torch.hook.__annotations__)
    hooked.register_comm_hook(state, spy)
    gradients(hooked, rank, 0)
    futures.clear()
    value, end = loss(hooked, batch(rank, 1)), time.monotonic() + 60
    while rank == 1 and not os.path.exists(os.environ["TEST_STORE"] + ".last") and time.monotonic() < end:
        time.sleep(0.01)
    value.backward()
    assert len(futures) > 1 and all(future.done() for future in futures)


def test_overlap():
    ranks.run(overlap, 2)


def subgroups(rank, nranks):
    ranks.init_torch()
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    group = groups[rank % 2]
    hooked = DDP(network(), process_group=group)
    hooked.register_comm_hook(isgq_torch.State(group, "none", model=hooked), isgq_torch.hook)
    plain = DDP(network(), process_group=group)
    for mine, expected in zip(gradients(hooked, rank, 0), gradients(plain, rank, 0)):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)
    with pytest.raises(isgqcoll.InvalidUsage, match="not in the process group"):
        isgq_torch.communicator(groups[1 - rank % 2])


def test_subgroups():
    ranks.run(subgroups, 4)


# ---- what is remembered ----


def single_calls(rank, steps, text):
    """The same averages by one call for each weight, with its own residual."""
    comm = isgq_torch.communicator()
    local, tensors = network(), {}
    for step in range(steps):
        local.zero_grad(set_to_none=True)
        loss(local, batch(rank, step)).backward()
        for name, parameter in local.named_parameters():
            if parameter.dim() < 2:
                comm.allreduce(parameter.grad, op="avg", quantizer="none")
            else:
                tensor = tensors.setdefault(name, isgqcoll.TensorState(name, parameter.numel()))
                comm.allreduce(parameter.grad, op="avg", quantizer=text, tensor=tensor)
    return [parameter.grad for parameter in local.parameters()]


def feedback(rank, nranks):
    """Residuals belong to parameters: DDP's new buckets after the first step change nothing. onebit draws no random numbers."""
    ranks.init_torch()
    expected = single_calls(rank, 5, "onebit")
    layouts = []

    def spy(state, bucket):
        layouts.append(tuple(state.name(parameter) for parameter in bucket.parameters()))
        return isgq_torch.hook(state, bucket)

    spy.__annotations__.update(isgq_torch.hook.__annotations__)
    hooked = DDP(network(), bucket_cap_mb=0.02)
    state = isgq_torch.State(model=hooked, quantizer="onebit", exact_below=0)
    hooked.register_comm_hook(state, spy)
    for step in range(5):
        mine = gradients(hooked, rank, step)
        if step == 0:
            first = list(layouts)
    assert layouts[-len(first) :] != first, "DDP kept its buckets: this test would prove nothing"
    for one, other in zip(mine, expected):
        assert torch.equal(one, other)


def test_feedback():
    ranks.run(feedback, 2)


def resumed(rank, nranks, folder):
    """A run that was saved and loaded goes on as if nothing had happened; states of other ranks and formats are refused."""
    ranks.init_torch()
    expected = single_calls(rank, 4, "onebit")
    hooked, state = wrap(network(), quantizer="onebit", exact_below=0, warmup=0)
    for step in range(2):
        gradients(hooked, rank, step)
    torch.save(state.state_dict(), f"{folder}/{rank}")
    saved = torch.load(f"{folder}/{rank}")
    hooked, again = wrap(network(), quantizer="onebit", exact_below=0)
    again.load_state_dict(saved)
    assert again.step == 2 and again.state_dict()["tensors"].keys() == saved["tensors"].keys()
    for step in range(2, 4):
        mine = gradients(hooked, rank, step)
    assert again.step == 4
    for one, other in zip(mine, expected):
        assert torch.equal(one, other)
    with pytest.raises(isgqcoll.InvalidArgument, match=f"rank {1 - rank} of 2 was given to rank {rank} of 2"):
        state.load_state_dict({**saved, "rank": 1 - rank})
    with pytest.raises(isgqcoll.InvalidArgument, match="format 9"):
        state.load_state_dict({**saved, "format": 9})


def test_resumed(tmp_path):
    ranks.run(resumed, 2, str(tmp_path))


def schedule(rank, nranks):
    ranks.init_torch()
    plain = DDP(network())
    expected = [flat(gradients(plain, rank, step)) for step in range(4)]
    hooked, _ = wrap(network(), quantizer="uniform:bits=2", warmup=2)
    errors = [float((flat(gradients(hooked, rank, step)) - expected[step]).norm()) for step in range(4)]
    assert errors[:2] == [0, 0] and min(errors[2:]) > 0
    steps = []
    hooked, _ = wrap(network(), quantizer="uniform:bits=2", warmup=lambda step: steps.append(step) or {0: "none", 2: "none"}.get(step))
    errors = [float((flat(gradients(hooked, rank, step)) - expected[step]).norm()) for step in range(4)]
    assert errors[0] == errors[2] == 0 < min(errors[1], errors[3]) and sorted(set(steps)) == [0, 1, 2, 3]
    hooked, _ = wrap(network(), quantizer="none", rules=[("2.*", "uniform:bits=2"), ("0.weight", None)])
    mine = gradients(hooked, rank, 0)
    wrong = [name for (name, _), one, other in zip(network().named_parameters(), mine, gradients(plain, rank, 0)) if not torch.equal(one, other)]
    assert wrong == ["2.weight", "2.bias"]


def test_schedule():
    ranks.run(schedule, 2)


def test_policy():
    weight, small, bias = (torch.nn.Parameter(torch.empty(shape)) for shape in ((64, 64), (4, 4), (4096,)))
    policy = isgq_torch.Policy("isgq:bits=4", [("head.*", None), ("*.special", "uniform:bits=8"), ("head.late", "onebit")])
    assert policy.choose("layer.weight", weight, 0).startswith("isgq:bits=4")
    assert [policy.choose(name, weight, 0) for name in ("head.weight", "head.late", "a.special")] == ["none", "none", "uniform:bits=8"]
    assert [policy.choose("layer.weight", tensor, 0) for tensor in (small, bias)] == ["none", "none"]
    assert policy.choose("bias.special", bias, 0) == "uniform:bits=8"  # a rule that names it is obeyed
    assert policy.choose("counts", torch.zeros(64, 64, dtype=torch.int64), 0) == "none"
    chosen = isgq_torch.Policy("onebit", lambda name, parameter: "fp16" if parameter.numel() > 4000 else None, exact_below=8)
    assert [chosen.choose("x", tensor, 0) for tensor in (weight, small, bias)] == ["fp16", "onebit", "fp16"]
    with pytest.raises(isgqcoll.InvalidArgument, match="onebti"):
        isgq_torch.Policy("none", [("*", "onebti")])
    with pytest.raises(isgqcoll.InvalidArgument, match="warmup"):
        isgq_torch.Policy(warmup=-1)


# ---- errors ----


def dead(rank, nranks):
    """Rank 1 ends in the middle of backward; the others are told by name, within seconds."""
    ranks.init_torch()
    hooked, state = wrap(network(), quantizer="none")
    for step in range(2):
        gradients(hooked, rank, step)  # DDP arranges its buckets anew at the second step, by messages of its own
    if rank == 1:
        os._exit(3)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1"):
        for step in range(2, 4):
            gradients(hooked, rank, step)
    assert time.monotonic() - begun < 20 and isinstance(state.error, isgqcoll.RemoteError)
    with pytest.raises(isgqcoll.RemoteError, match="rank 1"):
        state.communicator.synchronize()


def test_dead():
    ranks.run(dead, 3, may_die=(1,))


def disagree(rank, nranks):
    ranks.init_torch()
    hooked, state = wrap(network(), quantizer="uniform:bits=4" if rank == 0 else "uniform:bits=5")
    with pytest.raises(RuntimeError, match="quantizer"):
        gradients(hooked, rank, 0)
    assert isinstance(state.error, isgqcoll.Mismatch)


def test_disagree():
    ranks.run(disagree, 2)


def sparse(rank, nranks):
    ranks.init_torch()
    hooked, _ = wrap(torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 4)))
    with pytest.raises((RuntimeError, isgqcoll.InvalidArgument), match="sparse=False"):
        hooked(torch.tensor([1, 2])).sum().backward()


def test_sparse():
    ranks.run(sparse, 2)


def ended(rank, nranks):
    """After release, and in a forked child, the hook says so."""
    ranks.init_torch()
    hooked, state = wrap(network(), quantizer="isgq:bits=4")
    gradients(hooked, rank, 0)
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(isgqcoll.InvalidUsage, match="fork"):
                state.communicator.barrier()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    gradients(hooked, rank, 1)
    isgq_torch.release()
    with pytest.raises((RuntimeError, isgqcoll.InvalidUsage), match="destroyed"):
        gradients(hooked, rank, 2)
    dist.destroy_process_group()
    with pytest.raises(isgqcoll.InvalidUsage, match="init_process_group"):
        isgq_torch.State()


def test_ended():
    ranks.run(ended, 2)


def left(rank, nranks):
    """The group's end is the communicator's; a rank that ends it twice and early waits for a slower one's last call."""
    ranks.init_torch()
    from isgqcoll.torch import group

    slow = isgq_torch.communicator(dist.new_group([0, 1]))
    if rank == 0:
        time.sleep(0.3)
        slow.barrier()
    else:
        slow.barrier(async_op=True)
        assert group.leave(slow) is group.leave(slow)
    comm = isgq_torch.communicator()
    assert isgq_torch.communicator() is comm and isgq_torch.communicator(timeout=50) is not comm
    comm.barrier()
    dist.destroy_process_group()
    end = time.monotonic() + 20
    while comm._handle is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert comm._handle is None


def test_left():
    ranks.run(left, 2)
