"""The command line: thin commands over the library's public functions."""

from simo_merge.cli.app import main

__all__ = ["main"]
