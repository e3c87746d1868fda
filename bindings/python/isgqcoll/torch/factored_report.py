# SPDX-License-Identifier: Apache-2.0
"""What became of each layer: a table to print, rows to read."""
from __future__ import annotations

from typing import Any, NamedTuple, Sequence

from torch import nn

from .factored_choice import Choice
from .factored_pass import Passes
from .factored_units import Unit


class Row(NamedTuple):
    """A layer in the last pass that was measured. bytes: of this rank's own contribution (0 before the first pass); ratio: of its gradient to that."""

    layer: str
    mode: str  # "factored", "dense", "exact" or "DDP"
    why: str
    rows: int  # agreed largest number on a rank
    bytes: int
    gradient_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes of the gradient to bytes of the contribution."""
        return self.gradient_bytes / self.bytes if self.bytes else 0.0


class Report(list):  # type: ignore[type-arg]
    """Rows, and their sum."""

    @property
    def total(self) -> Row:
        """All of it."""
        known = [row for row in self if row.mode != "DDP"]
        return Row("total", "", "", 0, sum(row.bytes for row in known), sum(row.gradient_bytes for row in known))

    def __str__(self) -> str:
        rows = [*self, self.total]
        wide = max(len(row.layer) for row in rows)
        lines = [f"{'layer':<{wide}}  {'mode':<8} {'rows':>6} {'bytes':>10} {'ratio':>7}  why"]
        for row in rows:
            lines.append(f"{row.layer:<{wide}}  {row.mode:<8} {row.rows:>6} {row.bytes:>10} {row.ratio:>7.1f}  {row.why}".rstrip())
        return "\n".join(lines)


def _bytes(params: Sequence[nn.Parameter]) -> int:
    return sum(param.numel() * param.element_size() for param in params)


def report(choices: Sequence[Choice], units: Sequence[Unit], passes: Passes) -> Report:
    """One row for each unit, in the order of the model."""
    why = {id(param): choice.why for choice in choices for module in choice.modules for param in module._parameters.values() if param is not None}
    rows = Report()
    for unit in reversed(units):
        params = [param for _, param in unit.named]
        agreed, dense_done, records = passes.measured.get(unit.name, (0, False, []))
        said: list[Any] = [record.why for record in records]
        contribution = sum(record.own_bytes for record in records)
        if unit.factored:
            mode = "dense" if dense_done else "factored"
            reason = said[-1] if said else "not measured yet"
            if dense_done:
                reason = "its gradient is fewer bytes than its factors, or came without them"
            elif said and "dense" in records[0].algorithm:
                mode = "dense"
        else:
            mode = "exact" if unit.sums[0].quantizer == "none" else "dense"
            reason = why.get(id(params[0]), "")
        if passes.ddp is not None and not unit.factored:
            mode = "DDP"
        names = [name for name, _ in unit.named]
        label = names[0].rpartition(".")[0] or names[0] if unit.factored else names[0]
        if len(names) > 1 and not unit.factored:
            label, reason = f"{label} and {len(names) - 1} more", f"small tensors in one call; {reason}"
        rows.append(Row(label, mode, reason, agreed, contribution, _bytes(params)))
    return rows
