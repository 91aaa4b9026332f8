"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SimoError(Exception):
    """A mistake that the caller can mend: bad input, wrong file, missing data.

    The message says what was seen, what was expected and what to do. The command line prints it in one line
    and exits with status 2; anything else that escapes is a bug and ends in a traceback.
    """


def nearest(words: str | Iterable[str], known: Iterable[str]) -> str:
    """What messages add after words that are not known: `; did you mean density?`, or nothing where none is near."""
    wrong, choices = [words] if isinstance(words, str) else words, {word.lower(): word for word in known}
    found = [choices[near] for word in wrong for near in difflib.get_close_matches(word.lower(), choices, n=1)]
    return f"; did you mean {', '.join(dict.fromkeys(found))}?" if found else ""


def refuse_unknown_options(name: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Refuse what a method has no option for.

    Raises:
        SimoError: there is such an option; those that the method has are listed.
    """
    unknown = [option for option in options if option not in known]
    if unknown:
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise SimoError(f"{name} has no option {', '.join(unknown)}; {has}{nearest(unknown, known)}")
