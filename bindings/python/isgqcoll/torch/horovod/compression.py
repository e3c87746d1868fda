# SPDX-License-Identifier: Apache-2.0
"""How gradients are made small: Horovod's names, and every quantizer of the library."""
from __future__ import annotations

from typing import Any

from ..policy import Policy, Rules, Warmup


class Compressor:
    """A quantizer and its policy. compress and decompress are those of Horovod and change nothing: the calls themselves quantize.

    Compressors of your own, with these two methods, work as in Horovod; what they return is summed exactly.
    """

    def __init__(self, quantizer: str, rules: Rules = (), exact_below: int = 1024, warmup: Warmup = 0) -> None:
        self.policy = Policy(quantizer, rules, exact_below, warmup)
        self.quantizer = self.policy.quantizer

    def compress(self, tensor: Any) -> tuple[Any, Any]:
        """The tensor itself."""
        return tensor, None

    def decompress(self, tensor: Any, ctx: Any) -> Any:
        """The tensor itself."""
        return tensor

    def __repr__(self) -> str:
        return f"<Compression {self.quantizer}>"


class Compression:
    """Compression.none, Compression.fp16 (sums in float32), Compression.isgq(bits=4), Compression.quantizer("uniform:bits=8")."""

    none = Compressor("none")
    fp16 = Compressor("fp16", exact_below=0)

    @staticmethod
    def isgq(bits: float = 4, **policy: Any) -> Compressor:
        """So many bits an element on the wire, entropy coded. policy: rules, exact_below, warmup of isgqcoll.torch.Policy."""
        return Compressor(f"isgq:bits={bits:g}", **policy)

    @staticmethod
    def quantizer(text: str, **policy: Any) -> Compressor:
        """Any quantizer of docs/numerics.md, by its text."""
        return Compressor(text, **policy)
