"""Files of MATLAB up to version 7.2, and the libraries that only some layouts need."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from simo_merge.errors import SimoError


def load_matlab(path: Path) -> dict[str, Any]:
    """The variables of a `.mat` file of version 5 to 7.2.

    Raises:
        SimoError: the file is missing, damaged, of version 7.3, or scipy is not installed.
    """
    io = needed("scipy.io", path)
    try:
        loaded: dict[str, Any] = io.loadmat(path)
    except FileNotFoundError:
        raise SimoError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise SimoError(f"{path} cannot be read as a MATLAB file: {' '.join(str(error).split())}") from None
    return loaded


def needed(library: str, path: Path) -> ModuleType:
    """A library of the extra `data`.

    Raises:
        SimoError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        package = library.partition(".")[0]
        raise SimoError(f"{path} needs {package}, which is not installed: pip install 'simo-merge[data]'") from None
