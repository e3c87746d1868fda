# SPDX-License-Identifier: Apache-2.0
"""perf/torch_compare's ways to sum gradients: each makes of a model one whose .grad is the mean over all ranks after backward()."""
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

POWERSGD_START = 2  # plain sums before that step; the least that the hook allows with its error feedback
ONE_BUCKET_MB = 1024


class Method:
    """`text` is gloo, fp16, powersgd, powersgd:rank=R, dense:QUANTIZER or factored:QUANTIZER. Models are on the CPU, the process group is Gloo."""

    def __init__(self, text):
        self.text = text
        self.kind, _, self.argument = text.partition(":")
        if self.kind not in _BUILDERS:
            raise ValueError(f"unknown method {text!r}; known are {', '.join(_BUILDERS)}")
        if (self.kind in ("dense", "factored")) != bool(self.argument) and self.kind != "powersgd":
            raise ValueError(f"{text!r}: dense and factored want a quantizer behind a colon, gloo and fp16 nothing")
        self._comm = None

    @property
    def ours(self):
        """Whether the library sums: then its counters tell more."""
        return self.kind in ("dense", "factored")

    def build(self, model):
        """The model to train."""
        return _BUILDERS[self.kind](self, model)

    def stats(self):
        """The library's counters, None for PyTorch's own."""
        return self._comm.stats() if self.ours else None


def _gloo(_method, model):
    return DistributedDataParallel(model)


def _fp16(_method, model):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    made = DistributedDataParallel(model)
    made.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return made


def powersgd_rank(text):
    """1 for nothing."""
    word, _, value = text.partition("=")
    if text and (word != "rank" or not value.isdigit()):
        raise ValueError(f"powersgd: {text!r} is not rank=R")
    return int(value) if text else 1


def _powersgd(method, model):
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    # One bucket: the hook goes on in callbacks, which Gloo runs in several threads. With two buckets ranks make their sums in different
    # orders, and Gloo ends the process (1.13: "op.preamble.length <= op.nbytes").
    dist._DEFAULT_FIRST_BUCKET_BYTES = ONE_BUCKET_MB << 20
    made = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET_MB)
    state = powerSGD_hook.PowerSGDState(
        process_group=None, matrix_approximation_rank=powersgd_rank(method.argument), start_powerSGD_iter=POWERSGD_START
    )
    made.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return made


def _dense(method, model):
    import isgqcoll.torch

    made = DistributedDataParallel(model)
    state = isgqcoll.torch.State(model=made, quantizer=method.argument)
    made.register_comm_hook(state, isgqcoll.torch.hook)
    method._comm = state.communicator
    return made


def _factored(method, model):
    import isgqcoll.torch

    made = isgqcoll.torch.factored(model, quantizer=method.argument)
    method._comm = made.isgq_communicator
    return made


_BUILDERS = {"gloo": _gloo, "fp16": _fp16, "powersgd": _powersgd, "dense": _dense, "factored": _factored}


def plain_copy(make, parameters):
    """A model of its own with the same weights and no sums: for local gradients."""
    copy = make()
    with torch.no_grad():
        for mine, theirs in zip(copy.parameters(), parameters):
            mine.copy_(theirs)
    return copy
