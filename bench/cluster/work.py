"""The work of bench.peers as an engine, with files where other systems carry bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.peers.tasks import Tasks


class Work(Tasks):
    """``file``: is read; ``output``: a file of ``size`` bytes is written there."""

    def run(self, params: dict[str, Any], context: Any) -> Any:
        """Do the task that the parameters name."""
        if params["task"] == "take":
            return {"value": len(Path(params["file"]).read_bytes())}
        if params["task"] == "give":
            context.output(Path(params["output"]), "given.bin").write_bytes(os.urandom(params["size"]))
            return {"output": params["output"]}
        return super().run(params, context)
