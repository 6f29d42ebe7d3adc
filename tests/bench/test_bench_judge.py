"""Speed of the judge beside reading pictures one by one."""

from mmlib.data import scenes
from mmlib.judge import load_judge
from mmlib.marks import mark

AREA = "The judge of pictures"


def test_reading(side_by_side):
    judge, drawn = load_judge(), scenes.sample(64, seed=0, background="any")
    pictures = scenes.render(drawn)
    table = side_by_side(
        "64 pictures of scenes read by the judge",
        {
            "mmlib": lambda: judge.read(pictures),
            "one by one": lambda: [judge.read(picture[None]) for picture in pictures],
        },
    )
    table.at_most("mmlib", "one by one", 1)


def test_marking(side_by_side):
    drawn = scenes.sample(256, seed=0)
    found = [list(scene.objects) for scene in drawn]
    told = [scenes.caption(scene) for scene in drawn]
    table = side_by_side(
        "256 readings marked by captions",
        {
            "captions": lambda: mark(found, told),
            "scenes": lambda: mark(found, drawn),
        },
    )
    # A scene stands for its caption, which is written first.
    table.at_most("captions", "scenes", 1.2)
