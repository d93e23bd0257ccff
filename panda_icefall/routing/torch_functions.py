"""Functions of torch by what they do, under all their names, and their twins in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "FROM_SHAPE_AND_DTYPE",
    "IN_PLACE",
    "LOG_SOFTMAX",
    "MASKED_FILL",
    "NEGATE",
    "ON_THE_GRADIENT",
    "POINTWISE",
    "SIGN_OF",
    "SUBTRACT_FROM",
    "cast_target",
    "functions_named",
    "name_of",
]

Function = Callable[..., Any]
_HOMES = (torch, Tensor, F)
_POINTWISE = (
    "add sub subtract rsub mul multiply div divide true_divide neg negative pow abs absolute "
    "square sqrt rsqrt reciprocal exp expm1 log log1p erf sin cos sign "
    "tanh relu sigmoid silu gelu leaky_relu hardtanh elu selu celu mish softplus relu6 hardswish "
    "hardsigmoid softsign logsigmoid tanhshrink hardshrink softshrink threshold "
    "clamp clip clamp_min clamp_max maximum minimum where masked_fill lerp addcmul addcdiv "
    "gt ge lt le eq ne greater greater_equal less less_equal logical_and logical_or logical_not "
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__ "
    "__pow__ __rpow__ __abs__ __gt__ __ge__ __lt__ __le__ __eq__ __ne__"
)


def functions_named(names: str) -> list[Function]:
    """The functions of these names in torch, of tensors, and of neural networks."""
    found = [getattr(home, n, None) for n in names.split() for home in _HOMES]
    return [function for function in found if callable(function)]


# Functions that treat every element by itself.
POINTWISE = functions_named(_POINTWISE)
LOG_SOFTMAX = functions_named("log_softmax")
NEGATE = functions_named("neg negative __neg__")
MASKED_FILL = functions_named("masked_fill")
# Functions of two arguments -> what they do.
SIGN_OF = {
    function: sign
    for sign, names in {
        "*": "mul multiply __mul__ __rmul__",
        "/": "div divide true_divide __truediv__",
        "+": "add __add__ __radd__",
        "-": "sub subtract __sub__",
    }.items()
    for function in functions_named(names)
}
SUBTRACT_FROM = functions_named("rsub __rsub__")
# Twin in place -> the function it stands for.
IN_PLACE = {
    getattr(home, name + "_"): getattr(home, name)
    for name in f"{_POINTWISE} dropout".split()
    if not name.startswith("__")
    for home in _HOMES
    if hasattr(home, name + "_") and hasattr(home, name)
} | {
    getattr(Tensor, f"__i{name}__"): getattr(Tensor, f"__{name}__")
    for name in ("add", "sub", "mul", "truediv", "pow")
}
# What shape and dtype tell, without a value; strides and aliases are not among it.
FROM_SHAPE_AND_DTYPE = set(
    "size dim ndimension numel nelement __len__ element_size itemsize nbytes layout is_sparse "
    "is_quantized is_mkldnn is_nested is_floating_point is_complex is_signed".split()
)
# What is done to the gradient on its way through a tensor.
ON_THE_GRADIENT = {"register_hook", "retain_grad", "register_post_accumulate_grad_hook"}
_CASTS: dict[Any, torch.dtype] = {
    Tensor.float: torch.float32,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.double: torch.float64,
}


def name_of(function: Any) -> str:
    """What messages and counters call a function; never an address in memory."""
    name = getattr(function, "__name__", None) or getattr(function, "name", None)
    if name == "__get__":  # of an attribute
        return name_of(function.__self__)
    if isinstance(name, str):
        return name
    return name_of(function.func) if hasattr(function, "func") else type(function).__name__


def cast_target(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.dtype | None:
    """The dtype that ``args[0].float()``, ``.to(...)`` and the like give.

    Args:
      function, args, kwargs: a call; its first argument is a stand-in.

    Returns:
      None where the function is none of them, or does more than change the dtype to a floating one.
    """
    value, *rest = args
    if function in _CASTS:
        return None if rest or kwargs else _CASTS[function]
    if function is not Tensor.to:
        return None
    dtype, device = value.dtype, value.device
    if kwargs.get("copy"):
        return None
    for option in (*rest, *(v for k, v in kwargs.items() if k in ("dtype", "device", "other"))):
        if isinstance(option, torch.dtype):
            dtype = option
        elif isinstance(option, (str, torch.device)):
            device = torch.device(option)
        elif hasattr(option, "dtype") and hasattr(option, "device"):  # a tensor or a stand-in
            dtype, device = option.dtype, option.device
    same_index = device.index in (None, value.device.index)
    if device.type != value.device.type or not same_index or not dtype.is_floating_point:
        return None
    return dtype
