"""Captions of scenes, in English and Chinese, and whether a caption is true."""

from itertools import permutations

from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.grammar import Tree, check_language, leaf, parse, realise, spans, tree
from mmlib.data.scenes.relations import RELATIONS, direction, holds, place
from mmlib.data.scenes.world import Object, Scene, choice

_SLOTS = {"SIZE": "size", "COLOUR": "colour", "SHAPE": "shape"}
_SPARE = ("no size", "no colour", "no shape", "shape", "colour")


def caption(
    scene: Scene, language: str = "en", mode: str = "canonical", seed: int | None = None
) -> str:
    """Describe a scene.

    The **canonical** caption names every object once, with size, colour and shape, in reading
    order (left to right, then top to bottom). Objects are taken two at a time: a pair is told by
    the direction from its second object to its first, an object left over by its place. So the
    caption is a function of the scene graph alone, and it determines: the number of objects; the
    size, colour and shape of each and their order from left to right; the direction (one of
    eight) within the first and the second pair; and the place (one of nine) of the only or the
    third of three objects. It says nothing else of positions, and nothing of background or noise.

    A **free** caption, too, names every object once, but in any order, with or without size,
    colour or shape, in any of the grammar's forms. :func:`is_true` judges it.

    Args:
        scene: The scene.
        language: ``"en"`` or ``"zh"``. With the same seed one is the translation of the other.
        mode: ``"canonical"`` or ``"free"``.
        seed: For free captions only: which of them.

    Returns:
        The caption, in lower case and without a full stop.

    Raises:
        ValueError: If the language or mode is unknown, or a seed is missing.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),
    ...                Object("ring", "blue", "large", 0.75, 0.5)))
    >>> caption(scene)
    'a small red star to the left of a large blue ring'
    >>> caption(scene, "zh")
    '在一个蓝色的大圆环的左边有一个红色的小星形'
    """
    return realise(_describe(scene, language, mode, seed), language)


def _describe(scene: Scene, language: str, mode: str, seed: int | None) -> Tree:
    """The tree of a caption; the language is only checked."""
    check_language(language)
    choice("mode", mode, ("canonical", "free"))
    if mode == "canonical":
        return _canonical(scene)
    if seed is None:
        raise ValueError("seed must be given for mode 'free': got None")
    return _free(scene, Dice(check_seed(seed), 0xCA971))


def _thing(item: Object, rule: str = "full") -> Tree:
    leaves = {slot: leaf(slot, getattr(item, name)) for slot, name in _SLOTS.items()}
    return tree("THING", rule, **leaves)


def _canonical(scene: Scene) -> Tree:
    clauses = []
    for at in range(0, len(scene.objects), 2):
        first, *second = scene.objects[at : at + 2]
        if second:
            relation = leaf("RELATION", direction(first, second[0]))
            clauses.append(
                tree(
                    "CLAUSE",
                    "relation",
                    THING1=_thing(first),
                    RELATION=relation,
                    THING2=_thing(second[0]),
                )  # fmt: skip
            )
        else:
            spot = leaf("PLACE", place(first))
            clauses.append(tree("CLAUSE", "place", THING=_thing(first), PLACE=spot))
    return _join(clauses, ["and"] * (len(clauses) - 1))


def _join(clauses: list[Tree], joints: list[str]) -> Tree:
    root = tree("CAPTION", "one", CLAUSE=clauses[-1])
    for clause, joint in zip(reversed(clauses[:-1]), reversed(joints), strict=True):
        root = tree("CAPTION", joint, CLAUSE=clause, CAPTION=root)
    return root


def _free(scene: Scene, dice: Dice) -> Tree:
    objects = dice.shuffled(scene.objects)
    clauses = []
    while objects:
        first = objects.pop()
        if objects and dice.below(3):
            clauses.append(_free_pair(first, objects.pop(), dice))
        elif dice.below(4):
            form = dice.choice(("place", "there place", "place first"))
            spot = leaf("PLACE", place(first))
            clauses.append(tree("CLAUSE", form, THING=_free_thing(first, dice), PLACE=spot))
        else:
            clauses.append(tree("CLAUSE", "alone", THING=_free_thing(first, dice)))
    return _join(clauses, [dice.choice(("and", "semicolon")) for _ in clauses[1:]])


def _free_thing(item: Object, dice: Dice) -> Tree:
    # Half of the descriptions are full, so that free captions still tell much.
    return _thing(item, "full" if dice.below(2) else dice.choice(_SPARE))


def _free_pair(first: Object, second: Object, dice: Dice) -> Tree:
    """A clause about two objects; of two relations that hold it tells one or both."""
    forms = ("relation", "there relation", "relation first", "with", "pair")
    form = dice.choice(forms)
    words = [direction(first, second), *(r for r in RELATIONS if holds(r, first, second))]
    word = dice.choice(words)
    extra = {"pair": {}, "with": {"SIDE": leaf("SIDE", word)}}.get(
        form, {"RELATION": leaf("RELATION", word)}
    )
    return tree(
        "CLAUSE", form, THING1=_free_thing(first, dice), THING2=_free_thing(second, dice), **extra
    )


def is_true(caption: str, scene: Scene, language: str = "en") -> bool:
    """Whether a caption is true of a scene.

    It is true if the things it names can be matched with different objects of the scene so that
    everything it says of them holds: "a star and a star" needs two stars. It need not name every
    object.

    Args:
        caption: Any sentence of the captions' grammar.
        scene: The scene.
        language: ``"en"`` or ``"zh"``.

    Returns:
        True or false.

    Raises:
        ValueError: If the language is unknown or the caption is outside the grammar.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),))
    >>> is_true("a red star on the left", scene), is_true("there is a ring", scene)
    (True, False)
    """
    things: list[dict[str, str]] = []
    places: list[tuple[int, str]] = []
    relations: list[tuple[str, int, int]] = []
    node = parse(caption, language)
    while True:
        _read_clause(node["CLAUSE"], things, places, relations)
        if node.rule == "one":
            break
        node = node["CAPTION"]

    return any(
        _fits(objects, things, places, relations)
        for objects in permutations(scene.objects, len(things))
    )


def _fits(objects, things, places, relations) -> bool:
    """Whether all that was said holds if the things are these objects, in this order."""
    return (
        all(
            getattr(item, name) == word
            for item, thing in zip(objects, things, strict=True)
            for name, word in thing.items()
        )
        and all(place(objects[at]) == word for at, word in places)
        and all(
            holds(word, objects[first], objects[second])
            for words, first, second in relations
            for word in words.split()
        )
    )


def _read_clause(clause: Tree, things: list, places: list, relations: list) -> None:
    """Add what a clause says to the lists; things are known by their number."""
    numbers = {}
    for slot, child in clause.children:
        if child.symbol == "THING":
            numbers[slot] = len(things)
            things.append({_SLOTS[kind]: word.rule for kind, word in child.children})
    for _, child in clause.children:
        if child.symbol == "PLACE":
            places.append((numbers["THING"], child.rule))
        elif child.symbol in ("RELATION", "SIDE"):
            relations.append((child.rule, numbers["THING1"], numbers["THING2"]))


def translate(caption: str, source: str = "en", target: str = "zh") -> str:
    """Translate a caption by the grammar, exactly.

    Args:
        caption: A sentence of the grammar.
        source: Its language, ``"en"`` or ``"zh"``.
        target: The language wanted.

    Returns:
        The translation.

    Raises:
        ValueError: If a language is unknown or the caption is outside the grammar.

    >>> translate("a small orange heart at the top")
    '在上方有一个橙色的小心形'
    """
    check_language(target)
    return realise(parse(caption, source), target)


def word_alignment(caption: str, language: str = "en") -> list[tuple[int, int]]:
    """Which words of a caption are which words of its translation.

    Only the words that carry meaning are aligned: sizes, colours, shapes, relations and places,
    and of a phrase such as "to the left of" every word with every word.

    Args:
        caption: A sentence of the grammar.
        language: Its language.

    Returns:
        Pairs (position in :func:`tokenize` of the English, of the Chinese), sorted.

    Raises:
        ValueError: If the language is unknown or the caption is outside the grammar.

    >>> word_alignment("a small red star at the top")
    [(1, 6), (2, 4), (3, 7), (4, 1), (5, 1), (6, 1)]
    """
    root = parse(caption, language)
    leaves = (*_SLOTS, "RELATION", "SIDE", "PLACE")
    english, chinese = (
        [path if path and path[-1] in leaves else None for _, path in spans(root, name)]
        for name in ("en", "zh")
    )
    return [
        (i, j) for i, path in enumerate(english) if path for j, other in enumerate(chinese)
        if other == path
    ]  # fmt: skip
