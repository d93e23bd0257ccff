"""The oracle of the loss tests: the total of all paths, summed from the end of the utterance."""

import functools

import pytest
import torch


def _loss_by_paths(
    log_probs, symbols, blank, rnnt_type="regular", limits=None, kept=None, delay_penalty=0.0
):
    """Negated log-prob of `symbols` given `log_probs [T, S+1, C]` of one utterance, or None.

    `limits` are `(s_begin, t_begin, s_end, t_end)`; `kept(t, s)` says which sites exist.
    """
    s_begin, t_begin, s_end, t_end = limits or (0, 0, len(symbols), log_probs.shape[0])
    kept = kept or (lambda t, s: True)

    @functools.cache
    def remaining(s, t):
        if (s, t) == (s_end, t_end):
            return log_probs.new_zeros(())
        if t == t_end or not kept(t, s):
            return None
        terms = []
        after_blank = remaining(s, t + 1)
        if after_blank is not None:
            terms.append(log_probs[t, s, blank] + after_blank)
        if s < s_end:
            emitted = log_probs[t, s, symbols[s]] + delay_penalty * ((t_end - 1) / 2 - t)
            if rnnt_type == "constrained":
                emitted = emitted + log_probs[t, s + 1, blank] if kept(t, s + 1) else None
            after_symbol = remaining(s + 1, t if rnnt_type == "regular" else t + 1)
            if after_symbol is not None and emitted is not None:
                terms.append(emitted + after_symbol)
        return torch.logsumexp(torch.stack(terms), 0) if terms else None

    total = remaining(s_begin, t_begin)
    return None if total is None else -total


@pytest.fixture
def loss_by_paths():
    return _loss_by_paths
