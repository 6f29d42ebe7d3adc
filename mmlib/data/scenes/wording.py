"""The rules of the captions' language, English and Chinese side by side.

Each rule has a left-hand symbol, a name, and one right-hand side a language. Capital words are
symbols; the number behind one tells two of the same kind apart, so that ``THING2`` of the English
side is ``THING2`` of the Chinese side, wherever it stands there. Everything else is a word.

Chinese puts the place first and the colour before the size, so a translation cannot go from left
to right::

    a small red circle   to the left of      a large blue square
    在 一个 蓝色 的 大 正方形   的 左边   有   一个 红色 的 小 圆形
"""

#: symbol -> rule name -> (English, Chinese)
RULES: dict[str, dict[str, tuple[str, str]]] = {
    "CAPTION": {
        "one": ("CLAUSE", "CLAUSE"),
        "and": ("CLAUSE , and CAPTION", "CLAUSE ， CAPTION"),
        "semicolon": ("CLAUSE ; CAPTION", "CLAUSE ； CAPTION"),
    },
    "CLAUSE": {
        "place": ("THING PLACE", "在 PLACE 有 THING"),
        "relation": ("THING1 RELATION THING2", "在 THING2 的 RELATION 有 THING1"),
        "there place": ("there is THING PLACE", "THING 在 PLACE"),
        "place first": ("PLACE there is THING", "PLACE 有 THING"),
        "there relation": ("there is THING1 RELATION THING2", "THING1 在 THING2 的 RELATION"),
        "relation first": ("RELATION THING2 there is THING1", "THING2 的 RELATION 是 THING1"),
        "with": ("THING2 with THING1 SIDE", "有 THING2 ， SIDE 是 THING1"),
        "pair": ("there is THING1 and THING2", "有 THING1 和 THING2"),
        "alone": ("there is THING", "有 THING"),
    },
    "THING": {
        "full": ("a SIZE COLOUR SHAPE", "一个 COLOUR 的 SIZE SHAPE"),
        "no size": ("a COLOUR SHAPE", "一个 COLOUR 的 SHAPE"),
        "no colour": ("a SIZE SHAPE", "一个 SIZE SHAPE"),
        "no shape": ("a SIZE COLOUR object", "一个 COLOUR 的 SIZE 物体"),
        "shape": ("a SHAPE", "一个 SHAPE"),
        "colour": ("a COLOUR object", "一个 COLOUR 的 物体"),
    },
    "SIZE": {"small": ("small", "小"), "large": ("large", "大")},
    "COLOUR": {
        "red": ("red", "红色"),
        "orange": ("orange", "橙色"),
        "yellow": ("yellow", "黄色"),
        "green": ("green", "绿色"),
        "cyan": ("cyan", "青色"),
        "blue": ("blue", "蓝色"),
        "purple": ("purple", "紫色"),
        "white": ("white", "白色"),
    },
    "SHAPE": {
        "circle": ("circle", "圆形"),
        "square": ("square", "正方形"),
        "triangle": ("triangle", "三角形"),
        "diamond": ("diamond", "菱形"),
        "cross": ("cross", "十字形"),
        "star": ("star", "星形"),
        "heart": ("heart", "心形"),
        "ring": ("ring", "圆环"),
    },
    "RELATION": {
        "left": ("to the left of", "左边"),
        "right": ("to the right of", "右边"),
        "above": ("above", "上方"),
        "below": ("below", "下方"),
        "above left": ("above and to the left of", "左上方"),
        "above right": ("above and to the right of", "右上方"),
        "below left": ("below and to the left of", "左下方"),
        "below right": ("below and to the right of", "右下方"),
    },
    "SIDE": {
        "left": ("to its left", "它 的 左边"),
        "right": ("to its right", "它 的 右边"),
        "above": ("above it", "它 的 上方"),
        "below": ("below it", "它 的 下方"),
        "above left": ("above it and to its left", "它 的 左上方"),
        "above right": ("above it and to its right", "它 的 右上方"),
        "below left": ("below it and to its left", "它 的 左下方"),
        "below right": ("below it and to its right", "它 的 右下方"),
    },
    "PLACE": {
        "top left": ("in the top left", "左上角"),
        "top": ("at the top", "上方"),
        "top right": ("in the top right", "右上角"),
        "left": ("on the left", "左边"),
        "centre": ("in the centre", "中间"),
        "right": ("on the right", "右边"),
        "bottom left": ("in the bottom left", "左下角"),
        "bottom": ("at the bottom", "下方"),
        "bottom right": ("in the bottom right", "右下角"),
    },
    # Moving clips.
    "CLIP": {
        "one": ("MOVE", "MOVE"),
        "and": ("MOVE , and CLIP", "MOVE ， CLIP"),
    },
    "MOVE": {
        "goes": (
            "the SIZE COLOUR SHAPE moves HEADING SPEED",
            "COLOUR 的 SIZE SHAPE SPEED 向 HEADING 移动",
        ),
        "stops": (
            "the SIZE COLOUR SHAPE moves HEADING SPEED , then stops",
            "COLOUR 的 SIZE SHAPE SPEED 向 HEADING 移动 ， 然后 停下",
        ),
        "still": ("the SIZE COLOUR SHAPE stays still", "COLOUR 的 SIZE SHAPE 静止不动"),
    },
    "HEADING": {
        "left": ("left", "左"),
        "right": ("right", "右"),
        "up": ("up", "上"),
        "down": ("down", "下"),
        "up left": ("up and to the left", "左上方"),
        "up right": ("up and to the right", "右上方"),
        "down left": ("down and to the left", "左下方"),
        "down right": ("down and to the right", "右下方"),
    },
    "SPEED": {"slow": ("slowly", "慢慢地"), "fast": ("quickly", "快速地")},
}

#: The rules that each mode may use, where it may not use all of a symbol's.
MODES: dict[str, dict[str, tuple[str, ...]]] = {
    "canonical": {
        "CAPTION": ("one", "and"),
        "CLAUSE": ("place", "relation"),
        "THING": ("full",),
        # The first of a pair is never to the right of the second.
        "RELATION": ("left", "above", "below", "above left", "below left"),
    },
    "free": {},
    "clip": {},
}
ROOT = {"canonical": "CAPTION", "free": "CAPTION", "clip": "CLIP"}
LANGUAGES = ("en", "zh")
