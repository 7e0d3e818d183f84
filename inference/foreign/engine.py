"""An engine whose whole work is done by an SDK in an interpreter of its own: ``inference.foreign:Foreign``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from inference.base import Context, EngineError, Files, read_options, read_params
from inference.finding import Finding
from inference.foreign import probe
from inference.foreign.home import HomeOptions
from inference.foreign.host import Guest
from inference.foreign.life import GRACE_S
from inference.paths import absolute, check_output


class ForeignParams(BaseModel):
    """What a job hands to the SDK: anything, and where a file goes that it makes."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    output: Path | None = Field(
        default=None,
        description="where the file of the result goes; default: out/<job id>/",
        json_schema_extra={"output": True},
    )


class Options(HomeOptions):
    """The engine's ``options`` in config.json."""

    guest: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description='"module:Class", derived from filepool_guest.Sdk'
    )
    options: dict[str, Any] = Field(default_factory=dict, description="handed to load() of the SDK, with the device")
    cancel_s: float = Field(
        default=GRACE_S, ge=0, le=60, description="seconds for the SDK to end a cancelled job; then it is killed"
    )


class Foreign:
    """An SDK in another interpreter. A job's parameters are the SDK's own."""

    Params: ClassVar[type[ForeignParams]] = ForeignParams

    def __init__(self) -> None:
        self._guest: Guest | None = None

    def load(self, device: str, options: Mapping[str, object]) -> None:
        """Start the interpreter and load the SDK. Raises :class:`EngineError` that says why it cannot."""
        chosen = read_options(Options, options)
        home = chosen.home(chosen.guest)
        probe.version(home.python)
        self._guest = Guest(home, {"device": device, **chosen.options}, chosen.patience(chosen.cancel_s))
        self._guest.start()

    @staticmethod
    def diagnose(device: str, options: Mapping[str, object]) -> Iterator[Finding]:
        """Look at the interpreter and the SDK without loading it. Raises :class:`EngineError` for wrong options."""
        chosen = read_options(Options, options)
        home = chosen.home(chosen.guest)
        yield from probe.examine(home, [chosen.guest.partition(":")[0]])

    def check(self, params: Mapping[str, object]) -> ForeignParams:
        """The parameters are for the SDK to judge; only ``output`` is looked at."""
        job = read_params(ForeignParams, params)
        return job if job.output is None else job.model_copy(update={"output": check_output(job.output, {})})

    def run(self, params: ForeignParams, context: Context) -> dict[str, Any]:
        """Run one job in the guest."""
        if self._guest is None:
            raise EngineError("the engine is not loaded", hint="call load() first")
        asked = params.model_dump(mode="python", exclude={"output"})
        result: dict[str, Any] = self._guest.run(asked, context)
        made = sorted((context.scratch / "out").glob("*")) if (context.scratch / "out").is_dir() else []
        for file in made:
            target = context.output(params.output if len(made) == 1 else None, file.name)
            shutil.move(os.fspath(file), target)
        return result

    def files(self, params: ForeignParams) -> Files:
        """What the job writes, as far as the parameters tell."""
        return Files(outputs=() if params.output is None else (absolute(params.output),))

    def close(self) -> None:
        """End the interpreter."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None


__all__ = ("Foreign", "ForeignParams", "Options")
