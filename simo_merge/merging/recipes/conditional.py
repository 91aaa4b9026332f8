"""A method whose options differ from parameter to parameter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from simo_merge.merging.method import MergeMethod
from simo_merge.merging.parameter import Parameter, Parameters


@dataclass(frozen=True)
class Condition:
    """A value for the parameters whose names contain `filter`; "*" or nothing stands for all."""

    value: Any
    filter: str = "*"

    def holds(self, name: str) -> bool:
        """Whether it is for the parameter of this name."""
        return self.filter in ("", "*") or self.filter in name


@dataclass(frozen=True)
class Conditional(MergeMethod):
    """Merges every parameter by the method that `build` makes of the options that hold for it.

    The first condition that holds gives an option's value; where none does, the method's default is taken. Statistics
    of a method are of all parameters, not only of those that it merges: with another `scale` for attention, say, a
    threshold remains that of the whole model.

    build: options -> method. options: for each option its conditions, in order.
    """

    name: ClassVar[str] = "conditional"
    build: Callable[[dict[str, Any]], MergeMethod]
    options: Mapping[str, tuple[Condition, ...]]
    _methods: dict[str, MergeMethod] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build all that may be needed, so that a bad value is found before any work."""
        choices = [[(name, c) for c in (*conditions, None)] for name, conditions in self.options.items()]
        for chosen in itertools.product(*choices):
            options = {name: condition.value for name, condition in chosen if condition is not None}
            self._methods.setdefault(_key(options), self.build(options))

    def method_for(self, name: str) -> MergeMethod:
        """The method that merges the parameter of this name."""
        return self._methods[self._key_for(name)]

    def statistics(self, parameters: Parameters) -> dict[str, Any]:
        """Those of every method that merges something."""
        used = {self._key_for(parameter.name) for parameter in parameters()}
        return {key: self._methods[key].statistics(parameters) for key in sorted(used)}

    def merge(self, parameter: Parameter, statistics: dict[str, Any]) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        key = self._key_for(parameter.name)
        return self._methods[key].merge(parameter, statistics[key])

    def parameters(self) -> dict[str, Any]:
        """The conditions of every option, and the method's name."""
        method = next(iter(self._methods.values()))
        rules = {
            name: [{"filter": condition.filter, "value": condition.value} for condition in conditions]
            for name, conditions in self.options.items()
        }
        return {"method": method.name, **rules}

    def _key_for(self, name: str) -> str:
        found = {
            option: next((condition.value for condition in conditions if condition.holds(name)), _ABSENT)
            for option, conditions in self.options.items()
        }
        return _key({option: value for option, value in found.items() if value is not _ABSENT})


_ABSENT = object()


def _key(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)
