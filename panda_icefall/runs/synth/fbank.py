"""Speech-like log-mel features with transcripts, written as the AISHELL recipe's cut manifests.

Every character owns a spectral pattern that moves through three formant shapes; an utterance is
the patterns of its characters, one after the other, over background noise and a speaker's tilt.
A transducer can therefore learn it, and nothing is downloaded. Drawn on the CPU from named seeds:
the same arguments give the same features in every process.
"""

import random
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

__all__ = ["NUM_MEL_BINS", "character_patterns", "draw_utterance", "write_cuts", "write_noise_cuts"]

NUM_MEL_BINS = 80
FRAMES_PER_SECOND = 100
SAMPLING_RATE = 16000
# lhotse picks the mixing rule of MUSAN noise by this name, so `--enable-musan 1` works too.
FEATURE_TYPE = "kaldi-fbank"

SHAPES_PER_CHARACTER = 3
FORMANTS_PER_SHAPE = 3
BACKGROUND_LOG_ENERGY = -12.0

CHARACTERS_PER_UTTERANCE = (5, 18)
# 18 characters of 45 frames and two pauses of 60 make 9.3 s; 5 of 18 and two of 25 make 1.4 s:
# inside the 1..12 s that the recipe keeps, and always more subsampled frames than characters.
FRAMES_PER_CHARACTER = (18, 45)
FRAMES_PER_PAUSE = (25, 60)
FRAMES_PER_NOISE = 1000


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose stream depends on `seed` and `name` only.

    Streams of different names are independent, so adding utterances to one split leaves the
    others as they were.
    """
    return torch.Generator().manual_seed(random.Random(f"{seed}/{name}").getrandbits(62))


def character_patterns(num_characters: int, seed: int) -> Tensor:
    """Log-energy above the background for each character, as a sequence of formant shapes.

    Args:
      num_characters: how many characters, >= 1.
      seed: the data's seed.

    Returns:
      float32 [num_characters, 3, 80], in log-energy (nats), >= 0.
    """
    generator = named_generator(seed, "patterns")
    bins = torch.arange(NUM_MEL_BINS, dtype=torch.float32)
    patterns = torch.zeros(num_characters, SHAPES_PER_CHARACTER, NUM_MEL_BINS)
    for _ in range(FORMANTS_PER_SHAPE):
        centre, width, height = torch.rand(
            3, num_characters, SHAPES_PER_CHARACTER, 1, generator=generator
        )
        distance = (bins - centre * (NUM_MEL_BINS - 1)) / (2.0 + 4.0 * width)
        patterns += (4.0 + 5.0 * height) * torch.exp(-0.5 * distance**2)
    return patterns


def draw_utterance(patterns: Tensor, generator: torch.Generator) -> "tuple[Tensor, Tensor]":
    """Draw a transcript and the features of somebody saying it.

    Characters follow a Zipf-like law by their index, as in text: a small model meets the frequent
    ones often enough to learn them, whatever the size of the vocabulary.

    Args:
      patterns: float32 [num_characters, 3, 80] from `character_patterns`.
      generator: CPU generator; advanced by the draw.

    Returns:
      Character indices, int64 [5..18] in [0, num_characters), and log-mel features, float32
      [T, 80] at 100 frames a second, 140 <= T <= 930.
    """
    frequencies = 1.0 / (10.0 + torch.arange(patterns.size(0), dtype=torch.float32))
    num_characters = _draw_int(CHARACTERS_PER_UTTERANCE, generator)
    indices = torch.multinomial(frequencies, num_characters, replacement=True, generator=generator)

    pieces = [_pause(generator)]
    for index in indices.tolist():
        frames = _draw_int(FRAMES_PER_CHARACTER, generator)
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
    split: str,
    utterances: int,
    patterns: Tensor,
    characters: str,
    seed: int,
    folder: Path,
    final_folder: Path,
    advance: Callable[[], None],
) -> "list[str]":
    """Write `aishell_cuts_<split>.jsonl.gz` and its features, one `.npy` an utterance.

    Args:
      split: "train", "dev" or "test".
      utterances: how many cuts, >= 1.
      patterns: float32 [len(characters), 3, 80].
      characters: the character of each pattern.
      seed: the data's seed.
      folder: where the files are written now.
      final_folder: where they will lie; manifests name features by this path.
      advance: called after every utterance.

    Returns:
      The transcripts, characters joined without spaces.
    """
    from lhotse import CutSet, NumpyFilesWriter, SupervisionSegment

    generator = named_generator(seed, split)
    storage = f"aishell_feats_{split}"
    writer = NumpyFilesWriter(folder / storage)
    cuts, transcripts = [], []
    for number in range(utterances):
        indices, features = draw_utterance(patterns, generator)
        text = "".join(characters[index] for index in indices.tolist())
        cut = _store(f"{split}-{number:06d}", features, writer, final_folder / storage)
        cut.supervisions = [
            SupervisionSegment(
                id=cut.id,
                recording_id=cut.recording_id,
                start=0.0,
                duration=cut.duration,
                channel=0,
                text=text,
                language="Chinese",
                speaker=f"synthetic-{number % 8}",
            )
        ]
        cuts.append(cut)
        transcripts.append(text)
        advance()
    CutSet.from_cuts(cuts).to_file(folder / f"aishell_cuts_{split}.jsonl.gz")
    return transcripts


def write_noise_cuts(cuts: int, seed: int, folder: Path, final_folder: Path) -> None:
    """Write `musan_cuts.jsonl.gz`: 10 s noise cuts, which the recipe opens even when unused.

    Args:
      cuts: how many, >= 1: lhotse cannot tell what an empty manifest holds.
      seed: the data's seed.
      folder: where the files are written now.
      final_folder: where they will lie.
    """
    from lhotse import CutSet, NumpyFilesWriter

    generator = named_generator(seed, "musan")
    writer = NumpyFilesWriter(folder / "musan_feats")
    stored = []
    for number in range(cuts):
        colour = 3.0 * torch.randn(NUM_MEL_BINS, generator=generator)
        noise = torch.randn(FRAMES_PER_NOISE, NUM_MEL_BINS, generator=generator)
        features = BACKGROUND_LOG_ENERGY + colour + noise
        stored.append(_store(f"noise-{number:06d}", features, writer, final_folder / "musan_feats"))
    CutSet.from_cuts(stored).to_file(folder / "musan_cuts.jsonl.gz")


def _draw_int(bounds: "tuple[int, int]", generator: torch.Generator) -> int:
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
