"""Recipes of their own kind: several speakers, prompts, waveforms, speech translation, HAT."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recipe_matrix.adaptations import (
    K2_STAND_IN,
    OLD_WEIGHT_NORM,
    OTHER_LHOTSE,
    SPEC_AUGMENT,
    TRANSLATIONS,
    TWO_CHANNELS,
    WAVEFORMS,
    WITH_ENCODER_INTERFACE,
    with_mended_train,
)
from recipe_matrix.fake_parts import CONTEXT_FUSER, FAKE_TEXT_ENCODER
from recipe_matrix.row import ABSENT, Adaptation, Row
from recipe_matrix.sizes import (
    HUBERT,
    SPEECH_TRANSLATION,
    SURT,
    WAVEFORM_ZIPFORMER,
    ZIPFORMER,
)

_CTC = {"use-ctc": 1}

_SURT = Row(
    "libricss/SURT/dprnn_zipformer",
    SURT,
    call={"reduction": "none", "subsampling_factor": 4},
    adaptations=(TWO_CHANNELS,),
    own_failure="No module named 'einops'",
)
_AMI = replace(_SURT, folder="ami/SURT/dprnn_zipformer")
SPEAKERS = [
    _SURT,
    _SURT.but("linear joint encoder layer", options={"use-joint-encoder-layer": "linear"}),
    _SURT.but("no joint encoder layer", options={"use-joint-encoder-layer": "none"}),
    replace(_SURT, train="train_adapt"),
    _AMI,
    replace(_AMI, train="train_adapt"),
]

_PROMPTS = "libriheavy/ASR/zipformer_prompt_asr"
_BERT = Row(_PROMPTS, ZIPFORMER, "train_bert_encoder", adaptations=(FAKE_TEXT_ENCODER,))
PROMPTS = [
    Row(_PROMPTS, ZIPFORMER, "train_baseline"),
    _BERT,
    _BERT.but("no prompt", call={"use_pre_text": False}),
    _BERT.but("text encoder adapter", options={"text-encoder-adapter": 1}),
    _BERT.but("context vector", options={"context-injection": 1}, adaptations=[CONTEXT_FUSER]),
]


def _self_supervised(folder: str, sizes: Mapping[str, Any], *adaptations: Adaptation) -> Row:
    """A recipe that starts from a pretrained encoder, here from random numbers."""
    return Row(
        folder,
        sizes,
        "finetune",
        params={"pretrained_dir": ABSENT},
        adaptations=(WAVEFORMS, *adaptations),
    )


_HUBERT = _self_supervised("librispeech/SSL/hubert", HUBERT, OLD_WEIGHT_NORM)
_SSL = _self_supervised("librispeech/SSL/zipformer", WAVEFORM_ZIPFORMER)
SELF_SUPERVISED = [
    _HUBERT,
    _HUBERT.but("CTC head", options=_CTC),
    replace(_HUBERT, train="finetune_ce"),
    _SSL,
    _SSL.but("CTC head", options=_CTC),
    _self_supervised("librilight/SSL/zipformer", WAVEFORM_ZIPFORMER),
]

_HAT = {"use-hat": 1}
_IWSLT = [
    Row(f"iwslt22_ta/{task}/zipformer", ZIPFORMER, adaptations=(OTHER_LHOTSE, K2_STAND_IN))
    for task in ("ASR", "ST")
]
_TWO_JOINERS = {"use-st-joiner": 1}
_BOTH_CTC = {**_TWO_JOINERS, "use-ctc": 1, "use-st-ctc": 1}
_CR_CTC = {**_BOTH_CTC, "use-asr-cr-ctc": 1, "use-st-cr-ctc": 1}


def _translation(folder: str, failure: str, *mendings: Adaptation) -> list[Row]:
    """The recipe as it is, and, as it lacks a file, its variants with that supplied."""
    row = Row(
        f"multi_conv_zh_es_ta/ST/{folder}",
        SPEECH_TRANSLATION,
        options=_TWO_JOINERS,
        params={"vocab_st_size": 450, "st_vocab_size": 450, "blank_st_id": 0},
        adaptations=(OTHER_LHOTSE, K2_STAND_IN, TRANSLATIONS),
    )
    whole = row.but("mended", adaptations=mendings)
    return [
        replace(row, own_failure=failure),
        whole,
        whole.but("mended, HAT", options=_HAT),
        whole.but("mended, CTC heads", options=_BOTH_CTC),
        whole.but(
            "mended, CR-CTC, HAT",
            options={**_CR_CTC, **_HAT},
            call={"use_asr_cr_ctc": True, "use_st_cr_ctc": True},
            adaptations=[SPEC_AUGMENT],
        ),
    ]


_HENT = _translation("hent_srt", "No module named 'encoder_interface'", WITH_ENCODER_INTERFACE)
_MULTIJOINER = _translation(
    "zipformer_multijoiner_st",
    "invalid syntax",
    WITH_ENCODER_INTERFACE,
    with_mended_train("multi_conv_zh_es_ta/ST/zipformer_multijoiner_st", "=<", "<="),
)
TRANSLATION = [
    *_IWSLT,
    _IWSLT[1].but("HAT", options=_HAT),
    *_HENT,
    _HENT[1].but("mended, LSTM predictor", options={"use-lstm-predictor": 1}),
    *_MULTIJOINER,
]
