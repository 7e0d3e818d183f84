"""Where a job's files lie, and whether its result can be put where the job wants it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from inference.base import InputError


def absolute(path: Path) -> Path:
    """Without ``~`` and ``..``; links stay links."""
    return Path(os.path.abspath(path.expanduser()))


def check_output(path: Path, inputs: Mapping[Path, str]) -> Path:
    """The absolute path of a result, or :class:`InputError`. ``inputs``: the files the job reads and what each is."""
    output = absolute(path)
    if output in inputs:
        raise InputError(f"output: {output} is the {inputs[output]} itself", hint="name another file")
    if not output.parent.is_dir():
        raise InputError(f"output: the folder {output.parent} does not exist", hint="create it first")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"output: the folder {output.parent} cannot be written")
    if output.is_dir():
        raise InputError(f"output: {output} is a directory")
    return output
