"""Small batches for the functions of fast_rnnt and k2, and what these give and hand back."""

import torch

C = 7
TYPES = ["regular", "modified", "constrained"]

# name: (S, T, boundary rows or None)
BATCHES = {
    "full length": (3, 5, None),
    "ragged": (4, 6, [[0, 0, 4, 6], [0, 0, 2, 4], [0, 0, 0, 5]]),
    "later begins": (4, 6, [[1, 1, 4, 6], [0, 2, 3, 6]]),
    "one frame": (1, 1, [[0, 0, 1, 1], [0, 0, 0, 1]]),
    "no symbols": (0, 4, None),
    "more symbols than frames": (5, 2, [[0, 0, 5, 2], [0, 0, 3, 1]]),
}
CASES = [(name, "regular") for name in BATCHES]
CASES += [(n, kind) for n, (S, T, _) in BATCHES.items() if S <= T for kind in TYPES[1:]]


def lattice_of(name, blank):
    """Symbols that are never the blank, which is the padding, and the boundary."""
    S, T, rows = BATCHES[name]
    B = 2 if rows is None else len(rows)
    symbols = torch.randint(1, C, (B, S), generator=torch.Generator().manual_seed(S + T))
    symbols = (symbols + blank) % C
    boundary = None if rows is None else torch.tensor(rows)
    if boundary is not None:
        symbols.masked_fill_(torch.arange(S) >= boundary[:, 2:3], blank)
    return symbols, boundary


def randn(*shape, dtype=torch.float64, scale=2.0, seed=4):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * values).to(dtype)


def make_batch(name, blank=0, **options):
    symbols, boundary = lattice_of(name, blank)
    B, S = symbols.shape
    return randn(B, BATCHES[name][1], S + 1, C, **options), symbols, boundary


def weighted_gradients(losses, *inputs):
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    return torch.autograd.grad((losses * weights).sum(), inputs)


def values_and_gradients(function, inputs, /, *args, **kwargs):
    """Everything a function gives, and the gradient of all of it that is finite."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    result = function(*inputs, *args, **kwargs)
    result = [result] if isinstance(result, torch.Tensor) else [*result]
    total = sum((x * randn(*x.shape)).masked_fill(x.isinf(), 0).sum() for x in result)
    return [*(x.detach() for x in result), *torch.autograd.grad(total, inputs)]
