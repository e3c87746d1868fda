# SPDX-License-Identifier: Apache-2.0
"""Units: what is averaged by one decision. Either a layer whose factors are exchanged, or parameters whose gradients are averaged as they are.

Every rank has the same units in the same order. What differs between ranks (rows, layers that were not reached, gradients that did not come as
factors) is agreed on before a unit's calls are made: factored_pass.py.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from ..errors import InvalidUsage
from ..quantizer import Quantizer
from .factored_dense import EXACT, DenseSum, Reporter, add, put

if TYPE_CHECKING:
    from .factored_pass import Passes


class Unit:
    """Parameters that are dealt with together. `fired`: autograd is done with them in this pass; `landed`: a gradient came by autograd."""

    factored = False

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], sums: Sequence[DenseSum]) -> None:
        self.named, self.sums = list(named), list(sums)
        self.fired: set[nn.Parameter] = set()
        self.landed: set[nn.Parameter] = set()
        self.reached: set[nn.Parameter] = set()
        self.dense_done = self.late = False
        self.agreed_rows = 0
        self.name = self.named[0][0]
        self.modules: list[nn.Module] = []  # whose class is exchanged

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters that are not frozen."""
        return [param for _, param in self.named if param.requires_grad]

    def fire(self, param: nn.Parameter, landed: bool) -> None:
        """Autograd is done with this parameter, or will come once more if a part of the graph is run again."""
        self.fired.add(param)
        if landed:
            self.landed.add(param)
            self.reached.add(param)
            self.late = self.late or self.dense_done

    def ready(self) -> bool:
        """Has this backward brought all it will, as far as can be told?"""
        trained = self.trained
        return bool(trained) and self.fired.issuperset(trained)

    def announce(self) -> tuple[int, bool]:
        """Before the calls: rows that are expected, and whether gradients are averaged as they are."""
        return 0, bool(self.trained)

    def launch(self, rows: int, dense: bool, comm: Any, reporter: Reporter) -> None:
        """Begin what all ranks agreed on."""
        if dense:
            self._launch_dense(comm, reporter)

    def _launch_dense(self, comm: Any, reporter: Reporter) -> None:
        for total in self.sums:
            total.launch(comm, reporter)
        self.dense_done, self.late = True, False

    def leftover(self) -> tuple[int, bool]:
        """After the calls: what came too late for them."""
        return 0, self.late or bool(self.landed and not self.dense_done)

    def relaunch(self, rows: int, dense: bool, comm: Any, reporter: Reporter) -> None:
        """Begin what came too late somewhere."""
        if dense:
            self._launch_dense(comm, reporter)

    def complete(self, reached: set[nn.Parameter]) -> None:
        """All calls are done: write the gradients of those parameters that some rank reached."""
        if self.dense_done:
            for total in self.sums:
                for param, value in total.results():
                    if param in reached:
                        put(param, value)

    def reset(self, synced: bool) -> None:
        """The pass is over."""
        self.fired.clear()
        if synced:
            self.landed.clear()
            self.reached.clear()
        self.dense_done = self.late = False


class Factors(NamedTuple):
    """One use of a layer: x [rows x m] (of an embedding: its indices) and delta [rows x n]."""

    x: Tensor
    delta: Tensor


class FactoredUnit(Unit):
    """A weight, perhaps with a bias, whose layers (one, or several that share both) hand on factors."""

    factored = True

    def __init__(
        self, passes: "Passes", named: Sequence[tuple[str, nn.Parameter]], quantizer: str, dense: str, small: int, nranks: int
    ) -> None:  # fmt: skip
        sums = [DenseSum([pair], dense if pair[1].dim() > 1 and pair[1].numel() >= small else EXACT) for pair in named]
        super().__init__(named, sums)
        self.passes, self.quantizer, self.nranks = passes, quantizer, nranks
        self.weight = named[0][1]
        self.bias = named[1][1] if len(named) > 1 else None
        self.n = self.weight.shape[0]
        self.m = self.weight.numel() // self.n
        self.expected = 0
        self.dense_expected = False
        self.unclaimed: list[Factors] = []
        self.factors: list[Factors] = []
        self.kept: list[Factors] = []
        self._marker: tuple[Tensor, int] | None = None
        self._outputs: list[tuple[Tensor, Tensor | None]] = []
        self._spare: list[tuple[Tensor, Tensor | None]] = []
        self.records: list[Any] = []

    # ---- forward ----

    def takes(self, module: nn.Module) -> bool:
        """Will this forward's weight gradient go factored?"""
        if not torch.is_grad_enabled() or not self.weight.requires_grad or torch.jit.is_tracing():
            return False
        if module.weight is not self.weight:
            if isinstance(module.weight, nn.Parameter):
                raise InvalidUsage(f"factored: {self.name} was replaced by another parameter after factored(model), which nobody averages; replace it before")
            return False
        self.passes.check_ended()
        if any(param._backward_hooks or getattr(param, "_post_accumulate_grad_hooks", None) for param in self.trained):
            self.expect_dense()  # they are to see a gradient
            return False
        return True

    def expect(self, rows: int) -> None:
        """A forward with so many rows."""
        if not self.passes.active:
            self.expected += rows

    def expect_dense(self) -> None:
        """A forward whose gradient will come by autograd."""
        self.dense_expected = True

    def pays(self, rows: int) -> bool:
        """Are the factors of so many rows on each rank fewer codes than the gradient? Only asked where the library does not decide."""
        return True

    # ---- backward ----

    def record(self, x: Tensor, delta: Tensor) -> None:
        """Factors of one use. They count once autograd has come to the weight: never where only the input's gradient was asked for."""
        self.passes.watch()
        self.unclaimed.append(Factors(x.detach(), delta.detach()))

    def fire(self, param: nn.Parameter, landed: bool) -> None:
        """As for any parameter; the weight claims what its layers recorded."""
        super().fire(param, landed)
        if param is self.weight and self.unclaimed:
            self.factors += self.unclaimed
            self.unclaimed = []
            self.reached.update(self.trained)

    def rows(self) -> int:
        """That are waiting."""
        return sum(factors.x.shape[0] for factors in self.factors)

    def announce(self) -> tuple[int, bool]:
        """Rows expected from the forwards, and those kept from backwards that were not synchronized."""
        self._take_kept()
        return self.rows() + self.expected, bool(self.landed) or self.dense_expected

    def launch(self, rows: int, dense: bool, comm: Any, reporter: Reporter) -> None:
        """Factors, or gradients where some rank has gradients or factors do not pay."""
        self.agreed_rows = rows
        self.records = []
        if dense or (rows > 0 and not self.pays(rows)):
            self._multiply()
            self._launch_dense(comm, reporter)
        elif rows > 0:
            self._launch_factors(rows if self.rows() <= rows else 0, rows, comm, reporter)

    def _launch_factors(self, mine: int, most: int, comm: Any, reporter: Reporter) -> None:
        """mine = 0: this rank's rows are more than agreed and come with the leftovers."""
        factors = self._take(self.factors if mine > 0 else [])
        if mine > 0:
            self.factors = []
        if self._spare:
            grad, bias = self._spare.pop()
        else:
            grad = torch.empty(self.m, self.n, dtype=self.weight.dtype)
            bias = None if self.bias is None else torch.empty_like(self.bias, requires_grad=False)
        self._outputs.append((grad, bias))
        wanted = bias if self.bias is not None and self.bias.requires_grad else None
        work = comm.allreduce_factored(
            factors.x, factors.delta, grad, bias=wanted, max_batch=most, op="avg", quantizer=self.quantizer, async_op=True
        )
        reporter.note(self.records, work)

    def _take(self, parts: Sequence[Factors]) -> Factors:
        """Stack them, in the weight's type."""
        dtype = self.weight.dtype
        if not parts:
            return Factors(torch.empty(0, self.m, dtype=dtype), torch.empty(0, self.n, dtype=dtype))
        if len(parts) == 1:
            return Factors(parts[0].x.to(dtype).contiguous(), parts[0].delta.to(dtype).contiguous())
        return Factors(torch.cat([part.x.to(dtype) for part in parts]), torch.cat([part.delta.to(dtype) for part in parts]))

    def _multiply(self) -> None:
        """Factors become a gradient of this rank, as autograd would have made it."""
        if self.factors:
            factors, self.factors = self._take(self.factors), []
            add(self.weight, factors.delta.t().mm(factors.x).view_as(self.weight))
            self.landed.add(self.weight)
            if self.bias is not None and self.bias.requires_grad:
                add(self.bias, factors.delta.sum(0))
                self.landed.add(self.bias)
            self.late = self.late or self.dense_done

    def leftover(self) -> tuple[int, bool]:
        """Rows beyond those agreed on, and gradients that autograd brought after all."""
        if self.factors and self.dense_done:
            self._multiply()
        return self.rows(), super().leftover()[1]

    def relaunch(self, rows: int, dense: bool, comm: Any, reporter: Reporter) -> None:
        """A second round, with the rows that are left."""
        if dense or (rows > 0 and not self.pays(rows)):
            self._multiply()
            self._launch_dense(comm, reporter)
        elif rows > 0:
            self._launch_factors(self.rows(), rows, comm, reporter)

    def complete(self, reached: set[nn.Parameter]) -> None:
        """Gradient = what was averaged as it is + products of factors."""
        super().complete(reached)
        self._add_products(reached)

    def _add_products(self, reached: set[nn.Parameter]) -> None:
        for grad, bias in self._outputs:
            if self.weight in reached:
                add(self.weight, grad.t().view_as(self.weight) if self.weight.dim() == 2 else grad.t().reshape(self.weight.shape))
            if self.bias is not None and bias is not None and self.bias in reached and self.bias.requires_grad:
                add(self.bias, bias)

    def reset(self, synced: bool) -> None:
        """Without synchronization the factors are kept, for the pass that has it."""
        super().reset(synced)
        self._spare += self._outputs[: 1 - len(self._spare)]
        self._outputs = []
        self.expected, self.dense_expected = 0, False
        if not synced:
            self._keep()
        self.factors = []

    # ---- accumulation without synchronization ----

    def _keep(self) -> None:
        """Copies: a training loop may use its batch buffers again. As gradient once they are larger than that."""
        if not self.factors:
            return
        self.factors = self._take_kept_parts() + self.factors
        if self._heavy():
            self._multiply()
            return
        self.kept = [Factors(part.x.clone(), part.delta.clone()) for part in self.factors]
        if self.weight.grad is None:
            self.weight.grad = self._nothing()
        self._marker = (self.weight.grad, self.weight.grad._version)

    def _heavy(self) -> bool:
        return self.rows() * (self.m + self.n) > self.m * self.n

    def _nothing(self) -> Tensor:
        """A gradient to which zero_grad can happen."""
        return torch.zeros_like(self.weight, requires_grad=False)

    def _take_kept_parts(self) -> list[Factors]:
        """What was kept, unless the gradient that it belongs to was dropped since: zero_grad drops it too."""
        kept, self.kept, marker, self._marker = self.kept, [], self._marker, None
        if not kept or marker is None:
            return []
        grad = self.weight.grad
        if grad is marker[0] and grad._version == marker[1]:
            return kept
        if grad is None or not bool((grad.coalesce().values() if grad.is_sparse else grad).any()):
            return []
        raise InvalidUsage(
            f"factored: the gradient of {self.name} was changed between a backward under no_sync and the one that synchronizes; "
            "it does not hold the factors that wait, so that cannot be honoured. Change gradients after the last backward only"
        )

    def _take_kept(self) -> None:
        self.factors = self._take_kept_parts() + self.factors


class ConvUnit(FactoredUnit):
    """Patches are many, so whether they pay is decided before they are cut out."""

    def pays(self, rows: int) -> bool:
        """Each rank sends rows * (m + n) codes to N - 1 others, where an average of the gradient moves 2 (N - 1) / N * m * n."""
        return self.nranks * rows * (self.m + self.n) <= 2 * self.m * self.n


class EmbeddingUnit(FactoredUnit):
    """Rows of a table: the indices travel exactly, the rows of the gradient quantized, each index of a rank once."""

    def __init__(self, *arguments: Any, rows_quantizer: str, sparse: bool, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sparse, self._rows_quantizer = sparse, Quantizer(rows_quantizer)
        self.table, self.width = self.weight.shape
        self._gathered: list[tuple[Tensor, Tensor]] = []

    def pays(self, rows: int) -> bool:
        """Bytes of rows and indices to N - 1 others against those of the whole table."""
        if self.sparse:
            return True
        dense, kind = self.sums[0].quantizer, str(self.weight.dtype).removeprefix("torch.")
        gather = self._rows_quantizer.max_bytes(rows * self.width, kind) + 4 * rows
        return self.nranks * gather <= 2 * Quantizer(dense).max_bytes(self.table * self.width, kind)

    def announce(self) -> tuple[int, bool]:
        """An index counts once, however often it is used."""
        rows, dense = super().announce()
        return min(rows, self.table), dense

    def _take(self, parts: Sequence[Factors]) -> Factors:
        """Rows of equal index are summed."""
        dtype = self.weight.dtype
        if not parts:
            return Factors(torch.empty(0, dtype=torch.int64), torch.empty(0, self.width, dtype=dtype))
        indices = torch.cat([part.x for part in parts])
        unique, place = indices.unique(return_inverse=True)
        rows = torch.zeros(unique.numel(), self.width, dtype=dtype)
        rows.index_add_(0, place, torch.cat([part.delta.to(dtype) for part in parts]))
        return Factors(unique, rows)

    def rows(self) -> int:
        """Different indices."""
        if len(self.factors) > 1 or (self.factors and self.factors[0].x.numel() > self.table):
            self.factors = [self._take(self.factors)]
        return super().rows()

    def _heavy(self) -> bool:
        return not self.sparse and self.rows() * (self.width + 1) > self.table * self.width

    def _nothing(self) -> Tensor:
        return torch.sparse_coo_tensor(self.weight.shape, dtype=self.weight.dtype) if self.sparse else super()._nothing()

    def _multiply(self) -> None:
        if self.factors:
            factors, self.factors = self._take(self.factors), []
            if self.weight.grad is None:
                self.weight.grad = torch.zeros_like(self.weight, requires_grad=False)
            self.weight.grad.index_add_(0, factors.x, factors.delta)
            self.landed.add(self.weight)
            self.late = self.late or self.dense_done

    def _launch_factors(self, mine: int, most: int, comm: Any, reporter: Reporter) -> None:
        factors = self._take(self.factors if mine > 0 else [])
        if mine > 0:
            self.factors = []
        indices = torch.full((most,), -1, dtype=torch.int64)
        rows = torch.zeros(most, self.width, dtype=self.weight.dtype)
        indices[: factors.x.numel()] = factors.x
        rows[: factors.x.numel()] = factors.delta
        every = torch.empty(self.nranks, most, dtype=torch.int64)
        table = torch.empty(self.nranks * most, self.width, dtype=self.weight.dtype)
        reporter.note(self.records, comm.allgather(indices, every, quantizer=EXACT, async_op=True))
        reporter.note(self.records, comm.allgather(rows, table, quantizer=self._rows_quantizer, async_op=True))
        self._gathered.append((every.view(-1), table))

    def _add_products(self, reached: set[nn.Parameter]) -> None:
        for indices, rows in self._gathered:
            real = indices >= 0
            indices, rows = indices[real], rows[real]
            if self.weight not in reached:
                continue
            if self.sparse:
                made = torch.sparse_coo_tensor(indices.unsqueeze(0), rows / self.nranks, self.weight.shape)
                self.weight.grad = made if self.weight.grad is None else self.weight.grad + made
                continue
            if self.weight.grad is None:
                self.weight.grad = torch.zeros_like(self.weight, requires_grad=False)
            self.weight.grad.index_add_(0, indices, rows, alpha=1 / self.nranks)
        self._gathered = []
