"""Retained bands, what a recursion gives on them, and the loop over single states as an oracle."""

import random

import torch

NEG_INF = float("-inf")

# name: (S, s_range, first state per utterance and frame, boundary rows or None)
BANDS = {
    "one width": (4, 3, [[0, 0, 1, 2, 2, 2], [0, 1, 2, 2, 2, 2]], None),
    "ragged": (
        5,
        3,
        [[0, 1, 1, 2, 3, 3, 3], [0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]],
        [[0, 0, 5, 7], [0, 0, 3, 4], [0, 0, 0, 3]],
    ),
    "nothing to align": (3, 2, [[0, 1, 2], [0, 0, 0]], [[0, 0, 0, 0], [0, 0, 2, 0]]),
    "later begins": (
        6,
        3,
        [[1, 1, 1, 2, 2, 3, 4], [0, 1, 3, 3, 4, 4, 4], [2, 2, 2, 2, 2, 2, 2]],
        [[1, 2, 4, 6], [2, 0, 6, 7], [3, 3, 3, 3]],
    ),
    "jumps": (6, 3, [[0, 0, 2, 2, 4, 4, 4], [0, 1, 1, 3, 3, 3, 3]], [[0, 0, 6, 7], [0, 0, 5, 6]]),
    "jumps of the whole width": (9, 4, [[0, 0, 3, 3, 6, 6, 6], [0, 3, 6, 6, 6, 6, 6]], None),
    "jumps out of reach": (9, 2, [[0, 0, 5, 8], [0, 1, 2, 3]], [[0, 0, 9, 4], [0, 0, 4, 4]]),
    "falls": (6, 4, [[0, 2, 0, 1, 3, 1, 3], [1, 0, 0, 3, 2, 3, 3]], [[0, 0, 6, 7], [1, 0, 5, 6]]),
    "falls before its begin": (5, 3, [[3, 2, 0, 1, 2, 3, 3]], [[0, 2, 5, 7]]),
    "one state": (3, 1, [[0, 1, 2, 3, 3], [0, 0, 1, 1, 1]], [[0, 0, 3, 5], [0, 0, 1, 4]]),
    "first state outside": (7, 5, [[0, 0, 0, 1, 1, 1, 1]], [[0, 3, 5, 7]]),
    "no symbols": (0, 1, [[0, 0, 0], [0, 0, 0]], [[0, 0, 0, 3], [0, 0, 0, 1]]),
    "wider than the lattice": (2, 5, [[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 2, 4], [0, 0, 1, 2]]),
}
# Every utterance of these has a path in every type of lattice.
REACHED = ["one width", "ragged", "jumps"]


def make_band(name, dtype=torch.float64, scale=2.0):
    S, s_range, starts, rows = BANDS[name]
    ranges = torch.tensor(starts).unsqueeze(2) + torch.arange(s_range)
    generator = torch.Generator().manual_seed(len(name))
    logp = scale * torch.randn(2, *ranges.shape, generator=generator, dtype=torch.float64) - 1
    return (*logp.to(dtype), ranges, S, None if rows is None else torch.tensor(rows))


def random_band(seed, B, most_frames, most_symbols):
    """Any boundary and any non-decreasing ranges, a tenth of the arcs missing, in float64."""
    draw = random.Random(seed)
    T, S, s_range = draw.randint(0, most_frames), draw.randint(0, most_symbols), draw.randint(1, 5)
    rows = []
    for _ in range(B):
        s_begin, t_begin = draw.choice([0, draw.randint(0, S)]), draw.choice([0, T // 3])
        rows.append([s_begin, t_begin, draw.randint(s_begin, S), draw.randint(t_begin, T)])
    starts = [sorted(draw.choices(range(max(S + 2 - s_range, 1)), k=T)) for _ in range(B)]
    ranges = torch.tensor(starts, dtype=torch.int64).reshape(B, T, 1) + torch.arange(s_range)
    generator = torch.Generator().manual_seed(seed)
    logp = torch.randn(2, B, T, s_range, generator=generator, dtype=torch.float64)
    logp = logp.masked_fill(torch.rand(logp.shape, generator=generator) < 0.1, NEG_INF)
    return (*logp, ranges, S, torch.tensor(rows))


def long_band(dtype):
    """Scores of -600 to -1200: float32 cannot tell them apart below 6e-5."""
    B, T, S, s_range = 3, 150, 30, 4
    generator = torch.Generator().manual_seed(2)
    logp = -16 * torch.rand(2, B, T, s_range, generator=generator) - 0.5
    boundary = torch.tensor([[0, 0, S - 4 * b, T - 20 * b] for b in range(B)])
    climb = torch.arange(T) * S // (T - 50)
    start = torch.minimum(climb, boundary[:, 2:3] + 1 - s_range)
    return (*logp.to(dtype), start.unsqueeze(2) + torch.arange(s_range), S, boundary)


def long_lattice(is_regular):
    """float32 arcs ``px``, ``py`` of 200 frames, ragged, with scores below -3000 nats."""
    B, T, S = 3, 200, 30
    generator = torch.Generator().manual_seed(6)
    px = -40 * torch.rand(B, S, T + is_regular, generator=generator) - 10
    py = -30 * torch.rand(B, S + 1, T, generator=generator) - 10
    boundary = torch.tensor([[0, 0, S - 4 * b, T - 5 * b] for b in range(B)])
    return px, py, boundary


def score_by_states(target_logp, blank_logp, ranges, S, boundary, rnnt_type):
    """One state at a time over the sites that exist: the oracle (autograd runs through)."""
    B, T, _ = ranges.shape
    rows = [[0, 0, S, T]] * B if boundary is None else boundary.tolist()
    back = 0 if rnnt_type == "regular" else 1
    scores = []
    for b, (s_begin, t_begin, s_end, t_end) in enumerate(rows):
        slot = {
            (s, t): r for t in range(t_end) for r, s in enumerate(ranges[b, t].tolist()) if s <= S
        }
        p = {(s_begin, t_begin): target_logp.new_zeros(())}
        for t in range(t_begin, t_end + 1):
            for s in range(s_begin, s_end + 1):
                terms = []
                if (s, t - 1) in p and (s, t - 1) in slot:
                    terms.append(p[s, t - 1] + blank_logp[b, t - 1, slot[s, t - 1]])
                source = (s - 1, t - back)
                if source in p and source in slot:
                    emitted = p[source] + target_logp[b, t - back, slot[source]]
                    if rnnt_type != "constrained":
                        terms.append(emitted)
                    elif (s, t - 1) in slot:
                        terms.append(emitted + blank_logp[b, t - 1, slot[s, t - 1]])
                terms = [term for term in terms if float(term.detach()) != NEG_INF]
                if (s, t) not in p and terms:
                    p[s, t] = torch.logsumexp(torch.stack(terms), 0)
        scores.append(p.get((s_end, t_end), target_logp.new_tensor(NEG_INF)))
    return torch.stack(scores)


def outcome(function, target_logp, blank_logp, *args):
    leaves = [x.detach().clone().requires_grad_() for x in (target_logp, blank_logp)]
    scores = function(*leaves, *args)
    # Different weights per utterance, or a mix-up of utterances would not show.
    weights = torch.arange(1, len(scores) + 1, dtype=scores.dtype, device=scores.device)
    reached = scores > NEG_INF
    grads = [None, None]
    if scores.requires_grad and bool(reached.any()):
        total = (scores * weights)[reached].sum()
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
    grads = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, grads)]
    return [scores.detach(), *grads]


def assert_equal_outcome(got, expected):
    for value, reference in zip(got, expected):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)


def error(value, exact):
    """RMS error in units of the RMS of the exact values."""
    return ((value.double() - exact).norm() / exact.norm()).item()
