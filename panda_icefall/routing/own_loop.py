"""Transducer losses from a joiner, for a training loop of one's own: nothing needs ``apply``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.argument_kinds import as_indices, as_integer, as_rows, check_kinds
from panda_icefall.losses.lengths import sites_of_ranges, sites_of_utterances
from panda_icefall.losses.pruning import check_pruning_form
from panda_icefall.losses.sites import FullSites, RetainedSites
from panda_icefall.losses.spec import LatticeSpec, check_options
from panda_icefall.losses.variant import Variant
from panda_icefall.routing.axis_tensor import AxisTensor
from panda_icefall.routing.deferred import DeferredJoint
from panda_icefall.routing.joiner_calls import Joiner, SiteRows
from panda_icefall.routing.joiner_loss import loss_of_joiner, refuse
from panda_icefall.routing.joint_sites import GridSites, RangesSites
from panda_icefall.routing.nodes import Table
from panda_icefall.routing.replaced import Options

__all__ = ["pruned_transducer_loss", "transducer_loss"]

_RANGES = "[B, T, s_range]; the loss of all states is that of transducer_loss"


@opaque
def transducer_loss(
    joiner: Joiner,
    encoder_out: Tensor,
    decoder_out: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    *,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    one_sym_per_frame: bool = False,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    use_hat_loss: bool = False,
    big_blank_durations: Sequence[int] | None = None,
    durations: Sequence[int] | None = None,
    sigma: float = 0.0,
    omega: float = 0.0,
    workspace_mib: float | None = None,
    adjoint_tolerance: float | None = None,
    engine: str = "auto",
    recursion: str = "auto",
) -> Tensor:
    """The transducer loss of the full lattice, from the joiner and not from its logits.

    Equal to ``torchaudio.functional.rnnt_loss(joiner(encoder_out, decoder_out), targets,
    logit_lengths, target_lengths, blank, clamp, reduction)`` without materialising the logits
    ``[B, T, S + 1, C]``, or anything of ``[B, T, S + 1, H]``, forward or backward::

        loss = panda_icefall.transducer_loss(
            model.joiner, encoder_out, decoder_out, targets, frames, symbols, blank=0
        )
        loss.backward()

    The joiner runs once, on objects that record what it does, and is computed for some sites at a
    time: for exactly ``sum_b T_b (S_b + 1)`` of them. What can be recorded: sums and products of
    the two, ``cat``, linear layers, activations, norms over X, dropout, casts and views; the table
    of joiners in egs/README.md has more. A joiner that does anything else is called for some sites
    at a time, with ``[n, 1, D]`` instead of ``[B, T, D]``, and its dropout draws other numbers then
    than in a dense run. If its logits at one site depend on other sites, or it changes its buffers,
    it is given all of them, and its loss is computed from its logits. Both are logged once and
    counted in ``status()``. Recorded dropout draws the same numbers as dense, and keeps a byte for
    each of them.

    Several processes: FSDP2 (``fully_shard``) gathers a recorded joiner again for the loss and for
    its backward. A last layer whose weight and bias are DTensors sharded on the classes,
    ``Shard(0)``, is vocabulary-parallel: every rank of that group gives the same batch, keeps its
    own classes, and gets the same loss.

    Args:
      joiner: a module or function of ``(encoder_out, decoder_out)`` that gives logits.
      encoder_out: ``[B, T, D]``, or ``[B, T, 1, D]`` where the joiner takes it so.
      decoder_out: ``[B, S + 1, E]``, or ``[B, 1, S + 1, E]``.
      targets: integers ``[B, S]``; what lies beyond an utterance's length is not read.
      logit_lengths: integers ``[B]``, frames of each utterance, 1 to T.
      target_lengths: integers ``[B]``, symbols of each utterance, 0 to S.
      blank: class of the blank; a negative one counts from the last class.
      reduction: "none", "mean" (over utterances, one or more) or "sum".
      clamp: above 0, each utterance's gradient with respect to the logits is clipped to
        ``[-clamp, clamp]``, before it is multiplied by the gradient of the utterance's loss, as in
        torchaudio. TDT's durations are left alone, as in NeMo.
      fastemit_lambda: FastEmit (arXiv:2010.11148), as in warp-transducer and NeMo: the gradients of
        the symbols' log-probs are scaled by ``1 + fastemit_lambda``, and so is the loss.
      one_sym_per_frame: the modified lattice of optimized_transducer, which ends with a blank.
      rnnt_type: "regular", "modified" or "constrained", as in k2.
      delay_penalty: as in k2, see ``panda_icefall.losses.spec.LatticeOptions``.
      use_hat_loss: HAT (arXiv:2003.07705); blank must be 0.
      big_blank_durations: multi-blank (arXiv:2211.03541): frames that each big blank passes. Big
        blank ``i`` is class ``blank - 1 - i``.
      durations: TDT (arXiv:2304.06795): frames that each duration passes, ascending. The joiner's
        last ``len(durations)`` logits are theirs, ``C`` counts the others.
      sigma, omega: of multi-blank and TDT, see ``panda_icefall.losses.variant.Variant``.
      workspace_mib, adjoint_tolerance, engine, recursion: as in ``apply``.

    Returns:
      The loss in nats, ``[B]`` for "none", else a scalar; float64 for a float64 joiner, float32
      for others.

    Raises:
      ValueError: a shape or a value does not fit; of a value the utterance is named.
      TypeError: a dtype does not fit.

    Device syncs: one in forward, for all that is read of the lengths and targets, one in backward,
    and those of the recursion.
    """
    check_kinds(
        joiner, delay_penalty=delay_penalty, clamp=clamp, fastemit_lambda=fastemit_lambda,
        sigma=sigma, omega=omega, workspace_mib=workspace_mib, adjoint_tolerance=adjoint_tolerance,
    )  # fmt: skip
    blank = as_integer("blank", blank)
    variant = Variant(use_hat_loss, big_blank_durations, durations, sigma, omega)
    if one_sym_per_frame:
        variant.check_lattice("one_sym_per_frame")
    if one_sym_per_frame and rnnt_type != "regular":
        raise ValueError(
            f"one_sym_per_frame: got True with rnnt_type={rnnt_type!r}, expected one of the two"
        )
    rnnt_type = "modified" if one_sym_per_frame else rnnt_type
    check_options(rnnt_type, reduction)
    variant.check_lattice(rnnt_type)
    options = Options.of(workspace_mib, adjoint_tolerance, engine, recursion=recursion).tiles
    am = as_rows("encoder_out", encoder_out, "[B, T, D] or [B, T, 1, D]", 2)
    lm = as_rows("decoder_out", decoder_out, "[B, S + 1, E] or [B, 1, S + 1, E]", 1)
    B, T, states = *am.shape[:2], lm.shape[1]
    if lm.shape[0] != B or encoder_out.dim() != decoder_out.dim() or lm.device != am.device:
        raise ValueError(
            f"decoder_out: got shape {tuple(decoder_out.shape)} on {lm.device}, expected B, number "
            f"of dimensions and device of encoder_out, {tuple(encoder_out.shape)} on {am.device}"
        )
    targets = as_indices("targets", targets, am.device, "[B, S]")
    if tuple(targets.shape) != (B, states - 1):
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected [B, S] = [{B}, {states - 1}] for "
            f"decoder_out of shape {tuple(decoder_out.shape)}"
        )
    grid = GridSites(B, T, states, am.device)

    def sites_of(classes: int) -> FullSites:
        at = variant.blank_of(blank, classes)
        return sites_of_utterances(
            targets, logit_lengths, target_lengths,
            T=T, blank=at, classes=classes - variant.duration_classes,
            forbidden=variant.blanks(at), durations=variant.durations,
            is_final_blank=one_sym_per_frame, rnnt_type=rnnt_type, delay_penalty=delay_penalty,
            reduction=reduction, fastemit_lambda=fastemit_lambda,
        )  # fmt: skip

    joints = (
        AxisTensor(encoder_out, False, grid, refuse, is_private=True),
        AxisTensor(decoder_out, True, grid, refuse, is_private=True),
    )
    rows = SiteRows(am, lm, grid, ones=encoder_out.dim() - 2)
    return loss_of_joiner(joiner, joints, rows, sites_of, variant, clamp, options)


@opaque
def pruned_transducer_loss(
    joiner: Joiner,
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int = 0,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    *,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    big_blank_durations: Sequence[int] | None = None,
    durations: Sequence[int] | None = None,
    sigma: float = 0.0,
    omega: float = 0.0,
    workspace_mib: float | None = None,
    adjoint_tolerance: float | None = None,
    engine: str = "auto",
    recursion: str = "auto",
) -> Tensor:
    """The transducer loss of the retained sites, from the joiner and not from its logits.

    Equal to ``k2.rnnt_loss_pruned`` of ``joiner(*k2.do_rnnt_pruning(am, lm, ranges))`` without
    materialising the logits ``[B, T, s_range, C]``, or what ``do_rnnt_pruning`` gives. What is said
    of joiners in ``transducer_loss`` holds here; one that cannot be recorded is given
    ``[n, 1, 1, D]``.

    Args:
      joiner: a module or function of am and lm at the sites, ``[B, T, s_range, D]`` each.
      am: ``[B, T, D]``.
      lm: ``[B, S + 1, E]``.
      symbols: integers ``[B, S]``; what lies outside an utterance's boundary is not read, and no
        symbol inside is a blank.
      ranges: integers ``[B, T, s_range]``, consecutive states in ``[0, S]`` at every frame.
      termination_symbol: class of the blank; a negative one counts from the last class.
      boundary: integers ``[B, 4]``, rows ``s_begin, t_begin, s_end, t_end`` with one frame or more;
        None: all states and frames. With big blanks or durations it begins at 0.
      others: as in ``transducer_loss``.

    Returns, Raises: as ``transducer_loss``.
    """
    check_kinds(
        joiner, delay_penalty=delay_penalty, clamp=clamp, fastemit_lambda=fastemit_lambda,
        sigma=sigma, omega=omega, workspace_mib=workspace_mib, adjoint_tolerance=adjoint_tolerance,
    )  # fmt: skip
    blank = as_integer("termination_symbol", termination_symbol)
    variant = Variant(use_hat_loss, big_blank_durations, durations, sigma, omega)
    check_options(rnnt_type, reduction)
    am, lm = as_rows("am", am, "[B, T, D]"), as_rows("lm", lm, "[B, S + 1, E]")
    symbols = as_indices("symbols", symbols, am.device, "[B, S]")
    ranges = as_indices("ranges", ranges, am.device, _RANGES)
    if boundary is not None:
        boundary = as_indices("boundary", boundary, am.device, "[B, 4]")
    variant.check_lattice(rnnt_type, boundary)
    options = Options.of(workspace_mib, adjoint_tolerance, engine, recursion=recursion).tiles
    check_pruning_form(am, lm, ranges)
    if lm.device != am.device:
        raise ValueError(f"lm: got device {lm.device}, expected that of am, {am.device}")
    if symbols.dim() != 2 or symbols.shape[1] >= lm.shape[1]:
        raise ValueError(
            f"symbols: got shape {tuple(symbols.shape)}, expected [B, S] with S below the "
            f"{lm.shape[1]} states of lm"
        )
    sites = RangesSites(ranges)

    def sites_of(classes: int) -> RetainedSites:
        at = variant.blank_of(blank, classes, name="termination_symbol")
        spec = LatticeSpec(
            symbols=symbols, termination_symbol=at, ranges=ranges, boundary=boundary,
            rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
            fastemit_lambda=fastemit_lambda,
        )  # fmt: skip
        return sites_of_ranges(
            spec, classes=classes - variant.duration_classes, forbidden=variant.blanks(at),
            durations=variant.durations,
        )  # fmt: skip

    joints = (
        DeferredJoint(Table(am, by_symbol=False), sites, refuse),
        DeferredJoint(Table(lm, by_symbol=True), sites, refuse),
    )
    return loss_of_joiner(
        joiner, joints, SiteRows(am, lm, sites, ones=2), sites_of, variant, clamp, options
    )
