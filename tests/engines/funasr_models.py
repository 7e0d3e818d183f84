"""Small FunASR model folders with random weights: the real layout and loading code, nothing published.

``make(folder)`` writes four folders (asr, vad, punc, spk) of well under a megabyte each, as
``funasr.AutoModel`` expects them: ``config.yaml``, ``model.pt``, ``tokens.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHARACTERS = "欢迎大家来体验达摩院推出的语音识别模型今天气很好我们起去"
ENCODER = {
    "output_size": 32,
    "attention_heads": 2,
    "linear_units": 64,
    "num_blocks": 1,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
    "input_layer": "pe",
    "pos_enc_class": "SinusoidalPositionEncoder",
    "normalize_before": True,
    "kernel_size": 11,
    "sanm_shfit": 0,
    "selfattention_layer_type": "sanm",
}
FRONTEND = {"fs": 16000, "window": "hamming", "n_mels": 80, "frame_length": 25, "frame_shift": 10, "dither": 0.0}

ASR: dict[str, Any] = {
    "model": "Paraformer",
    "model_conf": {"ctc_weight": 0.0, "predictor_weight": 1.0, "predictor_bias": 1, "sampling_ratio": 0.75},
    "encoder": "SANMEncoder",
    "encoder_conf": ENCODER,
    "decoder": "ParaformerSANMDecoder",
    "decoder_conf": {
        "attention_heads": 2,
        "linear_units": 64,
        "num_blocks": 1,
        "att_layer_num": 1,
        "kernel_size": 11,
        "sanm_shfit": 0,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "self_attention_dropout_rate": 0.0,
        "src_attention_dropout_rate": 0.0,
    },
    "predictor": "CifPredictorV2",
    "predictor_conf": {"idim": 32, "threshold": 1.0, "l_order": 1, "r_order": 1, "tail_threshold": 0.45},
    "frontend": "WavFrontend",
    "frontend_conf": {**FRONTEND, "lfr_m": 7, "lfr_n": 6},
    "tokenizer": "CharTokenizer",
    "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
}
VAD: dict[str, Any] = {
    "model": "FsmnVADStreaming",
    "model_conf": {
        "sample_rate": 16000,
        "detect_mode": 1,
        "snr_mode": 0,
        "max_end_silence_time": 300,
        "max_start_silence_time": 3000,
        "do_start_point_detection": True,
        "do_end_point_detection": True,
        "window_size_ms": 200,
        "sil_to_speech_time_thres": 150,
        "speech_to_sil_time_thres": 150,
        "speech_2_noise_ratio": 1.0,
        "do_extend": 1,
        "lookback_time_start_point": 200,
        "lookahead_time_end_point": 100,
        "max_single_segment_time": 3000,
        "snr_thres": -100.0,
        "noise_frame_num_used_for_snr": 100,
        "decibel_thres": -100.0,
        "speech_noise_thres": 0.6,
        "fe_prior_thres": 0.0001,
        "silence_pdf_num": 1,
        "sil_pdf_ids": [0],
        "speech_noise_thresh_low": -0.1,
        "speech_noise_thresh_high": 0.3,
        "output_frame_probs": False,
        "frame_in_ms": 10,
        "frame_length_ms": 25,
    },
    "encoder": "FSMN",
    "encoder_conf": {
        "input_dim": 400,
        "input_affine_dim": 16,
        "fsmn_layers": 1,
        "linear_dim": 16,
        "proj_dim": 16,
        "lorder": 4,
        "rorder": 0,
        "lstride": 1,
        "rstride": 0,
        "output_affine_dim": 16,
        "output_dim": 8,
    },
    "frontend": "WavFrontendOnline",
    "frontend_conf": {**FRONTEND, "lfr_m": 5, "lfr_n": 1},
}
PUNC: dict[str, Any] = {
    "model": "CTTransformer",
    "model_conf": {
        "ignore_id": 0,
        "embed_unit": 32,
        "att_unit": 32,
        "dropout_rate": 0.0,
        "punc_list": ["<unk>", "_", "，", "。", "？", "、"],
        "punc_weight": [1.0] * 6,
        "sentence_end_id": 3,
    },
    "encoder": "SANMEncoder",
    "encoder_conf": {**ENCODER, "input_size": 32},
    "tokenizer": "CharTokenizer",
    "tokenizer_conf": {"unk_symbol": "<unk>"},
}
SPK: dict[str, Any] = {
    "model": "CAMPPlus",
    "model_conf": {
        "feat_dim": 80,
        "embedding_size": 32,
        "growth_rate": 4,
        "bn_size": 2,
        "init_channels": 8,
        "config_str": "batchnorm-relu",
        "memory_efficient": True,
        "output_level": "segment",
    },
    "frontend": "WavFrontend",
    "frontend_conf": {"fs": 16000},
}
SENSEVOICE: dict[str, Any] = {
    "model": "SenseVoiceSmall",
    "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
    "encoder": "SenseVoiceEncoderSmall",
    "encoder_conf": {**ENCODER, "tp_blocks": 1},
    "frontend": "WavFrontend",
    "frontend_conf": {**FRONTEND, "lfr_m": 7, "lfr_n": 6},
    "tokenizer": "SentencepiecesTokenizer",
    "tokenizer_conf": {},
}


def make_sensevoice(folder: Path) -> str:
    """Write a folder of SenseVoice, with a vocabulary of its own kind; its path."""
    import sentencepiece
    import torch
    from funasr import AutoModel

    characters = [chr(0x4E00 + at) for at in range(150)]  # the model reckons with a vocabulary of 125 and more
    lines = ["the quick brown fox jumps over the lazy dog.", *map("".join, zip(*[iter(characters)] * 10, strict=True))]
    (folder / "lines.txt").write_text("\n".join(lines), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "bpe"),
        vocab_size=181,
        minloglevel=2,
        character_coverage=1.0,
    )
    config: dict[str, Any] = {**SENSEVOICE, "tokenizer_conf": {"bpemodel": str(folder / "bpe.model")}}
    torch.manual_seed(1)
    model, _ = AutoModel.build_model(**config, model_path=str(folder), device="cpu", ncpu=1, seed=1, disable_log=True)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "config.yaml").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    return str(folder)


def make(root: Path) -> dict[str, str]:
    """Write the folders; the engine's options that name them."""
    import torch
    from funasr import AutoModel

    options = {}
    parts = {"model": (ASR, "asr"), "vad_model": (VAD, "vad"), "punc_model": (PUNC, "punc"), "spk_model": (SPK, "spk")}
    for key, (config, name) in parts.items():
        folder = root / name
        folder.mkdir(parents=True)
        config = {**config, "model_path": str(folder)}
        if "tokenizer" in config:
            tokens = ["<blank>", "<s>", "</s>", *CHARACTERS, "<unk>"]
            (folder / "tokens.json").write_text(json.dumps(tokens, ensure_ascii=False), "utf-8")
            config["tokenizer_conf"] = {**config["tokenizer_conf"], "token_list": str(folder / "tokens.json")}
        torch.manual_seed(1)
        model, _ = AutoModel.build_model(**config, device="cpu", ncpu=1, seed=1, disable_log=True)
        state = model.state_dict()
        if key == "vad_model":  # what it hears is speech: the silence class never wins
            bias = next(name for name in reversed(state) if name.endswith("bias"))
            state[bias][0] = -8.0
        torch.save(state, folder / "model.pt")
        config.pop("model_path")
        (folder / "config.yaml").write_text(json.dumps(config, ensure_ascii=False), "utf-8")  # JSON is YAML
        options[key] = str(folder)
    return options
