"""Run commands for real and render their terminal output as one SVG picture.

python docs/screenshot.py docs/images/demo.svg "make demo" "python -m pool status"
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 118


def run(command: str) -> str:
    """Output of a shell-like command line (split on blanks) in a terminal of its own, progress bars collapsed."""
    leader, follower = pty.openpty()
    env = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(command.split(), stdout=follower, stderr=follower, stdin=subprocess.DEVNULL, env=env)
    os.close(follower)
    data = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        data += part
    process.wait()
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.splitlines())


def main(target: str, *commands: str) -> None:
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    for command in commands:
        console.print(f"[bold green]$[/] [bold]{command}[/]")
        console.print(Text.from_ansi(run(command)))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title="filepool")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of the reader's system, none fetched
    Path(target).write_text(re.sub(r"<!--.*?-->\s*", "", svg), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
