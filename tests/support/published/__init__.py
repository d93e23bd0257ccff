"""Test vectors of other projects, one file for each."""

from published import nemo, torchaudio, warp_rnnt, warp_transducer

VECTORS = [
    *torchaudio.VECTORS,
    *warp_transducer.VECTORS,
    *warp_rnnt.VECTORS,
    *nemo.VECTORS,
]
