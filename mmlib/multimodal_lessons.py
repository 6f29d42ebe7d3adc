r"""What chapter 12's model is taught: a lesson of each task, drawn by number.

A *lesson* is a batch of one task. Pictures, clips and texts are drawn anew each time; sentences are
spoken once (:func:`mmlib.data.speech.speak`) and heard again at other speeds, which shifts pitch
and formants as another voice would (Ko et al., *Audio Augmentation for Speech Recognition*,
Interspeech 2015).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.data import scenes
from mmlib.data.batch import Batch
from mmlib.data.clip_questions import clip_questions
from mmlib.data.long_clips import event_text, render_long, sample_long, summary
from mmlib.data.scenes import Clip, Question, Scene
from mmlib.data.scenes.draws import Dice
from mmlib.data.speech import SAMPLE_RATE, SpeechSet, synthesise
from mmlib.durations import word_starts, word_steps
from mmlib.encoders.spectrogram import LogMel
from mmlib.multimodal_embeddings import SoundEmbedding
from mmlib.multimodal_words import ASKED, config, plain, vocabulary

__all__ = ["Lesson", "Lessons", "change_speed", "sayings", "spoken_texts"]


def spoken_texts(count: int, seed: int, split: str) -> list[str]:
    """Sentences to be spoken: two questions about scenes of one or two objects, then a caption.

    Args:
        count: How many.
        seed: Which.
        split: Of the scenes: test captions hold pairs of colour and shape that no training caption
            has.
    """
    found = []
    for number, scene in enumerate(scenes.sample(count, seed, split=split, objects=(1, 2))):
        if number % 3 == 2:
            found.append(scenes.caption(Scene(scene.objects[:1])))
        else:
            asked = scenes.questions(scene, seed + number, ASKED, scenes.DEFAULT_HOLDOUT)
            found.append(asked[number % len(asked)].text)
    return found


def sayings(texts: Sequence[str], voices: Sequence[str]) -> SpeechSet:
    """Texts said by some voices in turn, at one rate and one pitch, to learn to speak from.

    Args:
        texts: What is said.
        voices: Names of voices.

    Raises:
        ValueError: no texts or no voices.
    """
    if not texts or not voices:
        raise ValueError(f"texts and voices must not be empty: got {len(texts)} and {len(voices)}")
    said = [synthesise(text, voices[n % len(voices)]) for n, text in enumerate(texts)]
    return SpeechSet(
        samples=torch.cat([(one.waveform * 2**15).to(torch.int16) for one in said]),
        lengths=torch.tensor([len(one.waveform) for one in said]),
        texts=tuple(texts),
        voices=tuple(one.voice for one in said),
        languages=tuple(one.language for one in said),
        words=tuple(one.words for one in said),
        phonemes=tuple(one.phonemes for one in said),
        rates=tuple(one.rate for one in said),
        pitches=tuple(one.pitch for one in said),
    )


class Lesson(NamedTuple):
    """A batch of one task.

    Attributes:
        task: One of ``TASKS``.
        inputs: What is read; a question may be typed, spoken or both. ``targets`` are the words to
            write, closed by the end token.
        steps: For ``"speak"``: how long each token takes.
        voices: For ``"speak"``: whose voice.
        frames: For ``"speak"``: log-mel frames to be spoken.
        frames_keep: Which of them exist.
        aligned: For ``"transcribe"``: the word that is being said in each token of sound, 0 in
            silence. The synthesiser knows.
    """

    task: str
    inputs: Batch
    steps: Int[Tensor, "batch tokens"] | None = None
    voices: Int[Tensor, " batch"] | None = None
    frames: Float[Tensor, "batch frames mels"] | None = None
    frames_keep: Bool[Tensor, "batch frames"] | None = None
    aligned: Int[Tensor, "batch sound_tokens"] | None = None


def _targets(texts: Sequence[str]) -> dict[str, Tensor]:
    """Words and the end token, without the begin token: the task's stands in its place."""
    ids, keep = vocabulary().encode(list(texts))
    return {"targets": ids[:, 1:], "targets_keep": keep[:, 1:]}


def _text(texts: Sequence[str]) -> dict[str, Tensor]:
    ids, keep = vocabulary().encode(list(texts))
    return {"text": ids, "text_keep": keep}


def change_speed(
    audio: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"], factor: float
) -> tuple[Float[Tensor, "batch new_samples"], Bool[Tensor, "batch new_samples"]]:
    """Play sounds faster (above 1) or slower, and so higher or lower.

    Raises:
        ValueError: ``factor`` is not above 0.
    """
    if not factor > 0.0:
        raise ValueError(f"factor must be above 0: got {factor}")
    length = max(1, round(audio.shape[1] / factor))
    faster = F.interpolate(audio[:, None], length, mode="linear", align_corners=True)[:, 0]
    counts = (keep.sum(1) / factor).round().clamp(1, length).long()
    return faster, torch.arange(length, device=audio.device) < counts[:, None]


@dataclass
class Lessons:
    """Lessons of every task, drawn by number.

    Attributes:
        split: ``"train"`` or ``"test"``: of scenes, clips and motions. What is spoken has its own.
        spoken: Sentences of :func:`spoken_texts` to transcribe, and questions to hear.
        sayings: Sentences of a few voices to be spoken; a model has a number for each voice.
        speeds: Sounds are played at factors from the first to the second.
    """

    split: str = "train"
    spoken: SpeechSet | None = None
    sayings: SpeechSet | None = None
    speeds: tuple[float, float] = (1.0, 1.0)
    _sounding: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)
    _lengths: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.spoken is not None:
            for row, text in enumerate(self.spoken.texts):
                self._sounding.setdefault(text, []).append(row)
            self._lengths = self.spoken.lengths.argsort().tolist()

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices of ``sayings``, in the order of their numbers."""
        return tuple(sorted(set(self.sayings.voices))) if self.sayings is not None else ()

    def __call__(self, task: str, number: int, count: int = 32) -> Lesson:
        """A lesson.

        Args:
            task: One of ``TASKS``, but instead of ``"answer"`` one of ``"ask"`` (a picture and
                a typed question), ``"listen"`` (a spoken one), ``"both"`` (the same question typed
                and spoken) and ``"ask clip"``.
            number: Which lesson of the task.
            count: How many items.

        Raises:
            ValueError: there is no such task, or it needs speech that was not given.
        """
        makers: dict[str, Callable[[int, int], Lesson]] = {
            "caption": self._caption,
            "clip": self._clip,
            "transcribe": self._transcribe,
            "ask": self._ask,
            "listen": lambda number, count: self._ask(number, count, typed=False, spoken=True),
            "both": lambda number, count: self._ask(number, count, spoken=True),
            "ask clip": self._ask_clip,
            "events": self._events,
            "summary": self._summary,
            "speak": self._speak,
        }
        if task not in makers:
            raise ValueError(f"task must be one of {', '.join(makers)}: got {task!r}")
        needed = {"speak": "sayings"} | dict.fromkeys(("transcribe", "listen", "both"), "spoken")
        needed = needed.get(task)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{needed} must be given for {task!r}: got None")
        return makers[task](number, count)

    def asked(self, number: int, count: int, spoken: bool) -> list[tuple[Scene, Question]]:
        """Scenes with a question each; if ``spoken``, one that someone says in ``spoken``."""
        found: list[tuple[Scene, Question]] = []
        for turn in range(200):
            seed = 1_000_000 + 1009 * number + turn
            for at, scene in enumerate(
                scenes.sample(count, seed, split=self.split, objects=(1, 2))
            ):
                all_asked = scenes.questions(scene, seed + at, ASKED, scenes.DEFAULT_HOLDOUT)
                kept = [q for q in all_asked if not spoken or q.text in self._sounding]
                if kept:
                    found.append((scene, kept[Dice(seed, at).below(len(kept))]))
                if len(found) == count:
                    return found
        raise ValueError(f"spoken must hold questions about scenes: got {self.spoken}")

    def _sound(self, rows: Sequence[int], number: int) -> dict[str, Tensor]:
        audio, keep = self.spoken.padded(rows)
        low, high = self.speeds
        if low != high:
            share = Dice(number, 0x5FEED).below(1001) / 1000
            audio, keep = change_speed(audio, keep, low + (high - low) * share)
        return {"audio": audio, "audio_keep": keep}

    def _caption(self, number: int, count: int) -> Lesson:
        drawn = scenes.sample(count, 1000 + number, split=self.split, objects=(1, 2))
        texts = [scenes.caption(scene) for scene in drawn]
        return Lesson("caption", Batch(images=scenes.render(drawn, 32), **_targets(texts)))

    def _clips(self, number: int, count: int) -> tuple[list[Clip], Tensor]:
        drawn = scenes.sample_clips(count, 2000 + number, split=self.split, objects=(1, 1))
        return drawn, scenes.render_clip(drawn)

    def _clip(self, number: int, count: int) -> Lesson:
        drawn, video = self._clips(number, count)
        texts = [scenes.clip_caption(clip) for clip in drawn]
        return Lesson("clip", Batch(video=video, **_targets(texts)))

    def _ask(self, number: int, count: int, typed: bool = True, spoken: bool = False) -> Lesson:
        pairs = self.asked(number, count, spoken)
        question: dict[str, Tensor] = {}
        if spoken:
            rows = []
            for at, (_, asked) in enumerate(pairs):
                choice = self._sounding[asked.text]
                rows.append(choice[Dice(number, 0x11, at).below(len(choice))])
            question |= self._sound(rows, number)
        if typed:
            question |= _text([asked.text for _, asked in pairs])
        images = scenes.render([scene for scene, _ in pairs], 32)
        answers = _targets([asked.answer for _, asked in pairs])
        return Lesson("answer", Batch(images=images, **question, **answers))

    def _ask_clip(self, number: int, count: int) -> Lesson:
        drawn, video = self._clips(number + 700_000, count)
        asked = []
        for at, clip in enumerate(drawn):
            found = clip_questions(clip, number + at)
            asked.append(found[Dice(number, 0x12, at).below(len(found))])
        text, answers = _text([q.text for q in asked]), _targets([q.answer for q in asked])
        return Lesson("answer", Batch(video=video, **text, **answers))

    def _events(self, number: int, count: int, task: str = "events") -> Lesson:
        drawn = sample_long(count, 3000 + number, split=self.split)
        texts = [(event_text if task == "events" else summary)(clip) for clip in drawn]
        return Lesson(task, Batch(video=render_long(drawn), **_targets(texts)))

    def _summary(self, number: int, count: int) -> Lesson:
        return self._events(number + 500_000, count, "summary")

    def _transcribe(self, number: int, count: int) -> Lesson:
        # Neighbours in length share a batch: less of it is padding.
        dice = Dice(number, 0x7A)
        size = min(len(self._lengths), 2 * count)
        start = dice.below(len(self._lengths) - size + 1)
        rows = dice.shuffled(self._lengths[start : start + size])[:count]
        texts = [plain(self.spoken.texts[row]) for row in rows]
        inputs = Batch(**self._sound(rows, number), **_targets(texts))
        return Lesson("transcribe", inputs, aligned=self._aligned(rows, inputs))

    def _aligned(self, rows: Sequence[int], inputs: Batch) -> Tensor:
        """The word that is said at the centre of each token of sound."""
        samples = _log_mel().config.hop * SoundEmbedding.frames
        sizes = inputs.audio_keep.sum(1)
        aligned = torch.zeros(len(rows), -(-inputs.audio.shape[1] // samples), dtype=torch.long)
        for at, row in enumerate(rows):
            text, spans = self.spoken.texts[row], self.spoken.words[row]
            # At another speed all times are others.
            tokens = float(sizes[at]) / float(self.spoken.lengths[row]) * SAMPLE_RATE / samples
            edges = [round(start * tokens) for start in word_starts(text, spans)]
            edges.append(round(spans[-1].end * tokens))
            words = inputs.targets[at].tolist()
            for word, start, end in zip(words, edges, edges[1:], strict=False):
                aligned[at, start:end] = word
        return aligned

    def _speak(self, number: int, count: int) -> Lesson:
        dice = Dice(number, 0x5A)
        rows = [dice.below(len(self.sayings)) for _ in range(count)]
        return self.saying(rows)

    def saying(self, rows: Sequence[int]) -> Lesson:
        """The lesson of speaking some of ``sayings``."""
        log_mel, step = _log_mel(), config().step
        frames, frames_keep = log_mel(*self.sayings.padded(rows))
        text = _text([plain(self.sayings.texts[row]) for row in rows])
        steps = torch.zeros_like(text["text"])
        for at, row in enumerate(rows):
            said = self.sayings.texts[row]
            timed = word_steps(said, self.sayings.words[row], int(frames_keep[at].sum()), step)
            steps[at, : len(timed)] = torch.tensor(timed)
        voices = torch.tensor([self.voices.index(self.sayings.voices[row]) for row in rows])
        return Lesson("speak", Batch(**text), steps, voices, frames, frames_keep)


@cache
def _log_mel() -> LogMel:
    return LogMel(config().log_mel)
