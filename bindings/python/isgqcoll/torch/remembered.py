# SPDX-License-Identifier: Apache-2.0
"""What is remembered of parameters' gradients between steps, by name, and how it gets into checkpoints."""
from __future__ import annotations

from typing import Any

import torch

from ..communicator import Communicator
from ..errors import InvalidArgument
from ..quantizer import TensorState

FORMAT = 1  # of state_dict


class Memory:
    """Tensor states of a communicator's calls, made when a parameter is first quantized."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._tensors: dict[str, TensorState] = {}
        self._loaded: dict[str, bytes] = {}

    def tensor(self, name: str, parameter: Any) -> TensorState:
        """What is remembered of the gradient of `parameter`; as a matrix it has the first dimension's rows."""
        found = self._tensors.get(name)
        if found is None:
            rows = parameter.shape[0] if parameter.dim() > 1 else 1
            found = self._tensors[name] = TensorState(name, parameter.numel(), shape=(rows, parameter.numel() // rows))
            if name in self._loaded:
                found.load(self._loaded.pop(name))
        return found

    def state_dict(self, step: int) -> dict[str, Any]:
        """For a checkpoint, of this rank: residuals differ between ranks, so each saves its own."""
        self._comm.synchronize()
        saved = {**self._loaded, **{name: tensor.save() for name, tensor in self._tensors.items()}}
        tensors = {name: torch.frombuffer(bytearray(state), dtype=torch.uint8) for name, state in saved.items()}
        return {"format": FORMAT, "rank": self._comm.rank, "nranks": self._comm.nranks, "step": step, "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Counterpart of `state_dict`, at any time between steps; the step."""
        if state.get("format") != FORMAT:
            raise InvalidArgument(f"load_state_dict: format {state.get('format')!r}; this version reads {FORMAT}")
        mine, saved = (self._comm.rank, self._comm.nranks), (state["rank"], state["nranks"])
        if mine != saved:
            raise InvalidArgument(f"load_state_dict: the state of rank {saved[0]} of {saved[1]} was given to rank {mine[0]} of {mine[1]}")
        self._comm.synchronize()
        self._loaded = {name: tensor.numpy().tobytes() for name, tensor in state["tensors"].items()}
        for name, tensor in self._tensors.items():
            if name in self._loaded:
                tensor.load(self._loaded.pop(name))
            else:
                tensor.reset()
        return int(state["step"])
