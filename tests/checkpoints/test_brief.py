"""Long records in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from simo_merge.checkpoints.brief import brief


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3, "0.3"),
        ("mean", "mean"),
        (None, "None"),
        ([0.4, 0.3, 0.3], "[0.4, 0.3, 0.3]"),
        ({"a": 1, "b": [2, 3]}, "{'a': 1, 'b': [2, 3]}"),
        (list(range(7)), "7 numbers, least 0, mean 3, greatest 6, all in config.json"),
        (
            {"x": [[1.0, 2.0]], "y": [3.0, -10.0, 1, 1, 2.0]},
            "7 numbers, least -10, mean 0, greatest 3, all in config.json",
        ),
        (["a", "b", "c", "d", "e", "f", 1.0], "7 values, all in config.json"),
        ([True] * 7, "7 values, all in config.json"),
    ],
)
def test_what_is_long_is_summed_up_and_what_is_short_is_told(value: Any, text: str) -> None:
    assert brief(value, "config.json") == text
