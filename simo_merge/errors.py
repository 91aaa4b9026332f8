"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class SimoError(Exception):
    """A mistake that the caller can mend: bad input, wrong file, missing data.

    The message says what was seen, what was expected and what to do. The command line prints it in one line
    and exits with status 2; anything else that escapes is a bug and ends in a traceback.
    """
