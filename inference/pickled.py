"""What a file of pickled weights would call when it is read, found without reading it.

Loading with ``weights_only=True`` refuses code as well, but only in the worker, and with advice to turn the
refusal off. Here a downloaded file that nobody vouched for is looked at before it is installed.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")  #: what torch.save is usually told to write
#: Calls that make tensors and plain containers, and nothing else.
HARMLESS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch(\.storage)?\.\w*Storage"
    r"|torch\.(Size|device|Tensor|float16|float32|float64|bfloat16|uint8|int8|int16|int32|int64|bool)"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout"
    r"|numpy(\._?core)?(\.multiarray)?\.(_reconstruct|scalar|dtype|ndarray)"
    r"|_codecs\.encode"
)
LEGACY_PICKLES = 5  #: magic number, protocol, system, content, keys: how torch wrote before it wrote archives
MOST = 64 << 20  #: bytes of names and shapes; those of the largest models are a few
EXTENSIONS = ("EXT1", "EXT2", "EXT4")
TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING")


def calls(path: Path) -> list[str]:
    """Names of what would be called, sorted, that does more than make tensors; ValueError for what is no pickle."""
    try:
        with path.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                found = {name for content in _archived(path) for name in _globals(io.BytesIO(content))}
            else:
                stream.seek(0)
                found = set()
                for _ in range(LEGACY_PICKLES):
                    found.update(_globals(stream))
                    if not stream.peek(1):
                        break
    except (ValueError, IndexError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no file of weights that torch has written: {error}") from error
    return sorted(name for name in found if not HARMLESS.fullmatch(name))


def _archived(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pkl")]
        if not names:
            raise ValueError("the archive holds no data.pkl")
        for name in names:
            if archive.getinfo(name).file_size > MOST:
                raise ValueError(f"{name} is too large for names and shapes")
            yield archive.read(name)


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """The names in one pickle, up to its end."""
    texts: list[str | None] = []
    memory: dict[int, str | None] = {}
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            module, name = texts[-2:] if len(texts) > 1 else (None, None)
            yield f"{module}.{name}" if module and name else "a name that is made up while it is read"
        elif code.name in EXTENSIONS:
            yield f"extension {argument}"
        elif code.name in TEXTS:
            texts.append(str(argument))
        elif code.name.endswith("GET"):
            texts.append(memory.get(int(argument or 0)))
        elif code.name.endswith("PUT"):
            memory[int(argument or 0)] = texts[-1] if texts else None
        elif code.name == "MEMOIZE":
            memory[len(memory)] = texts[-1] if texts else None
