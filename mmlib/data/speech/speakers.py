"""Who speaks: twenty-eight synthetic voices, eight of which no training set may hear.

A voice is one of espeak-ng's *variants*: a vocal tract (the places and widths of the formants), a
range of pitch, and habits such as breath or roughness. It speaks English, in its own accent, and
Mandarin. Of espeak-ng's 104 variants, robots, whispers and creatures are left out, the two that are
not the same in every process, and those whose digits a recogniser could not make out. Of several
that sound nearly alike, none is in the test set while another is in the training set.
"""

from dataclasses import dataclass

SPLITS = ("train", "test", "all")
LANGUAGES = ("en", "zh")
#: Accents of English, and what espeak-ng calls them ("en" alone is British).
ACCENTS = {
    "American": "en-us",
    "British": "en",
    "Scottish": "en-gb-scotland",
    "Caribbean": "en-029",
}
MANDARIN = "cmn"


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
        name: espeak-ng's name of the variant.
        sex: ``"female"`` or ``"male"``, as the voice is meant to sound.
        accent: its accent of English, one of :data:`ACCENTS`.
        split: ``"train"`` or ``"test"``.
    """

    name: str
    sex: str
    accent: str
    split: str

    def espeak_name(self, language: str) -> str:
        """What espeak-ng calls this voice when it speaks a language."""
        return f"{ACCENTS[self.accent] if language == 'en' else MANDARIN}+{self.name}"


def _voices() -> dict[str, Voice]:
    lists = {
        ("train", "male"): "m1 m2 m3 m4 m5 m6 m7 Henrique adam iven pablo pedro",
        ("train", "female"): "f1 f3 f4 linda Annie shelby grandma Andrea",
        ("test", "male"): "m8 Denis Gene david",
        ("test", "female"): "f2 f5 belinda steph",
    }
    accents = tuple(ACCENTS)
    return {
        name: Voice(name, sex, accents[place % len(accents)], split)
        for (split, sex), names in lists.items()
        for place, name in enumerate(names.split())
    }


#: All voices by name.
VOICES: dict[str, Voice] = _voices()


def voices(split: str = "all") -> tuple[Voice, ...]:
    """The voices of a split.

    Each of the four accents is heard in both splits: what the test asks for is another speaker of
    a known accent, not an unknown accent. In Mandarin all voices have the same one.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"``.

    Returns:
        The voices, always in the same order.

    Raises:
        ValueError: if the split is another.

    >>> len(voices("train")), len(voices("test"))
    (20, 8)
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    return tuple(voice for voice in VOICES.values() if split in ("all", voice.split))
