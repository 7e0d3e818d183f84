"""The musetalk backend: real networks, a few channels wide, in the published layout; a painted lady as the template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from inference import extras

torch = pytest.importorskip("torch")
if any(find_spec(module) is None for module in extras.PACKAGES["musetalk"]):  # importing them takes seconds
    pytest.skip("needs the optional packages: pip install 'filepool[musetalk]'", allow_module_level=True)

import musetalk_models as models  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from inference import cuda, manifest, media, weights  # noqa: E402
from inference.audio import Array  # noqa: E402
from inference.base import Cancelled, EngineError, InputError, LocalContext, ResourceError  # noqa: E402
from inference.face import analysis as face_analysis  # noqa: E402
from inference.face import mesh  # noqa: E402
from inference.kept import Shelf  # noqa: E402
from inference.lipsync import LipSync, Options  # noqa: E402
from inference.lipsync.frames import loop  # noqa: E402
from inference.lipsync.musetalk import avatar, blend, files, hearing, layout, networks, parsing  # noqa: E402
from inference.lipsync.musetalk.avatar import Avatar  # noqa: E402
from inference.lipsync.musetalk.backend import MuseTalkBackend, MuseTalkPainter  # noqa: E402
from inference.lipsync.musetalk.blend import Box  # noqa: E402
from inference.video import Encoding, VideoWriter, probe_video, read_frames  # noqa: E402

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of what it brings along
]

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "examples" / "portrait" / "mona_lisa.jpg"
SPEECH = ROOT / "examples" / "speech" / "address.flac"
SIZE, FRAMES = (320, 400), 8  # of the template


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make(tmp_path_factory.mktemp("musetalk") / "models")


@pytest.fixture(scope="session")
def backend(folder: Path) -> MuseTalkBackend:
    return MuseTalkBackend(Options(backend="musetalk", musetalk=folder), "cpu")


@pytest.fixture(scope="session")
def loaded(backend: MuseTalkBackend) -> networks.Networks:
    return backend._networks


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same files, to be spoiled."""
    return Path(shutil.copytree(folder, tmp_path / "models"))


def refused(place: Path, complaint: str) -> EngineError:
    with pytest.raises(EngineError, match=complaint) as caught:
        MuseTalkBackend(Options(backend="musetalk", musetalk=place), "cpu")
    assert caught.value.hint
    return caught.value


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "musetalkV15/unet.pth",
        "musetalkV15/musetalk.json",
        "sd-vae/config.json",
        "sd-vae/diffusion_pytorch_model.bin",
        "whisper/config.json",
        "whisper/pytorch_model.bin",
        "whisper/preprocessor_config.json",
        "face-parse-bisent/79999_iter.pth",
    ],
)
def test_each_file_that_is_missing_or_wrong_is_named(name: str, copy: Path) -> None:
    file = copy / name
    file.write_bytes(b"not found\n")
    assert str(file) in str(refused(copy, "cannot be read as JSON" if file.suffix == ".json" else "no file of weights"))
    file.unlink()
    assert str(file) in str(refused(copy, "files missing"))


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    error = refused(tmp_path, "files missing")
    assert all(str(tmp_path / names[-1]) in str(error) for names in layout.NETWORK_FILES.values())
    refused(tmp_path / "none", "is no folder")


def test_without_the_option_the_installed_files_are_used(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the manifest; these here are of another size, so the first of them is refused."""
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(copy.parent))
    with pytest.raises(EngineError, match=r"needs its files: weights missing: .*musetalk/musetalkV15") as caught:
        layout.find(None)
    assert "install musetalk" in caught.value.hint
    assert '"musetalk":' in caught.value.hint
    monkeypatch.setattr(weights, "find_model", lambda name: copy if name == "musetalk" else None)
    assert layout.find(None) == layout.find(copy)


def test_what_is_installed_is_what_is_read() -> None:
    """The manifest brings each file, safetensors where there are some."""
    there = {weight.name.split("/", 1)[1] for weight in manifest.model("musetalk").files}
    assert set(layout.CONFIGURATIONS.values()) <= there
    assert all(there & set(names) for names in layout.NETWORK_FILES.values())
    assert len(there) == 8


def test_other_folders_that_people_name(copy: Path, tmp_path: Path) -> None:
    assert str(copy) in refused(copy / "musetalkV15", "holds the UNet alone").hint
    assert str(copy) in refused(copy.parent, "in its folder models").hint
    old = tmp_path / "old" / "musetalk"
    old.mkdir(parents=True)
    (old / "pytorch_model.bin").touch()
    (old / "musetalk.json").touch()
    for place in (old, old.parent):
        error = refused(place, r"pytorch_model.bin is MuseTalk 1.0; this backend runs 1.5")
        assert "musetalkV15" in error.hint


def test_what_download_tools_leave_instead(copy: Path) -> None:
    file = copy / "face-parse-bisent" / "79999_iter.pth"
    file.write_text("<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>")
    refused(copy, "79999_iter.pth is a web page")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 53289463\n")
    assert "git lfs pull" in refused(copy, "79999_iter.pth is a pointer of git-lfs").hint


def test_doctor_looks_without_loading(copy: Path) -> None:
    def findings(**options: str) -> dict[str, Any]:
        return {each.check: each for each in LipSync.diagnose("cpu", {"backend": "musetalk", **options})}

    good = findings(musetalk=str(copy))
    assert good["musetalk packages"].ok
    assert good["musetalk files"].message == f"8 files in {copy}"
    (copy / "whisper" / "config.json").unlink()
    bad = findings(musetalk=str(copy))["musetalk files"]
    assert (bad.ok, bad.message) == (False, f"musetalk: files missing: {copy / 'whisper' / 'config.json'}")
    assert "docs/systems/musetalk.md" in bad.hint
    assert '"musetalk":' in findings()["musetalk files"].hint


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", [names[-1] for names in layout.NETWORK_FILES.values()])
def test_no_code_in_a_file_runs(name: str, copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state_dict": Payload(trace)}, copy / name)
    error = refused(copy, "holds more than weights: .*pathlib.Path")
    assert str(copy / name) in str(error)
    assert "weights_only" not in str(error)
    assert not trace.exists()


@pytest.mark.parametrize("name", [names[-1] for names in layout.NETWORK_FILES.values()])
def test_weights_of_something_else(name: str, copy: Path) -> None:
    state = torch.load(copy / name, weights_only=True)
    key = next(key for key, value in state.items() if value.ndim == 4 or "encoder.conv1.weight" in key)
    shape = tuple(state[key].shape)
    torch.save({**state, key: torch.zeros(3)}, copy / name)
    told = key.removeprefix("model.encoder.")
    assert f"{copy / name} does not fit its network: {told} is (3,) instead of {shape}" in str(refused(copy, "fit"))
    torch.save({other: value for other, value in state.items() if other != key}, copy / name)
    refused(copy, f"{told} is missing")
    torch.save({"layer.weight": torch.zeros(3)}, copy / name)
    refused(copy, r"(is missing|is unknown).*\(and \d+ more\)")
    torch.save([1, 2], copy / name)
    refused(copy, "holds no table of weights")


def test_configurations_of_something_else(copy: Path) -> None:
    def written(name: str, content: object) -> Path:
        (copy / name).write_text(json.dumps(content))
        return copy

    refused(written("musetalkV15/musetalk.json", {**models.UNET, "in_channels": 4}), "4 channels in and 4 out")
    refused(written("musetalkV15/musetalk.json", {**models.UNET, "down_block_types": ["x"]}), "no network that can be")
    refused(written("musetalkV15/musetalk.json", [1]), "holds no JSON object")
    written("musetalkV15/musetalk.json", models.UNET)
    refused(written("sd-vae/config.json", {**models.VAE, "latent_channels": 16}), "latents of 16 channels instead of 4")
    written("sd-vae/config.json", models.VAE)
    wide = {**models.UNET, "cross_attention_dim": 32}
    from diffusers import UNet2DConditionModel

    torch.save(UNet2DConditionModel.from_config(wide).state_dict(), copy / "musetalkV15" / "unet.pth")
    error = refused(written("musetalkV15/musetalk.json", wide), "gives 16 numbers per row, but the UNet hears 32")
    assert "whisper-tiny" in error.hint


def test_safetensors_come_first_and_every_way_to_save_gives_the_same(
    copy: Path, loaded: networks.Networks, faces: np.ndarray
) -> None:
    """New names of the autoencoder's attention, ``module.`` in front, a bare encoder: the published files have none."""
    for names in layout.NETWORK_FILES.values():
        state = torch.load(copy / names[-1], weights_only=True)
        changed = {networks._renamed(name).removeprefix("model."): value.contiguous() for name, value in state.items()}
        save_file(changed, copy / names[0])
        (copy / names[-1]).write_bytes(b"not found\n")
    safe = MuseTalkBackend(Options(backend="musetalk", musetalk=copy), "cpu")
    assert {path.suffix for path in safe.files()} == {".safetensors", ".json"}
    assert np.array_equal(safe._networks.encode(faces), loaded.encode(faces))
    (copy / "sd-vae" / "diffusion_pytorch_model.safetensors").rename(copy / "kept")
    (copy / "sd-vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not found\n")
    refused(copy, r"diffusion_pytorch_model.safetensors is no file of weights")
    (copy / "kept").rename(copy / "sd-vae" / "diffusion_pytorch_model.safetensors")
    for names in layout.NETWORK_FILES.values():
        state = files.weights(copy / names[0])
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, copy / names[-1])
        (copy / names[0]).unlink()
    plain = MuseTalkBackend(Options(backend="musetalk", musetalk=copy), "cpu")
    assert np.array_equal(plain._networks.encode(faces), loaded.encode(faces))


def test_published_names_and_shapes_of_the_parsing_network() -> None:
    wanted = models.parsing_shapes()
    assert len(wanted) == 191
    used = {name: shape for name, shape in wanted.items() if not name.startswith(parsing.TRAINING_HEADS)}
    with torch.device("meta"):
        ours = parsing.BiSeNet().state_dict()
    assert {name: tuple(value.shape) for name, value in ours.items()} == used


def test_counters_of_old_files_are_not_needed(copy: Path) -> None:
    file = copy / "face-parse-bisent" / "79999_iter.pth"
    state = {name: v for name, v in models.parsing_weights().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, file)
    network = parsing.load(file, "cpu")
    assert not any(value.is_meta for value in network.state_dict().values())


# --- sound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [15.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0])
def test_every_frame_hears_the_same_stretch_around_its_moment(fps: float, loaded: networks.Networks) -> None:
    """10 rows of 20 ms from 80 ms before the frame, at any rate; zeros before the beginning and after the end."""
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * 16_000 + 5).astype(np.float32)
    rows = loaded.ears.features(samples)
    assert rows.shape == (1500, models.LAYERS_HEARD, models.WIDTH)
    padded = np.concatenate((np.zeros_like(rows[:4]), rows[:150], np.zeros_like(rows[:20])))
    heard = hearing.Hearing(loaded.ears, samples)
    for frame in range(int(3 * fps)):
        start = int(np.floor(frame * 50 / fps + 1e-6))
        window = heard.window(frame / fps)
        assert np.array_equal(window, padded[start : start + 10].reshape(-1, models.WIDTH))
    assert not heard.window(3.2).any()


def test_states_of_the_encoder_are_those_of_the_whole_model(folder: Path, loaded: networks.Networks) -> None:
    """Against the package's own model: input of the first layer, output of each, the last one normalised."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    model = WhisperModel(WhisperConfig.from_json_file(folder / "whisper" / "config.json")).eval()
    state = torch.load(folder / "whisper" / "pytorch_model.bin", weights_only=True)
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    samples = media.read_audio(SPEECH)[:40_000]
    mel = WhisperFeatureExtractor.from_pretrained(folder / "whisper")(
        samples, sampling_rate=16_000, return_tensors="pt"
    )
    seen: list[torch.Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        last = model.encoder(mel.input_features).last_hidden_state
    wanted = torch.stack((*seen, last), dim=2)[0].numpy()
    assert np.abs(loaded.ears.features(samples) - wanted).max() < 1e-5


def test_long_recordings_are_heard_in_pieces(loaded: networks.Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window over the edge of two pieces has rows of both; only so many pieces are held."""
    samples = np.random.default_rng(1).normal(0, 0.1, 61 * 16_000).astype(np.float32)
    pieces = [loaded.ears.features(samples[start : start + 480_000]) for start in (0, 480_000, 960_000)]
    heard = hearing.Hearing(loaded.ears, samples)
    rows = np.concatenate(pieces)
    for at in (29.9, 29.96, 30.0, 30.06, 59.98):
        start = round(at * 50) - 4
        assert np.array_equal(heard.window(at), rows[start : start + 10].reshape(-1, models.WIDTH))
    monkeypatch.setattr(hearing, "KEPT", 1)
    few = hearing.Hearing(loaded.ears, samples)
    assert np.array_equal(few.window(60.0), heard.window(60.0))
    assert list(few._pieces) == [2]
    assert np.array_equal(few.window(29.96), heard.window(29.96))
    assert list(few._pieces) == [1]


# --- masks and blending -----------------------------------------------------------------------------------------------


def test_what_is_painted() -> None:
    labels = np.zeros((512, 512), np.uint8)
    labels[100:400, 150:350] = 1
    labels[200:250, 240:270] = 10
    labels[300:330, 220:290] = 12
    labels[400:500, 200:300] = 14
    raw = parsing.Painted("raw", 90, 90).mask(labels)
    assert np.array_equal(raw > 0, np.isin(labels, (1, 12)))
    assert np.array_equal(parsing.Painted("neck", 90, 90).mask(labels) > 0, np.isin(labels, (1, 12, 14)))
    jaw = parsing.Painted("jaw", 90, 90).mask(labels)
    assert set(np.unique(jaw)) == {0, 255}
    assert not jaw[labels == 10].any()
    assert jaw[labels == 12].all()
    assert jaw[399:405, 250].all()  # 6 below the skin
    assert not jaw[407, 250]
    assert jaw[84:100, 250].all()  # 16 above
    assert not jaw[83, 250]


def test_skin_grows_by_a_cone_and_cheeks_shrink() -> None:
    labels = np.zeros((512, 512), np.uint8)
    labels[300, 256] = 1
    shown = np.argwhere(parsing.Painted("jaw", 90, 90).mask(labels))
    assert (shown[:, 0].min(), shown[:, 0].max()) == (284, 306)
    for row, half in {306: 0, 300: 6, 296: 10, 284: 10}.items():
        assert np.abs(shown[shown[:, 0] == row, 1] - 256).max() == half
    labels[:] = 0
    labels[200:300, 100:412] = 1
    plain = parsing.Painted("jaw", 256, 256).mask(labels)
    cheeks = parsing.Painted("jaw", 90, 60).mask(labels)
    assert np.array_equal(plain[:, 167:316], cheeks[:, 167:316])  # what lies between them
    assert 20 < np.flatnonzero(cheeks[250]).min() - np.flatnonzero(plain[250]).min() < 40
    assert 20 < np.flatnonzero(plain[250]).max() - np.flatnonzero(cheeks[250]).max() < 40


def test_only_the_lower_half_of_the_box_is_painted_with_a_soft_edge() -> None:
    everything = np.full((512, 512), 255, np.uint8)
    face = Box(40, 30, 140, 150)
    assert blend.surroundings(face) == Box(0, 0, 180, 180)
    mask = blend.soft_mask(everything, face)
    assert mask.shape == (120, 100)
    middle = 60
    assert not mask[: middle - 5].any()
    assert 100 < mask[middle, 50] < 160
    assert (mask[middle + 6 : 110, 10:90] == 255).all()
    assert 0 < mask[-1, 50] < 160  # it ends within the box
    assert not blend.soft_mask(np.zeros_like(everything), face).any()


def test_a_face_is_laid_over_the_frame_as_pillow_would() -> None:
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    face = Box(40, 30, 140, 150)
    painted = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    mask = random.integers(0, 256, (120, 100), dtype=np.uint8)
    before = frame.copy()
    result = blend.laid(frame, painted, face, mask)
    assert np.array_equal(frame, before)
    wanted = Image.fromarray(frame)
    wanted.paste(Image.fromarray(cv2.resize(painted, face.size)), face[:2], Image.fromarray(mask))
    assert np.array_equal(result, np.asarray(wanted))


def test_surroundings_over_the_edge_are_black() -> None:
    frame = np.full((100, 100, 3), 200, np.uint8)
    picture = blend.parsed_picture(frame, Box(0, 0, 80, 80), 512)
    assert picture.shape == (512, 512, 3)
    assert not picture[:80, :80].any()
    assert (picture[100:, 100:] == 200).all()


# --- the template -----------------------------------------------------------------------------------------------------


def head(frames: int) -> tuple[mesh.Points, np.ndarray]:
    """An oval of 120 × 160 round (160, 200) whose nose's bridge lies 20 above its middle."""
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points = np.zeros((frames, mesh.POINTS, 3), np.float32)
    points[:] = (160, 200, 0)
    points[:, mesh.OVAL, 0] = 160 + 60 * np.sin(turn)
    points[:, mesh.OVAL, 1] = 200 - 80 * np.cos(turn)
    points[:, avatar.HALF_FACE, 1] = 180
    return points, np.ones(frames, bool)


def test_boxes_from_landmarks() -> None:
    points, found = head(9)
    shot = np.zeros(9, np.int32)
    assert avatar.boxes(points, found, shot, (320, 400), 0)[4] == Box(100, 80, 220, 280)
    assert avatar.boxes(points, found, shot, (320, 400), 10)[4] == Box(100, 80, 220, 290)
    assert avatar.boxes(points, found, shot, (200, 285), 10)[4] == Box(100, 80, 200, 285)
    points[:, mesh.FOREHEAD, :2] = 0  # what lies above the ears has no say
    points[4, :, 0] += 10
    assert avatar.boxes(points, found, shot, (320, 400), 0)[4] == Box(102, 80, 222, 280)  # the mean of five
    found[[3, 5]] = False
    points[[3, 5]] = np.nan
    boxes = avatar.boxes(points, found, shot, (320, 400), 0)
    assert boxes[3] is None
    assert boxes[4] == Box(103, 80, 223, 280)
    assert avatar.boxes(points - (0, 390, 0), found, shot, (320, 400), 0)[0] is None  # nearly outside of the picture


def test_boxes_of_one_shot_know_nothing_of_the_next() -> None:
    points, found = head(9)
    points[5:, :, 0] += 50  # somebody else, beside where the first one was
    shot = np.repeat(np.int32([0, 1]), [5, 4])
    boxes = avatar.boxes(points, found, shot, (320, 400), 0)
    assert boxes == [Box(100, 80, 220, 280)] * 5 + [Box(150, 80, 270, 280)] * 4


@pytest.fixture(scope="session")
def faces() -> np.ndarray:
    picture = cv2.resize(cv2.imread(str(PORTRAIT)), (512, 640), interpolation=cv2.INTER_AREA)
    crop = cv2.resize(picture[100:356, 130:386], (256, 256))
    return np.asarray(np.stack([crop, crop[:, ::-1], np.roll(crop, 20, axis=0)]), np.uint8)


def test_latents_are_of_the_hidden_and_of_the_whole_face(loaded: networks.Networks, faces: np.ndarray) -> None:
    latents = loaded.encode(faces)
    assert (latents.shape, latents.dtype) == ((3, 8, 32, 32), np.float32)
    other = faces.copy()
    other[:, 128:] = 0
    hidden = loaded.encode(other)
    assert np.abs(latents[:, :4] - hidden[:, :4]).max() < 1e-5  # the lower half is not seen
    assert np.abs(latents[:, 4:] - hidden[:, 4:]).max() > 1e-2
    with torch.inference_mode():
        whole = torch.from_numpy(faces[..., ::-1] / 127.5 - 1).float().permute(0, 3, 1, 2)
        wanted = loaded._vae.encode(whole).latent_dist.mean * 0.18215
    assert np.abs(latents[:, 4:] - wanted.numpy()).max() < 1e-5
    assert np.array_equal(loaded.encode(faces), latents)


def test_faces_are_what_the_networks_say(loaded: networks.Networks, faces: np.ndarray) -> None:
    latents = loaded.encode(faces)
    sounds = np.random.default_rng(2).normal(size=(3, loaded.ears.rows, loaded.ears.width)).astype(np.float32)
    painted = loaded.paint(latents, sounds, lambda: None)
    rows, width = sounds.shape[1:]
    angles = np.arange(rows)[:, None] / 10_000 ** (np.arange(width) // 2 * 2 / width)
    places = np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)
    with torch.inference_mode():
        heard = torch.from_numpy(sounds + places)
        predicted = loaded._unet(torch.from_numpy(latents), 0, encoder_hidden_states=heard).sample
        pictures = loaded._vae.decode(predicted / 0.18215).sample.permute(0, 2, 3, 1).numpy()[..., ::-1]
    wanted = np.clip((pictures + 1) * 127.5, 0, 255)
    assert painted.dtype == np.uint8
    assert np.abs(painted - wanted).max() <= 0.51
    assert painted.std() > 1
    other = loaded.paint(latents, sounds[::-1].copy(), lambda: None)
    assert not np.array_equal(painted[0], other[0])


def test_half_precision_goes_all_the_way(
    folder: Path, loaded: networks.Networks, faces: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but on the processor: what is kept is half as large, and the faces are the same to a few levels."""
    monkeypatch.setattr(cuda, "half", lambda device: torch.float16)
    halves = networks.Networks(layout.find(folder), "cpu")
    assert {p.dtype for p in (*halves._unet.parameters(), *halves._vae.parameters())} == {torch.float16}
    latents = halves.encode(faces)
    assert latents.dtype == halves.latent_type == np.float16
    samples = media.read_audio(SPEECH)[:32_000]
    sounds = [np.stack([hearing.Hearing(each.ears, samples).window(0.5)] * 3) for each in (halves, loaded)]
    assert np.abs(sounds[0] - sounds[1]).max() < 0.05
    painted = halves.paint(latents, sounds[0], lambda: None)
    whole = loaded.paint(loaded.encode(faces), sounds[1], lambda: None)
    assert np.abs(painted.astype(int) - whole).mean() < 2
    halves.warmup()


@pytest.fixture(scope="module")
def template() -> tuple[list[np.ndarray], list[Box | None]]:
    frames = list(np.random.default_rng(0).integers(0, 256, (6, 400, 320, 3), dtype=np.uint8))
    points, found = head(6)
    found[4] = False
    return frames, avatar.boxes(points, found, np.zeros(6, np.int32), SIZE, 10)


@pytest.fixture(scope="module")
def known(backend: MuseTalkBackend, template: tuple[list[np.ndarray], list[Box | None]]) -> Avatar:
    frames, boxes = template
    ticks: list[int] = []
    made = avatar.prepare(backend._networks, backend._painted, iter(frames), boxes, ticks.append)
    assert ticks == [0, 4, 6]
    return made


def test_an_avatar_is_kept_as_it_was_made(
    backend: MuseTalkBackend, known: Avatar, template: tuple[list[np.ndarray], list[Box | None]], tmp_path: Path
) -> None:
    frames, boxes = template
    assert known.frames == 6
    assert known.masks[4] == b""
    assert not known.latents[4].any()
    assert known.mask(0).all()  # the network takes everything for skin
    rest = avatar.prepare(backend._networks, backend._painted, iter(frames[4:]), boxes[4:], lambda done: None)
    joined = Avatar(known.latents[:4], known.masks[:4]).joined(rest)
    assert np.array_equal(joined.latents, known.latents)
    assert joined.masks == known.masks
    known.save(tmp_path / "x.npz")
    again = Avatar.load(tmp_path / "x.npz")
    assert np.array_equal(again.latents, known.latents)
    assert again.masks == known.masks
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_frames_without_a_face_stay_as_they_are(
    backend: MuseTalkBackend, known: Avatar, template: tuple[list[np.ndarray], list[Box | None]]
) -> None:
    frames, boxes = template
    info = SimpleNamespace(width=SIZE[0], height=SIZE[1], fps=25.0)
    work: Any = SimpleNamespace(info=info, order=loop(6, 6), stop=lambda: None)
    heard = hearing.Hearing(backend._networks.ears, media.read_audio(SPEECH)[:16_000])
    painter = MuseTalkPainter(backend._networks, work, heard, boxes, known)
    assert painter.batch == networks.BATCH_CPU
    result = painter.paint(frames[3:6], range(3, 6))
    assert result[1] is frames[4]
    rows, columns = np.nonzero((result[0] != frames[3]).any(axis=2))
    box = boxes[3]
    assert box is not None
    middle = (box.top + box.bottom) // 2
    assert middle - 10 < rows.min() <= middle + 2
    assert box.bottom - 3 <= rows.max() < box.bottom
    assert box.left <= columns.min() < box.left + 3
    assert box.right - 3 <= columns.max() < box.right


# --- memory and cancelling --------------------------------------------------------------------------------------------


def test_a_gpu_without_room(loaded: networks.Networks, faces: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    sounds = np.zeros((3, loaded.ears.rows, loaded.ears.width), np.float32)
    latents = loaded.encode(faces)
    monkeypatch.setattr(loaded, "device", "cuda:0")
    monkeypatch.setattr(cuda, "free_and_total", lambda device: (120 << 20, 8000 << 20))
    monkeypatch.setattr(loaded, "batch", 8)
    monkeypatch.setattr(torch, "from_numpy", full)
    with pytest.raises(
        ResourceError, match=r"cuda:0 ran out of memory on 1 face.*: 120 of 8000 MiB are free"
    ) as caught:
        loaded.paint(latents, sounds, lambda: None)
    assert caught.value.hint
    assert loaded.batch == 1
    with pytest.raises(ResourceError, match="latents of 3 frames"):
        loaded.encode(faces)


def test_where_memory_is_short_fewer_frames_are_painted_at_a_time(
    loaded: networks.Networks, faces: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = np.random.default_rng(2).normal(size=(3, loaded.ears.rows, loaded.ears.width)).astype(np.float32)
    latents = loaded.encode(faces)
    whole = loaded.paint(latents, sounds, lambda: None)
    sizes, forward = [], loaded._unet.forward

    def small(seen: Any, *given: Any, **named: Any) -> Any:
        sizes.append(len(seen))
        if len(seen) > 1:
            torch.empty(1 << 60)  # the processor's own allocator refuses 4 EB
        return forward(seen, *given, **named)

    monkeypatch.setattr(loaded._unet, "forward", small)
    monkeypatch.setattr(loaded, "batch", 8)
    parts = loaded.paint(latents, sounds, lambda: None)
    assert sizes == [3, 1, 1, 1]
    assert loaded.batch == 1
    assert np.abs(parts.astype(int) - whole).max() <= 1

    def other(*_: object, **__: object) -> None:
        raise RuntimeError("something other")

    monkeypatch.setattr(loaded._unet, "forward", other)
    with pytest.raises(RuntimeError, match="something other"):
        loaded.paint(latents, sounds, lambda: None)


def test_frames_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert networks.affordable("cpu") == networks.BATCH_CPU
    assert networks.affordable("cuda:0") == networks.BATCH_GPU  # a device that does not tell
    for free, frames in ((0, 1), (3 << 30, 6), (20 << 30, 32)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 24 << 30))
        assert networks.affordable("cuda:0") == frames
    assert networks.Networks(layout.find(folder), "cpu", 5).batch == 5


def test_a_segment_holds_no_more_frames_than_fit(backend: MuseTalkBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend._networks, "batch", 32)
    for size, frames in (((1280, 720), 32), ((3840, 2160), 6), ((20_000, 20_000), 1)):
        info = SimpleNamespace(width=size[0], height=size[1], fps=25.0)
        work: Any = SimpleNamespace(info=info)
        painter = MuseTalkPainter(backend._networks, work, None, [], None)  # type: ignore[arg-type]
        assert painter.batch == frames


@pytest.mark.gpu
def test_real_faces_as_on_the_processor(folder: Path, loaded: networks.Networks, faces: np.ndarray) -> None:
    there = networks.Networks(layout.find(folder), "cuda:0")
    there.warmup()
    samples = media.read_audio(SPEECH)[:32_000]
    made = []
    for each in (loaded, there):
        sounds = np.stack([hearing.Hearing(each.ears, samples).window(0.5)] * 3)
        made.append(each.paint(each.encode(faces), sounds, lambda: None).astype(int))
    assert np.abs(made[0] - made[1]).mean() < 2


def test_cancelled_between_the_networks(loaded: networks.Networks, faces: np.ndarray) -> None:
    sounds = np.zeros((3, loaded.ears.rows, loaded.ears.width), np.float32)
    latents = loaded.encode(faces)
    for allowed in (0, 1):
        left = iter(range(allowed))

        def check(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Cancelled

        with pytest.raises(Cancelled):
            loaded.paint(latents, sounds, check)
    assert loaded.paint(latents, sounds, lambda: None).shape == (3, 256, 256, 3)  # nothing stays locked


# --- whole jobs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A swaying portrait: half a second at 25 fps."""
    path = tmp_path_factory.mktemp("template") / "lady.mp4"
    picture = cv2.resize(cv2.imread(str(PORTRAIT)), SIZE, interpolation=cv2.INTER_AREA)
    with VideoWriter(path, Encoding(*SIZE, 25, crf=12, preset="ultrafast")) as writer:
        for k in range(FRAMES):
            turn = cv2.getRotationMatrix2D((160, 200), 3 * np.sin(k / 3), 1)
            writer.write(np.asarray(cv2.warpAffine(picture, turn, SIZE, borderMode=1), np.uint8))
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Speech of so many frames."""
    import wave

    folder, made = tmp_path_factory.mktemp("words"), {}
    samples: Array = media.read_audio(SPEECH)[8_000:]
    for frames in (3, 12):
        made[frames] = folder / f"{frames}.wav"
        with wave.open(str(made[frames]), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16_000)
            out.writeframes((samples[: frames * 640] * 32767).astype("<i2").tobytes())
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LipSync]:
    made = LipSync()
    try:
        made.load("cpu", {"backend": "musetalk", "musetalk": str(folder), "threads": 2})
    except weights.WeightError as error:
        pytest.skip(f"{error} ({error.hint})")
    made.warmup()
    yield made
    made.close()


def run(engine: LipSync, params: dict[str, object], cache: Path) -> tuple[bytes, dict[str, Any]]:
    with LocalContext(cache=cache) as context:
        result = engine.run(engine.check(params), context)
    return Path(str(result["output"])).read_bytes(), result


@pytest.mark.model
def test_from_end_to_end(engine: LipSync, lady: Path, words: dict[int, Path], tmp_path: Path) -> None:
    """With made-up weights the mouth is noise, but in the right place; the second job looks at nothing again."""
    cache = tmp_path / "cache"
    params: dict[str, object] = {"audio": words[12], "video": lady, "output": tmp_path / "x.mp4", "crf": 0}
    result = run(engine, params, cache)[1]
    assert (result["backend"], result["frames"]) == ("musetalk", 12)
    (kept,) = (cache / "avatars").glob("*.npz")
    assert Avatar.load(kept).frames == FRAMES
    with LocalContext(cache=cache, folder=tmp_path) as context:
        engine.run(engine.check({**params, "output": tmp_path / "watched.mp4", "stream": True}), context)
        (stream,) = context.streams
    assert (tmp_path / "watched.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes()
    assert stream.whole
    assert probe_video(stream.path).frames == 12
    data = stream.path.read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: data.rindex(b"moof") - 4])  # as it was seen a moment before its end
    with read_frames(probe_video(tmp_path / "half.mp4")) as beginning:
        assert 6 <= len(list(beginning)) <= 12
    seen = face_analysis.cached(Shelf(cache / "analyses"), lady, engine._model)
    boxes = avatar.boxes(seen.points, seen.found, seen.shot, SIZE, 10)
    with read_frames(probe_video(tmp_path / "x.mp4")) as ours, read_frames(probe_video(lady)) as theirs:
        originals = list(theirs)
        for index, frame in zip(loop(12, FRAMES), ours, strict=True):
            rows, columns = (np.abs(frame.astype(int) - originals[index]).max(axis=2) > 18).nonzero()
            box = boxes[index]
            assert box is not None
            assert len(rows) > 500
            assert (box.top + box.bottom) // 2 - 10 < rows.min()
            assert rows.max() <= box.bottom + 2
            assert box.left - 2 <= columns.min() < columns.max() <= box.right + 2


@pytest.mark.model
def test_the_second_job_looks_at_nothing_again(
    engine: LipSync, lady: Path, words: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer one looks at what is new alone; the bytes do not tell what came before; a damaged file is made anew."""
    cache = tmp_path / "cache"
    looks: list[int] = []
    encode = networks.Networks.encode

    def counted(self: networks.Networks, faces: networks.Faces) -> Any:
        looks.append(len(faces))
        return encode(self, faces)

    monkeypatch.setattr(networks.Networks, "encode", counted)

    def job(frames: int, cache: Path, **more: object) -> bytes:
        return run(engine, {"audio": words[frames], "video": lady, "output": tmp_path / "x.mp4", **more}, cache)[0]

    short = job(3, cache)
    assert looks == [4]  # a whole group
    assert job(3, cache) == short
    assert looks == [4]
    long = job(12, cache)
    assert looks == [4, 4]
    assert job(12, tmp_path / "other") == long
    assert looks == [4] * 4
    assert job(3, tmp_path / "other") == short
    (kept,) = (cache / "avatars").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:2000])
    assert job(3, cache) == short
    assert looks == [4] * 5


@pytest.mark.model
def test_other_weights_and_options_have_avatars_of_their_own(
    copy: Path, backend: MuseTalkBackend, lady: Path, engine: LipSync, tmp_path: Path
) -> None:
    seen = face_analysis.cached(Shelf(tmp_path), lady, engine._model)
    work: Any = SimpleNamespace(analysis=seen)
    keys = {backend._key(work)}
    assert keys == {MuseTalkBackend(Options(musetalk=copy), "cpu")._key(work)}
    for options in ({"extra_margin": 11}, {"parsing_mode": "raw"}, {"left_cheek_width": 80}, {"right_cheek_width": 80}):
        keys.add(MuseTalkBackend(Options(musetalk=copy, **options), "cpu")._key(work))  # type: ignore[arg-type]
    torch.save(models.parsing_weights(12), copy / "face-parse-bisent" / "79999_iter.pth")
    keys.add(MuseTalkBackend(Options(musetalk=copy), "cpu")._key(work))
    assert len(keys) == 6


@pytest.mark.model
@pytest.mark.parametrize("when", ["looking at the mouth", "12 frames"])
def test_cancel_leaves_nothing(
    when: str, engine: LipSync, lady: Path, words: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, passes = "", []
    used: Any = engine._backends["musetalk"]
    forward = used._networks._unet.forward

    def counted(*given: Any, **named: Any) -> Any:
        passes.append(message)
        return forward(*given, **named)

    monkeypatch.setattr(used._networks._unet, "forward", counted)

    def listen(status: str, percent: float, now: str) -> None:
        nonlocal message
        message = now

    output = tmp_path / "out" / "said.mp4"
    output.parent.mkdir()
    with (
        pytest.raises(Cancelled),
        LocalContext(listen, cache=tmp_path / "cache", is_cancelled=lambda: message == when) as context,
    ):
        engine.run(engine.check({"audio": words[12], "video": lady, "output": output}), context)
    assert message == when
    assert not passes  # painters see it before they begin
    assert not list(output.parent.iterdir())
    assert not context.scratch.exists()
    run(engine, {"audio": words[3], "video": lady, "output": output}, tmp_path / "cache")  # nothing stays locked
    assert output.is_file()


@pytest.mark.model
def test_no_memory_ends_the_job_with_a_reason(
    engine: LipSync, lady: Path, words: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    used: Any = engine._backends["musetalk"]
    monkeypatch.setattr(used._networks._unet, "forward", full)
    monkeypatch.setattr(used._networks, "batch", 2)
    with pytest.raises(ResourceError, match="ran out of memory on 1 face"):
        run(engine, {"audio": words[3], "video": lady, "output": tmp_path / "x.mp4"}, tmp_path / "cache")
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.model
def test_a_job_may_ask_for_any_backend_that_is_set_up(engine: LipSync, folder: Path, lady: Path) -> None:
    assert list(engine._backends) == ["musetalk"]
    with pytest.raises(InputError, match="mesh is not set up here"):
        engine.check({"audio": SPEECH, "video": lady, "backend": "mesh"})
    both = LipSync()
    both.load("cpu", {"musetalk": str(folder)})
    assert both.check({"audio": SPEECH, "video": lady, "backend": "musetalk"}).backend == "musetalk"
    assert both.fingerprint() != engine.fingerprint()
    both.close()
