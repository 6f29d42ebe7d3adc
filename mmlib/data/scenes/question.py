"""Questions about a scene, in English and Chinese, with their answers and programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.programs import FIELDS, Program, execute
from mmlib.data.scenes.relations import OPPOSITE, RELATIONS, holds
from mmlib.data.scenes.splits import Holdout
from mmlib.data.scenes.wording import RULES
from mmlib.data.scenes.world import Object, Scene, choice

KINDS = ("exist", "count", "colour", "shape", "relation", "compare")
_EXIST_FIELDS = (
    *(("colour",), ("shape",), ("colour", "shape")),
    *(("size", "colour"), ("size", "shape"), ("size", "colour", "shape")),
)
# Never colour and shape together: held-out pairs must not show in the questions.
_COUNT_FIELDS = ((), ("size",), ("colour",), ("shape",), ("size", "colour"), ("size", "shape"))
_ANSWER_ZH = {"yes": "是", "no": "否"}

Description = dict[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene.

    Attributes:
        kind: One of exist, count, colour, shape, relation and compare.
        text: The question in English, in lower case.
        text_zh: The question in Chinese.
        answer: One of :data:`ANSWERS`.
        program: What :func:`execute` runs to find the answer.
    """

    kind: str
    text: str
    text_zh: str
    answer: str
    program: Program

    @property
    def answer_zh(self) -> str:
        """The answer in Chinese."""
        words = {**RULES["COLOUR"], **RULES["SHAPE"]}
        if self.answer in words:
            return words[self.answer][1]
        return _ANSWER_ZH.get(self.answer, self.answer)


def questions(
    scene: Scene, seed: int, kinds: Sequence[str] = KINDS, holdout: Holdout | None = None
) -> list[Question]:
    """Ask one question of each kind, where the scene allows it.

    Every question has exactly one right answer: "the red star" is asked about only where there is
    one. Yes and no are drawn first, by a fair coin, and the words are drawn alike for both, so
    that the text alone hardly tells the answer. Numbers and colours are drawn as evenly as the
    scene allows.

    Args:
        scene: The scene.
        seed: Which questions; other seeds ask others of the same scene.
        kinds: Which kinds, in this order. A relation and a comparison need what a scene may lack.
        holdout: Combinations of colour and shape that no "is there ...?" with the answer no
            names. Without it a model that trains on scenes without red stars learns that "is
            there a red star?" means no.

    Returns:
        At most one question of each kind.

    Raises:
        ValueError: If a kind is unknown or the seed out of range.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),))
    >>> questions(scene, seed=0, kinds=["count"])[0].program[0]
    'count'
    """
    check_seed(seed)
    for kind in kinds:
        choice("kinds", kind, KINDS)
    found = []
    for kind in kinds:
        dice = Dice(seed, 0x0A5C, KINDS.index(kind))
        if kind == "exist":
            asked = _exist(scene, dice, holdout or Holdout())
        elif kind == "count":
            asked = _count(scene, dice)
        elif kind in ("colour", "shape"):
            asked = _query(scene, dice, kind)
        elif kind == "relation":
            asked = _relation(scene, dice)
        else:
            asked = _compare(scene, dice)
        if asked:
            text, text_zh, program = asked
            found.append(Question(kind, text, text_zh, execute(program, scene), program))
    return found


Asked = tuple[str, str, Program] | None


def _exist(scene: Scene, dice: Dice, holdout: Holdout) -> Asked:
    fields = dice.choice(_EXIST_FIELDS)
    if dice.below(2):
        item = dice.choice(scene.objects)
        words = {field: getattr(item, field) for field in fields}
    else:
        # Half of them put together what the scene has apart ("is there a red ring?" of a red
        # star and a blue ring); the others are drawn freely. Four objects have no more than
        # four of the eight colours and shapes, so something absent is soon found.
        mixed = dice.below(2)
        words = None
        for attempt in range(1000):
            words = {
                field: getattr(dice.choice(scene.objects), field)
                if mixed and attempt < 8
                else dice.choice(FIELDS[field])
                for field in fields
            }
            held = (words.get("colour"), words.get("shape")) in holdout.pairs
            if not held and not _matching(scene, words):
                break
    article = "an" if _english(words)[0] in "aeiou" else "a"
    return (
        f"is there {article} {_english(words)}?",
        f"有{_chinese(words)}吗？",
        ("exist", _set(words)),
    )


def _count(scene: Scene, dice: Dice) -> Asked:
    groups: dict[int, dict[tuple, list[Description]]] = {}
    for fields in _COUNT_FIELDS:
        for words in _descriptions(fields):
            number = len(_matching(scene, words))
            groups.setdefault(number, {}).setdefault(fields, []).append(words)
    by_fields = dice.choice([groups[number] for number in sorted(groups)])
    words = dice.choice(by_fields[dice.choice(sorted(by_fields))])
    return (
        f"how many {_plural(words)} are there?",
        f"有几个{_chinese(words)}？",
        ("count", _set(words)),
    )


def _query(scene: Scene, dice: Dice, field: str) -> Asked:
    others = tuple(name for name in FIELDS if name != field)
    direct = _unique(scene, scene.objects, others)
    # Or by where it is: the only object on one side of one that can be named.
    near = [
        (relation, words)
        for item in scene.objects
        for words in _unique(scene, (item,), tuple(FIELDS))
        for relation in RELATIONS
        if len([one for one in scene.objects if holds(relation, one, item)]) == 1
    ]
    if near and (not direct or dice.below(3) == 0):
        relation, words = dice.choice(near)
        english, chinese = RULES["RELATION"][relation]
        text = f"the object {english} the {_english(words)}"
        text_zh = f"{_chinese(words)}{chinese}的物体"
        one = ("unique", ("related", relation, ("unique", _set(words))))
    elif direct:
        words = dice.choice(direct)
        text, text_zh = f"the {_english(words)}", _chinese(words)
        one = ("unique", _set(words))
    else:
        return None
    word_zh = {"colour": "颜色", "shape": "形状"}[field]
    return f"what {field} is {text}?", f"{text_zh}是什么{word_zh}？", ("query", field, one)


def _relation(scene: Scene, dice: Dice) -> Asked:
    named = [item for item in scene.objects if _unique(scene, (item,), tuple(FIELDS))]
    if len(named) < 2:
        return None
    first, second = dice.shuffled(named)[:2]
    # The pair has come in a random order, so a relation that holds or its opposite is a fair
    # coin. No relation is asked about that is false in both directions: too close to tell.
    relation = dice.choice([word for word in RELATIONS if holds(word, first, second)])
    if dice.below(2):
        relation = OPPOSITE[relation]
    words, other = (dice.choice(_unique(scene, (item,), tuple(FIELDS))) for item in (first, second))
    english, chinese = RULES["RELATION"][relation]
    return (
        f"is the {_english(words)} {english} the {_english(other)}?",
        f"{_chinese(words)}在{_chinese(other)}的{chinese}吗？",
        ("relate", relation, ("unique", _set(words)), ("unique", _set(other))),
    )


def _compare(scene: Scene, dice: Dice) -> Asked:
    word = dice.choice(("more", "fewer", "equal"))
    groups: dict[bool, dict[tuple, list[tuple[Description, Description]]]] = {True: {}, False: {}}
    for field, values in FIELDS.items():
        numbers = {value: len(_matching(scene, {field: value})) for value in values}
        for first, second in combinations(values, 2):
            low, high = sorted((numbers[first], numbers[second]))
            if high:
                group = groups[low == high].setdefault((field, low, high), [])
                group.append(({field: first}, {field: second}))
    same = word == "equal" and dice.below(2) == 1
    if word == "equal" and not (groups[True] and groups[False]):
        return None  # only one answer would be possible
    if not groups[same]:
        return None
    pair = dice.choice(groups[same][dice.choice(sorted(groups[same]))])
    first, second = dice.shuffled(pair)
    if word == "equal":
        text = f"are there as many {_plural(first)} as {_plural(second)}?"
        text_zh = f"{_chinese(first)}和{_chinese(second)}一样多吗？"
    else:
        text = f"are there {word} {_plural(first)} than {_plural(second)}?"
        text_zh = f"{_chinese(first)}比{_chinese(second)}{'多' if word == 'more' else '少'}吗？"
    return text, text_zh, (word, _set(first), _set(second))


def _descriptions(fields: tuple[str, ...]) -> list[Description]:
    """Every description that names these fields."""
    found: list[Description] = [{}]
    for field in fields:
        found = [{**words, field: value} for words in found for value in FIELDS[field]]
    return found


def _matching(scene: Scene, words: Description) -> list[Object]:
    return [
        item
        for item in scene.objects
        if all(getattr(item, field) == value for field, value in words.items())
    ]


def _unique(scene: Scene, items: Sequence[Object], fields: tuple[str, ...]) -> list[Description]:
    """Descriptions, by some of the fields, that fit one of the items and no other object."""
    return [
        words
        for item in items
        for number in range(1, len(fields) + 1)
        for names in combinations(fields, number)
        for words in [{name: getattr(item, name) for name in names}]
        if len(_matching(scene, words)) == 1
    ]


def _set(words: Description) -> Program:
    program: Program = ("scene",)
    for field, value in words.items():
        program = ("filter", field, value, program)
    return program


def _english(words: Description) -> str:
    parts = [words.get("size"), words.get("colour"), words.get("shape", "object")]
    return " ".join(part for part in parts if part)


def _plural(words: Description) -> str:
    singular = _english(words)
    return singular + ("es" if singular.endswith("s") else "s")


def _chinese(words: Description) -> str:
    colour = RULES["COLOUR"][words["colour"]][1] + "的" if "colour" in words else ""
    size = RULES["SIZE"][words["size"]][1] if "size" in words else ""
    shape = RULES["SHAPE"][words["shape"]][1] if "shape" in words else "物体"
    return colour + size + shape
