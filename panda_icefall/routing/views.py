"""Recording of views: other shapes of the sites' dimensions, X moved, and slices of X."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from panda_icefall.routing.nodes import NotRecordableError
from panda_icefall.routing.row_operations import Arguments, Function, Keywords, rows
from panda_icefall.routing.site_tensor import SiteTensor


def view(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> Any:
    """A function that gives views, or a tuple of them, of the recorded tensor.

    What it does is read off a tensor without memory: its strides say where the sites and X went.

    Raises:
      NotRecordableError: the sites' order is another one then, or it is no view.
    """
    if joint.width == 1 or not args or args[0] is not joint:
        raise NotRecordableError
    with torch.inference_mode(False):  # whose tensors do not say that they are views
        args, kwargs = without_memory(args), {k: without_memory(v) for k, v in kwargs.items()}
        result = function(*args, **kwargs)

    def one(probe: Tensor, index: int | None) -> SiteTensor:
        return _placed(
            joint, args[0], probe, functools.partial(_again, function, args, kwargs, index)
        )

    if isinstance(result, (tuple, list)):
        return type(result)(one(probe, index) for index, probe in enumerate(result))
    return one(result, None)


def shape_of_other(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> Any:
    """``expand_as`` and the like, which read the shape of their second argument only."""
    if args[0] is joint or len(args) != 2 or kwargs:
        return view(function, args, kwargs, joint)
    return function(args[0], without_memory(args[1]))


def _again(
    function: Function, args: Arguments, kwargs: Keywords, index: int | None, tensor: Tensor
) -> Tensor:
    result = function(tensor, *args[1:], **kwargs)
    return result if index is None else result[index]


def without_memory(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(without_memory, value))
    if not isinstance(value, SiteTensor):
        return value
    shape = (*value.lead, value.width)
    return torch.empty(shape, dtype=value.dtype, device="meta").movedim(-1, value.channel)


def _placed(joint: SiteTensor, whole: Tensor, probe: Any, function: Function) -> SiteTensor:
    """The view of the joint that a probe shows."""
    if not isinstance(probe, Tensor) or not (probe is whole or probe._is_view()):
        raise NotRecordableError
    if probe.numel() != whole.numel():
        return _slice(joint, whole, probe, function)
    places = [i for i, n in enumerate(probe.shape) if n == joint.width and probe.stride(i) == 1]
    if len(places) != 1 or not probe.movedim(places[0], -1).is_contiguous():
        raise NotRecordableError
    (channel,) = places
    lead = (*probe.shape[:channel], *probe.shape[channel + 1 :])
    if (lead, channel) == joint.axes:
        return joint
    return joint.shared(joint.node, function, lead, channel)


def _slice(joint: SiteTensor, whole: Tensor, probe: Tensor, function: Function) -> SiteTensor:
    """Some of the classes: ``x[..., begin:end:step]``, however it is written."""
    channel = joint.channel
    if probe.dim() != whole.dim() or probe.shape[channel] == 0:
        raise NotRecordableError
    for i in range(whole.dim()):
        if i != channel and (probe.size(i), probe.stride(i)) != (whole.size(i), whole.stride(i)):
            raise NotRecordableError
    first, step = probe.storage_offset(), probe.stride(channel)
    if first >= joint.width:
        raise NotRecordableError
    columns = slice(first, first + (probe.shape[channel] - 1) * step + 1, step)
    recorded = rows(Tensor.__getitem__, (joint, (..., columns)), {}, joint)
    return joint.shared(recorded.node, function, *joint.axes)
