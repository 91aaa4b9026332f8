"""What a merge method is called, what it takes and what it needs: for command lines and recipes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from simo_merge.errors import SimoError, refuse_unknown_options
from simo_merge.merging.method import DataMergeMethod, MergeMethod, TaskSpecificMethod
from simo_merge.merging.registry import merge_method, method_class


@dataclass(frozen=True)
class MethodFacts:
    """What can be said of a method before it is used.

    Attributes:
        name: Its name.
        purpose: One line.
        options: Their names and defaults.
        needs: "nothing", "images", or "images and labels", beside weights.
        one_pass: Whether one encoder pass serves all tasks.
    """

    name: str
    purpose: str
    options: Mapping[str, Any]
    needs: str
    one_pass: bool


def describe_method(name: str) -> MethodFacts:
    """The facts of a registered method.

    Raises:
        SimoError: an unknown name.
    """
    kind = method_class(name)
    purpose = (inspect.getdoc(kind) or "").partition("\n")[0]
    options = option_defaults(name)
    needs = "nothing"
    if issubclass(kind, DataMergeMethod):
        needs = "images and labels" if merge_method(name).needs_labels else "images"  # type: ignore[attr-defined]
    return MethodFacts(name, purpose, options, needs, not issubclass(kind, TaskSpecificMethod))


def option_defaults(name: str) -> dict[str, Any]:
    """The options of a method, with their defaults.

    Raises:
        SimoError: an unknown name.
    """
    return {field.name: _default(field) for field in fields(method_class(name)) if field.init}  # type: ignore[arg-type]


def method_named(name: str, options: Mapping[str, Any]) -> MergeMethod:
    """A method with options as they come from text: names are checked first, values by the method itself.

    Raises:
        SimoError: an unknown name, an option that it does not have (those that it has are listed), a bad value.
    """
    refuse_unknown_options(name, options, list(option_defaults(name)))
    try:
        return merge_method(name, options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise SimoError(f"{name} does not take {given}: {error}") from error


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None
