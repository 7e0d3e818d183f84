"""The options that say where an SDK lives, shared by every engine that has one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from inference.base import EngineError
from inference.foreign.host import Home
from inference.foreign.life import CHILD_S, GRACE_S, LOAD_S, STALL_S, Patience


class HomeOptions(BaseModel):
    """Where an SDK lives and how long it may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    python: str = Field(min_length=1, description="its interpreter: a path, or a name on PATH; Python 3.6 or newer")
    sdk: Path = Field(description="its folder, which is the working directory and on the search path")
    pythonpath: tuple[Path, ...] = Field(default=(), description="more folders in which it finds modules")
    env: dict[str, str] = Field(default_factory=dict, description="more environment variables")
    load_s: float = Field(default=LOAD_S, gt=0, description="seconds that loading may take")
    stall_s: float = Field(default=STALL_S, gt=0, description="seconds without a sign of life after which it is ended")
    child_s: float = Field(default=CHILD_S, gt=0, description="the same, once a process of the SDK has died")

    def home(self, guest: str) -> Home:
        """Where it lives, looked at. Raises :class:`EngineError` that names the option at fault."""
        folder = self.folder
        return Home(find_python(self.python), guest, folder, (folder, *self._places()), self.env)

    @property
    def folder(self) -> Path:
        """The SDK's folder, absolute. Raises :class:`EngineError` when there is none."""
        folder = Path(os.path.abspath(self.sdk.expanduser()))
        if not folder.is_dir():
            raise EngineError(f"options.sdk: {folder} is no folder", hint="name the folder of the SDK")
        return folder

    def _places(self) -> tuple[Path, ...]:
        places = tuple(Path(os.path.abspath(place.expanduser())) for place in self.pythonpath)
        for place in places:
            if not place.exists():
                raise EngineError(f"options.pythonpath: {place} does not exist", hint="correct it, or take it out")
        return places

    def patience(self, cancel_s: float = GRACE_S) -> Patience:
        """How long the host waits. cancel_s: seconds for a cancelled job to end by itself."""
        return Patience(load=self.load_s, stall=self.stall_s, child=self.child_s, cancel=cancel_s)


def find_python(named: str) -> str:
    """The path of an interpreter, given as a path or a name. Raises :class:`EngineError`.

    A link is not resolved: the interpreter of a virtual environment is one, and knows its packages by it.
    """
    path = os.path.abspath(os.path.expanduser(named)) if os.sep in named else shutil.which(named) or ""
    if not (path and os.path.isfile(path) and os.access(path, os.X_OK)):
        raise EngineError(
            f"options.python: there is no interpreter {named!r}",
            hint="give the path of one, such as /opt/conda/envs/heygem/bin/python",
        )
    return path
