# SPDX-License-Identifier: Apache-2.0
"""isgqcoll for PyTorch: a communication hook of DistributedDataParallel, a c10d backend "isgq", Horovod's names, and layers that send factors.

    ddp = torch.nn.parallel.DistributedDataParallel(model)
    ddp.register_comm_hook(isgqcoll.torch.State(model=ddp, quantizer="isgq:bits=4"), isgqcoll.torch.hook)

docs/pytorch.md tells all of it. Nothing here is imported before it is used.
"""
from __future__ import annotations

import importlib
from typing import Any

# Name: the module of this folder that has it.
_HOMES = {
    "communicator": "group",
    "release": "group",
    "Policy": "policy",
    "State": "ddp",
    "hook": "ddp",
    "register_backend": "backend",
    "factored": "factored_model",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
