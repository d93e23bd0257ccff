"""Made-up contents of bounded-run reports, shaped like those of real runs."""

import dataclasses
import random

from panda_icefall.routing import LossTotals
from panda_icefall.runs.records import validated
from panda_icefall.runs.run_record import RunRecord

MIB = 2**20
PHASES = ("encoder", "simple_loss", "pruned_loss", "backward", "optimizer", "other")
GROUPS = (
    "encoder_embed",
    "encoder",
    "decoder",
    "joiner.encoder_proj.weight",
    "joiner.decoder_proj.weight",
    "joiner.output_linear.weight",
    "joiner.output_linear.bias",
    "simple_am_proj",
    "simple_lm_proj",
)
COMMAND = (
    "panda-icefall bounded egs/aishell/ASR/zipformer/cpu.yaml "
    "--icefall-root icefall --synthetic --device cpu"
)
BOUNDS = {
    "loss_rel": 1e-6,
    "log_prob_rel_l2": 1e-6,
    "log_z_rel_l2": 1e-6,
    "gradient_rel_l2": 1e-5,
    "gradient_cosine": 0.999999,
    "parameter_rel_l2": 1e-6,
    "negligible_gradient": 1e-6,
}


def record(content):
    """The record of a ``report.json`` with this content."""
    return validated(RunRecord, content, "report.json")


def distance(group, rel_l2, is_negligible=False):
    return {
        "group": group,
        "max_abs": 10 * rel_l2,
        "rel_l2": rel_l2,
        "cosine": 1 - rel_l2**2 / 2,
        "dense_norm": 1.5,
        "difference_norm": 1.5 * rel_l2,
        "is_negligible": is_negligible,
    }


def contract(updates=3, groups=GROUPS, seed=0):
    """The content of a ``panda-check.json`` whose distances hold."""
    draw = random.Random(seed)
    batches = []
    for update in range(1, updates + 1):
        gradients = [distance(g, 10 ** draw.uniform(-7.6, -6.2)) for g in groups]
        gradients[-1] = distance(groups[-1], 0.0)
        gradients[-2] = distance(groups[-2], 0.3, is_negligible=True)
        batches.append(
            {
                "update": update,
                "loss_dense": 8721.328 - 90 * update,
                "loss_routed": 8721.3286 - 90 * update,
                "loss_abs": 6e-4,
                "loss_rel": 7e-8 * update,
                "log_probs": [distance("loss 1", 9e-8), distance("loss 2", 1.1e-7)],
                "log_z": [distance("loss 1", 6e-8)],
                "gradients": gradients,
                "peak_bytes_dense": 750 * MIB,
                "peak_bytes_routed": 310 * MIB,
            }
        )
    return {
        "has_passed": True,
        "updates": updates,
        "precision": "float32",
        "tolerances": dict(BOUNDS),
        "batches": batches,
        "parameters": [distance(g, 2e-8) for g in groups],
        "parameters_twin": [distance(g, 1.5e-7) for g in groups],
        "violations": [],
        "versions": {"torch": "1.13.1"},
    }


def arm(name, steps=30, grad_scales=None):
    """One arm: the loss falls with a wobble that all arms share; routed needs less memory."""
    shared, own = random.Random(7), random.Random(name)
    pruned_peak = {"routed": 860, "resumed": 860, "stopped": 860}.get(name, 1480)
    rows = []
    for step in range(1, steps + 1):
        loss = 9.9 * 0.985**step + shared.uniform(-0.25, 0.25)
        if name != "dense":
            loss *= 1 + own.choice((0, 0, 1, -1, 2)) * 6e-8 * step**0.5
        wobble, first = shared.uniform(0.92, 1.08), 1.6 if step == 1 else 1.0
        peaks = {
            "encoder": 800 * wobble,
            "simple_loss": 840 * wobble,
            "pruned_loss": pruned_peak * wobble,
            "backward": (pruned_peak + 420) * wobble,
            "optimizer": 720 * wobble,
            "other": 610.0,
        }
        times = dict(zip(PHASES, (0.41, 0.12, 0.38, 1.21, 0.09, 0.02)))
        if pruned_peak < 1000:
            times.update(pruned_loss=0.21, backward=0.83)
        times = {phase: seconds * wobble * first for phase, seconds in times.items()}
        rows.append(
            {
                "step": step,
                "batch_idx_train": step,
                "loss": loss,
                "seconds": sum(times.values()),
                "peak_bytes": max(peaks.values()) * MIB,
                "losses_bytes": (peaks["pruned_loss"] - peaks["encoder"]) * MIB,
                "grad_scale": None if grad_scales is None else grad_scales[step - 1],
                "phases": {p: {"seconds": times[p], "peak_bytes": peaks[p] * MIB} for p in PHASES},
            }
        )
    is_dense = name in ("dense", "twin")
    return {
        "steps": rows,
        "memory_kind": "process RSS",
        "base_bytes": 412 * MIB,
        "options": {
            "use_panda": not is_dense,
            "workspace_mib": None,
            "adjoint_tolerance": None,
            "engine": "auto",
        },
        "counters": {
            **dataclasses.asdict(LossTotals()),
            "losses_routed": 0 if is_dense else steps + 7,
            "losses_dense": steps + 7 if is_dense else 0,
            "sites": 0 if is_dense else 145800,
            "sites_evaluated": 0 if is_dense else 121014,
            "sites_backward": 0 if is_dense else 106434,
            "adjoint_mass_skipped": 0.0 if is_dense else 1.7e-4,
        },
    }


def young():
    """What is known before the first stage has ended."""
    return {"title": "aishell/ASR/zipformer (cpu)", "state": "running"}


def after_contract():
    """Interrupted once the contract was checked."""
    return {
        **young(),
        "state": "partial",
        "reason": "interrupted by SIGINT during the dense run",
        "passed": None,
        "verdicts": [
            {
                "name": "contract",
                "holds": True,
                "text": "3 of 3 batches compared; loss within 2.1e-07 (bound 1e-06); gradient "
                "rel-L2 5.9e-07 in joiner.encoder_proj.weight (bound 1e-05)",
            }
        ],
        "command": f"{COMMAND} --max-minutes 4",
        "continuation": f"{COMMAND} --max-minutes 8 --out out/aishell",
        "config_path": "egs/aishell/ASR/zipformer/cpu.yaml",
        "config": {
            "recipe": "egs/aishell/ASR/zipformer/train.py",
            "train_args": {"max-duration": 40, "encoder-dim": "48,48,48,48,48,48"},
            "bounds": {"max_batches": 30, "max_minutes": 4},
        },
        "data": {"kind": "synthetic", "folder": "out/aishell/data", "classes": 4336},
        "versions": {
            "panda-icefall": "0.1.0",
            "python": "3.10.13",
            "torch": "1.13.1+cu117",
            "k2": "1.23.4",
            "lhotse": "1.29.0",
            "device": "cpu",
            "device_name": "a processor with two cores",
            "threads": 2,
            "icefall": "36e0420c7e3e (clean)",
        },
        "started": "2026-11-21T08:00:00",
        "seconds": 31.2,
        "stages": [
            stage("contract", "done", 31.2, 0),
            stage("dense", "interrupted", None, None),
        ],
        "contract": contract(),
    }


def stage(name, state, seconds, exit_status):
    return {
        "name": name,
        "state": state,
        "seconds": seconds,
        "command": f"python -m panda_icefall run zipformer/train.py --exp-dir out/{name}",
        "log": f"{name}/output.log",
        "exit_status": exit_status,
    }


def complete(steps=30, groups=GROUPS):
    """A run that ended by itself and holds."""
    arms = {name: arm(name, steps) for name in ("dense", "routed", "twin")}
    arms["stopped"] = arm("stopped", max(steps // 2, 1))
    arms["resumed"] = arm("resumed", steps)
    verdicts = {
        "transducer loss": "37 losses routed, 0 not; materialised: nothing",
        "trajectory": f"{steps} of {steps} steps, losses within 6.1e-07 (bound 1.2e-06)",
        "final parameters": "rel-L2 1.3e-05 (bound 6.8e-05: 4 times the dense twin's 1.7e-05)",
        "finite": "0 steps and 0 parameters with NaN or infinity",
        "resume": "stopped after 15 of 30 steps: bit-identical",
    }
    start = after_contract()
    names = ("contract", "dense", "routed", "twin", "stopped", "resumed")
    return {
        **start,
        "state": "complete",
        "reason": None,
        "passed": True,
        "verdicts": start["verdicts"]
        + [{"name": n, "holds": True, "text": text} for n, text in verdicts.items()],
        "seconds": 200.1,
        "stages": [stage(name, "done", 33.0, 0) for name in names],
        "contract": contract(groups=groups),
        "arms": arms,
        "trajectory": {
            "steps": steps,
            "largest_relative_difference": 6.1e-7,
            "step_of_largest": min(17, steps),
            "first_relative_difference": 9.7e-8,
            "twin_largest_relative_difference": 5.8e-7,
            "bound": 2.32e-6,
            "allowed": "allowed 2.3e-06 = 4 x 5.8e-07 (dense twin), configured 1e-06",
            "non_finite": 0,
        },
        "final_parameters": {
            "rel_l2": 1.3e-5,
            "twin_rel_l2": 1.7e-5,
            "bulk_rel_l2": 1.1e-5,
            "twin_bulk_rel_l2": 1.5e-5,
            "bound": 6e-5,
            "allowed": "allowed 6.0e-05 = 4 x 1.5e-05 (dense twin), configured 1e-06",
            "groups": [
                {"group": g, "rel_l2": 1.1e-5, "max_abs": 2e-4, "twin_rel_l2": 1.6e-5}
                for g in groups
            ],
            "largest_parameters": [
                {
                    "name": "encoder.encoders.3.encoder.layers.0.bypass.scale",
                    "share": 0.67,
                    "rel_l2": 4.1e-4,
                },
                {"name": "decoder.embedding.weight", "share": 0.21, "rel_l2": 3.3e-5},
            ],
        },
        "resume": {"stopped_after": 15, "steps": steps, "is_bitwise": True, "rel_l2": 0.0},
    }


def violated():
    """A run that ended by itself: a gradient and the final parameters are too far away."""
    content = complete()
    content["passed"] = False
    found = content["contract"]
    found["has_passed"] = False
    found["batches"][1]["gradients"][5] = distance(GROUPS[5], 3.1e-3)
    found["violations"] = [
        f"update 2: gradient of {GROUPS[5]}: rel-L2 0.0031, expected at most 1e-05"
    ]
    for verdict in content["verdicts"]:
        if verdict["name"] in ("contract", "final parameters"):
            verdict["holds"] = False
            verdict["text"] = f"{verdict['text']}; 1 violation(s)"
    return content
