"""The demonstration: three experts become one model, from nothing, with a report."""

from simo_merge.demo.pipeline import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
