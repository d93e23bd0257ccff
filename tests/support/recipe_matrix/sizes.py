"""Small dimensions, one set for each family of encoders; option names as in icefall's parsers."""

_EMBEDDINGS = {"decoder-dim": 56, "joiner-dim": 72}

ZIPFORMER = {
    "num-encoder-layers": "1,1,1,1,1,1",
    "feedforward-dim": "64,64,64,64,64,64",
    "num-heads": "2,2,2,2,2,2",
    "encoder-dim": "48,48,48,48,48,48",
    "encoder-unmasked-dim": "32,32,32,32,32,32",
    "attention-decoder-dim": 32,
    "attention-decoder-num-layers": 1,
    "attention-decoder-attention-dim": 32,
    "attention-decoder-num-heads": 2,
    "attention-decoder-feedforward-dim": 48,
    **_EMBEDDINGS,
}
# The Zipformer of pruned_transducer_stateless7.
ZIPFORMER_2022 = {
    "num-encoder-layers": "1,1,1,1,1",
    "feedforward-dims": "64,64,64,64,64",
    "nhead": "2,2,2,2,2",
    "encoder-dims": "48,48,48,48,48",
    "attention-dims": "32,32,32,32,32",
    "encoder-unmasked-dims": "32,32,32,32,32",
    **_EMBEDDINGS,
}
CONFORMER = {
    "num-encoder-layers": 2,
    "dim-feedforward": 48,
    "nhead": 2,
    "encoder-dim": 32,
    "attention-dim": 32,
    "embedding-dim": 40,
    "encoder-out-dim": 36,
    **_EMBEDDINGS,
}
# The decoder of the oldest recipes is an LSTM.
_LSTM_DECODER = {
    "decoder-embedding-dim": 40,
    "num-decoder-layers": 2,
    "decoder-hidden-dim": 28,
}
CONFORMER_WITH_LSTM = {**CONFORMER, **_LSTM_DECODER}
LSTM_WITH_LSTM = {
    "num-encoder-layers": 2,
    "encoder-hidden-size": 48,
    "encoder-out-dim": 36,
    **_LSTM_DECODER,
}
EMFORMER = {
    **CONFORMER,
    "left-context-length": 16,
    "chunk-length": 16,
    "segment-length": 16,
    "right-context-length": 4,
    "memory-size": 2,
}
LSTM = {
    "num-encoder-layers": 3,
    "encoder-dim": 32,
    "dim-feedforward": 48,
    "aux-layer-period": 0,
    **_EMBEDDINGS,
}
TINY_CONVOLUTIONS = {"encoder-dim": 48, **_EMBEDDINGS}
SURT = {
    **ZIPFORMER_2022,
    "num-mask-encoder-layers": 1,
    "mask-encoder-dim": 32,
}
_WAVEFORM = {"conv-feature-layers": "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2"}
HUBERT = {
    "encoder-layers": 2,
    "encoder-embed-dim": 48,
    "encoder-ffn-embed-dim": 64,
    "encoder-attention-heads": 2,
    "final-dim": 24,
    **_WAVEFORM,
    **_EMBEDDINGS,
}
WAVEFORM_ZIPFORMER = {**ZIPFORMER, **_WAVEFORM}
SPEECH_TRANSLATION = {
    **ZIPFORMER,
    "downsampling-factor": "1,2,4,8,4,2",  # the parser's own default has 10 numbers for 6 stacks
    "st-num-encoder-layers": "1,1,1,1",
    "st-feedforward-dim": "64,64,64,64",
    "st-num-heads": "2,2,2,2",
    "st-encoder-dim": "48,48,48,48",
    "st-encoder-unmasked-dim": "32,32,32,32",
    "st-joiner-dim": 64,
    "num-decoder-layers": 2,
    "decoder-embedding-dim": 56,
    "decoder-hidden-dim": 56,
}
