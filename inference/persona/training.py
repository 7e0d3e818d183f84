"""Examples → the weights of a network. What a step does depends on its number alone, so it can go on from any state.

The error is that of the picture and of three levels of its Laplacian pyramid (Bojanowski et al. 2018, "Optimizing the
latent space of generative networks"), most on the lips. No network that could tell how alike two mouths look is
installed for torch, so there is no perceptual loss of that kind. The weights that count are the running mean of those
that were stepped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference import cuda
from inference.persona.examples import Examples
from inference.persona.model import as_tensor
from inference.persona.network import INPUTS, on_device
from inference.persona.patch import SIDE

Array = NDArray[np.float32]
State = dict[str, NDArray[Any]]

BATCH = 16
RATE, RATE_LEAST, WARM = 1.5e-3, 0.02, 100  #: of learning; its share at the end; steps until it is reached
DECAY, BETAS = 1e-4, (0.9, 0.99)
MEAN = 0.998  #: of the running mean
LEVELS = (1.5, 1.0, 0.5)  #: weight of each level of the pyramid, fine to coarse
FACE, PAINTED, LIPS = 0.05, 1.0, 2.0  #: weight of errors in the square, where a persona paints, on the lips
LIGHT, COLOUR, SLANT = 0.06, 0.01, 0.04  #: deviation of the light that varies the examples: of all, a colour, a side
ASKED = 0.1  #: deviation of what is added to what is asked


class Trainer:
    """Learns in steps."""

    def __init__(self, examples: Examples, cover: Array, lips: Array, *, steps: int, device: str = "cpu") -> None:
        """``cover`` and ``lips`` (SIDE, SIDE): where it paints, and where it matters most."""
        cuda.require(device)
        self.step, self.steps = 0, steps
        self._examples, self._device = examples, torch.device(device)
        torch.manual_seed(0)
        self._network = on_device(device)
        self._mean = {name: value.detach().clone() for name, value in self._network.state_dict().items()}
        self._optimizer = torch.optim.AdamW(self._network.parameters(), RATE, betas=BETAS, weight_decay=DECAY)
        weights = torch.from_numpy(FACE + PAINTED * cover + LIPS * lips)[None, None].to(device)
        self._weights = [functional.avg_pool2d(weights, 1 << level) for level in range(len(LEVELS))]
        self._cover = torch.from_numpy(cover)[None, None].to(device)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's, as they count."""
        return {name: value.detach().cpu().clone() for name, value in self._mean.items()}

    def learn(self) -> float:
        """One step; returns its error."""
        numbers = np.random.default_rng((7, self.step))
        chosen = numbers.integers(0, len(self._examples), BATCH)
        light = torch.from_numpy(_light(numbers)).to(self._device)
        drawn, real = (
            (as_tensor(pictures[chosen]).to(self._device) * light).contiguous(memory_format=torch.channels_last)
            for pictures in (self._examples.drawn, self._examples.real)
        )
        noise = numbers.normal(0, ASKED, (BATCH, INPUTS))
        asked = torch.from_numpy((self._examples.asked[chosen] + noise).astype(np.float32)).to(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * self._pace()
        made, mask = self._network(drawn, asked)
        error = self._error(drawn + (made - drawn) * mask * self._cover, real)
        self._optimizer.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        share = 1 - min(MEAN, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self._network.state_dict().items():
                self._mean[name].lerp_(value, share)
        self.step += 1
        return float(error.detach())

    def state(self) -> State:
        """All that a later attempt needs to go on from here; about 7 MB."""
        steps = {"step": np.array(self.step, np.int64)}
        parts: list[tuple[str, Mapping[str, Tensor]]] = [("now", self._network.state_dict()), ("mean", self._mean)]
        parts += [
            (f"adam {number}", {name: value for name, value in one.items() if torch.is_tensor(value)})
            for number, one in self._optimizer.state_dict()["state"].items()
        ]
        arrays = {
            f"{part} {name}": value.cpu().numpy().copy() for part, table in parts for name, value in table.items()
        }
        return {**steps, **arrays}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave; KeyError or ValueError when it is of another network."""
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        with torch.no_grad():
            for prefix, table in (("now", self._network.state_dict()), ("mean", self._mean)):
                for name, value in table.items():
                    value.copy_(tensors[f"{prefix} {name}"])
        known = self._optimizer.state_dict()
        known["state"] = {
            number: {name: tensors[f"adam {number} {name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            for number in range(len(list(self._network.parameters())))
        }
        self._optimizer.load_state_dict(known)
        self.step = int(state["step"])

    def _pace(self) -> float:
        """The share of the rate at this step: rising at first, then falling as half a cosine."""
        fall = 0.5 * (1 + np.cos(np.pi * self.step / max(1, self.steps)))
        return float(min(1, (self.step + 1) / WARM) * (fall * (1 - RATE_LEAST) + RATE_LEAST))

    def _error(self, made: Tensor, real: Tensor) -> Tensor:
        off = made - real
        total = (off.abs() * self._weights[0]).mean()
        for level, weight in enumerate(LEVELS):  # the pyramid is linear: that of the difference is the difference
            coarse = functional.avg_pool2d(off, 2)
            fine = off - functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
            total = total + weight * (fine.abs() * self._weights[level]).mean()
            off = coarse
        return total


def _light(numbers: np.random.Generator) -> Array:
    """(BATCH, 3, h, w) by which the examples of a step are multiplied."""
    across = np.linspace(-1, 1, SIDE)
    gain = 1 + numbers.normal(0, LIGHT, (BATCH, 1, 1, 1)) + numbers.normal(0, COLOUR, (BATCH, 3, 1, 1))
    slant = numbers.normal(0, SLANT, (2, BATCH, 1, 1, 1))
    slopes = slant[0] * across[None, None, None, :] + slant[1] * across[None, None, :, None]
    return np.asarray(gain + slopes, np.float32)
