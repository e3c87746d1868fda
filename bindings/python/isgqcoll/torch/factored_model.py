# SPDX-License-Identifier: Apache-2.0
"""factored(model): data-parallel training in which layers exchange the factors of their weight gradients (ISGQ, AAAI 2020).

    model = isgqcoll.torch.factored(model)                    # in place of DistributedDataParallel(model)
    model = DistributedDataParallel(isgqcoll.torch.factored(model))      # or below it: then DDP keeps all that has no factors

docs/factored-layers.md says what goes factored, and what does not.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import threading
import weakref
from typing import Any, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..calls import group
from ..errors import Error, InvalidArgument, InvalidUsage, Mismatch
from ..quantizer import Quantizer, QuantizerLike
from .factored_choice import Choice, choose
from .factored_dense import EXACT, DenseSum
from .factored_layers import CLASSES, Exchanged, exchange_class, restore_class
from .factored_pass import Passes
from .factored_report import Report, report
from .factored_units import ConvUnit, EmbeddingUnit, FactoredUnit, Unit
from .group import communicator as of_group

SMALL = 4096  # values; smaller tensors and all of one dimension are averaged exactly, many in one call
BUCKET = 1 << 18  # values of small tensors in one call
FACTORS_ONLY = ("factor", "isgq-mse", "isgq-mvu", "isgq-dithered")


def dense_text(text: str) -> str:
    """The quantizer of gradients that have no factors: the text's dense half, or none."""
    parts = dict(part.split("=", 1) for part in text.split(";") if part.startswith(("dense=", "factored=")))
    half = parts.get("dense", EXACT) if parts else text
    return EXACT if half.split(":", 1)[0] in (*FACTORS_ONLY, "powersgd") else half


class _Root(Exchanged):
    """What the whole model has besides: `no_sync`, `isgq_report`, `isgq_remove`, and that DDP leaves the factored parameters alone."""

    _isgq_passes: Passes
    _isgq_state: "_State"

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """The model's own."""
        self._isgq_state.before_forward()
        output = super().forward(*arguments, **keywords)  # type: ignore[misc]
        self._isgq_state.after_forward(output)
        return output

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of forwards in here stay on this rank and are averaged with those of the next backward outside."""
        passes = self._isgq_passes
        before, passes.enabled = passes.enabled, False
        try:
            yield
        finally:
            passes.enabled = before

    def isgq_report(self) -> Report:
        """What each layer's gradient goes as, why, and in how many bytes: print it."""
        return report(self._isgq_state.choices, self._isgq_state.units, self._isgq_passes)

    @property
    def isgq_communicator(self) -> Any:
        """That of all calls."""
        return self._isgq_passes.comm

    def isgq_remove(self) -> nn.Module:
        """The plain model again, and the end of its communicator. Collective."""
        state, passes = self._isgq_state, self._isgq_passes
        passes.detach()
        for module in {id(module): module for choice in state.choices if not choice.why for module in choice.modules}.values():
            if module is not self:
                restore_class(module)
        restore_class(self)  # type: ignore[arg-type]
        passes.comm.finalize()
        passes.comm.destroy()
        return self  # type: ignore[return-value]

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """DDP reads this when it wraps the model; its own parameters are those not named here."""
        asking = sys._getframe(1).f_locals.get("self")
        state = self._isgq_state
        mine = {id(param) for unit in state.units if unit.factored for _, param in unit.named}
        if isinstance(asking, nn.parallel.DistributedDataParallel):
            if all(unit.factored or not unit.trained for unit in state.units):
                raise InvalidUsage("factored: all parameters of this model go factored, DistributedDataParallel has nothing to do: use the model as it is")
            self._isgq_passes.leave_to(asking)
        paths = ((path, module) for path, module in self.named_modules(remove_duplicate=False))  # type: ignore[attr-defined]
        names = [(path, name) for path, module in paths for name, param in module._parameters.items() if id(param) in mine]
        return [*(f"{path}.{name}" for path, name in names), *(name for path, name in names if path == "")]


class _State:
    """What `factored` decided for a model, and its forward's part of the work."""

    def __init__(self, model: nn.Module, passes: Passes, choices: Sequence[Choice], units: Sequence[Unit], buffers: bool) -> None:
        self.passes, self.choices, self.units = passes, list(choices), list(units)
        self.model, self.broadcast_buffers = model, buffers
        self.types = [(param, param.dtype) for unit in units for _, param in unit.named]

    def before_forward(self) -> None:
        """Buffers are rank 0's, as DDP has it."""
        passes = self.passes
        passes.forward()
        for param, dtype in self.types:
            if param.dtype != dtype or param.device.type != "cpu":
                raise InvalidUsage(f"factored: a parameter became {param.dtype} on {param.device} after factored(model); move or convert the model before")
        wanted = self.broadcast_buffers and self.model.training and passes.ddp is None
        if wanted and torch.is_grad_enabled() and passes.synchronizes and not passes.active:
            broadcast(list(self.model.buffers()), passes.comm)

    def after_forward(self, output: Any) -> None:
        """Be told when backward comes to the output."""
        if not torch.is_grad_enabled():
            return
        waiting = [output]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Tensor):
                if value.requires_grad:
                    value.register_hook(lambda _: self.passes.outermost())
            elif isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple)):
                waiting += value


for _method in (_State.before_forward, _State.after_forward):
    _method._torchdynamo_disable = True  # type: ignore[attr-defined]


def broadcast(tensors: Sequence[Tensor], comm: Any) -> None:
    """Rank 0's values, everywhere."""
    copies = []
    with torch.no_grad(), group():
        for tensor in tensors:
            if tensor.numel() == 0:
                continue
            whole = tensor.detach() if tensor.is_contiguous() else tensor.detach().contiguous()
            plain = torch.view_as_real(whole) if whole.is_complex() else whole
            comm.broadcast(plain.view(torch.uint8) if plain.dtype == torch.bool else plain)
            if not tensor.is_contiguous():
                copies.append((tensor, whole))
    with torch.no_grad():
        for tensor, whole in copies:
            tensor.copy_(whole)


def _leave(comm: Any) -> None:
    """When the model was collected, which happens on each rank at a moment of its own."""
    with contextlib.suppress(Error):
        comm.finalize()
    with contextlib.suppress(Error):
        comm.destroy()


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"factored: a model is an nn.Module, not {type(model).__name__}")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, Exchanged):
            raise InvalidUsage(f"factored: {name or 'this model'} is factored already; call factored once, for the whole model")
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise InvalidUsage(f"factored: the model contains {kind} already; call factored first: {kind}(factored(model))")
        if "FullyShardedDataParallel" in kind or "FSDP" in kind:
            raise InvalidUsage(f"factored: {name or 'the model'} is sharded ({kind}): its ranks hold parts of a layer, factors are of whole layers")
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidUsage(f"factored: {name or 'the model'} is a ScriptModule: call factored before scripting, or leave it out")
    for name, param in model.named_parameters():
        if isinstance(param, nn.parameter.UninitializedParameter):
            raise InvalidUsage(f"factored: {name} has no shape yet; run one forward first")
        if type(param.data).__name__ == "DTensor":
            raise InvalidUsage(f"factored: {name} is a DTensor: its ranks hold parts of it, factors are of whole layers")
        if param.device.type != "cpu":
            raise InvalidUsage(f"factored: {name} is on {param.device}; only models on the CPU are served so far")


def _units(model: nn.Module, choices: Sequence[Choice], passes: Passes, text: str, dense: str, small: int) -> list[Unit]:
    """All parameters, last ones first, as backward comes to them."""
    names = {id(param): name for name, param in model.named_parameters()}
    units: list[Unit] = []
    taken: set[int] = set()
    bucket: dict[torch.dtype, list[tuple[str, nn.Parameter]]] = {}

    def close(dtype: torch.dtype) -> None:
        held = bucket.pop(dtype)
        units.append(Unit(held, [DenseSum(held, EXACT)]))

    for choice in reversed(choices):
        params = [param for module in choice.modules for param in module._parameters.values() if param is not None]
        mine = [(names[id(param)], param) for param in {id(param): param for param in params}.values() if id(param) not in taken]
        if not choice.why:
            units.append(_factored_unit(choice, mine, passes, text, dense, small))
            units[-1].modules = choice.modules
            taken.update(id(param) for _, param in mine)
            continue
        for pair in reversed(mine):
            param = pair[1]
            taken.add(id(param))
            if param.dim() > 1 and param.numel() >= small:
                units.append(Unit([pair], [DenseSum([pair], dense if param.is_floating_point() else EXACT)]))
            elif param.numel() > 0:
                held = bucket.setdefault(param.dtype, [])
                held.append(pair)
                if sum(other.numel() for _, other in held) > BUCKET:
                    close(param.dtype)
    for dtype in list(bucket):
        close(dtype)
    return units


def _factored_unit(
    choice: Choice, named: Sequence[tuple[str, nn.Parameter]], passes: Passes, text: str, dense: str, small: int
) -> FactoredUnit:  # fmt: skip
    module = choice.modules[0]
    options: dict[str, Any] = {"quantizer": text, "dense": dense, "small": small, "nranks": passes.comm.nranks}
    if isinstance(module, nn.Embedding):
        return EmbeddingUnit(passes, named, rows_quantizer=dense, sparse=module.sparse, **options)
    return (ConvUnit if isinstance(module, nn.Conv2d) else FactoredUnit)(passes, named, **options)


def _check_ranks(units: Sequence[Unit], comm: Any, *texts: str) -> None:
    """All ranks must have decided alike: what differs is named."""
    lines = [f"{type(unit).__name__} {name} {str(param.dtype)} {tuple(param.shape)}" for unit in units for name, param in unit.named]
    lines = [f"quantizer {texts}", *lines]
    digests = [int.from_bytes(hashlib.sha256(line.encode()).digest()[:7], "little") for line in lines]
    own = torch.tensor([len(lines), int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:7], "little")])
    every = torch.empty(comm.nranks, 2, dtype=torch.int64)
    comm.allgather(own, every, quantizer=EXACT)
    if bool((every == every[0]).all()):
        return
    most = int(every[:, 0].max())
    padded = torch.tensor(digests + [0] * (most - len(digests)))
    table = torch.empty(comm.nranks, most, dtype=torch.int64)
    comm.allgather(padded, table, quantizer=EXACT)
    place = int((table != table[0]).any(0).nonzero()[0])
    rank = int((table[:, place] != table[0, place]).nonzero()[0])
    mine = lines[place] if place < len(lines) else "nothing"
    raise Mismatch(f"factored: ranks 0 and {rank} have different models or settings; rank {comm.rank} has here: {mine}")


def factored(
    model: nn.Module,
    quantizer: QuantizerLike = "isgq:bits=4",
    process_group: Any = None,
    *,
    communicator: Any = None,
    dense: QuantizerLike = None,
    exact_below: int = SMALL,
    skip: Iterable[Any] = (),
    broadcast_buffers: bool = True,
    **config: Any,
) -> nn.Module:
    """Average the model's gradients over all ranks during backward, exchanging factors where a layer has them. Returns the same model. Collective.

    quantizer: of factors, "none" for exact gradients; dense: of large gradients without factors (default: the dense half of quantizer, if it has
    one); exact_below: tensors of fewer values are averaged exactly, as all of one dimension; skip: names or classes of layers without factors; communicator: an
    isgqcoll.Communicator to split instead of one made for process_group (default: the default group); broadcast_buffers: as in DDP; config: options of
    the model's own communicator (timeout in seconds, seed).
    """
    _check_model(model)
    text = quantizer.text if isinstance(quantizer, Quantizer) else (quantizer or EXACT)
    dense_quantizer = dense_text(text) if dense is None else dense.text if isinstance(dense, Quantizer) else dense
    for each in (text, dense_quantizer):
        Quantizer(each)
    if text.startswith("powersgd"):
        raise InvalidArgument("factored: powersgd sums gradients, not factors; choose another quantizer, or the DDP hook for this one")
    shared = communicator if communicator is not None else of_group(process_group)
    comm = shared.split(0, shared.rank, **config)  # its own: the order among its calls is nobody else's concern
    passes = Passes(comm)
    weakref.finalize(passes, lambda: threading.Thread(target=_leave, args=(comm,), daemon=True).start()).atexit = False
    choices = choose(model, exact_below, list(skip))
    units = _units(model, choices, passes, text, dense_quantizer, exact_below)
    _check_ranks(units, comm, text, dense_quantizer, str(exact_below))
    broadcast([*model.parameters(), *model.buffers()], comm)
    passes.attach(units)
    for unit in units:
        for module in unit.modules:
            exchange_class(module, CLASSES[type(module)], _isgq_unit=unit)
    state = _State(model, passes, choices, units, broadcast_buffers)
    exchange_class(model, _root_class(type(model)), _isgq_passes=passes, _isgq_state=state)
    return model


def _root_class(kind: type) -> type:
    """`kind` with what _Root has."""

    def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return _Root.forward(self, *arguments, **keywords)

    fields = {
        "_isgq_plain": getattr(kind, "_isgq_plain", kind),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "forward": functools.wraps(kind.forward)(forward),  # type: ignore[attr-defined]
    }
    return type(kind.__name__, (_Root, kind), fields)
