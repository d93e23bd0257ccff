"""``DeferredJoint``: a site tensor that records what is done to it, by one rule per function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from panda_icefall.routing import linear_forms, row_operations
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.nodes import NotRecordableError, Operand, Table, cast
from panda_icefall.routing.packing import packed_joint
from panda_icefall.routing.row_operations import Arguments, Function, Keywords, along_channel, rows
from panda_icefall.routing.site_tensor import SiteTensor
from panda_icefall.routing.stand_in import flat
from panda_icefall.routing.torch_functions import IN_PLACE, POINTWISE, cast_target, functions_named
from panda_icefall.routing.views import shape_of_other, view

Rule = Callable[[Function, Arguments, Keywords, SiteTensor], Any]

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


def _rules() -> dict[Function, Rule]:
    rules: dict[Function, Rule] = dict.fromkeys(POINTWISE, rows)
    for names, dim in _ALONG_X.items():
        rules.update(dict.fromkeys(functions_named(names), along_channel(*dim)))
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
        rules.update(dict.fromkeys(functions_named(names), rule))
    return rules


_RULES = _rules()


class DeferredJoint(SiteTensor):
    """A ``[B, T, s_range, X]`` tensor that is not there yet; a function with a rule gives another.

    ``k2.do_rnnt_pruning`` returns two of these while PANDA is applied.
    """

    def record(self, function: Function, args: Arguments, kwargs: Keywords) -> Any:
        """The result of ``function(*args, **kwargs)``, deferred; None: it cannot be recorded."""
        is_in_place = function in IN_PLACE or bool(kwargs.get("inplace"))
        given = {key: value for key, value in kwargs.items() if key != "inplace"}
        rule = _RULES.get(IN_PLACE.get(function, function))
        try:
            if rule is None:
                raise NotRecordableError
            if rule is row_operations.cat and (packed := packed_joint(*args, **kwargs)) is not None:
                return packed
            joint = _joint(args[:1] if rule is view else (*args, *kwargs.values()))
            if not is_in_place:
                return rule(function, args, given, joint)
            target = args[0]
            if not isinstance(target, SiteTensor) or not target.is_alone:
                raise NotRecordableError
            result = rule(IN_PLACE.get(function, function), args, given, joint)
            if result.shape != target.shape:
                raise NotRecordableError
            return target.become(cast(result.node, target.dtype))
        except PandaError:
            raise
        except Exception:
            # NotRecordableError, or what a rule raised: torch raises it again, or runs, on tensors.
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
