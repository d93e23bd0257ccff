"""Classes of other toolkits from a checkout, trained one step dense and routed."""

import importlib
import os
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import torch
import toy

import panda_icefall

D_ENC, D_DEC, JOINT = 12, 10, 14
T_LENS, S_LENS = (toy.T, 7, 5), (toy.S, 3, 0)


@contextmanager
def checkout(variable, *packages, **stand_ins):
    """Modules of packages in a checkout can be imported; afterwards they are forgotten.

    The packages' own `__init__.py`, which imports all of a toolkit, is not run.

    Args:
      variable: of the environment, that names the folder of the packages.
      stand_ins: attributes of modules that are not installed here; `__` in a name is its dot.
    """
    root = Path(os.environ[variable]).resolve()
    given = {package: types.ModuleType(package) for package in packages}
    for package, module in given.items():
        module.__path__ = [str(root / package)]
    for name, attributes in stand_ins.items():
        module = types.ModuleType(name.replace("__", "."))
        vars(module).update(attributes)
        given[module.__name__] = module
    before = set(sys.modules)
    assert before.isdisjoint(given), "a stand-in is for what is missing"
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules.update(given)
    try:
        yield importlib.import_module
    finally:
        sys.dont_write_bytecode = writes
        roots = {name.partition(".")[0] for name in given}
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in roots:
                del sys.modules[name]


class Batch:
    """Encoder output and labels of a ragged batch; one utterance has no label."""

    def __init__(self, padding=-1):
        g = torch.Generator().manual_seed(3)
        self.encoder_out = torch.randn(toy.B, toy.T, D_ENC, generator=g).requires_grad_()
        self.text = torch.randint(1, toy.C, (toy.B, toy.S), generator=g)
        self.t_lens, self.s_lens = torch.tensor(T_LENS), torch.tensor(S_LENS)
        self.text.masked_fill_(torch.arange(toy.S) >= self.s_lens[:, None], padding)


def compare(model, batch, loss_of, monkeypatch, simple=1):
    """Assert that one step gives the same loss and gradients dense and routed, all of it routed.

    Args:
      loss_of: called without arguments.
      simple: how many simple losses there are, after which ranges are chosen.
    """
    import k2

    choose = k2.get_rnnt_prune_ranges
    chosen = []

    def same_ranges(*args, **kwargs):
        # The simple loss of tiles differs by rounding, on which ties between ranges hang.
        chosen.append(choose(*args, **kwargs))
        return chosen[0]

    monkeypatch.setattr(k2, "get_rnnt_prune_ranges", same_ranges)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step():
        torch.manual_seed(5)  # dropout
        loss = loss_of()
        leaves = [batch.encoder_out, *parameters]
        return loss.detach(), torch.autograd.grad(loss, leaves, allow_unused=True)

    dense = step()
    with panda_icefall.patched(model, adjoint_tolerance=0, strict=True):
        routed = step()
        status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense) == (1, 0)
    assert (status.simple_losses_deferred, status.simple_losses_of_tensors) == (simple, 0)
    assert status.simple_losses_dense == 0
    assert status.materialised == {}
    assert len(chosen) == 2 * simple
    torch.testing.assert_close(routed[0], dense[0], rtol=1e-6, atol=0)
    reached = [(x, y) for x, y in zip(routed[1], dense[1]) if y is not None]
    assert len(reached) > 8
    assert [x is None for x in routed[1]] == [y is None for y in dense[1]]
    for ours, theirs in reached:
        assert (ours - theirs).norm() <= 2e-5 * theirs.norm()
