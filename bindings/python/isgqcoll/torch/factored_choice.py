# SPDX-License-Identifier: Apache-2.0
"""Which layers exchange factors, and why the others do not."""
from __future__ import annotations

from typing import Any, Iterable, NamedTuple

import torch
from torch import nn

from .factored_layers import CLASSES

TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    """A layer (or several that share a weight), and the reason if it is dense."""

    name: str
    modules: list[nn.Module]
    why: str  # "" if factored


def _against(module: nn.Module, small: int) -> str:
    """What speaks against factors for this layer alone; "" if nothing does."""
    kind = type(module)
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if kind not in CLASSES:
        return f"{kind.__name__} has a forward of its own" if isinstance(module, tuple(CLASSES)) else f"{kind.__name__} has no factors here"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if weight is None or "weight" not in module._parameters:
        return "its weight is computed from other parameters"
    if weight.dtype not in TYPES or (bias is not None and bias.dtype != weight.dtype):
        return f"its parameters are {str(weight.dtype).removeprefix('torch.')}"
    if weight.numel() < max(1, small):
        return f"{weight.numel()} values only"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"{module.groups} groups"
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return f"padding {module.padding_mode if module.padding_mode != 'zeros' else module.padding}"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the table in forward"
    return ""


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By parameter, the modules that have it, and under which name."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None:
                found.setdefault(id(param), []).append((module, name))
    return found


def _shared(modules: list[nn.Module], holders: dict[int, list[tuple[nn.Module, str]]]) -> str:
    """What speaks against factors for layers that share a weight."""
    first = modules[0]
    kinds = {type(module) for module in modules}
    if len(kinds) > 1 or any(name != "weight" for _, name in holders[id(first._parameters["weight"])]):
        return "its weight is shared with a layer of another kind"
    if len({id(module._parameters.get("bias")) for module in modules}) > 1:
        return "its weight is shared with a layer that has another bias"
    bias = first._parameters.get("bias")
    if bias is not None and {id(module) for module, _ in holders[id(bias)]} != {id(module) for module in modules}:
        return "its bias is shared with a layer that has another weight"
    if isinstance(first, nn.Embedding) and len({(module.padding_idx, module.sparse) for module in modules}) > 1:  # type: ignore[union-attr]
        return "its table is shared with other options"
    return ""


def choose(model: nn.Module, small: int, skip: Iterable[Any]) -> list[Choice]:
    """All layers that have parameters, in the order of the model."""
    named = [item for item in skip if isinstance(item, str)]
    kinds = tuple(item for item in skip if isinstance(item, type))
    skipped = {
        id(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds) or any(name == prefix or name.startswith(prefix + ".") for prefix in named)
    }
    holders = _holders(model)
    inside = {id(child) for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.modules()}
    chosen, seen = [], set()
    for name, module in model.named_modules():
        own = [param for param in module._parameters.values() if param is not None]
        if not own or id(module) in seen:
            continue
        weight = module._parameters.get("weight")
        sharing = [module]
        if weight is not None:
            sharing = list({id(other): other for other, _ in holders[id(weight)]}.values())
        why = "it was named in skip" if any(id(each) in skipped for each in sharing) else ""
        for each in sharing:
            why = why or ("its parent uses its weight itself" if id(each) in inside else _against(each, small))
        why = why or _shared(sharing, holders)
        if why:
            sharing = [module]
        seen.update(id(each) for each in sharing)
        chosen.append(Choice(name or "(model)", sharing, why))
    return chosen
