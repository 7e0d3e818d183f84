"""Sound as MuseTalk hears it: rows of the Whisper encoder, 50 a second, and those that belong to a frame."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import torch

from inference import cuda
from inference.audio import Array
from inference.base import EngineError
from inference.lipsync.musetalk import files, layout
from inference.lipsync.musetalk.files import Place
from inference.lipsync.musetalk.layout import Published

RATE = 16_000  #: Hz
ROW_RATE = 50  #: rows per second
PIECE_S = 30  #: seconds the encoder hears at a time
PIECE_ROWS = PIECE_S * ROW_RATE
BEFORE, FRAME_ROWS = 4, 10  #: rows that a frame hears before its moment, and in all: 2 frames of 25 fps, itself, 2 more
KEPT = 16  #: pieces of a recording whose rows are held, 12 MB each; segments side by side need two each
PREFIXES = ("model.encoder.", "encoder.")  #: of the encoder's weights in files of the whole model


class Ears:
    """The encoder, loaded once. Threads share it and take turns."""

    def __init__(self, published: Published, where: Place) -> None:
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        file = published.configurations["whisper"]
        config = files.configuration(file)
        self._network = files.built(lambda: WhisperEncoder(WhisperConfig.from_dict(config)), file)
        weights = published.networks["whisper"]
        files.fill(self._network, _encoder_of(files.weights(weights)), weights, where)
        mel = published.configurations["mel"]
        try:
            self._mel = WhisperFeatureExtractor.from_dict(files.configuration(mel))
        except (TypeError, ValueError) as error:
            raise EngineError(f"musetalk: {mel} describes no feature extractor: {error}", hint=layout.GET) from error
        self._where = where
        self._turn = threading.Lock()
        self.width = int(self._network.config.d_model)  #: numbers per row
        self.layers = int(self._network.config.encoder_layers) + 1  #: states of the encoder that are heard
        self.frame_rows = FRAME_ROWS
        self.rows = FRAME_ROWS * self.layers  #: rows of a frame once all layers are set in a line

    def features(self, samples: Array) -> Array:
        """(1500, layers, width) of up to 30 s of 16 kHz mono: the input of the first layer, and what each puts out."""
        mel = self._mel(samples, sampling_rate=RATE, return_tensors="pt").input_features
        with self._turn, torch.inference_mode(), cuda.guarded(self._where.device, "30 s of sound"):
            heard = self._network(mel.to(self._where.device, self._where.dtype), output_hidden_states=True)
            states = torch.stack((*heard.hidden_states[:-1], heard.last_hidden_state), dim=2)
            return np.asarray(states[0].float().cpu().numpy(), np.float32)


class Hearing:
    """One recording, heard piece by piece as its frames ask for it. May be used by several threads."""

    def __init__(self, ears: Ears, samples: Array) -> None:
        self._ears, self._samples = ears, samples
        self._rows = len(samples) * ROW_RATE // RATE  #: that hold sound; the encoder pads a piece to its full length
        self._pieces: OrderedDict[int, Array] = OrderedDict()
        self._lock = threading.Lock()

    def window(self, at_s: float) -> Array:
        """(rows of a frame, width) of the frame at a moment: 10 rows of 20 ms from 80 ms before it, all layers each.

        Rows before the beginning and after the end are zeros.
        """
        start = int(at_s * ROW_RATE + 1e-6) - BEFORE
        result = np.zeros((FRAME_ROWS, self._ears.layers, self._ears.width), np.float32)
        low, high = max(0, start), min(self._rows, start + FRAME_ROWS)
        while low < high:
            number = low // PIECE_ROWS
            end = min(high, (number + 1) * PIECE_ROWS)
            first = number * PIECE_ROWS
            result[low - start : end - start] = self._piece(number)[low - first : end - first]
            low = end
        return result.reshape(self._ears.rows, self._ears.width)

    def _piece(self, number: int) -> Array:
        with self._lock:
            known = self._pieces.get(number)
            if known is None:
                length = PIECE_S * RATE
                known = self._ears.features(self._samples[number * length : (number + 1) * length])
                self._pieces[number] = known
                while len(self._pieces) > KEPT:
                    self._pieces.popitem(last=False)
            else:
                self._pieces.move_to_end(number)
            return known


def _encoder_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's part of a file that holds the whole model, without what comes before its names."""
    for prefix in PREFIXES:
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if part:
            return part
    return weights
