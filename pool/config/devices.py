"""The names of devices: a kind that frameworks know, and for most kinds the number of one of them."""

from __future__ import annotations

import re

from pool.config.checks import At, nearest

#: Kind -> what it is; all but the first may have a number.
KINDS = {
    "cpu": "the processor",
    "cuda": "NVIDIA, and AMD by ROCm",
    "mps": "Apple",
    "xpu": "Intel",
    "npu": "Ascend",
    "hpu": "Gaudi",
    "mlu": "Cambricon",
    "musa": "Moore Threads",
    "mtia": "Meta",
    "xla": "TPU and others by XLA",
    "hip": "AMD, where a framework names it so",
    "vulkan": "any GPU by Vulkan",
    "dml": "any GPU by DirectML",
}
_DEVICE = re.compile(r"([a-z]+)(?::(0|[1-9][0-9]{0,2}))?", re.ASCII)
_LOOSE = re.compile(r"\s*([A-Za-z]*)[\s:_-]*([0-9]{0,3})\s*", re.ASCII)
_MEANT = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "rocm": "cuda",
    "amd": "cuda",
    "": "cuda",
    "metal": "mps",
    "apple": "mps",
    "ane": "mps",
    "intel": "xpu",
    "oneapi": "xpu",
    "ascend": "npu",
    "cann": "npu",
    "gaudi": "hpu",
    "tpu": "xla",
    "directml": "dml",
    "processor": "cpu",
}


def check_device(value: object, at: At) -> str:
    """A device of the configuration. Raises ConfigError with what was meant."""
    match = _DEVICE.fullmatch(value) if isinstance(value, str) else None
    if match is not None and match[1] in KINDS and not (match[1] == "cpu" and match[2]):
        return match[0]
    meant = _meant(value)
    hint = f', did you mean "{meant}"?' if meant else ""
    raise at.error(
        f'{value!r:.60} is no device: "cpu", "cuda", "cuda:1", or another of {", ".join(KINDS)}, with or without a '
        f"number{hint}"
    )


def _meant(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    match = _LOOSE.fullmatch(str(value))
    if match is None or not (match[1] or match[2]):
        return ""
    word = match[1].lower()
    kind = word if word in KINDS else _MEANT.get(word) or nearest(word, list(KINDS)).partition('"')[2].rstrip('"?')
    return kind if not kind or kind == "cpu" or not match[2] else f"{kind}:{int(match[2])}"
