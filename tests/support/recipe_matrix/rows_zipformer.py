"""Recipes with the Zipformer of `zipformer/` and that of `pruned_transducer_stateless7` (2022)."""

from recipe_matrix.adaptations import (
    DISTRIBUTED,
    INF_CHECK,
    PRINT_DIAGNOSTICS,
    SPEC_AUGMENT,
    train_only,
    without,
)
from recipe_matrix.row import Row
from recipe_matrix.sizes import ZIPFORMER, ZIPFORMER_2022

CTC = {"use-ctc": 1}
CAUSAL = {"causal": 1}
CR_CTC = {"use-ctc": 1, "use-cr-ctc": 1}
ATTENTION = {"use-attention-decoder": 1}

_AISHELL = Row("aishell/ASR/zipformer", ZIPFORMER)
_LIBRISPEECH = Row("librispeech/ASR/zipformer", ZIPFORMER)
_WENETSPEECH = Row("wenetspeech/ASR/zipformer", ZIPFORMER)
_LIBRITTS = Row("libritts/ASR/zipformer", ZIPFORMER)
_TEDLIUM = Row("tedlium3/ASR/zipformer", ZIPFORMER)
_ADAPTER = Row("librispeech/ASR/zipformer_adapter", ZIPFORMER)
_LORA = Row("librispeech/ASR/zipformer_lora", ZIPFORMER, train="finetune", options={"lora-r": 4})

# Recipes whose CTC head and causal encoder are options like everybody's.
_WITH_CTC = [
    Row("commonvoice/ASR/zipformer", ZIPFORMER),
    Row("gigaspeech/ASR/zipformer", ZIPFORMER),
    Row("gigaspeech/KWS/zipformer", ZIPFORMER),
    Row("ksponspeech/ASR/zipformer", ZIPFORMER),
    Row("multi_ja_en/ASR/zipformer", ZIPFORMER),
    Row("multi_zh-hans/ASR/zipformer", ZIPFORMER),
    Row("multi_zh_en/ASR/zipformer", ZIPFORMER),
    Row("reazonspeech/ASR/zipformer", ZIPFORMER),
    Row("spgispeech/ASR/zipformer", ZIPFORMER),
    Row(
        "libriheavy/ASR/zipformer",
        ZIPFORMER,
        adaptations=(without("num2words", num2words=None),),
    ),
]

ZIPFORMERS = [
    _AISHELL,
    _AISHELL.but("C=4336", num_classes=4336),
    _AISHELL.but("causal", options=CAUSAL),
    _AISHELL.but("CTC head", options=CTC),
    _AISHELL.but("CR-CTC", options=CR_CTC, call={"use_cr_ctc": True}, adaptations=[SPEC_AUGMENT]),
    Row("aishell/ASR/zipformer", ZIPFORMER, train="train_bbpe"),
    _LIBRISPEECH,
    _LIBRISPEECH.but("causal", options=CAUSAL),
    _LIBRISPEECH.but("CTC head", options=CTC),
    _LIBRISPEECH.but("attention decoder", options=ATTENTION),
    _LIBRISPEECH.but("CTC head, attention decoder", options={**CTC, **ATTENTION}),
    _LIBRISPEECH.but(
        "CR-CTC", options=CR_CTC, call={"use_cr_ctc": True}, adaptations=[SPEC_AUGMENT]
    ),
    _LIBRISPEECH.but("am and lm scales", call={"am_scale": 0.1, "lm_scale": 0.3}),
    _LIBRISPEECH.but("s_range 10", call={"prune_range": 10}),
    _LIBRISPEECH.but("inf-check hooks", adaptations=[INF_CHECK]),
    _LIBRISPEECH.but("diagnostics hooks", adaptations=[PRINT_DIAGNOSTICS]),
    _LIBRISPEECH.but("DistributedDataParallel", adaptations=[DISTRIBUTED]),
    Row("librispeech/ASR/zipformer", ZIPFORMER, train="finetune"),
    _LIBRITTS,
    _LIBRITTS.but("CTC head, attention decoder", options={**CTC, **ATTENTION}),
    _WENETSPEECH,
    _WENETSPEECH.but("C=5537", num_classes=5537),
    _WENETSPEECH.but("causal", options=CAUSAL),
    *_WITH_CTC,
    *(row.but("CTC head", options=CTC) for row in _WITH_CTC),
    Row("commonvoice/ASR/zipformer", ZIPFORMER, train="train_char"),
    Row("gigaspeech/KWS/zipformer", ZIPFORMER, train="finetune"),
    Row("wenetspeech/KWS/zipformer", ZIPFORMER),
    Row("wenetspeech/KWS/zipformer", ZIPFORMER, train="finetune"),
    Row("mdcc/ASR/zipformer", ZIPFORMER),
    Row("speechio/ASR/zipformer", ZIPFORMER),
    _TEDLIUM,
    _TEDLIUM.but("modified", call={"rnnt_type": "modified"}),
    _TEDLIUM.but("constrained", call={"rnnt_type": "constrained"}),
    Row("librispeech/ASR/zipformer_lora", ZIPFORMER),
    _LORA,
    _LORA.but("only LoRA trained", adaptations=[train_only("lora_")]),
    _ADAPTER,
    _ADAPTER.but("only adapters trained", adaptations=[train_only("adapter")]),
]

_BS = Row("librispeech/ASR/pruned_transducer_stateless7_ctc_bs", ZIPFORMER_2022)
_MULTI = Row("librispeech/ASR/pruned_transducer_stateless7_streaming_multi", ZIPFORMER_2022)
_STATELESS8 = Row("librispeech/ASR/pruned_transducer_stateless8", ZIPFORMER_2022)

ZIPFORMERS_2022 = [
    Row("aishell/ASR/pruned_transducer_stateless7", ZIPFORMER_2022),
    Row("aishell/ASR/pruned_transducer_stateless7_bbpe", ZIPFORMER_2022),
    Row("aishell/ASR/pruned_transducer_stateless7_streaming", ZIPFORMER_2022),
    Row("alimeeting/ASR_v2/pruned_transducer_stateless7", ZIPFORMER_2022),
    Row("ami/ASR/pruned_transducer_stateless7", ZIPFORMER_2022),
    Row("commonvoice/ASR/pruned_transducer_stateless7", ZIPFORMER_2022),
    Row("commonvoice/ASR/pruned_transducer_stateless7_streaming", ZIPFORMER_2022),
    Row("commonvoice/ASR/pruned_transducer_stateless7_streaming", ZIPFORMER_2022, "finetune"),
    Row("csj/ASR/pruned_transducer_stateless7_streaming", ZIPFORMER_2022),
    Row("ksponspeech/ASR/pruned_transducer_stateless7_streaming", ZIPFORMER_2022),
    Row("librispeech/ASR/pruned_transducer_stateless7", ZIPFORMER_2022),
    Row("librispeech/ASR/pruned_transducer_stateless7", ZIPFORMER_2022, "finetune"),
    Row("librispeech/ASR/pruned_transducer_stateless7_ctc", ZIPFORMER_2022),
    _BS,
    _BS.but("warmup over", call={"warmup": 2.0}),
    Row("librispeech/ASR/pruned_transducer_stateless7_streaming", ZIPFORMER_2022),
    _MULTI,
    _STATELESS8,
    _STATELESS8.but("GigaSpeech branch", call={"libri": False}),
    Row("tal_csasr/ASR/pruned_transducer_stateless7_bbpe", ZIPFORMER_2022),
    Row("xbmu_amdo31/ASR/pruned_transducer_stateless7", ZIPFORMER_2022),
]
