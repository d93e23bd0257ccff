"""Recipes with Conformers, Emformers and LSTMs: `pruned_transducer_stateless` to 6 and kin."""

import torch

from recipe_matrix.adaptations import OTHER_LHOTSE, started_in, without
from recipe_matrix.fake_parts import FAKE_CODEBOOK_LOSS, FAKE_SAMPLING
from recipe_matrix.row import Row
from recipe_matrix.sizes import CONFORMER, EMFORMER, LSTM, TINY_CONVOLUTIONS

# What these recipes call their models with; past warm-up the delay penalty is on.
_PER_UTTERANCE = {"reduction": "none"}
_DELAYED = {"warmup": 2.0, "reduction": "none", "delay_penalty": 0.1}
_STREAMING = {"dynamic-chunk-training": 1, "causal-convolution": 1}
_NVIDIA_SMI = without("nvidia_smi", nvmlInit=lambda: None)

_LIBRISPEECH = [
    Row(f"librispeech/ASR/pruned_transducer_stateless{n}", CONFORMER, call=_PER_UTTERANCE)
    for n in "2345"
]
_V1 = Row("librispeech/ASR/pruned_transducer_stateless", CONFORMER, call=_PER_UTTERANCE)
_V6 = Row(
    "librispeech/ASR/pruned_transducer_stateless6",
    CONFORMER,
    call=_PER_UTTERANCE,
    params={"distillation_layer": 1},
    adaptations=(FAKE_CODEBOOK_LOSS,),
)
_V3 = _LIBRISPEECH[1]
_LSTM2 = Row("librispeech/ASR/lstm_transducer_stateless2", LSTM, call=_PER_UTTERANCE)
_AISHELL3 = Row("aishell/ASR/pruned_transducer_stateless3", CONFORMER)
_XBMU = Row("xbmu_amdo31/ASR/pruned_transducer_stateless5", CONFORMER, call=_PER_UTTERANCE)
_WENETSPEECH5 = Row("wenetspeech/ASR/pruned_transducer_stateless5", CONFORMER)
_IWSLT = [
    Row(f"iwslt22_ta/{task}/pruned_transducer_stateless5", CONFORMER, script, own_failure=failure)
    for task in ("ASR", "ST")
    for script, failure in (
        ("train", ""),
        ("finetune", "No module named 'asr_finetune_datamodule'"),
        ("finetune_loadmodel", "No module named 'asr_finetune_datamodule'"),
    )
]

CONFORMERS = [
    _V1,
    _V1.but("C=4336", num_classes=4336),
    _V1.but("dynamic chunks", options=_STREAMING),
    *_LIBRISPEECH,
    _LIBRISPEECH[0].but("bfloat16 autocast", precision=torch.bfloat16),
    *(row.but("delay penalty", call=_DELAYED) for row in _LIBRISPEECH),
    *(row.but("dynamic chunks", options=_STREAMING) for row in _LIBRISPEECH),
    _V3.but("GigaSpeech branch", call={"libri": False}),
    _V6,
    _V6.but("no distillation", options={"enable-distillation": 0}),
    Row("librispeech/ASR/pruned2_knowledge", CONFORMER, adaptations=(FAKE_SAMPLING,)),
    Row("aidatatang_200zh/ASR/pruned_transducer_stateless2", CONFORMER),
    Row("aishell/ASR/pruned_transducer_stateless2", CONFORMER),
    _AISHELL3,
    _AISHELL3.but("Datatang branch", options={"datatang-prob": 0.5}, call={"aishell": False}),
    Row("aishell2/ASR/pruned_transducer_stateless5", CONFORMER),
    Row("aishell4/ASR/pruned_transducer_stateless5", CONFORMER),
    Row("alimeeting/ASR/pruned_transducer_stateless2", CONFORMER),
    Row("gigaspeech/ASR/pruned_transducer_stateless2", CONFORMER),
    *(row.but("", call=_PER_UTTERANCE, adaptations=[_NVIDIA_SMI, OTHER_LHOTSE]) for row in _IWSLT),
    Row("mgb2/ASR/pruned_transducer_stateless5", CONFORMER, adaptations=(_NVIDIA_SMI,)),
    Row("spgispeech/ASR/pruned_transducer_stateless2", CONFORMER),
    Row(
        "tal_csasr/ASR/pruned_transducer_stateless5",
        CONFORMER,
        adaptations=(started_in("tal_csasr/ASR"),),
    ),
    Row("tedlium3/ASR/pruned_transducer_stateless", CONFORMER),
    Row("wenetspeech/ASR/pruned_transducer_stateless2", CONFORMER),
    Row("wenetspeech/ASR/pruned_transducer_stateless2", CONFORMER, train="finetune"),
    _WENETSPEECH5,
    _WENETSPEECH5.but("C=5537", num_classes=5537),
    _WENETSPEECH5.but("dynamic chunks", options=_STREAMING),
    _XBMU,
    _XBMU.but("delay penalty", call=_DELAYED),
]

_LSTMS = [
    Row("librispeech/ASR/lstm_transducer_stateless", LSTM, call=_PER_UTTERANCE),
    _LSTM2,
    Row("librispeech/ASR/lstm_transducer_stateless3", LSTM, call=_PER_UTTERANCE),
]

RECURRENT_AND_STREAMING = [
    *_LSTMS,
    *(row.but("delay penalty", call=_DELAYED) for row in _LSTMS),
    _LSTM2.but("GigaSpeech branch", call={"libri": False}),
    Row("librispeech/ASR/conv_emformer_transducer_stateless", EMFORMER),
    Row("librispeech/ASR/conv_emformer_transducer_stateless2", EMFORMER),
    Row("librispeech/ASR/pruned_stateless_emformer_rnnt2", EMFORMER),
    Row("librispeech/ASR/tiny_transducer_ctc", TINY_CONVOLUTIONS),
]
