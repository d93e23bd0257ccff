"""Speech-like audio from text: a small formant synthesiser in numpy.

Every letter is a time-varying spectral pattern: three formants that glide over the harmonics of a
voice, and for some letters a band of noise. Durations, gaps between words, pitch movement and the
background noise are random, and a speaker is a pitch, a vocal-tract scale and a speaking rate.
Nothing here knows about manifests, features or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16000
HOP = 80  # samples between control points of pitch, formants and gains: 5 ms
HARMONICS = 40

CONSONANTS = "bdgfkmlnprst"
VOWELS = "aeiou"


@dataclass(frozen=True)
class Letter:
    """The pattern of one letter.

    Attributes:
      start: the three formants in Hz where the letter begins.
      end: the three formants in Hz where it ends.
      voice: gain of the harmonics, 0 to 1.
      noise: gain of the noise band, 0 to 1.
      band: centre of the noise band in Hz; its width is a third of that.
      seconds: mean duration.
    """

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    voice: float = 1.0
    noise: float = 0.0
    band: float = 1000.0
    seconds: float = 0.09


LETTERS: dict[str, Letter] = {
    "a": Letter((700, 1150, 2500), (800, 1300, 2600), seconds=0.12),
    "e": Letter((550, 1750, 2500), (420, 2050, 2700), seconds=0.12),
    "i": Letter((320, 2150, 2900), (270, 2400, 3200), seconds=0.12),
    "o": Letter((560, 1000, 2400), (430, 800, 2300), seconds=0.12),
    "u": Letter((370, 1150, 2200), (300, 700, 2150), seconds=0.12),
    "b": Letter((200, 700, 2100), (450, 1150, 2400), voice=0.6),
    "d": Letter((200, 1900, 2900), (450, 1550, 2500), voice=0.6),
    "g": Letter((200, 2400, 2500), (480, 1800, 2400), voice=0.6),
    "m": Letter((260, 900, 2100), (260, 1000, 2100), voice=0.5),
    "n": Letter((260, 1500, 2600), (260, 1600, 2700), voice=0.5),
    "l": Letter((350, 1000, 3000), (480, 1450, 2900), voice=0.8),
    "r": Letter((430, 1350, 1600), (380, 1050, 1900), voice=0.8),
    "p": Letter((400, 800, 2200), (450, 1000, 2300), voice=0.1, noise=0.5, band=900),
    "k": Letter((400, 1900, 2300), (450, 1700, 2400), voice=0.1, noise=0.6, band=2000),
    "t": Letter((400, 1700, 2600), (450, 1600, 2600), voice=0.1, noise=0.6, band=3800),
    "s": Letter(
        (300, 1600, 2600), (300, 1600, 2600), voice=0.0, noise=0.7, band=6000, seconds=0.12
    ),
    "f": Letter(
        (300, 1100, 2400), (300, 1100, 2400), voice=0.2, noise=0.4, band=5000, seconds=0.12
    ),
}


@dataclass(frozen=True)
class Speaker:
    """A voice: mean pitch in Hz, factor on all formants, factor on all durations."""

    name: str
    pitch_hz: float
    formant_scale: float
    slowness: float


def make_speakers(prefix: str, num: int, rng: np.random.Generator) -> list[Speaker]:
    """Draw `num` speakers; a higher pitch goes with a shorter vocal tract, as in people."""
    speakers = []
    for i in range(num):
        pitch = float(np.exp(rng.uniform(np.log(90.0), np.log(240.0))))
        scale = float((pitch / 150.0) ** 0.18 * rng.uniform(0.96, 1.04))
        slowness = float(rng.uniform(0.85, 1.15))
        speakers.append(Speaker(f"{prefix}-spk{i:02d}", pitch, scale, slowness))
    return speakers


def make_lexicon(num_words: int, rng: np.random.Generator) -> list[str]:
    """Distinct words of one to three consonant-vowel syllables, the short ones first.

    Args:
      num_words: how many, at least 1 and at most 20000.
      rng: the source of randomness.

    Raises:
      ValueError: `num_words` out of range.
    """
    if not 1 <= num_words <= 20000:
        raise ValueError(f"num_words: got {num_words}, expected 1 to 20000; change --num-words")
    syllables = [c + v for c in CONSONANTS for v in VOWELS]
    one = [syllables[i] for i in rng.permutation(len(syllables))]
    two = [a + b for a in syllables for b in syllables]
    two = [two[i] for i in rng.permutation(len(two))[: num_words // 2]]
    words = dict.fromkeys((one + two)[:num_words])
    while len(words) < num_words:
        words.setdefault("".join(rng.choice(syllables, 3)))
    return list(words)


def _control_tracks(
    words: list[str], speaker: Speaker, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Formants [M, 3], voice gain [M], noise gain [M] and noise band [M] at M control points."""
    formants: list[np.ndarray] = []
    gains: list[np.ndarray] = []

    def hold(letter: Letter, seconds: float, loudness: float) -> None:
        points = max(4, round(seconds * SAMPLE_RATE / HOP))
        ramp = np.linspace(0.0, 1.0, points)[:, None]
        formants.append(np.array(letter.start) * (1 - ramp) + np.array(letter.end) * ramp)
        row = (loudness * letter.voice, loudness * letter.noise, letter.band)
        gains.append(np.tile(row, (points, 1)))

    silence = Letter((500, 1500, 2500), (500, 1500, 2500), voice=0.0)
    hold(silence, rng.uniform(0.08, 0.2), 0.0)
    for word in words:
        for name in word:
            letter = LETTERS[name]
            seconds = letter.seconds * speaker.slowness * rng.uniform(0.75, 1.3)
            hold(letter, seconds, rng.uniform(0.7, 1.0))
        hold(silence, rng.uniform(0.06, 0.2), 0.0)

    # Neighbouring letters run into each other, as articulators move at a finite speed.
    window = np.hanning(7)[1:-1]
    window /= window.sum()
    tracks = np.concatenate([np.concatenate(formants), np.concatenate(gains)], axis=1)
    padded = np.pad(tracks, ((2, 2), (0, 0)), mode="edge")
    tracks = np.stack([np.convolve(col, window, mode="valid") for col in padded.T], axis=1)
    jitter = 1.0 + 0.03 * rng.standard_normal(3)
    return tracks[:, :3] * speaker.formant_scale * jitter, tracks[:, 3], tracks[:, 4], tracks[:, 5]


def _to_samples(track: np.ndarray) -> np.ndarray:
    """Linear interpolation of control points [M, ...] to samples [(M - 1) * HOP, ...]."""
    step = (np.arange(HOP) / HOP).reshape((1, HOP) + (1,) * (track.ndim - 1))
    between = track[:-1, None] * (1 - step) + track[1:, None] * step
    return between.reshape((-1, *track.shape[1:]))


def _voiced(
    formants: np.ndarray, gain: np.ndarray, pitch: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Harmonics of `pitch` [M] under the resonances of `formants` [M, 3]; samples."""
    freq = pitch[:, None] * np.arange(1, HARMONICS + 1)  # [M, HARMONICS]
    envelope = np.zeros_like(freq)
    for j, (level, width) in enumerate(((1.0, 90.0), (0.6, 130.0), (0.35, 180.0))):
        envelope += level / (1.0 + ((freq - formants[:, j : j + 1]) / width) ** 2)
    envelope *= gain[:, None] * (freq < 0.47 * SAMPLE_RATE)
    phase = 2 * np.pi * np.cumsum(_to_samples(pitch)) / SAMPLE_RATE + rng.uniform(0, 2 * np.pi)
    # sin((k+1)p) = 2 cos(p) sin(kp) - sin((k-1)p): two trigonometric passes instead of forty.
    twice_cos, previous, current = 2 * np.cos(phase), np.zeros_like(phase), np.sin(phase)
    out = np.zeros_like(phase)
    for k in range(HARMONICS):
        out += _to_samples(envelope[:, k]) * current
        previous, current = current, twice_cos * current - previous
    return out


def _hiss(gain: np.ndarray, band: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose band follows the letters: one band-passed noise per distinct band; samples."""
    out = np.zeros(num)
    freq = np.fft.rfftfreq(num, 1.0 / SAMPLE_RATE)
    for centre in sorted({letter.band for letter in LETTERS.values() if letter.noise > 0}):
        here = gain * np.exp(-(((band - centre) / 300.0) ** 2))
        if here.max() < 1e-3:
            continue
        spectrum = np.fft.rfft(rng.standard_normal(num))
        shaped = np.fft.irfft(spectrum * np.exp(-(((freq - centre) / (centre / 3)) ** 2)), num)
        out += _to_samples(here) * shaped / shaped.std()
    return out


def synthesise(words: list[str], speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Speak `words`.

    Args:
      words: non-empty words over the letters of `LETTERS`.
      speaker: the voice.
      rng: durations, gaps, loudness, pitch movement and background noise are drawn from it.

    Returns:
      Mono samples at `SAMPLE_RATE`, float32 in [-1, 1].

    Raises:
      ValueError: a character has no pattern.
    """
    unknown = sorted(set("".join(words)) - set(LETTERS))
    if unknown:
        raise ValueError(f"words: got letters {unknown}, expected only {''.join(LETTERS)}")
    formants, voice, noise, band = _control_tracks(words, speaker, rng)
    points = len(voice)
    knots = np.arange(0, points + 40, 40)
    wobble = np.interp(np.arange(points), knots, rng.normal(0, 0.06, len(knots)))
    pitch = speaker.pitch_hz * np.exp(wobble) * np.linspace(1.05, 0.92, points)
    audio = _voiced(formants, voice, pitch, rng)
    audio += 0.5 * _hiss(noise, band, len(audio), rng)
    snr_db = rng.uniform(15, 30)
    audio += rng.standard_normal(len(audio)) * audio.std() * 10 ** (-snr_db / 20)
    return (0.5 * rng.uniform(0.4, 1.0) * audio / np.abs(audio).max()).astype(np.float32)
