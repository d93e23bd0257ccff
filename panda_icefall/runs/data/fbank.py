"""Speech-like log-mel features with transcripts, written as lhotse cut manifests.

Every unit of the transcripts, a character or a syllable, owns a spectral pattern that moves
through three formant shapes; an utterance is the patterns of its units, one after the other, over
background noise and a speaker's tilt. A transducer can therefore learn it, and nothing is
downloaded. Drawn on the CPU from named seeds: the same arguments give the same features in every
process.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panda_icefall.runs.data.catalog import MUSAN

__all__ = [
    "NUM_MEL_BINS",
    "draw_units",
    "draw_utterance",
    "named_generator",
    "transcript",
    "unit_patterns",
    "write_cuts",
    "write_noise_cuts",
]

NUM_MEL_BINS = 80
FRAMES_PER_SECOND = 100
SAMPLING_RATE = 16000
# lhotse picks the mixing rule of MUSAN noise by this name, so `--enable-musan 1` works too.
FEATURE_TYPE = "kaldi-fbank"

SHAPES_PER_UNIT = 3
FORMANTS_PER_SHAPE = 3
BACKGROUND_LOG_ENERGY = -12.0

UNITS_PER_UTTERANCE = (5, 18)
# 18 units of 45 frames and two pauses of 60 make 9.3 s; 5 of 18 and two of 25 make 1.4 s: inside
# the 1 to 10 s that the strictest recipe keeps. A unit's 18 frames are 4 subsampled ones, for a
# character or a syllable of 4 letters at most: never more tokens than frames.
FRAMES_PER_UNIT = (18, 45)
FRAMES_PER_PAUSE = (25, 60)
FRAMES_PER_NOISE = 1000


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose stream depends on ``seed`` and ``name`` only.

    Streams of different names are independent, so adding utterances to one split leaves the
    others as they were.
    """
    return torch.Generator().manual_seed(random.Random(f"{seed}/{name}").getrandbits(62))


def unit_patterns(num_units: int, seed: int) -> Tensor:
    """Log-energy above the background for each unit, as a sequence of formant shapes.

    Args:
      num_units: How many units, >= 1.
      seed: The data's seed.

    Returns:
      float32 [num_units, 3, 80], in log-energy (nats), >= 0.
    """
    generator = named_generator(seed, "patterns")
    bins = torch.arange(NUM_MEL_BINS, dtype=torch.float32)
    patterns = torch.zeros(num_units, SHAPES_PER_UNIT, NUM_MEL_BINS)
    for _ in range(FORMANTS_PER_SHAPE):
        centre, width, height = torch.rand(3, num_units, SHAPES_PER_UNIT, 1, generator=generator)
        distance = (bins - centre * (NUM_MEL_BINS - 1)) / (2.0 + 4.0 * width)
        patterns += (4.0 + 5.0 * height) * torch.exp(-0.5 * distance**2)
    return patterns


def draw_units(num_units: int, generator: torch.Generator) -> Tensor:
    """Draw what an utterance says.

    Units follow a Zipf-like law by their index, as in text: a small model meets the frequent ones
    often enough to learn them, whatever the size of the vocabulary.

    Args:
      num_units: How many units there are to draw from, >= 1.
      generator: CPU generator; advanced by the draw.

    Returns:
      Unit indices, int64 [5..18] in [0, num_units).
    """
    frequencies = 1.0 / (10.0 + torch.arange(num_units, dtype=torch.float32))
    length = _draw_int(UNITS_PER_UTTERANCE, generator)
    return torch.multinomial(frequencies, length, replacement=True, generator=generator)


def transcript(units: Sequence[str], indices: Tensor) -> str:
    """The text of drawn units: joined, a unit that ends a word having the space in itself."""
    return "".join(units[index] for index in indices.tolist()).strip()


def draw_utterance(patterns: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw units and the features of somebody saying them.

    Args:
      patterns: float32 [num_units, 3, 80] from ``unit_patterns``.
      generator: CPU generator; advanced by the draw.

    Returns:
      Unit indices, int64 [5..18] in [0, num_units), and log-mel features, float32 [T, 80] at 100
      frames a second, 140 <= T <= 930.
    """
    indices = draw_units(patterns.size(0), generator)
    pieces = [_pause(generator)]
    for index in indices.tolist():
        frames = _draw_int(FRAMES_PER_UNIT, generator)
        shapes = patterns[index].t().unsqueeze(0)  # [1, 80, 3]
        moving = torch.nn.functional.interpolate(
            shapes, size=frames, mode="linear", align_corners=True
        )
        pieces.append(moving.squeeze(0).t())
    pieces.append(_pause(generator))

    speech = torch.cat(pieces)  # [T, 80]
    gain, slope = torch.randn(2, generator=generator).tolist()
    tilt = gain + slope * torch.linspace(-1.0, 1.0, NUM_MEL_BINS)
    noise = 0.7 * torch.randn(speech.shape, generator=generator)
    return indices, BACKGROUND_LOG_ENERGY + speech + tilt + noise


def write_cuts(
    manifests: Sequence[str],
    utterances: int,
    patterns: Tensor,
    units: Sequence[str],
    language: str,
    seed: int,
    folder: Path,
    final_folder: Path,
    advance: Callable[[], None],
) -> list[str]:
    """Write a set of cuts and its features, one ``.npy`` an utterance.

    Args:
      manifests: File names of the set, each ``*.jsonl.gz``; all of them list the same cuts. The
        first one names the cuts and seeds them.
      utterances: How many cuts, >= 1.
      patterns: float32 [len(units), 3, 80].
      units: The text of each pattern.
      language: Of the supervisions.
      seed: The data's seed.
      folder: Where the files are written now.
      final_folder: Where they will lie; manifests name features by this path.
      advance: Called after every utterance.

    Returns:
      The transcripts.
    """
    from lhotse import CutSet, NumpyFilesWriter, SupervisionSegment

    name = manifests[0].split(".")[0].replace("_cuts_", "-").replace("cuts_", "")
    generator = named_generator(seed, name)
    storage = f"feats_{name}"
    writer = NumpyFilesWriter(folder / storage)
    cuts, transcripts = [], []
    for number in range(utterances):
        indices, features = draw_utterance(patterns, generator)
        text = transcript(units, indices)
        cut = _store(f"{name}-{number:06d}", features, writer, final_folder / storage)
        cut.supervisions = [
            SupervisionSegment(
                id=cut.id,
                recording_id=cut.recording_id,
                start=0.0,
                duration=cut.duration,
                channel=0,
                text=text,
                language=language,
                speaker=f"synthetic-{number % 8}",
            )
        ]
        cuts.append(cut)
        transcripts.append(text)
        advance()
    for manifest in manifests:
        CutSet.from_cuts(cuts).to_file(folder / manifest)
    return transcripts


def write_noise_cuts(cuts: int, seed: int, folder: Path, final_folder: Path) -> None:
    """Write ``musan_cuts.jsonl.gz``: 10 s noise cuts, which recipes open even when unused.

    Args:
      cuts: How many, >= 1: lhotse cannot tell what an empty manifest holds.
      seed: The data's seed.
      folder: Where the files are written now.
      final_folder: Where they will lie.
    """
    from lhotse import CutSet, NumpyFilesWriter

    generator = named_generator(seed, "musan")
    writer = NumpyFilesWriter(folder / "feats_musan")
    stored = []
    for number in range(cuts):
        colour = 3.0 * torch.randn(NUM_MEL_BINS, generator=generator)
        noise = torch.randn(FRAMES_PER_NOISE, NUM_MEL_BINS, generator=generator)
        features = BACKGROUND_LOG_ENERGY + colour + noise
        stored.append(_store(f"noise-{number:06d}", features, writer, final_folder / "feats_musan"))
    CutSet.from_cuts(stored).to_file(folder / MUSAN)


def _draw_int(bounds: tuple[int, int], generator: torch.Generator) -> int:
    low, high = bounds
    return int(torch.randint(low, high + 1, (), generator=generator))


def _pause(generator: torch.Generator) -> Tensor:
    return torch.zeros(_draw_int(FRAMES_PER_PAUSE, generator), NUM_MEL_BINS)


def _store(cut_id: str, features: Tensor, writer: Any, final_storage: Path) -> Any:
    """Write features [T, 80] and return the lhotse cut that will find them after the move."""
    from lhotse import Features, MonoCut

    num_frames = features.size(0)
    duration = num_frames / FRAMES_PER_SECOND
    manifest = Features(
        type=FEATURE_TYPE,
        num_frames=num_frames,
        num_features=NUM_MEL_BINS,
        frame_shift=1 / FRAMES_PER_SECOND,
        sampling_rate=SAMPLING_RATE,
        start=0.0,
        duration=duration,
        storage_type=writer.name,
        storage_path=str(final_storage),
        storage_key=writer.write(cut_id, features.numpy()),
        # lhotse's validation wants the supervision and the features to name one recording.
        recording_id=cut_id,
        channels=0,
    )
    return MonoCut(id=cut_id, start=0.0, duration=duration, channel=0, features=manifest)
