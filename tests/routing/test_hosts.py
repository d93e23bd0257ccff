"""Where the losses are looked for: k2, fast_rnnt, the project's own; and names bound elsewhere."""

import ast
import inspect
import sys
import types
from pathlib import Path

import counted
import pytest
import torch
import toy
import toy_simple

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing import PandaError, hosts


def fast_rnnt_module(parameters):
    """A module named fast_rnnt whose losses raise; ``parameters`` as of one of its versions."""
    module = types.ModuleType("fast_rnnt")
    module.get_rnnt_prune_ranges = rnnt.get_rnnt_prune_ranges
    for name, given in parameters.items():
        module.__dict__[name] = _raising(name, given)
    return module


def _raising(name, parameters):
    def function(*args, **kwargs):
        raise AssertionError(f"the original {name} was reached")

    names = [p.partition("=")[0] for p in parameters]
    defaults = [
        eval(p.partition("=")[2]) if "=" in p else inspect.Parameter.empty for p in parameters
    ]
    function.__name__, function.__module__ = name, "fast_rnnt.rnnt_loss"
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=d)
            for n, d in zip(names, defaults)
        ]
    )
    return function


def test_every_symbol_is_listed_once():
    listed = [(host, symbol.name) for symbol in hosts.SYMBOLS for host in symbol.hosts]
    assert len(listed) == len(set(listed))
    package = Path(panda_icefall.__file__).parent
    names = {symbol.name for symbol in hosts.SYMBOLS}
    for file in package.rglob("*.py"):
        # These say which names they export; one of our functions is called as another's.
        exports = file.name in ("__init__.py", "own_loop.py") or "losses" in file.parts
        lists = (Path(hosts.__file__), Path(rnnt.__file__))
        if file not in lists and not exports:
            for node in ast.walk(ast.parse(file.read_text())):
                text = node.value if isinstance(node, ast.Constant) else None
                words = set(text.split()) if isinstance(text, str) else set()
                assert not (words and words <= names), f"{file}:{node.lineno} lists {text}"


TAILS = {
    "first versions": "modified=False reduction='mean'".split(),
    "later versions": "rnnt_type='regular' delay_penalty=0.0 reduction='mean'".split(),
}


def parameters_of(version):
    pair = "lm am symbols termination_symbol".split()
    tail, scales = TAILS[version], ["lm_only_scale=0.1", "am_only_scale=0.1"]
    return {
        "do_rnnt_pruning": ["am", "lm", "ranges"],
        "rnnt_loss_pruned": "logits symbols ranges termination_symbol boundary=None".split() + tail,
        "rnnt_loss_smoothed": [*pair, *scales, "boundary=None", *tail, "return_grad=False"],
        "rnnt_loss_simple": [*pair, "boundary=None", *tail, "return_grad=False"],
        "rnnt_loss": "logits symbols termination_symbol boundary=None".split() + tail,
    }


@pytest.fixture
def install(monkeypatch):
    def install(version):
        module = fast_rnnt_module(parameters_of(version))
        monkeypatch.setitem(sys.modules, "fast_rnnt", module)
        return module

    yield install
    panda_icefall.revert()


@pytest.mark.parametrize(
    ("version", "options", "theirs"),
    [
        ("first versions", {}, {}),
        ("first versions", {"rnnt_type": "modified"}, {"modified": True}),
        ("later versions", {"rnnt_type": "modified"}, {"rnnt_type": "modified"}),
        ("later versions", {"delay_penalty": 0.1}, {"delay_penalty": 0.1}),
    ],
)
def test_the_losses_of_fast_rnnt_are_routed(install, version, options, theirs):
    fast_rnnt = install(version)
    torch.manual_seed(1)
    joiner, model = toy.TanhJoiner().double(), toy_simple.Transducer().double()
    data = toy.batch(rnnt, torch.float64)
    pruned = toy.loss_and_gradients(rnnt, joiner, data, **options)
    simple = toy_simple.loss_and_gradients(rnnt, model, data, **options)
    with panda_icefall.patched(model, adjoint_tolerance=0):
        routed = toy.loss_and_gradients(fast_rnnt, joiner, data, **theirs)
        routed_simple = toy_simple.loss_and_gradients(fast_rnnt, model, data, **theirs)
        status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense, status.materialised) == (1, 0, {})
    assert (status.simple_losses_deferred, status.simple_losses_dense) == (1, 0)
    names = {s.name for s in hosts.SYMBOLS if s.is_replaced and "fast_rnnt" in s.hosts}
    assert {f"fast_rnnt.{name}" for name in names} <= set(status.replaced)
    torch.testing.assert_close(routed, pruned, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(routed_simple, simple, rtol=1e-10, atol=1e-12)
    assert "original" in inspect.getsource(fast_rnnt.rnnt_loss_pruned)  # it is back


def test_occupations_of_a_pruned_loss_are_left_to_fast_rnnt(install):
    fast_rnnt, data = install("later versions"), toy.batch(rnnt)
    parameters = [*parameters_of("later versions")["rnnt_loss_pruned"], "return_grad=False"]
    fast_rnnt.rnnt_loss_pruned = _raising("rnnt_loss_pruned", parameters)
    with counted.routed(dense=1, materialised={"return_grad": 1}):
        toy.pruned_loss(fast_rnnt, toy.TanhJoiner(), data)
        with pytest.raises(AssertionError, match="the original rnnt_loss_pruned was reached"):
            toy.pruned_loss(fast_rnnt, toy.TanhJoiner(), data, return_grad=True)


def test_occupations_of_a_hat_loss_are_given_where_fast_rnnt_has_no_hat_loss(install):
    fast_rnnt, data = install("later versions"), toy.batch(rnnt)
    parameters = [*parameters_of("later versions")["rnnt_loss_pruned"], "return_grad=False"]
    fast_rnnt.rnnt_loss_pruned = _raising("rnnt_loss_pruned", parameters)
    joiner, options = toy.TanhJoiner(), {"use_hat_loss": True, "return_grad": True}
    expected = toy.pruned_loss(rnnt, joiner, data, **options)
    with counted.routed(0, dense=1, materialised={"return_grad": 1}):
        got = toy.pruned_loss(fast_rnnt, joiner, data, **options)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_an_unknown_fast_rnnt_is_left_alone_and_said(install, k2, caplog):
    fast_rnnt = install("later versions")
    fast_rnnt.rnnt_loss_pruned = other = lambda logits: None
    with panda_icefall.patched():
        assert fast_rnnt.rnnt_loss_pruned is other
        assert any(n.endswith(".rnnt_loss_pruned") for n in panda_icefall.status().replaced)
    assert "losses of fast_rnnt are not routed: fast_rnnt.rnnt_loss_pruned of" in caplog.text


def test_names_bound_before_are_said_once_by_module_and_name(k2, monkeypatch, caplog):
    script = types.ModuleType("my_training_script")
    script.pruned_loss, script.prune = k2.rnnt_loss_pruned, k2.do_rnnt_pruning
    script.k2 = k2
    monkeypatch.setitem(sys.modules, script.__name__, script)
    monkeypatch.setitem(sys.modules, "__mp_main__", script)  # multiprocessing's second name
    with panda_icefall.patched():
        pass
    assert "__mp_main__" not in caplog.text
    said = [r.getMessage() for r in caplog.records if script.__name__ in r.getMessage()]
    assert len(said) == 2
    name = f"{k2.__name__}.rnnt_loss_pruned"
    assert said[0].startswith(f"panda: my_training_script.pruned_loss is {name} from before apply")
    caplog.clear()
    with panda_icefall.patched():
        pass
    assert caplog.text == ""


def test_our_own_functions_are_routed_beside_those_of_k2(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)
    model = toy_simple.Transducer().double()
    pruned = toy.loss_and_gradients(k2, joiner, data)
    simple = toy_simple.loss_and_gradients(k2, model, data)
    with counted.routed(2, adjoint_tolerance=0), counted.deferred(model, 2):
        for library in (rnnt, k2):
            routed = toy.loss_and_gradients(library, joiner, data)
            torch.testing.assert_close(routed, pruned, rtol=1e-10, atol=1e-12)
            routed = toy_simple.loss_and_gradients(library, model, data)
            torch.testing.assert_close(routed, simple, rtol=1e-10, atol=1e-12)


def test_our_own_functions_may_be_the_module_k2(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", rnnt)
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(rnnt, torch.float64)
    dense = toy.loss_and_gradients(rnnt, joiner, data)
    with counted.routed(adjoint_tolerance=0):
        routed = toy.loss_and_gradients(rnnt, joiner, data)
    torch.testing.assert_close(routed, dense, rtol=1e-12, atol=1e-12)


def test_strict_raises_before_a_loss_goes_dense_and_says_why(k2):
    data, model = toy.batch(k2), toy_simple.Transducer()
    logits = torch.randn(toy.B, toy.T, toy.S_RANGE, toy.C)
    arguments = (data.symbols, data.ranges, 0, data.boundary)
    with panda_icefall.patched(model, strict=True):
        toy.pruned_loss(k2, toy.TanhJoiner(), data)
        toy_simple.loss_and_gradients(k2, model, data)
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        with pytest.raises(
            PandaError, match=r"strict=True: .*rnnt_loss_pruned would be .*ordinary"
        ):
            k2.rnnt_loss_pruned(logits, *arguments)
        with pytest.raises(
            PandaError, match=r"recorded tensors were turned into .* by fft_fft \(1 t"
        ):
            k2.rnnt_loss_pruned(torch.fft.fft(toy.TanhJoiner()(am, lm)).real, *arguments)
        half = torch.randn(toy.B, toy.T, toy.C).half(), torch.randn(toy.B, toy.S + 1, toy.C).half()
        with pytest.raises(PandaError, match="am and lm are half tensors"):
            k2.rnnt_loss_simple(half[1], half[0], data.symbols, 0)
        status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense) == (1, 0)
    assert (status.simple_losses_routed, status.simple_losses_dense) == (1, 0)
    with panda_icefall.patched():
        k2.rnnt_loss_pruned(logits, *arguments)  # without strict as before


def test_projections_are_named_by_their_kinds(k2):
    with pytest.raises(ValueError, match=r"projections: got \{'lm2': 'a'\}, expected"):
        panda_icefall.apply(projections={"lm2": "a"})
    with pytest.raises(ValueError, match=r"projections: got am='am_prjo', expected .*am_proj"):
        panda_icefall.apply(toy_simple.Transducer(), projections={"am": "am_prjo"})
    assert panda_icefall.status().replaced == ()


def test_options_are_given_by_name(k2):
    with pytest.raises(TypeError, match=r"model: got int, expected a torch.nn.Module .*by name"):
        panda_icefall.apply(64)
    with pytest.raises(TypeError, match="model: got float, expected"), panda_icefall.patched(0.5):
        pass
    with pytest.raises(TypeError, match="positional argument"):
        panda_icefall.apply(None, 64)
    assert panda_icefall.status().replaced == ()
