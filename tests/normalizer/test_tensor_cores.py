"""Float32 GEMMs of half-precision values may use TF32 on CUDA; nothing else may, and not for long.

The settings are those of CUDA and exist on a CPU as well, where they have no effect.
"""

import pytest
import torch

from panda_icefall.normalizer import selected_log_probs, tensor_cores

MATMUL = torch.backends.cuda.matmul
HAS_PRECISION = hasattr(torch.backends, "fp32_precision")


def is_tf32():
    return MATMUL.fp32_precision == "tf32" if HAS_PRECISION else MATMUL.allow_tf32


def settings():
    named = torch.get_float32_matmul_precision()
    return named, MATMUL.allow_tf32, MATMUL.fp32_precision if HAS_PRECISION else None


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_float32_matmul_precision()
    precision = MATMUL.fp32_precision if HAS_PRECISION else None
    yield
    torch.set_float32_matmul_precision(before)
    if HAS_PRECISION:
        MATMUL.fp32_precision = precision


@pytest.mark.parametrize("precision", [None, "highest", "high"])
def test_the_settings_are_those_of_before_afterwards_even_after_an_error(precision):
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    before = settings()
    with tensor_cores.tf32(True):
        assert is_tf32()
        assert MATMUL.allow_tf32  # the two ways to ask agree, or torch refuses to tell
    assert settings() == before

    with pytest.raises(KeyError), tensor_cores.tf32(True):
        raise KeyError
    assert settings() == before


def test_nothing_changes_where_it_is_not_wanted():
    torch.set_float32_matmul_precision("highest")
    with tensor_cores.tf32(False):
        assert not is_tf32()


@pytest.mark.skipif(not HAS_PRECISION, reason="torch 2.9 has the setting by name")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_a_precision_set_by_name_is_kept(precision):
    MATMUL.fp32_precision = precision
    with tensor_cores.tf32(True):
        assert is_tf32()
    assert MATMUL.fp32_precision == precision


def test_half_values_are_those_of_the_dtype_or_of_the_rounding():
    half, single = torch.zeros(1, dtype=torch.float16), torch.zeros(1)
    assert not tensor_cores.holds_half(half, None)  # a CPU has none

    class OnCuda(torch.Tensor):
        is_cuda = True

    assert tensor_cores.holds_half(half.as_subclass(OnCuda), None)
    assert tensor_cores.holds_half(single.as_subclass(OnCuda), torch.bfloat16)
    assert not tensor_cores.holds_half(single.as_subclass(OnCuda), None)
    assert not tensor_cores.holds_half(half.as_subclass(OnCuda), torch.float32)


@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
def test_where_torch_has_no_half_gemms_those_of_heads_ask_for_tf32_and_the_joiner_does_not(
    monkeypatch, head_dtype
):
    seen = []

    def recording(name):
        function = getattr(torch, name)

        def call(*args, **kwargs):
            seen.append((name, is_tf32()))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(tensor_cores, "holds_half", lambda tensor, dtype: dtype is not None)
    monkeypatch.setattr(tensor_cores, "widening_gemms", lambda *given: (False, False))
    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, recording(name))
    rows, weight = torch.ones(3, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    ids = torch.zeros(3, 1, dtype=torch.int64)
    selected_logp, _ = selected_log_probs(
        rows, weight, torch.ones(5), ids, head_dtype=head_dtype, adjoint_tolerance=0
    )
    selected_logp.sum().backward()
    wanted = head_dtype is not None
    assert seen == [("addmm", wanted), ("addmm", wanted), ("mm", wanted), ("addmm", wanted)]
    assert not is_tf32()
