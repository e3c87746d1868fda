# SPDX-License-Identifier: Apache-2.0
"""Which gradient travels how: a quantizer for each parameter, by its name, size and the step."""
from __future__ import annotations

import fnmatch
from typing import Any, Callable, Iterable, Union

from ..errors import InvalidArgument
from ..quantizer import quantizer as as_quantizer

EXACT = "none"

Rule = Union[str, None]
Rules = Union[Iterable["tuple[str, Rule]"], Callable[[str, Any], Rule]]
Warmup = Union[int, Callable[[int], Rule]]


def _checked(text: Any) -> str:
    if text is None:
        return EXACT
    made = as_quantizer(text)
    assert made is not None
    return made.text


class Policy:
    """Quantizer texts for parameters.

    quantizer: of parameters that no rule names. rules: (pattern, quantizer) with the wildcards of a shell, the first that fits the name counts;
    or a function (name, parameter) -> quantizer. The quantizer None stands for "none", and in a function's answer for "no opinion".
    exact_below: parameters with fewer elements, and all of one dimension (biases, norms), are exact unless a rule names them.
    warmup: the number of first steps in which everything is exact, or a function step -> quantizer in the place of `quantizer` in that step
    (None: as ever). All of it is equal on all ranks.
    """

    def __init__(self, quantizer: Any = "isgq:bits=4", rules: Rules = (), exact_below: int = 1024, warmup: Warmup = 0) -> None:
        self.quantizer = _checked(quantizer)
        self.exact_below, self.warmup = exact_below, warmup
        self._function = rules if callable(rules) else None
        self._patterns = [] if callable(rules) else [(pattern, _checked(text)) for pattern, text in rules]
        if not callable(warmup) and (not isinstance(warmup, int) or warmup < 0):
            raise InvalidArgument(f"warmup is a number of steps, or a function from the step to a quantizer; not {warmup!r}")

    def _ruled(self, name: str, parameter: Any) -> str | None:
        if self._function is not None:
            answer = self._function(name, parameter)
            return None if answer is None else _checked(answer)
        return next((text for pattern, text in self._patterns if fnmatch.fnmatchcase(name, pattern)), None)

    def common(self, step: int) -> str:
        """The quantizer of parameters that no rule names and that are large enough."""
        if callable(self.warmup):
            answer = self.warmup(step)
            return self.quantizer if answer is None else _checked(answer)
        return EXACT if step < self.warmup else self.quantizer

    def all_exact(self, step: int) -> bool:
        """Nothing is quantized in this step, whatever the rules say."""
        return not callable(self.warmup) and step < self.warmup

    def choose(self, name: str, parameter: Any, step: int) -> str:
        """The quantizer of a parameter in a step; steps count from 0."""
        if self.all_exact(step) or not parameter.dtype.is_floating_point:
            return EXACT
        ruled = self._ruled(name, parameter)
        if ruled is not None:
            return ruled
        return EXACT if parameter.dim() < 2 or parameter.numel() < self.exact_below else self.common(step)
