# SPDX-License-Identifier: Apache-2.0
"""Layers that hand on the factors of their weight gradient instead of computing it: nn.Linear, nn.Conv2d and nn.Embedding.

A layer keeps its object and gets another class, so that isinstance, state_dict and references to it stay valid; copies and pickles of it are of
the plain class again. Forward computes what the plain layer does. Backward computes the input's gradient and gives the two factors to the
layer's unit (factored_units.py); autograd sees no weight gradient, but still visits the weight once all uses of it are done.
"""
from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .factored_units import FactoredUnit

TWICE = (
    "factored: {} has no gradient of a gradient (backward with create_graph=True): its weight's gradient is a product that other ranks complete. "
    "Name the layer in factored(skip=[...])"
)


class Exchanged:
    """What modules whose class was exchanged have in common: copies and pickles are of the class before, without what belongs to this process."""

    _isgq_plain: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        get = getattr(self._isgq_plain, "__getstate__", None)
        own = get is not None and get is not getattr(object, "__getstate__", None)
        state = get(self) if own else self.__dict__
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if not name.startswith("_isgq_")}
        return copyreg._reconstructor, (self._isgq_plain, object, None), state  # type: ignore[attr-defined]  # needs no isgqcoll to be loaded


def exchange_class(module: nn.Module, made: type, **fields: Any) -> None:
    """Give a module its new class, with what that needs."""
    for name, value in fields.items():
        module.__dict__[name] = value
    module.__class__ = made


def restore_class(module: nn.Module) -> None:
    """Undo it."""
    for name in [name for name in module.__dict__ if name.startswith("_isgq_")]:
        del module.__dict__[name]
    module.__class__ = module._isgq_plain


def refuse_graph(unit: "FactoredUnit") -> None:
    """Gradients of the gradient do not exist here."""
    if torch.is_grad_enabled():
        raise RuntimeError(TWICE.format(unit.name))


def detached(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """So that autocast does not keep casts that were made without a graph: others would use them, and their gradients would be lost."""
    return weight.detach(), None if bias is None else bias.detach()


# Saved is the input in the type that the layer computed in, which under autocast is half the bytes.


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, unit: "FactoredUnit") -> Tensor:
        y = F.linear(x, *detached(weight, bias))
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.unit, ctx.dtype = unit, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        refuse_graph(ctx.unit)
        x, weight = ctx.saved_tensors
        ctx.unit.record(x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1]))
        wanted = ctx.needs_input_grad[0]
        return delta.matmul(weight.to(delta.dtype)).to(ctx.dtype) if wanted else None, None, None, None


class FactoredLinear(Exchanged, nn.Linear):
    """nn.Linear. x: its input [rows x in]; delta: the gradient of its output [rows x out]; rows: all leading dimensions."""

    _isgq_plain = nn.Linear
    _isgq_unit: "FactoredUnit"

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        unit = self._isgq_unit
        if not unit.takes(self):
            return super().forward(input)
        unit.expect(input.numel() // max(1, self.in_features))
        return _LinearFunction.apply(input, self.weight, self.bias, unit)


class _Conv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, unit: "FactoredUnit", geometry: Any) -> Tensor:
        y = F.conv2d(x, *detached(weight, bias), **geometry)
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.unit, ctx.geometry, ctx.dtype = unit, geometry, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        refuse_graph(ctx.unit)
        x, weight = ctx.saved_tensors
        patches = F.unfold(x.float(), weight.shape[2:], ctx.geometry["dilation"], ctx.geometry["padding"], ctx.geometry["stride"])
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        ctx.unit.record(rows, delta.permute(0, 2, 3, 1).reshape(-1, delta.shape[1]))
        wanted = ctx.needs_input_grad[0]
        mine = torch.nn.grad.conv2d_input(x.shape, weight.to(delta.dtype), delta, **ctx.geometry).to(ctx.dtype) if wanted else None
        return mine, None, None, None, None


class FactoredConv2d(Exchanged, nn.Conv2d):
    """nn.Conv2d. A row is a patch of the input, as many as the output has positions: where these are few, factors are fewer bytes."""

    _isgq_plain = nn.Conv2d
    _isgq_unit: "FactoredUnit"

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Conv2d."""
        unit = self._isgq_unit
        if input.dim() != 4 or not unit.takes(self):
            return super().forward(input)
        rows = input.shape[0]
        for size, kernel, stride, padding, dilation in zip(input.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation):
            rows *= max(0, (size + 2 * int(padding) - dilation * (kernel - 1) - 1) // stride + 1)
        if not unit.pays(rows):
            unit.expect_dense()
            return super().forward(input)
        unit.expect(rows)
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return _Conv2dFunction.apply(input, self.weight, self.bias, unit, geometry)


class _EmbeddingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor, unit: "FactoredUnit", padding: int | None, by_frequency: bool) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.unit, ctx.padding, ctx.by_frequency = unit, padding, by_frequency
        return F.embedding(indices, weight)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Any:
        refuse_graph(ctx.unit)
        (indices,) = ctx.saved_tensors
        flat, rows = indices.reshape(-1), delta.reshape(-1, delta.shape[-1])
        if ctx.padding is not None:
            real = flat != ctx.padding
            flat, rows = flat[real], rows[real]
        if ctx.by_frequency and flat.numel() > 0:
            _, place, count = flat.unique(return_inverse=True, return_counts=True)
            rows = rows / count[place].unsqueeze(1)
        ctx.unit.record(flat, rows)
        return None, None, None, None, None


class FactoredEmbedding(Exchanged, nn.Embedding):
    """nn.Embedding. The first factor is one 1 a row: its index says it all."""

    _isgq_plain = nn.Embedding
    _isgq_unit: "FactoredUnit"

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Embedding."""
        unit = self._isgq_unit
        if not unit.takes(self):
            return super().forward(input)
        unit.expect(min(input.numel(), self.num_embeddings))
        return _EmbeddingFunction.apply(self.weight, input, unit, self.padding_idx, self.scale_grad_by_freq)


CLASSES: dict[type, type] = {kind._isgq_plain: kind for kind in (FactoredLinear, FactoredConv2d, FactoredEmbedding)}

for _kind in CLASSES.values():
    _kind.forward._torchdynamo_disable = True  # type: ignore[attr-defined]  # torch.compile compiles what is between such layers
