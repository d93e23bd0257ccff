"""``selected_log_probs`` in one tile of more than 2^31 logits, against float64 block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_validation.report import Setting
from panda_icefall.normalizer import selected_log_probs

BLOCK_ROWS = 512
# At least the reference's own rounding of what it adds up; index errors are of the size of 1.
TOLERANCE = 1e-4


def run(setting: Setting, engines: list[str]) -> None:
    sites, classes, hidden = setting.size((33_000, 65_536, 16), (40, 60, 8))
    logits_bytes = 4 * sites * classes
    if setting.device.type == "cuda":
        free = torch.cuda.mem_get_info(setting.device)[0]
        # The tile itself, a block of the reference in float64, and room.
        if free < 1.5 * logits_bytes + 2 * 2**30:
            why = f"{free / 2**30:.1f} GiB are free, a tile has {logits_bytes / 2**30:.1f}"
            setting.report.skip("offsets past 2^31", why)
            return
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(*size, generator=generator).to(setting.device).requires_grad_()
        for size in ((sites, hidden), (classes, hidden), (classes,))
    ]
    ids = torch.randint(0, classes, (sites, 2), generator=generator).to(setting.device)
    ids[-1, 0] = classes - 1
    adjoints = torch.randn(sites, 2, generator=generator).to(setting.device)
    exact = blockwise(*(t.detach() for t in leaves), ids, adjoints)
    for engine in engines:
        case = f"{sites * classes:.3g} logits in one tile, {engine}"
        if setting.report.is_over(case):
            continue
        with setting.report.case(case):
            logp, log_z = selected_log_probs(
                *leaves, ids, engine=engine, workspace_bytes=3 * logits_bytes,
                adjoint_tolerance=0.0,
            )  # fmt: skip
            grads = torch.autograd.grad((logp * adjoints).sum(), leaves)
            found = [logp.detach(), log_z.detach(), *grads]
            errors = [_relative(x, reference) for x, reference in zip(found, exact)]
            setting.report.check(
                case, all(error < TOLERANCE for error in errors), errors=errors
            )  # a NaN is not below it


def blockwise(
    rows: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, adjoints: Tensor
) -> list[Tensor]:
    """Log-probs, log_z and the three gradients in float64, some rows at a time."""
    weight, bias = weight.double(), bias.double()
    logp, log_z, rows_grad = [], [], []
    weight_grad, bias_grad = torch.zeros_like(weight), torch.zeros_like(bias)
    for low in range(0, len(rows), BLOCK_ROWS):
        at = slice(low, low + BLOCK_ROWS)
        hidden, block_ids, block_adjoints = rows[at].double(), ids[at], adjoints[at].double()
        logits = torch.addmm(bias, hidden, weight.t())
        z = logits.logsumexp(dim=1, keepdim=True)
        logp.append(logits.gather(1, block_ids) - z)
        log_z.append(z.squeeze(1))
        grad = (logits - z).exp_().mul_(-block_adjoints.sum(dim=1, keepdim=True))
        grad.scatter_add_(1, block_ids, block_adjoints)
        rows_grad.append(grad @ weight)
        weight_grad.addmm_(grad.t(), hidden)
        bias_grad += grad.sum(dim=0)
    return [torch.cat(logp), torch.cat(log_z), torch.cat(rows_grad), weight_grad, bias_grad]


def _relative(got: Tensor, exact: Tensor) -> float:
    """The largest error of any row by the RMS of the exact values: one wrong row shows."""
    sizes = exact.reshape(len(exact), -1).norm(dim=1)
    errors = (got.double() - exact).reshape(len(exact), -1).norm(dim=1)
    return float(errors.max() / sizes.pow(2).mean().sqrt())
