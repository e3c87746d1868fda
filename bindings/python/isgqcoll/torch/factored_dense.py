# SPDX-License-Identifier: Apache-2.0
"""Gradients that are averaged as they are: a large one in a call of its own, small ones in a common buffer and exactly.

Sums go to buffers of their own, never in place: what turns out to be incomplete (a layer that checkpointing runs once more) is summed again.
"""
from __future__ import annotations

from typing import Any, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import InvalidUsage

EXACT = "none"


class Reporter:
    """What calls did, as the library's record says; it keeps only the last call's, so to learn it means to wait for the call at once."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.measuring = comm, False

    def note(self, records: list[Any], work: Any) -> None:
        """After a call was made."""
        if self.measuring:
            work.wait()
            records.append(self.comm.last_call())


class DenseSum:
    """The gradients of some parameters of one type, averaged together."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], quantizer: str) -> None:
        self.named, self.quantizer = list(named), quantizer
        self.params = [param for _, param in self.named]
        self._sum: Tensor | None = None
        self.records: list[Any] = []

    def launch(self, comm: Any, reporter: Reporter) -> None:
        """Begin. Parameters without a gradient count as zeros."""
        dtype = self.params[0].dtype
        count = sum(param.numel() for param in self.params)
        if self._sum is None or self._sum.numel() != count or self._sum.dtype != dtype:
            self._sum = torch.empty(count, dtype=dtype)
        for (name, param), part in zip(self.named, self._parts()):
            grad = param.grad
            if grad is not None and grad.layout != torch.strided:
                raise InvalidUsage(f"factored: the gradient of {name} is {grad.layout}; only dense gradients are averaged")
            if len(self.params) > 1 or grad is None or not grad.is_contiguous():
                part.zero_() if grad is None else part.copy_(grad)
        only = self.params[0].grad if len(self.params) == 1 else None
        send = only.view(-1) if only is not None and only.is_contiguous() else self._sum
        if dtype.is_complex:
            send, receive = torch.view_as_real(send), torch.view_as_real(self._sum)
        else:
            receive = self._sum
        work = comm.allreduce(send, receive, op="avg", quantizer=self.quantizer, async_op=True)
        reporter.note(self.records, work)

    def _parts(self) -> Iterator[Tensor]:
        assert self._sum is not None
        begin = 0
        for param in self.params:
            yield self._sum[begin : begin + param.numel()].view(param.shape)
            begin += param.numel()

    def results(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Of the call, which is complete."""
        return zip(self.params, self._parts())


def put(param: nn.Parameter, value: Tensor) -> None:
    """Make that the gradient."""
    if param.grad is None:
        param.grad = torch.empty_like(param, requires_grad=False).copy_(value)
    else:
        param.grad.copy_(value)


def add(param: nn.Parameter, value: Tensor) -> None:
    """Add that to the gradient."""
    if param.grad is None:
        put(param, value)
    else:
        param.grad.add_(value)
