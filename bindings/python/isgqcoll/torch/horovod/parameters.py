# SPDX-License-Identifier: Apache-2.0
"""One rank's parameters and optimizer state for all, at the start."""
from __future__ import annotations

import io
from typing import Any

import torch

from .operations import broadcast_async_, broadcast_object, synchronize
from .world import rank


def broadcast_parameters(params: Any, root_rank: int = 0) -> None:
    """Copy the root's tensors to all ranks: of model.state_dict(), model.named_parameters() or a list of them. Not tensors are left alone."""
    items = sorted(params.items()) if isinstance(params, dict) else list(params)
    tensors = [item[1] if isinstance(item, tuple) else item for item in items]
    for handle in [broadcast_async_(tensor, root_rank) for tensor in tensors if isinstance(tensor, torch.Tensor)]:
        synchronize(handle)


def broadcast_optimizer_state(optimizer: Any, root_rank: int = 0) -> None:
    """Give all ranks the root's optimizer state, hyperparameters included."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("cannot broadcast torch.optim.LBFGS state")
    saved = io.BytesIO()
    if rank() == root_rank:
        torch.save(optimizer.state_dict(), saved)
    data = broadcast_object(saved.getvalue(), root_rank)
    if rank() != root_rank:
        optimizer.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=False))
