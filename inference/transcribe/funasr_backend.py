"""The funasr backend: the real ``funasr`` package, its own models, our parameters and result.

Recognition, punctuation and speakers are those of ``funasr.AutoModel``, loaded from folders (or, when
``allow_download`` is set, by name from its hub). FunASR wants a recording as one array, so unlike the default
backend this one holds the sound in memory: 230 MB an hour.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inference import cuda, media, weights
from inference.audio import SILENCE_DBFS, Array
from inference.base import Context, EngineError, ResourceError
from inference.transcribe import models
from inference.transcribe.funasr_result import Reader, language
from inference.transcribe.itn import Numbers
from inference.transcribe.outputs import join_texts
from inference.transcribe.params import Options, Params
from inference.transcribe.script import Script
from inference.transcribe.sound import Sound
from inference.transcribe.words import join, segment_record, speaker_name

SHARE_READ = 10.0  #: percent of the progress for reading the file
READER_VERSION = 2  #: raise it when the same result of a model may give another transcript; part of the fingerprint
MODELS = ("model", "vad_model", "punc_model", "spk_model")
PREFIX = "funasr-"
INSTALLABLE = models.installable(PREFIX)
#: Arguments of ``generate`` that have no effect as arguments of ``AutoModel`` (funasr 1.4)
GENERATE_ONLY = (
    "merge_vad",
    "postprocess_hotwords",
    "postprocess_hotword_file",
    "postprocess_hotword_threshold",
    "postprocess_hotword_fuzzy",
    "return_postprocess_hotword_matches",
)
OURS = ("input", "input_len", "progress_callback", "fs", "batch_size_s")  #: arguments that come from the job

# How classes of models want what a job asks for (the sources of funasr 1.4.16, and for the words of languages
# the README of Fun-ASR: https://github.com/FunAudioLLM/Fun-ASR). Others are given `hotword` and `language` as they are.
DEAF = (  #: classes without anything to put hotwords into
    *("Paraformer", "BiCifParaformer", "ParaformerStreaming", "Paraformer_v2_community", "EParaformer"),
    *("SenseVoiceSmall", "WhisperWarp", "OpenAIWhisperModel", "UniASR", "GLMASR", "Conformer", "Transformer", "CTC"),
)
SENSEVOICE_LANGUAGES = {code: code for code in ("zh", "en", "yue", "ja", "ko")}
# fmt: off
NANO_LANGUAGES = {
    "zh": "中文", "en": "英文", "ja": "日文", "yue": "粤语", "ko": "韩文", "vi": "越南语",
    "id": "印尼语", "th": "泰语", "ms": "马来语", "fil": "菲律宾语", "tl": "菲律宾语", "ar": "阿拉伯语",
    "hi": "印地语", "bg": "保加利亚语", "hr": "克罗地亚语", "cs": "捷克语", "da": "丹麦语", "nl": "荷兰语",
    "et": "爱沙尼亚语", "fi": "芬兰语", "el": "希腊语", "hu": "匈牙利语", "ga": "爱尔兰语", "lv": "拉脱维亚语",
    "lt": "立陶宛语", "mt": "马耳他语", "pl": "波兰语", "pt": "葡萄牙语", "ro": "罗马尼亚语", "sk": "斯洛伐克语",
    "sl": "斯洛文尼亚语", "sv": "瑞典语",
}
# fmt: on
LANGUAGES: dict[str, dict[str, str]] = {"FunASRNano": NANO_LANGUAGES, "SenseVoiceSmall": SENSEVOICE_LANGUAGES}


class FunAsrBackend:
    """A loaded ``AutoModel``; runs one recording at a time."""

    languages: tuple[str, ...] = ()
    translates = False

    def __init__(self, options: Options, device: str, threads: int) -> None:
        self._options, self._device = options, device
        self.name = options.model or ""
        self._folders: list[Path] = []
        if not options.model:
            raise EngineError(
                "options.model: the funasr backend needs a model",
                hint=f'name one in config.json: a folder, or an installed one such as "{PREFIX}paraformer"',
            )
        _check_arguments(options)
        named = {key: self._resolve(key, getattr(options, key)) for key in MODELS if getattr(options, key)}
        try:
            import funasr
        except ImportError as error:
            raise EngineError(
                f"the funasr package cannot be imported: {error}", hint="pip install 'filepool[funasr]'"
            ) from error
        cuda.require(device)  # funasr itself would go on without a word on the processor
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # a checkpoint may hold tensors, not code
        quiet = {"disable_update": True, "disable_pbar": True, "disable_log": True, "log_level": "ERROR"}
        try:
            self._model: Any = funasr.AutoModel(
                **{**quiet, "device": device, "ncpu": threads, "hub": options.hub, **options.funasr, **named}
            )
        except Exception as error:
            short = cuda.out_of_memory(error, device, f"loading {', '.join(named.values())}")
            raise short or EngineError(
                f"funasr could not load {', '.join(named.values())}: {type(error).__name__}: {error}",
                hint="each folder needs config.yaml and model.pt as published by its authors",
            ) from error

    def _resolve(self, key: str, name: str) -> str:
        if name in INSTALLABLE:
            name = str(weights.find_model(name))
        folder = Path(name).expanduser()
        if folder.is_dir():
            if not any((folder / config).is_file() for config in ("config.yaml", "configuration.json")):
                raise EngineError(f"options.{key}: {folder} holds no config.yaml: not a FunASR model folder")
            self._folders.append(folder)
            return str(folder.resolve())
        if not self._options.allow_download:
            raise EngineError(
                f"options.{key}: {name} is no folder",
                hint=f"name a folder with the model, one to be installed ({', '.join(INSTALLABLE)}), "
                'or set "allow_download": true to fetch it from the hub',
            )
        return name

    def files(self) -> list[Path]:
        """The files of the local model folders, without notes about them: those of an installer, and readmes."""
        files = [path for folder in self._folders for path in folder.iterdir() if path.is_file()]
        return [path for path in files if path.suffix != ".md" and not path.name.startswith(".")]

    def settings(self) -> dict[str, object]:
        """The options that shape a transcript."""
        shaping = {"backend", *MODELS, "funasr", "funasr_generate", "hub", "diarize"}
        return {"reader": READER_VERSION, **self._options.model_dump(mode="json", include=shaping)}

    def warmup(self) -> None:
        """One second of hum; what the models make of it does not matter."""
        hum = (0.1 * np.sin(np.arange(media.SAMPLE_RATE) * 0.05)).astype(np.float32)
        with contextlib.suppress(Exception):
            self._model.generate(input=hum, fs=media.SAMPLE_RATE)

    def transcribe(self, job: Params, about: media.Probe, context: Context) -> dict[str, Any]:
        """The whole of one job; raises InputError when the file holds no sound that can be decoded."""
        warnings: list[str] = []
        sound = self._read(job, about, context, warnings)
        seconds = len(sound) / media.SAMPLE_RATE
        context.progress("inference", SHARE_READ, f"0 of {seconds:.0f} s")
        found = self._generate(sound, job, context, warnings)
        context.progress("processing", 95.0, "putting the transcript together")
        said = Reader(self._class, seconds, warnings).read(found)
        runs = said.runs
        if not runs:
            silent = float(np.max(np.abs(sound))) < 10 ** (SILENCE_DBFS / 20)
            warnings.append("the recording is silent" if silent else "no speech was found")
        spoken = job.language or language(said.text)
        script, numbers = Script(job.script), Numbers(job.itn)
        for at, run in enumerate(runs):
            for word in run:  # Latin letters alone tell no language
                word.language = job.language or language(join(run)) or (spoken if spoken == "en" else None)
            runs[at] = run = numbers.written(run)
            script.write(run)
        records = [segment_record(run) for run in runs]
        for record in records:
            context.partial(record)
        people = sorted({run[0].speaker for run in runs if run[0].speaker is not None})
        return {
            "text": join_texts([str(record["text"]) for record in records]),
            "language": spoken,
            "duration_s": round(seconds, 3),
            "segments": records,
            "speakers": [speaker_name(person) for person in people],
            "warnings": warnings,
        }

    def _read(self, job: Params, about: media.Probe, context: Context, warnings: list[str]) -> Array:
        if job.channels == "split":
            warnings.append('channels: "split" is not for the funasr backend; the channels were mixed')
            job = job.model_copy(update={"channels": "mix"})
        blocks: list[Array] = []
        with Sound(about, job, self._options.ffmpeg, context.check) as sound:
            for (block,) in sound:
                context.check()
                blocks.append(block)
                share = min(1.0, sound.position_s / about.duration_s) if about.duration_s else 0.5
                context.progress("inference", SHARE_READ * share, "reading")
        warnings += sound.warnings
        return np.concatenate(blocks)

    def _generate(self, sound: Array, job: Params, context: Context, warnings: list[str]) -> Any:
        """What the model returns, whatever that is."""

        def tick(*_: int) -> None:
            # Called after each batch of each of the models, without saying of how many: a sign of life only.
            context.check()
            context.progress("inference", SHARE_READ, f"recognising {len(sound) / media.SAMPLE_RATE:.0f} s")

        how: dict[str, Any] = {"sentence_timestamp": True, "output_timestamp": True}
        if self._class == "SenseVoiceSmall" and not {"use_itn", "text_norm"} & self._options.funasr.keys():
            how["use_itn"] = True  # without it there is neither punctuation nor a digit in its text
        how |= {**self._options.funasr_generate, **asked(self._class, job, warnings)}
        how |= {"batch_size_s": max(1, round(job.batch_size_s)), "fs": media.SAMPLE_RATE, "progress_callback": tick}
        labels = self._model.spk_model is not None and self._options.diarize
        if not labels:
            how["return_spk_res"] = False
        try:
            return self._model.generate(input=sound, **how)
        except Exception as error:
            failure = self._failure(error)
            if not labels or isinstance(failure, ResourceError):
                raise failure from error
            warnings.append(f"speakers are not told apart: {type(error).__name__}: {error}")
        try:
            with _without_speakers(self._model):
                return self._model.generate(input=sound, **how)
        except Exception as error:
            raise self._failure(error) from error

    @property
    def _class(self) -> str:
        """The class of the model that recognises: Paraformer, SenseVoiceSmall, FunASRNano …"""
        return type(self._model.model).__name__

    def _failure(self, error: Exception) -> EngineError:
        doing = f"a recording, with {self._class}"
        short = cuda.out_of_memory(
            error, self._device, doing, "lower batch_size_s, or use fewer workers on this device"
        )
        return short or EngineError(f"funasr: {self._class} failed: {type(error).__name__}: {error}")


def asked(model: str, job: Params, warnings: list[str]) -> dict[str, Any]:
    """The arguments of ``generate`` for what a job asks of a class of models; warns of what means nothing to it."""
    how: dict[str, Any] = {"preset_spk_num": job.speakers} if job.speakers else {}
    if job.min_speakers or job.max_speakers:
        warnings.append("min_speakers and max_speakers mean nothing to funasr and were not used; speakers does")
    if job.hotword:
        how |= _hotwords(model, job.hotword)
        if model in DEAF:
            warnings.append(f"hotword means nothing to {model} and was not used")
    if job.language:
        known = LANGUAGES.get(model, {job.language: job.language})
        code = job.language if job.language in known.values() else known.get(job.language)
        if code is None:
            warnings.append(f"language: {job.language!r} is none that {model} knows; it was left to find out")
        elif model in ("WhisperWarp", "OpenAIWhisperModel"):
            how["DecodingOptions"] = {"language": code}
        else:
            how["language"] = code
    return how


def _hotwords(model: str, words: str) -> dict[str, Any]:
    if model in DEAF:
        return {}
    if model == "FunASRNano":
        return {"hotwords": words.split()}
    if model == "Qwen3ASR":
        return {"context": words}
    # The spaces keep what looks like the address of a list, or its path, from being fetched or opened.
    return {"hotword": f" {words} "}


def _check_arguments(options: Options) -> None:
    """Refuse arguments that would silently do nothing, or that a job has to set."""
    lost = [key for key in GENERATE_ONLY if key in options.funasr]
    if lost:
        raise EngineError(
            f"options.funasr: {', '.join(lost)} has no effect on AutoModel",
            hint="put it into the option `funasr_generate`, whose arguments go to generate()",
        )
    taken = [key for key in OURS if key in options.funasr_generate]
    if taken:
        raise EngineError(
            f"options.funasr_generate: {', '.join(taken)} cannot be set", hint="it is set for each job; leave it out"
        )


@contextlib.contextmanager
def _without_speakers(model: Any) -> Iterator[None]:
    """The same AutoModel as if it had been loaded without a speaker model."""
    speakers, model.spk_model = model.spk_model, None
    try:
        yield
    finally:
        model.spk_model = speakers
