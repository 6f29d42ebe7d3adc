"""Train one Transformer on many tasks over pictures, text, sound and clips, and one on each.

The model learns in stages (:data:`STAGES`), and each stage rehearses what came before: the network
for looks learns to name single objects and then stands still; then come clips, speech, pictures,
and all tasks together. Met all at once from the beginning, in as many lessons, clips and pictures
are hardly learned. Beside it stand models of the same size: one that learns to transcribe and
nothing else, the same without being told which word is said when, one that sees one frame of each
clip, and the final model after some more lessons in which no modality is ever missing. Test scenes
hold combinations of colour and shape, test clips of shape and heading, and test sentences voices,
that training has not.

Each training run keeps its state in ``runs/12_multimodal``. A run that is complete is loaded, not
repeated, so that a measure can be taken again in little time.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import results
from mmlib.data import scenes, speech
from mmlib.data.batch import Batch
from mmlib.data.long_clips import match_events, parse_events, render_long, sample_long, summary
from mmlib.data.speech import SpeechSet
from mmlib.metrics.retrieval import hit_rate, ranks
from mmlib.metrics.word_errors import word_error_rate
from mmlib.modality_dropout import drop_modalities
from mmlib.multimodal import MultimodalTransformer
from mmlib.multimodal_embeddings import VisualEmbedding
from mmlib.multimodal_lessons import Lesson, Lessons, sayings, spoken_texts
from mmlib.multimodal_tasks import fit_of, hear, lesson_loss, write
from mmlib.multimodal_words import config, plain, vocabulary
from mmlib.speech_synthesis import say, vocode
from mmlib.training import TrainConfig, fit, save_weights

MINUTES = 45
CHECKPOINTS, RUNS = Path("mmlib/checkpoints"), Path("runs/12_multimodal")
CARD = {"command": "make train CHAPTER=12", "seed": 0}
#: Stages: their names, the tasks that take turns, and the lessons in all.
STAGES = (
    ("clip", ("clip",), 300),
    ("speech", ("transcribe", "transcribe", "clip"), 600),
    ("pictures", ("ask", "both", "caption", "listen", "ask", "transcribe", "clip", "both"), 560),
    (
        "joint",
        (
            *("clip", "transcribe", "both", "speak", "ask clip", "listen", "events", "transcribe"),
            *("caption", "speak", "both", "summary", "ask", "clip", "speak", "transcribe"),
        ),
        960,
    ),
    # What the stages before had too few lessons of.
    (
        "practice",
        (
            *("events", "speak", "caption", "ask", "summary", "speak", "both", "clip"),
            *("events", "speak", "caption", "transcribe", "listen", "speak", "ask", "events"),
        ),
        2400,
    ),
    (
        "all",
        (
            *("speak", "caption", "transcribe", "ask clip", "events", "ask", "speak", "clip"),
            *("summary", "transcribe", "both", "listen", "speak", "caption", "events", "ask"),
        ),
        1600,
    ),
    (
        "more",
        (
            *("speak", "caption", "transcribe", "events", "speak", "ask", "caption", "transcribe"),
            *("speak", "summary", "both", "events", "caption", "clip", "ask clip", "listen"),
        ),
        2400,
    ),
)
NAMED, ALONE, ONE, TUNE = 300, 400, 600, 60
#: Items of a lesson; 32 where nothing is said. The first stage has more.
BATCH = {"clip": 24, "ask": 48, "ask clip": 48, "events": 16, "summary": 16, "speak": 24}
#: More of some of them in the last stages.
PRACTICE = BATCH | {"events": 32, "summary": 32, "caption": 64, "ask": 64}
VOICES = ("f3", "m3")
#: What the network for looks learns to name.
KINDS = (scenes.SIZES, scenes.COLOURS, scenes.SHAPES)
SIZES = {"spoken": 3000, "sayings": 360, "test": 240}


@cache
def heard(split: str) -> SpeechSet:
    """Sentences by the voices of a split."""
    count = SIZES["spoken" if split == "train" else "test"]
    if split == "train":
        texts = spoken_texts(count, 11, split)
        return speech.speak(texts, split, seed=13, rate=(110, 220), pitch=(10, 90))
    return speech.speak(spoken_texts(count, 12, split), split, seed=14)


@cache
def lessons(split: str) -> Lessons:
    """Lessons of a split; in training sounds are played at other speeds."""
    train = split == "train"
    own = sayings(spoken_texts(SIZES["sayings"], 15, "train"), VOICES) if train else None
    return Lessons(split, heard(split), own, (0.85, 1.15) if train else (1.0, 1.0))


def lesson(
    task: str,
    number: int,
    drop: float = 0.5,
    frame: int | None = None,
    aligned: bool = True,
    count: int | None = None,
    sizes: dict[str, int] | None = None,
) -> Lesson:
    """A training lesson, with modality dropout where a question is both typed and spoken.

    Args:
        task: Of :class:`mmlib.multimodal_tasks.Lessons`.
        number: Which.
        drop: Probability that a question is not typed, or not spoken.
        frame: Show this frame of clips alone.
        aligned: Tell which word is said when.
        count: How many items of any task.
        sizes: How many of each, :data:`BATCH` by default.
    """
    found = lessons("train")(task, number, count or (sizes or BATCH).get(task, 32))
    if not aligned:
        found = found._replace(aligned=None)
    inputs = found.inputs
    if task == "both" and drop:
        generator = torch.Generator().manual_seed(number)
        inputs = drop_modalities(inputs, drop, generator, ("text", "audio"))
    return found._replace(inputs=one_frame(inputs, frame))


def one_frame(inputs: Batch, frame: int | None) -> Batch:
    """Clips in which one frame stands still; None leaves them as they are."""
    if frame is None or inputs.video is None:
        return inputs
    still = inputs.video[:, frame : frame + 1].expand_as(inputs.video)
    return replace(inputs, video=still)


class Namer(nn.Module):
    """The network for looks, and a linear layer that names what it sees."""

    def __init__(self) -> None:
        super().__init__()
        sizes = config()
        self.visual = VisualEmbedding(sizes.dim, sizes.cnn_width, sizes.motion_width)
        self.head = nn.Linear(2 * sizes.cnn_width, sum(map(len, KINDS)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of sizes, colours and shapes."""
        return self.head(self.visual.seen(images)).float().split([len(k) for k in KINDS], dim=1)


def named(number: int, split: str = "train", count: int = 128) -> tuple[Tensor, Tensor]:
    """First or last frames of clips, and the numbers of the object's size, colour and shape."""
    drawn = scenes.sample_clips(count, 70_000 + number, split=split, objects=(1, 1))
    items = [clip.scene.objects[0] for clip in drawn]
    names = [(item.size, item.colour, item.shape) for item in items]
    numbers = [[k.index(n) for k, n in zip(KINDS, words, strict=True)] for words in names]
    return scenes.render_clip(drawn, 2)[:, number % 2], torch.tensor(numbers)


@cache
def looks() -> dict[str, Tensor]:
    """Weights of a network that names single objects."""
    torch.manual_seed(0)
    model = Namer()
    settings = TrainConfig(
        NAMED, learning_rate=3e-3, warmup=30, weight_decay=0.05, precision="bf16", progress=False
    )

    def loss(model: Namer, batch: tuple[Tensor, Tensor]) -> Tensor:
        pairs = zip(model(batch[0]), batch[1].T, strict=True)
        return sum(F.cross_entropy(logits, wanted) for logits, wanted in pairs)

    fit(model, loss, named, settings, checkpoint=RUNS / "looks", resume=True)
    images, wanted = named(0, "test", 600)
    with torch.no_grad():
        right = [p.argmax(1) == w for p, w in zip(model.eval()(images), wanted.T, strict=True)]
    share = torch.stack(right).all(0).float().mean()
    note("named", float(share), "size, colour and shape of one object all right")
    return {key: value.clone() for key, value in model.visual.looks.state_dict().items()}


def train(
    name: str,
    make: Callable[[int], Lesson],
    steps: int,
    start: MultimodalTransformer | None = None,
    rate: float = 3e-3,
) -> MultimodalTransformer:
    """Train a model of the one size, from another's weights or from scratch, or load it."""
    torch.manual_seed(0)
    model = MultimodalTransformer(config(voices=len(VOICES), dropout=0.05))
    model.visual.looks.load_state_dict(looks())
    model.visual.looks.requires_grad_(False)
    if start is not None:
        model.load_state_dict(start.state_dict())
    settings = TrainConfig(
        steps,
        learning_rate=rate,
        warmup=max(1, steps // 20),
        weight_decay=0.05,
        precision="bf16",
        progress=False,
        checkpoint_every=100,
    )
    began, seen = time.time(), defaultdict(list)

    def loss(model: MultimodalTransformer, lesson: Lesson) -> Tensor:
        found = lesson_loss(model, lesson)
        seen[lesson.task].append(found.item())
        if sum(map(len, seen.values())) == 160:
            means = (f"{task} {sum(x) / len(x):.3f}" for task, x in sorted(seen.items()))
            print(f"{name}, {time.time() - began:.0f} s: {', '.join(means)}", flush=True)
            seen.clear()
        return found

    fit(model, loss, make, settings, checkpoint=RUNS / name, resume=True)
    return model.eval()


# --- measures ----------------------------------------------------------------------------------


def note(name: str, value: float, metric: str, tolerance: float = 0.1, **options: float) -> None:
    """Record a number of this chapter."""
    print(f"{name:24} {value:.4f}  {metric}", flush=True)
    results.record(f"12.{name}", value, metric=metric, tolerance=tolerance, seed=0, **options)


def spaced(texts: list[str]) -> list[str]:
    """Texts as the model writes them, with a space between all words and marks."""
    return [" ".join(vocabulary().tokenize(text)) for text in texts]


def share(found: list[str], wanted: list[str]) -> float:
    """How many are exactly as wanted."""
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def in_parts(inputs: Batch, function: Callable[[Batch], list[str]], size: int = 60) -> list[str]:
    """Apply a function to a large batch in parts."""
    rows = range(0, len(inputs), size)
    return [text for at in rows for text in function(inputs.select(slice(at, at + size)))]


def error_rate(model: MultimodalTransformer, sounds: list[Tensor], texts: list[str]) -> list[float]:
    """Word error rates of the decoder and of CTC on sounds."""
    found: dict[str, list[str]] = {"decoder": [], "ctc": []}
    for at in range(0, len(sounds), 40):
        part = sounds[at : at + 40]
        counts = torch.tensor([len(sound) for sound in part])
        audio = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        keep = torch.arange(audio.shape[1]) < counts[:, None]
        inputs = Batch(audio=audio, audio_keep=keep)
        found["decoder"] += write(model, "transcribe", inputs)
        found["ctc"] += hear(model, inputs)
    said = [plain(text).split() for text in texts]
    return [word_error_rate(said, [text.split() for text in rows]) for rows in found.values()]


def mark_speech(model: MultimodalTransformer, name: str, texts: str) -> None:
    """Word error rates on unseen voices."""
    test = heard("test")
    sounds = [test[i].waveform for i in range(len(test))]
    rates = error_rate(model, sounds, list(test.texts))
    for kind, rate in zip(("decoder", "ctc"), rates, strict=True):
        note(f"{name}_wer_{kind}", rate, f"{texts}: word error rate, unseen voices, {kind}", 0.05)


def mark_clips(
    model: MultimodalTransformer, name: str, texts: str, frame: int | None = None
) -> None:
    """Captions of clips of unseen combinations of shape and heading."""
    drawn = scenes.sample_clips(400, 21, split="test", objects=(1, 1))
    inputs = one_frame(
        Batch(video=scenes.render_clip(drawn), targets=torch.zeros(400).long()), frame
    )
    found = in_parts(inputs, lambda part: write(model, "clip", part))
    wanted = spaced([scenes.clip_caption(clip) for clip in drawn])
    note(f"{name}_clip", share(found, wanted), f"{texts}: captions of unseen clips, exact", 0.05)


def mark_answers(model: MultimodalTransformer, name: str, texts: str) -> None:
    """The same questions about the same pictures, typed, spoken, both, and without the picture."""
    inputs = lessons("test")("both", 31, 400).inputs
    wanted = answers(inputs)
    kinds = {
        "typed": inputs.without("audio"),
        "spoken": inputs.without("text"),
        "both": inputs,
        "blind": inputs.without("images"),
        "mute": inputs.without("audio").without("text"),
    }
    for kind, given in kinds.items():
        found = in_parts(given, lambda part: write(model, "answer", part, 8))
        note(f"{name}_{kind}", share(found, wanted), f"{texts}: answers, question {kind}")


def answers(inputs: Batch) -> list[str]:
    """What should be written."""
    words, end = vocabulary().backend.id_to_token, vocabulary().end_id
    rows = zip(inputs.targets.tolist(), inputs.targets_keep.tolist(), strict=True)
    return [
        " ".join(words(t) for t, real in zip(row, keep, strict=True) if real and t != end)
        for row, keep in rows
    ]


def mark_captions(model: MultimodalTransformer, name: str, texts: str) -> None:
    """Captions of pictures with unseen pairs of colour and shape."""
    inputs = lessons("test")("caption", 41, 300).inputs
    found = in_parts(inputs, lambda part: write(model, "caption", part))
    exact = share(found, answers(inputs))
    note(f"{name}_caption", exact, f"{texts}: captions of unseen pictures, exact")


def mark_questions(model: MultimodalTransformer) -> None:
    """Questions about clips, and search for clips by text."""
    inputs = lessons("test")("ask clip", 42, 400).inputs
    for kind, given in {"": inputs, "_blind": inputs.without("video")}.items():
        found = in_parts(given, lambda part: write(model, "answer", part, 12))
        note(f"joint_ask_clip{kind}", share(found, answers(inputs)), f"questions about clips{kind}")
    chosen: dict[str, scenes.Clip] = {}
    for clip in scenes.sample_clips(1200, 43, split="test", objects=(1, 1)):
        chosen.setdefault(scenes.clip_caption(clip), clip)
    texts, clips = list(chosen)[:300], list(chosen.values())[:300]
    scores = fit_of(model, "clip", Batch(video=scenes.render_clip(clips)), texts)
    found = ranks(scores.T, torch.eye(len(texts), dtype=torch.bool))
    for k in (1, 10):
        note(f"joint_find_{k}", hit_rate(found, k), f"R@{k} of 300 clips by text", baseline=k / 300)


def mark_long(model: MultimodalTransformer) -> None:
    """Events with their times, and summaries, of longer clips."""
    drawn = sample_long(300, 51, split="test")
    inputs = Batch(video=render_long(drawn))
    texts = in_parts(inputs, lambda part: write(model, "events", part, 60))
    hits, errors, said, true, exact = 0, [], 0, 0, 0
    for clip, text in zip(drawn, texts, strict=True):
        found = parse_events(text)
        matched, off = match_events(clip.events, found)
        hits, errors = hits + matched, errors + off
        said, true, exact = (
            said + len(found),
            true + len(clip.events),
            exact + (found == list(clip.events)),
        )
    note("joint_events_recall", hits / true, "events found, overlap at least half")
    note("joint_events_precision", hits / max(1, said), "named events that are there")
    note("joint_events_edge", sum(errors) / max(1, len(errors)), "frames off at an edge", 0.5)
    note("joint_events_exact", exact / len(drawn), "all events and times exact")
    found = in_parts(inputs, lambda part: write(model, "summary", part))
    note("joint_summary", share(found, spaced([summary(c) for c in drawn])), "summaries, exact")


def mark_synthesis(
    model: MultimodalTransformer, ears: MultimodalTransformer, name: str = ""
) -> None:
    """What the recogniser makes of synthetic speech, of the vocoder alone, and of the original."""
    texts = spoken_texts(120, 61, "test")
    own = sayings(texts, VOICES)
    voices = torch.tensor([VOICES.index(name) for name in own.voices])
    ids, keep = vocabulary().encode([plain(text) for text in texts])
    log_mel = model.sound.log_mel
    original = [own[i].waveform for i in range(len(own))]
    copied = [vocode(log_mel(wave[None])[0][0], log_mel) for wave in original]
    frames, exists, _ = say(model, ids, keep, voices)
    spoken = [vocode(one[real], log_mel) for one, real in zip(frames, exists, strict=True)]
    others = {} if name else {"original": original, "vocoder": copied}
    for kind, sounds in (others | {"spoken": spoken}).items():
        rate = error_rate(ears, sounds, texts)[0]
        note(f"{name}synthesis_{kind}", rate, f"word error rate of the recogniser: {kind}", 0.05)


def turn(tasks: tuple[str, ...], **options) -> Callable[[int], Lesson]:
    """Lessons of these tasks in turn, each with its own numbers."""

    def make(n: int) -> Lesson:
        turns, at = divmod(n, len(tasks))
        number = turns * tasks.count(tasks[at]) + tasks[:at].count(tasks[at])
        return lesson(tasks[at], number, **options)

    return make


def main() -> None:
    """Train and measure every model; keep the weights of the joint one."""
    model, steps = None, 0
    for name, tasks, count in STAGES:
        items = {
            "clip": {"count": 64},
            "practice": {"sizes": PRACTICE},
            "all": {"sizes": PRACTICE},
            "more": {"sizes": PRACTICE},
        }.get(name, {})
        model, steps = train(name, turn(tasks, **items), count, model), steps + count
        if name == "clip":
            mark_clips(model, "single", "one task alone")
    card = CARD | {"data": "scenes, clips and synthetic speech, split train", "steps": steps}
    save_weights(model, CHECKPOINTS / "12_multimodal.safetensors", card, dtype=torch.bfloat16)
    mark_speech(model, "joint", "joint")
    mark_clips(model, "joint", "joint")
    mark_answers(model, "joint", "joint")
    mark_captions(model, "joint", "joint")
    mark_questions(model)
    mark_long(model)
    mark_synthesis(model, model)
    still = train("frame", turn(("clip",), frame=4, count=64), STAGES[0][2])
    mark_clips(still, "frame", "one frame", frame=4)
    alone = train("transcribe", turn(("transcribe",)), ALONE)
    mark_speech(alone, "single", "one task alone")
    one = "one task alone"
    mark_captions(train("captions", turn(("caption",), sizes=PRACTICE), ONE), "single", one)
    asked = turn(("both", "ask", "both", "listen"), sizes=PRACTICE)
    mark_answers(train("questions", asked, ONE), "single", one)
    mark_synthesis(train("speaking", turn(("speak",)), ONE), model, "single_")
    untold = train("untold", turn(("transcribe",), aligned=False), ALONE)
    mark_speech(untold, "untold", "one task alone, not told which word is said when")
    always = train("always", turn(("both",), drop=0.0), TUNE, model, rate=3e-4)
    mark_answers(always, "always", "after lessons in which nothing is missing")


if __name__ == "__main__":
    main()
