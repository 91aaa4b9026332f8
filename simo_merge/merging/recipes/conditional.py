"""A method whose options differ from parameter to parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.method import DataMergeMethod, MergeMethod, TaskSpecificMethod
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

    build: options -> method. options: for each option its conditions, in order; those after one for all are dropped.

    Raises:
        SimoError: a value that the method refuses, or a method that learns from images or is task-specific.
    """

    name: ClassVar[str] = "conditional"
    build: Callable[[dict[str, Any]], MergeMethod]
    options: Mapping[str, tuple[Condition, ...]]
    _methods: dict[str, MergeMethod] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build all that may be needed, so that a bad value is found before any work."""
        effective = {name: _effective(conditions) for name, conditions in self.options.items()}
        object.__setattr__(self, "options", effective)
        for options in _reachable(effective):
            method = self.build(options)
            if isinstance(method, DataMergeMethod | TaskSpecificMethod):
                why = "gives every task its own weights"
                if isinstance(method, DataMergeMethod):
                    why = "learns from images"
                raise SimoError(
                    f"{method.name} {why}, so its options cannot depend on the parameter; give each option one value, "
                    "without filter"
                )
            self._methods.setdefault(_key(options), method)

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


def _effective(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """The conditions up to the first that always holds."""
    last = next((i for i, condition in enumerate(conditions) if condition.holds("")), len(conditions))
    return conditions[: last + 1]


def _reachable(options: Mapping[str, tuple[Condition, ...]]) -> list[dict[str, Any]]:
    """The values that some name can get: it cannot contain a filter for one option and lack it for another."""
    found: list[tuple[dict[str, Any], frozenset[str], frozenset[str]]] = [({}, frozenset(), frozenset())]
    for option, conditions in options.items():
        longer = []
        for values, inside, outside in found:
            passed = outside
            for condition in conditions:
                given = {**values, option: condition.value}
                if condition.holds(""):
                    longer.append((given, inside, passed))
                    break
                longer.append((given, inside | {condition.filter}, passed))
                passed = passed | {condition.filter}
            else:
                longer.append((values, inside, passed))
        found = [state for state in longer if _possible(*state[1:])]
    return [values for values, _, _ in found]


def _possible(inside: frozenset[str], outside: frozenset[str]) -> bool:
    """Whether a name can contain the former texts and none of the latter."""
    return not any(lacking in present for present in inside for lacking in outside)


def _key(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))  # by option: their names differ, so no values are compared
