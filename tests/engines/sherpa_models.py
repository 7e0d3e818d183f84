"""Small ONNX models of the three kinds that sherpa-onnx runs: what they hear are tones, by their pitch.

Inputs, outputs and notes are those of the published models; the networks hold a few matrices made here. Each frame of
speech votes for the quarter of the spectrum that is loudest in it, and each quarter is a character.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BANDS = ("你", "好", "世", "界")  #: by pitch, from low to high
TONES = (300.0, 1000.0, 2500.0, 6000.0)  #: Hz, one in each quarter of the mel scale
TAGS = ("<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|NEUTRAL|>", "<|Speech|>", "<|withitn|>", "<|woitn|>")
VOCABULARY = ("<blank>", "<s>", "</s>", *BANDS, *TAGS)
SPOKEN = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12}
MELS, FRAMES = 80, 7  #: bands of the spectrum, and how many frames are one input
LOUD = 14.0  #: log energy above which a frame holds something


def tone(which: int, seconds: float, rate: int = 16_000) -> np.ndarray:
    """Samples of the tone that is read as ``BANDS[which]``."""
    return (0.3 * np.sin(2 * np.pi * TONES[which] * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sensevoice(folder: Path, **notes: str) -> Path:
    """A folder with a model of SenseVoice's shape; ``notes`` replace those in the file, "" takes one away."""
    by_language = np.zeros((16, len(VOCABULARY)), np.float32)
    for code, number in SPOKEN.items():
        by_language[number, VOCABULARY.index(f"<|{'zh' if code == 'auto' else code}|>")] = 99.0
    by_norm = np.zeros((16, len(VOCABULARY)), np.float32)
    by_norm[14, VOCABULARY.index("<|withitn|>")] = by_norm[15, VOCABULARY.index("<|woitn|>")] = 99.0
    mood = np.zeros((1, 2, len(VOCABULARY)), np.float32)
    mood[0, 0, VOCABULARY.index("<|NEUTRAL|>")] = mood[0, 1, VOCABULARY.index("<|Speech|>")] = 99.0
    constants = {"by_language": by_language, "by_norm": by_norm, "mood": mood, "axis": np.array([1])}
    nodes = [
        *_votes("x", "content"),
        helper.make_node("Gather", ["by_language", "language"], ["lang"], axis=0),
        helper.make_node("Gather", ["by_norm", "text_norm"], ["norm"], axis=0),
        helper.make_node("Unsqueeze", ["lang", "axis"], ["lang_row"]),
        helper.make_node("Unsqueeze", ["norm", "axis"], ["norm_row"]),
        helper.make_node("Concat", ["lang_row", "mood", "norm_row", "content"], ["logits"], axis=1),
    ]
    inputs = [_value("x", TensorProto.FLOAT, ["N", "T", MELS * FRAMES])]
    inputs += [_value(name, TensorProto.INT32, ["N"]) for name in ("x_length", "language", "text_norm")]
    outputs = [_value("logits", TensorProto.FLOAT, ["N", "L", len(VOCABULARY)])]
    about = {f"lang_{code}": str(number) for code, number in SPOKEN.items()}
    about |= {"with_itn": "14", "without_itn": "15", "normalize_samples": "0", **_shared(), **notes}
    return _written(folder, nodes, inputs, outputs, constants, about)


def paraformer(folder: Path, *, times: bool = True, **notes: str) -> Path:
    """A folder with a model of Paraformer's shape, with or without the outputs that times are made of."""
    constants = {
        "first": np.array([0]),
        "last": np.array([-1]),
        "second": np.array([1]),
        "axis": np.array([1]),
        "none": np.array([[0]]),
        "blank": np.array(0),
        "three": np.array([3]),
        "end": np.array([[1.0]], np.float32),
    }
    nodes = [
        *_votes("speech", "content"),
        helper.make_node("ArgMax", ["content"], ["class"], axis=2, keepdims=0),  # (1, T)
        helper.make_node("Slice", ["class", "first", "last", "axis"], ["head"]),
        helper.make_node("Concat", ["none", "head"], ["before"], axis=1),
        helper.make_node("Equal", ["class", "before"], ["same"]),
        helper.make_node("Equal", ["class", "blank"], ["empty"]),
        helper.make_node("Or", ["same", "empty"], ["left_out"]),
        helper.make_node("Not", ["left_out"], ["begins"]),
        helper.make_node("NonZero", ["begins"], ["places"]),  # (2, K)
        helper.make_node("Gather", ["places", "second"], ["place"], axis=0),  # (1, K)
        helper.make_node("Squeeze", ["place", "first"], ["at"]),
        helper.make_node("Gather", ["content", "at"], ["logits"], axis=1),
        helper.make_node("Shape", ["at"], ["token_num"]),
        helper.make_node("Cast", ["begins"], ["peaks"], to=TensorProto.FLOAT),  # (1, T)
    ]
    outputs = [
        _value("logits", TensorProto.FLOAT, [1, "K", len(VOCABULARY)]),
        _value("token_num", TensorProto.INT64, [1]),
    ]
    if times:
        spread = np.zeros((1, 1, 3), np.float32)
        spread[0, 0, 0] = 1.0  # three values for each input frame
        constants |= {"spread": spread, "flat": np.array([1, -1]), "two": np.array([2])}
        nodes += [
            helper.make_node("Unsqueeze", ["peaks", "two"], ["column"]),
            helper.make_node("MatMul", ["column", "spread"], ["spaced"]),
            helper.make_node("Reshape", ["spaced", "flat"], ["heights"]),
            helper.make_node("Concat", ["heights", "end"], ["us_cif_peak"], axis=1),
            helper.make_node("Identity", ["us_cif_peak"], ["us_alphas"]),
        ]
        outputs += [_value(name, TensorProto.FLOAT, [1, "U"]) for name in ("us_alphas", "us_cif_peak")]
    inputs = [
        _value("speech", TensorProto.FLOAT, ["N", "T", MELS * FRAMES]),
        _value("speech_lengths", TensorProto.INT32, ["N"]),
    ]
    return _written(folder, nodes, inputs, outputs, constants, {**_shared(), **notes})


def punctuation(folder: Path, **notes: str) -> Path:
    """A folder with a model of CT-Transformer's shape: 。 follows 界, ， follows 世."""
    tokens, marks = ("<unk>", *BANDS), ("<unk>", "_", "，", "。", "？", "、")
    after = np.zeros((len(tokens), len(marks)), np.float32)
    after[:, 1] = 1.0
    after[tokens.index("界"), 3] = after[tokens.index("世"), 2] = 2.0
    nodes = [helper.make_node("Gather", ["after", "inputs"], ["logits"], axis=0)]
    inputs = [_value("inputs", TensorProto.INT32, ["N", "T"]), _value("text_lengths", TensorProto.INT32, ["N"])]
    outputs = [_value("logits", TensorProto.FLOAT, ["N", "T", len(marks)])]
    about = {"tokens": "|".join(tokens), "vocab_size": str(len(tokens)), "punctuations": "|".join(marks)}
    return _written(folder, nodes, inputs, outputs, {"after": after}, {**about, "unk_symbol": "<unk>", **notes})


def _votes(sound: str, out: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [sound, "weights"], ["energy"]),
        helper.make_node("Add", ["energy", "bias"], [out]),
    ]


def _shared() -> dict[str, str]:
    zeros, ones = (",".join([value] * MELS * FRAMES) for value in ("0", "1"))
    return {
        "vocab_size": str(len(VOCABULARY)),
        "lfr_window_size": str(FRAMES),
        "lfr_window_shift": "6",
        "neg_mean": zeros,
        "inv_stddev": ones,
    }


def _value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _written(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray],
    notes: Mapping[str, str],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.zeros((FRAMES, MELS, len(VOCABULARY)), np.float32)
    for at, letter in enumerate(BANDS):
        quarter = slice(at * MELS // 4, (at + 1) * MELS // 4)
        weights[:, quarter, VOCABULARY.index(letter)] = 4.0 / (FRAMES * MELS)
    bias = np.full(len(VOCABULARY), -99.0, np.float32)
    bias[0], bias[[VOCABULARY.index(letter) for letter in BANDS]] = LOUD, 0.0
    every = {"weights": weights.reshape(FRAMES * MELS, -1), "bias": bias, **constants}
    used = {name for node in nodes for name in node.input}
    held = [numpy_helper.from_array(value, name) for name, value in every.items() if name in used]
    graph = helper.make_graph(nodes, "tones", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {name: value for name, value in notes.items() if value})
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    lines = "".join(f"{token} {number}\n" for number, token in enumerate(VOCABULARY))
    (folder / "tokens.txt").write_text(lines, "utf-8")
    return folder
