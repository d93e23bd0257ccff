"""Test vectors of other projects; ``nemo_kernels`` are numbers that we made with NeMo's code."""

from published import (
    nemo,
    nemo_kernels,
    optimized_transducer,
    torchaudio,
    warp_rnnt,
    warp_transducer,
)

VECTORS = [
    *torchaudio.VECTORS,
    *warp_transducer.VECTORS,
    *warp_rnnt.VECTORS,
    *nemo.VECTORS,
    *nemo_kernels.VECTORS,
    *optimized_transducer.VECTORS,
]
