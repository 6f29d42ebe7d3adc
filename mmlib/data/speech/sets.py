"""Sets of utterances: captions, digits, numbers and words, split by voice and by content."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor
from tqdm import tqdm

from mmlib.data import scenes
from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.wording import RULES
from mmlib.data.speech import store
from mmlib.data.speech.speakers import LANGUAGES, SPLITS, VOICES, voices
from mmlib.data.speech.utterance import RATES, SAMPLE_RATE, Span, Utterance, synthesise

#: The ten digits as they are written, a tuple for each language.
DIGITS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": tuple("零一二三四五六七八九"),
}
_DIRECTIONS = {
    "en": ("left", "right", "above", "below", "up", "down"),
    "zh": ("左边", "右边", "上方", "下方", "向上", "向下"),
}
#: Single words of the scenes: colours, shapes, sizes and directions. Item ``i`` of the two
#: languages means the same.
WORDS = {
    language: tuple(
        RULES[symbol][rule][place]
        for symbol in ("COLOUR", "SHAPE", "SIZE")
        for rule in RULES[symbol]
    )
    + _DIRECTIONS[language]
    for place, language in enumerate(LANGUAGES)
}
KINDS = ("captions", "digits", "numbers", "words")


@dataclass(frozen=True, eq=False, repr=False)
class SpeechSet(Sequence):
    """Utterances, one after the other; item ``i`` is an :class:`Utterance`.

    Attributes:
        samples: the 16-bit samples of all utterances, end to end.
        lengths: how many of them belong to each utterance.
        texts: what was said.
        voices: names of the voices.
        languages: ``"en"`` or ``"zh"`` each.
        words: the words of each utterance with their times.
        phonemes: the sounds of each utterance with their times.
        rates: words a minute.
        pitches: 0 to 99.
    """

    samples: Int16[Tensor, " all_samples"]
    lengths: Int[Tensor, " utterances"]
    texts: tuple[str, ...]
    voices: tuple[str, ...]
    languages: tuple[str, ...]
    words: tuple[tuple[Span, ...], ...]
    phonemes: tuple[tuple[Span, ...], ...]
    rates: tuple[int, ...]
    pitches: tuple[int, ...]

    sample_rate = SAMPLE_RATE

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"SpeechSet({len(self)} utterances, {self.seconds:.0f} s)"

    @property
    def seconds(self) -> float:
        """How long all of it lasts."""
        return len(self.samples) / SAMPLE_RATE

    def __getitem__(self, index: int) -> Utterance:
        place = range(len(self))[index]  # IndexError where there is none
        end = int(self.lengths[: place + 1].sum())
        return Utterance(
            waveform=self.samples[end - int(self.lengths[place]) : end].float() / 2**15,
            text=self.texts[place],
            voice=self.voices[place],
            language=self.languages[place],
            words=self.words[place],
            phonemes=self.phonemes[place],
            rate=self.rates[place],
            pitch=self.pitches[place],
        )

    def padded(
        self, indices: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "batch samples"], Bool[Tensor, "batch samples"]]:
        """Some utterances as one batch, with zeros behind the shorter ones.

        Args:
            indices: which ones; None for all.

        Returns:
            Waveforms in [-1, 1], and a mask that is True where there is a sample.

        Raises:
            IndexError: if there is no such utterance.
        """
        chosen = range(len(self)) if indices is None else indices
        waves = [self[int(index)].waveform for index in chosen]
        longest = max((len(wave) for wave in waves), default=0)
        out = torch.zeros(len(waves), longest)
        for row, wave in zip(out, waves, strict=True):
            row[: len(wave)] = wave
        counts = torch.tensor([len(wave) for wave in waves], dtype=torch.long)
        return out, torch.arange(longest) < counts[:, None]


def load(
    kind: str,
    split: str = "train",
    language: str = "en",
    *,
    size: int = 400,
    seed: int = 0,
    rate: tuple[int, int] = (130, 200),
    pitch: tuple[int, int] = (35, 65),
    cache: bool = True,
    progress: bool = False,
) -> SpeechSet:
    """Load one of the book's sets of speech, spoken once and then kept on disk.

    ``"captions"``
        Canonical captions of scenes (:func:`mmlib.data.scenes.sample` of the same split and seed):
        test captions have a pair of colour and shape that no training caption has.
    ``"digits"``
        One digit each, all ten equally often.
    ``"numbers"``
        Strings of three to six digits. A string is in the test split when its SHA-256 digest says
        so (one in five), so no string is in both.
    ``"words"``
        One of :data:`WORDS` each, all equally often. (As for digits, the words are the same in
        both splits, only the voices differ.)

    In every kind the test voices are others than the training voices (:func:`voices`).

    Args:
        kind: one of the above.
        split: ``"train"``, ``"test"`` or ``"all"``.
        language: ``"en"`` or ``"zh"``.
        size: how many utterances.
        seed: which captions and numbers, who says what, how fast and how high.
        rate: slowest and fastest, in words a minute, 80 to 450.
        pitch: lowest and highest, 0 to 99.
        cache: keep the set in, and take it from, :func:`mmlib.download.cache_folder`.
        progress: show a bar while the set is being spoken.

    Returns:
        The set.

    Raises:
        ImportError: if ``espeakng-loader`` is missing.
        ValueError: if an argument is not one of the above.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}: got {kind!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}: got {language!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number above 0: got {size!r}")
    texts = _TEXTS[kind](split, language, size, check_seed(seed))
    return speak(
        texts, split, language, seed=seed, rate=rate, pitch=pitch, cache=cache, progress=progress
    )


def speak(
    texts: Sequence[str],
    split: str = "train",
    language: str = "en",
    *,
    seed: int = 0,
    rate: tuple[int, int] = (130, 200),
    pitch: tuple[int, int] = (35, 65),
    cache: bool = True,
    progress: bool = False,
) -> SpeechSet:
    """Say each of some texts once, in a voice, at a rate and a pitch drawn from the seed.

    The voices of the split take turns, in an order that is drawn anew each time round, so all are
    heard equally often.

    Args:
        texts: what to say, one utterance each.
        split: whose voices: ``"train"``, ``"test"`` or ``"all"``.
        language: ``"en"`` or ``"zh"``.
        seed: who says what, how fast and how high.
        rate: slowest and fastest, in words a minute, 80 to 450.
        pitch: lowest and highest, 0 to 99.
        cache: keep the set in, and take it from, :func:`mmlib.download.cache_folder`.
        progress: show a bar while the set is being spoken.

    Returns:
        The set, in the order of the texts.

    Raises:
        ImportError: if ``espeakng-loader`` is missing.
        ValueError: if an argument is not one of the above, or a text cannot be said.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts must be a sequence of one string or more: got {texts!r}")
    for name, (low, high), least, most in (("rate", rate, *RATES), ("pitch", pitch, 0, 99)):
        if not least <= low <= high <= most:
            raise ValueError(
                f"{name} must be two whole numbers from {least} to {most}, the lower one first: "
                f"got {(low, high)}"
            )
    dice = Dice(check_seed(seed), 0x5BEEC)
    order: list = []
    request = []
    for text in texts:
        order = order or dice.shuffled(voices(split))
        request.append(
            dict(
                text=text,
                voice=order.pop().name,
                language=language,
                rate=rate[0] + dice.below(rate[1] - rate[0] + 1),
                pitch=pitch[0] + dice.below(pitch[1] - pitch[0] + 1),
            )
        )
    path = None
    if cache:
        names = [VOICES[wanted["voice"]].espeak_name(language) for wanted in request]
        path = store.path_of([request, names])
    stored = store.read(path) if path else None
    if stored is None:
        said = [synthesise(**wanted) for wanted in tqdm(request, "speaking", disable=not progress)]
        waves = [(one.waveform * 2**15).to(torch.int16) for one in said]
        times = [{"words": one.words, "phonemes": one.phonemes} for one in said]
        stored = torch.cat(waves), torch.tensor([len(wave) for wave in waves]), times
        if path:
            store.write(path, *stored)
    samples, lengths, times = stored
    return SpeechSet(
        samples=samples,
        lengths=lengths,
        texts=tuple(wanted["text"] for wanted in request),
        voices=tuple(wanted["voice"] for wanted in request),
        languages=(language,) * len(request),
        words=tuple(tuple(Span(*span) for span in one["words"]) for one in times),
        phonemes=tuple(tuple(Span(*span) for span in one["phonemes"]) for one in times),
        rates=tuple(wanted["rate"] for wanted in request),
        pitches=tuple(wanted["pitch"] for wanted in request),
    )


def _captions(split: str, language: str, size: int, seed: int) -> list[str]:
    return [scenes.caption(scene, language) for scene in scenes.sample(size, seed, split=split)]


def _one_of(items: dict[str, tuple[str, ...]]) -> Callable[[str, str, int, int], list[str]]:
    """Texts that are single items, in rounds of all of them, each round in another order."""

    def texts(split: str, language: str, size: int, seed: int) -> list[str]:
        dice = Dice(seed, 0x0D161)
        found: list[str] = []
        while len(found) < size:
            found += dice.shuffled(items[language])
        return found[:size]

    return texts


def _numbers(split: str, language: str, size: int, seed: int) -> list[str]:
    def drawn() -> Iterator[list[int]]:
        dice = Dice(seed, 0x9B3E5)
        while True:
            digits = [dice.below(10) for _ in range(3 + dice.below(4))]
            if split in ("all", number_split(digits)):
                yield digits

    joint = {"en": " ", "zh": ""}[language]
    return [
        joint.join(DIGITS[language][digit] for digit in digits)
        for _, digits in zip(range(size), drawn(), strict=False)
    ]


def number_split(digits: Sequence[int]) -> str:
    """Say whether a string of digits belongs to ``"train"`` or ``"test"``.

    >>> number_split([1, 2, 3]), number_split([1, 2, 4])
    ('train', 'train')
    """
    name = "".join(map(str, digits))
    digest = hashlib.sha256(f"speech/{name}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 5 == 0 else "train"


_TEXTS = {
    "captions": _captions,
    "digits": _one_of(DIGITS),
    "numbers": _numbers,
    "words": _one_of(WORDS),
}
