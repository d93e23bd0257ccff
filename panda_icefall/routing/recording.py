"""Which operations on a deferred joiner are recorded, and how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.routing import linear_forms, row_operations
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.nodes import NotRecordableError, Operand, Table, cast
from panda_icefall.routing.row_operations import Arguments, Function, Keywords, along_channel, rows
from panda_icefall.routing.site_tensor import SiteTensor
from panda_icefall.routing.stand_in import cast_target, flat
from panda_icefall.routing.views import shape_of_other, view

Rule = Callable[[Function, Arguments, Keywords, SiteTensor], Any]

# Functions that treat every element by itself; those with a twin in place are recorded as well.
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
# Functions along X, and where and what their argument `dim` is.
_ALONG_X = {
    "softmax log_softmax softmin sum mean amax amin logsumexp var": (1, None),
    "glu": (1, -1),
    "normalize": (2, 1),
}
_VIEWS = (
    "reshape view flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims movedim "
    "moveaxis t expand narrow chunk split tensor_split __getitem__"
)


def _cast(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    if args[0] is not joint:
        # An ordinary tensor, which is to be as this one.
        return args[0].to(device=joint.device, dtype=joint.dtype)
    dtype = cast_target(Tensor.to if function is Tensor.type_as else function, args, kwargs)
    if dtype is None:
        raise NotRecordableError
    return joint if dtype == joint.dtype else joint.derive(cast(joint.node, dtype))


def _new(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> Any:
    """Another tensor, of the same dtype and device."""
    return function(torch.empty(0, dtype=joint.dtype, device=joint.device), *args[1:], **kwargs)


def _same(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    return joint


def _clone(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    if isinstance(joint.node, Operand):
        # Changed in place later, the tensor would take the copy with it.
        raise NotRecordableError
    return joint.derive(joint.node)


def _contiguous(
    function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor
) -> SiteTensor:
    if isinstance(joint.node, Operand) or len(args) > 1 or kwargs:
        raise NotRecordableError
    # The am that k2 returns is an expanded view: its contiguous() is a copy.
    is_view = isinstance(joint.node, Table) and not joint.node.by_symbol
    is_copy = is_view or joint.channel != joint.ndim - 1
    return joint.derive(joint.node) if is_copy else joint


def _homes(names: str) -> list[Function]:
    """The functions of these names in torch, of tensors, and of neural networks."""
    found = [getattr(home, n, None) for n in names.split() for home in (torch, Tensor, F)]
    return [function for function in found if callable(function)]


def _rules() -> dict[Function, Rule]:
    rules: dict[Function, Rule] = dict.fromkeys(_homes(_POINTWISE), rows)
    for names, dim in _ALONG_X.items():
        rules.update(dict.fromkeys(_homes(names), along_channel(*dim)))
    for names, rule in (
        (_VIEWS, view),
        ("view_as reshape_as expand_as", shape_of_other),
        ("new_zeros new_ones new_full new_empty new_tensor", _new),
        ("cat concat concatenate", row_operations.cat),
        ("hstack", row_operations.hstack),
        ("layer_norm rms_norm", row_operations.norm),
        ("prelu", row_operations.prelu),
        ("dropout", row_operations.dropout),
        ("linear", linear_forms.linear_layer),
        ("matmul mm __matmul__", linear_forms.matrix_product),
        ("addmm", linear_forms.added_product),
        ("einsum", linear_forms.einsum),
        ("conv1d conv2d conv3d", linear_forms.convolution),
        ("float half bfloat16 double to type_as", _cast),
        ("clone", _clone),
        ("contiguous", _contiguous),
        ("positive __pos__", _same),
    ):
        rules.update(dict.fromkeys(_homes(names), rule))
    return rules


_RULES = _rules()
# Twin in place -> the function it stands for.
_IN_PLACE = {
    getattr(home, name + "_"): getattr(home, name)
    for name in f"{_POINTWISE} dropout".split()
    if not name.startswith("__")
    for home in (torch, Tensor, F)
    if hasattr(home, name + "_") and hasattr(home, name)
} | {
    getattr(Tensor, f"__i{name}__"): getattr(Tensor, f"__{name}__")
    for name in ("add", "sub", "mul", "truediv", "pow")
}


def record(function: Function, args: Arguments, kwargs: Keywords) -> Any:
    """The deferred result of ``function(*args, **kwargs)``, or None if it cannot be recorded."""
    is_in_place = function in _IN_PLACE or bool(kwargs.get("inplace"))
    given = {key: value for key, value in kwargs.items() if key != "inplace"}
    rule = _RULES.get(_IN_PLACE.get(function, function))
    try:
        if rule is None:
            raise NotRecordableError
        joint = _joint(args[:1] if rule is view else (*args, *kwargs.values()))
        if not is_in_place:
            return rule(function, args, given, joint)
        target = args[0]
        if not isinstance(target, SiteTensor) or not target.is_alone:
            raise NotRecordableError
        result = rule(_IN_PLACE.get(function, function), args, given, joint)
        if result.shape != target.shape:
            raise NotRecordableError
        return target.become(cast(result.node, target.dtype))
    except PandaError:
        raise
    except Exception:
        # NotRecordableError, or what a rule raised: torch says it again, or does it, on tensors.
        changed = args[0] if is_in_place or _changes_first(function) else kwargs.get("out")
        if isinstance(changed, SiteTensor):
            changed.before_change()
        return None


def _joint(arguments: Iterable[Any]) -> SiteTensor:
    """One of the site tensors among the arguments, which must fit together."""
    joints = [value for value in flat(arguments) if isinstance(value, SiteTensor)]
    for joint in joints:
        # Recorded in another grad mode, it would get other gradients.
        is_cut = joint.grad_enabled != torch.is_grad_enabled()
        if (
            joint.sites is not joints[0].sites
            or joint.axes != joints[0].axes
            or (is_cut and not isinstance(joint.node, Operand))
        ):
            raise NotRecordableError
    if not joints:
        raise NotRecordableError
    return joints[0]


def _changes_first(function: Function) -> bool:
    """Whether a function changes its first argument, by its name."""
    name = getattr(function, "__name__", "")
    is_operator = name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}")
    return is_operator or name == "__setitem__" or (name.endswith("_") and name[-2:] != "__")
