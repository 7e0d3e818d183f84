"""Write docs/ENGINES.md and docs/transcript.schema.json from the models of parameters, options and results.

python docs/engines.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from inference.foreign import engine as foreign  # noqa: E402
from inference.lipsync import params as lipsync  # noqa: E402
from inference.persona import params as persona  # noqa: E402
from inference.portrait import params as portrait  # noqa: E402
from inference.transcribe import params as transcribe  # noqa: E402
from inference.transcribe.transcript import Transcript  # noqa: E402

ENGINES = {
    "transcribe": ("inference.transcribe:Transcribe", transcribe.Params, transcribe.Options),
    "lipsync": ("inference.lipsync:LipSync", lipsync.Params, lipsync.Options),
    "portrait": ("inference.portrait:Portrait", portrait.Params, portrait.Options),
    "persona": ("inference.persona:Training", persona.Params, persona.Options),
    "foreign": ("inference.foreign:Foreign", foreign.ForeignParams, foreign.Options),
}
NESTED = {"lipsync": {"heygem": lipsync.HeyGemOptions}}
HEAD = """# The engines

What a job may ask of each engine (`params`), and how each is set up (`options` in config.json, see
[CONFIG.md](CONFIG.md)). Unknown keys are refused in both. `python -m pool engines` shows the parameters of the engines
that are configured. Made by `python docs/engines.py`.

The packages of an engine come with the extra of its name (`pip install 'filepool[lipsync]'`, which `persona` needs,
too; `funasr` and `musetalk` for these backends, `chinese` for `script`). A worker that lacks one does not load:
`status`, `engines` and every wait for it name the packages and the command. `opencv-python` is linked against libGL:
where `libGL.so.1` is missing, `apt-get install libgl1`, or `pip uninstall opencv-python && pip install
opencv-python-headless`; the engines open no window. Do not install both: each overwrites files of the other.

A page for each system that runs under this pool, with what to install, what to write into config.json, what to
expect and what was tested: [HeyGem SDK](systems/heygem.md), [MuseTalk](systems/musetalk.md),
[Wav2Lip](systems/wav2lip.md), [EchoMimic](systems/echomimic.md), [FunASR](systems/funasr.md), and
[an SDK of your own in another Python](systems/foreign.md). What `persona` does and what was measured:
[PERSONA.md](PERSONA.md). `python -m inference.weights install MODEL` fetches
published weights ([WEIGHTS.md](WEIGHTS.md)); on GPUs: [GPU.md](GPU.md).

An engine of your own may let a job go on where an attempt ended: `context.checkpoint(state)` saves a map of what
msgpack can hold and numpy arrays, at most 64 MiB, over what was saved before; `context.restore()` is that map in the
next attempt, and None where there is nothing to go on from. The pool uses a state only for the same parameters, input
files and version of the engine, and removes it with the job ([PROTOCOL.md](PROTOCOL.md)). `transcribe` saves after
each window of speech, `persona` every 15 s while it learns.

Weights are in `FILEPOOL_WEIGHTS`; without it in `weights/` of a checkout that has such a folder, else in the user's
cache (`~/.cache/filepool/weights`). `python -m inference.weights` shows the folder and its content.
"""


def table(model: type[BaseModel]) -> str:
    """One row per field."""
    schema = model.model_json_schema()
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        required = name in schema.get("required", ())
        default = "required" if required else _default(field.get("default"))
        rows.append(f"| `{name}` | {_type(field, schema)} | {default} | {field.get('description', '')} |")
    return "\n".join(row.replace("\n", " ") for row in rows)


def _default(value: Any) -> str:
    return "" if value in (None, {}) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(each, schema) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("format") == "path":
        return "path"
    words = {"string": "text", "object": "map", "array": "list"}
    low, high = (field.get(name, field.get(f"exclusive{name.title()}")) for name in ("minimum", "maximum"))
    span = [] if low is None and (high is None or high > _HUGE) else [_number(low), "…", _number(high)]
    return " ".join([words.get(field.get("type", ""), field.get("type", "any")), *filter(None, span)])


_HUGE = 1e15


def _number(value: float | None) -> str:
    return "" if value is None or abs(value) > _HUGE else f"{value:g}"


def schema() -> str:
    """The JSON schema (2020-12) of a transcript."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Transcript.model_json_schema()}
    return json.dumps(about, indent=1) + "\n"


def page() -> str:
    """The whole document."""
    parts = [HEAD]
    for name, (spec, params, options) in ENGINES.items():
        parts.append(f'## {name}\n\n`"engine": "{spec}"`\n')
        parts.append(f"Parameters:\n\n{table(params)}\n")
        parts.append(f"Options:\n\n{table(options)}\n")
        for key, model in NESTED.get(name, {}).items():
            parts.append(f"Option `{key}`:\n\n{table(model)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "ENGINES.md").write_text(page(), "utf-8")
    (HERE / "transcript.schema.json").write_text(schema(), "utf-8")
