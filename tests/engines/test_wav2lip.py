"""The wav2lip backend: the published checkpoints' names and shapes, the sound they hear, what is painted where."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inference import media  # noqa: E402
from inference.audio import Array  # noqa: E402
from inference.base import EngineError  # noqa: E402
from inference.face import mesh  # noqa: E402
from inference.lipsync import wav2lip, wav2lip_model  # noqa: E402
from inference.lipsync.frames import loop  # noqa: E402

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # TorchScript archives are what is tested
]

LAYERS = Path(__file__).with_name("wav2lip_layers.txt")
NORM = ("weight", "bias", "running_mean", "running_var")

Shapes = dict[str, tuple[int, ...]]


def published(family: str) -> Shapes:
    """Every name and shape of a family's checkpoint, from the written-out table."""
    shapes: Shapes = {}
    for line in LAYERS.read_text("utf-8").splitlines():
        if line.startswith("#") or not line.startswith(f"{family} "):
            continue
        _, name, size, turned = line.split()
        weight = tuple(int(side) for side in size.split("x"))
        channels = weight[1] if turned == "T" else weight[0]
        if name == "output_block.1":
            shapes |= {f"{name}.weight": weight, f"{name}.bias": (channels,)}
            continue
        shapes |= {f"{name}.conv_block.0.weight": weight, f"{name}.conv_block.0.bias": (channels,)}
        shapes |= {f"{name}.conv_block.1.{part}": (channels,) for part in NORM}
        shapes[f"{name}.conv_block.1.num_batches_tracked"] = ()
        if family == "288":
            shapes[f"{name}.act.weight"] = (1,)
    return shapes


def weights(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Made-up values that keep a deep network's output between black and white."""
    random = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(7)
        elif name.endswith(("running_var", "act.weight", "conv_block.1.weight")):
            made[name] = torch.full(shape, 0.5)
        elif len(shape) > 1:
            spread = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            made[name] = torch.randn(shape, generator=random) * spread
        else:
            made[name] = torch.randn(shape, generator=random) * 0.05
    return made


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the 96 family as the authors save theirs."""
    path = tmp_path_factory.mktemp("wav2lip") / "wav2lip.pth"
    state = {f"module.{name}": value for name, value in weights(published("96")).items()}
    torch.save({"state_dict": state, "optimizer": {"state": {}}, "global_step": 1, "global_epoch": 1}, path)
    return path


@pytest.mark.parametrize(("family", "count"), [("96", 352), ("288", 482)])
def test_published_names_and_shapes(family: str, count: int) -> None:
    wanted = published(family)
    assert len(wanted) == count
    activation = torch.nn.PReLU if family == "288" else torch.nn.ReLU
    known = next(each for each in wav2lip_model.FAMILIES if each.name == family)
    with torch.device("meta"):
        ours = wav2lip_model.Generator(known, activation).state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == wanted


@pytest.mark.parametrize("family", ["96", "288"])
def test_loads_and_paints(family: str, tmp_path: Path) -> None:
    path = tmp_path / "generator.pth"
    torch.save({"state_dict": weights(published(family))}, path)
    network = wav2lip_model.load(path)
    side = int(family)
    assert network.family.side == side
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with torch.inference_mode():
        face = network(torch.rand(1, 1, 80, 16), torch.rand(1, 6, side, side))
    assert face.shape == (1, 3, side, side)
    assert 0 < float(face.min()) < float(face.max()) < 1


def test_values_end_up_where_they_belong(checkpoint: Path) -> None:
    network = wav2lip_model.load(checkpoint)
    for name, value in weights(published("96")).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(network.state_dict()[name], value), name


def test_old_checkpoint_without_counters_and_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = weights(published("96"))
    torch.save({n: v.half() for n, v in state.items() if not n.endswith("num_batches_tracked")}, path)
    network = wav2lip_model.load(path)
    assert network.output_block[1].weight.dtype == torch.float32


def test_torchscript_archive(checkpoint: Path, tmp_path: Path) -> None:
    network = wav2lip_model.load(checkpoint)
    path = tmp_path / "script.pt"
    inputs = (torch.rand(1, 1, 80, 16), torch.rand(1, 6, 96, 96))
    torch.jit.trace(network, inputs, check_trace=False).save(str(path))
    with torch.inference_mode():
        assert torch.equal(wav2lip_model.load(path)(*inputs), network(*inputs))


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    def refused(path: Path, complaint: str) -> None:
        with pytest.raises(EngineError, match=complaint) as caught:
            wav2lip_model.load(path)
        assert str(path) in str(caught.value)
        assert "checkpoint" in caught.value.hint

    refused(tmp_path / "none.pth", "does not exist")
    text = tmp_path / "text.pth"
    text.write_text("not found\n")
    refused(text, "no file of weights")
    trace = tmp_path / "trace"
    evil = tmp_path / "evil.pth"
    torch.save({"state_dict": Payload(trace)}, evil)
    refused(evil, r"holds more than weights: pathlib\.Path\b.*getattr")
    assert not trace.exists()
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, other)
    refused(other, "known family")
    wrong = weights(published("96"))
    wrong["output_block.1.weight"] = torch.zeros(1, 32, 1, 1)
    torch.save({"state_dict": wrong}, other)
    refused(other, r"output_block.1.weight is \(1, 32, 1, 1\) instead of \(3, 32, 1, 1\)")


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_numpy_are_let_in(checkpoint: Path, tmp_path: Path, legacy: bool) -> None:
    """Trainers save a loss or a step as what numpy made of it."""
    path = tmp_path / "numpy.pth"
    content = torch.load(checkpoint, weights_only=True)
    content |= {"loss": np.float64(0.1), "step": np.int64(3), "learned": np.array([1.0, 2.0]), "flag": np.bool_(True)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    network = wav2lip_model.load(path)
    assert torch.equal(network.output_block[1].weight, content["state_dict"]["module.output_block.1.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_protocol_that_torch_does_not_read(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "new.pth"
    torch.save(weights(published("96")), path, pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(EngineError, match="is pickled with protocol 4; torch reads weights up to 2") as caught:
        wav2lip_model.load(path)
    assert 'torch.save(saved, "weights.pth")' in caught.value.hint


def test_numbers_of_numpy_where_torch_is_old(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.5, torch cannot be told what to let in."""
    monkeypatch.delattr(torch.serialization, "safe_globals")
    path = tmp_path / "numpy.pth"
    torch.save(torch.load(checkpoint, weights_only=True) | {"loss": np.float64(0.1)}, path)
    with pytest.raises(EngineError, match=r"holds more than weights: numpy\S+\.scalar") as caught:
        wav2lip_model.load(path)
    assert 'torch.save(saved["state_dict"]' in caught.value.hint


def test_weights_as_arrays(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pth"
    torch.save({name: value.numpy() for name, value in weights(published("96")).items()}, path)
    assert wav2lip_model.load(path).family.side == 96


def test_names_of_an_older_numpy(checkpoint: Path, tmp_path: Path) -> None:
    """numpy 1 pickled numpy.core.multiarray.scalar where numpy 2 pickles numpy._core.multiarray.scalar."""
    written = tmp_path / "new.pth"
    torch.save({"state_dict": weights(published("96")), "loss": np.float32(0.5)}, written)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(written) as archive, zipfile.ZipFile(old, "w", zipfile.ZIP_STORED) as out:
        for item in archive.infolist():
            data = archive.read(item)
            out.writestr(item, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert wav2lip_model.load(old).family.side == 96


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_model(checkpoint: Path, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(wav2lip_model.load(checkpoint), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(EngineError, match=r"a whole pickled model \(inference\.lipsync\.wav2lip_model\.") as caught:
        wav2lip_model.load(path)
    assert "torch.save(saved.state_dict()" in caught.value.hint


@pytest.mark.parametrize("protocol", [2, 4])
def test_more_than_weights(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # of workers that run code of others
    path = tmp_path / "more.pth"
    torch.save(
        {"state_dict": weights(published("96")), "arguments": argparse.Namespace(lr=1), "from": Path("x")},
        path,
        pickle_protocol=protocol,
    )
    with pytest.raises(EngineError, match=r"holds more than weights: argparse\.Namespace, pathlib\.\S+") as caught:
        wav2lip_model.load(path)
    saved: dict[str, Any] = {}
    snippet = (
        caught.value.hint.split(": ", 1)[1].rsplit("; ", 1)[0].replace("weights.pth", str(tmp_path / "weights.pth"))
    )
    exec(snippet, {"torch": torch}, saved)  # what the hint says to do does it
    assert wav2lip_model.load(tmp_path / "weights.pth").family.side == 96


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds list, no table of weights"),
        ({"generator": {"a": 1}, "epoch": 3}, "but generator, epoch"),
        ({}, "holds no table of weights, neither at its top nor as state_dict, but nothing"),
    ],
)
def test_no_table_of_weights(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(EngineError, match=says):
        wav2lip_model.load(path)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("face_encoder_blocks.0.0.conv_block.0.weight", (6, 6, 7, 7), "Wav2Lip_512_normal, a class that"),
        ("module.sam.sa.conv1.weight", (1, 2, 7, 7), "Wav2Lip_SAM or Wav2Lip_384"),
        ("binary_pred.0.weight", (1, 512, 1, 1), "a discriminator"),
        ("face_encoder.0.conv_block.0.weight", (32, 15, 7, 7), "a SyncNet"),
    ],
)
def test_what_circulates_beside_the_generators(tmp_path: Path, name: str, shape: tuple[int, ...], says: str) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {name: torch.zeros(shape), "other": torch.zeros(1)}}, path)
    with pytest.raises(EngineError, match=says) as caught:
        wav2lip_model.load(path)
    assert "96×96 or the 288×288" in caught.value.hint


def test_sound_as_the_generator_heard_it_in_training(speech: dict[str, Array]) -> None:
    """Against librosa, which the authors used."""
    librosa = pytest.importorskip("librosa")
    samples = speech["address"][:48_000]
    sharp = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    spectrum = np.abs(librosa.stft(sharp, n_fft=800, hop_length=200, win_length=800, pad_mode="reflect"))
    bands = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ spectrum
    decibels = 20 * np.log10(np.maximum(1e-5, bands)) - 20
    wanted = np.clip(8 * (decibels + 100) / 100 - 4, -4, 4).T
    ours = wav2lip.mel_spectrogram(samples)
    assert ours.shape == wanted.shape == (241, 80)
    assert np.abs(ours - wanted).max() < 1e-3


def test_windows_of_sound() -> None:
    mel = np.arange(100, dtype=np.float32)[:, None].repeat(80, axis=1)
    assert wav2lip.window(mel, 0.0)[:, 0].tolist() == list(range(16))
    assert wav2lip.window(mel, 3 / 25)[0, 0] == 9  # int(3 × 80 / 25)
    assert wav2lip.window(mel, 1.2)[0, 0] == 84  # the last whole window
    assert wav2lip.window(mel[:5], 0.0).shape == (16, 80)
    assert wav2lip.mel_spectrogram(np.zeros(100, np.float32)).shape[1] == 80


def test_boxes_of_one_shot_know_nothing_of_the_next() -> None:
    points = np.zeros((9, mesh.POINTS, 3), np.float32)
    points[:, mesh.OVAL, 0] = np.linspace(100, 200, 36)
    points[:, mesh.OVAL, 1] = np.linspace(50, 150, 36)
    points[5:, :, 0] += 80
    points[7] = np.nan
    found = np.isfinite(points[:, 0, 0])
    boxes = wav2lip.boxes(points, found, np.repeat(np.int32([0, 1]), [5, 4]))
    assert boxes[:5, 0].tolist() == [100] * 5
    assert boxes[[5, 6, 8], 0].tolist() == [180] * 3
    assert np.isnan(boxes[7]).all()


def test_paints_the_lower_face_only(checkpoint: Path) -> None:
    """Everything outside the face's lower half is the template's, bit by bit, and frames without a face too."""
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points = np.zeros((3, mesh.POINTS, 3), np.float32)
    points[:] = (160, 120, 0)
    points[:, mesh.OVAL, 0] = 160 + 60 * np.sin(turn)
    points[:, mesh.OVAL, 1] = 120 - 80 * np.cos(turn)
    found = np.array([True, False, True])
    points[1] = np.nan
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 240, 320, 3), dtype=np.uint8))
    model = wav2lip.Wav2Lip(checkpoint, "cpu", batch=2)
    mel = wav2lip.mel_spectrogram(np.random.default_rng(1).normal(0, 0.1, media.SAMPLE_RATE).astype(np.float32))
    shot = np.zeros(3, np.int32)
    painter = wav2lip.Wav2LipPainter(model, points, found, shot=shot, order=loop(3, 3), mel=mel, fps=25.0)
    before = [frame.copy() for frame in frames]
    result = painter.paint(frames, range(3))
    assert all(np.array_equal(frame, copy) for frame, copy in zip(frames, before, strict=True))
    assert result[1] is frames[1]
    changed = np.flatnonzero((result[0] != frames[0]).any(axis=(1, 2)))
    assert 110 < changed.min() < changed.max() < 208
    changed = np.flatnonzero((result[0] != frames[0]).any(axis=(0, 2)))
    assert 100 <= changed.min() < changed.max() <= 220
    assert np.abs(result[0][150, 160].astype(int) - frames[0][150, 160]).max() > 3
