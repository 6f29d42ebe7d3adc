"""The clip art: what ships, what loads, how it was cleaned, and that the split leaks nothing."""

import hashlib
import io
import json
import re
from collections import Counter
from importlib import resources

import build_clipart
import clipart_titles
import numpy as np
import pytest
import torch
from emoji_concepts import NEAR, distances
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmlib.data import clipart, emoji, shipped

FOLDER = resources.files("mmlib.data") / "files" / "clipart"
COUNT = 1751


@pytest.fixture(scope="module")
def everything() -> clipart.ClipartSet:
    return clipart.load()


@pytest.fixture(scope="module")
def rgba() -> np.ndarray:
    return clipart.load(background=None).images.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def small() -> clipart.ClipartSet:
    return clipart.load(size=8)


@pytest.fixture(scope="module")
def in_test(everything) -> np.ndarray:
    return np.array([clipart.split_of(concept) == "test" for concept in everything.concepts])


@pytest.fixture(scope="module")
def distance() -> np.ndarray:
    return distances(clipart.load(size=64, background=None).images.permute(0, 2, 3, 1).numpy())


# What ships


def test_counts(everything):
    assert len(everything) == COUNT
    assert set(everything.categories) == {
        "animals", "buildings", "computer", "containers", "education", "electronics", "food",
        "geography", "office", "people", "plants", "recreation", "science", "signs and symbols",
        "tools", "transportation",
    }  # fmt: skip
    assert min(Counter(everything.categories).values()) >= 18
    assert len(set(everything.names)) > 1250
    assert len(set(everything.concepts)) > 500


def test_every_drawing_has_its_own_source_and_nothing_is_empty(everything):
    assert len(set(everything.sources)) == COUNT
    for field in ("names", "concepts", "sources", "categories"):
        assert all(value == value.strip() != "" for value in getattr(everything, field))
    for tags in everything.tags:
        assert tags and len(set(tags)) == len(tags)
    # A few files name no author, and one has no title.
    assert sum(author == "" for author in everything.authors) < 5
    assert sum(title == "" for title in everything.titles) < 5


def test_known_drawings_have_their_known_words(everything):
    known = {
        "animals/bugs/farfalla_semplice_archit_01": ("orange butterfly", "Farfalla semplice"),
        "unsorted/struzzo": ("ostrich", "Various Cliparts"),
        "animals/bugs/bee": ("bee", "Clipart by Nicu Buculei - bee"),
    }
    for source, (name, title) in known.items():
        i = everything.sources.index(source)
        assert (everything.names[i], everything.titles[i]) == (name, title)
    assert everything.authors[everything.sources.index("unsorted/struzzo")] == (
        "Architetto Francesco Rollandin"
    )


def test_files_are_small_listed_and_licensed():
    listed = shipped.checked_files(FOLDER)
    assert {path.name for path in FOLDER.iterdir()} == {*listed, "SHA256SUMS"}
    assert sum(len(data) for data in listed.values()) < 4e6
    others = (FOLDER.parent / "emoji").iterdir()
    together = sum(len(path.read_bytes()) for path in [*FOLDER.iterdir(), *others])
    assert together < 7e6
    assert "creative commons Public Domain Dedication" in listed["LICENSE-openclipart.txt"].decode()
    assert build_clipart.LICENCE in listed["ATTRIBUTION.md"].decode()


def test_the_table_has_one_drawing_a_line(everything):
    lines = (FOLDER / "clipart.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["source"] for line in lines] == list(everything.sources)
    assert len(lines) == COUNT
    order = list(zip(everything.categories, everything.sources, strict=True))
    assert order == sorted(order)


def test_pictures_decode_to_the_same_pixels_everywhere(rgba):
    # Decoding WebP is exact, so a difference here is a defect of the decoder or of the cutting.
    digest = hashlib.sha256(rgba.tobytes()).hexdigest()
    assert digest == "3fe1c149aff763917ce598c58b0d57d92e37f9afc79940992d0bd41fed017e13"


# The words


def test_captions_are_plain_words(everything):
    # No digits, underscores, brackets or letters of other languages; capitals only in names.
    capitals = {
        "African", "Christmas", "DNA", "DVD", "Earth", "Africa", "Australia", "Eiffel", "Europe",
        "Father", "French", "Jupiter", "Mars", "SIM", "Saturn", "T-shirt", "Tower", "USB", "Venus",
    }  # fmt: skip
    for name in everything.names:
        assert re.fullmatch(r"[A-Za-z'-]+( [A-Za-z'-]+)*", name), name
        assert {word for word in name.split() if word != word.lower()} <= capitals, name
        assert len(name) <= 40 and len(name.split()) <= 8, name
    for tags in everything.tags:
        assert all(re.fullmatch(r"[A-Za-z-]+( [A-Za-z'-]+){0,3}", tag) for tag in tags), tags


def test_no_noise_is_left_in_captions_and_keywords(everything):
    noise = re.compile(
        r"clip ?art|icon|svg|various|collection|theme|unsorted|submission|sibmission"
        r"|hash\b(?! browns)|architetto|rollandin|nicu|buculei|balin|ganson|http|www|openclipart",
        re.IGNORECASE,
    )
    assert noise.search("Clipart by Nicu Buculei - bee")  # the check can fail
    for name, tags in zip(everything.names, everything.tags, strict=True):
        assert not noise.search(" ".join([name, *tags])), (name, tags)
    # The titles as they came are full of it.
    assert sum(bool(noise.search(title)) for title in everything.titles) > 350


def test_no_author_is_named_in_captions_and_keywords(everything):
    # Parts of names that are no English words: none may stand in any caption or keyword.
    english = {"brown", "worth", "rose", "park", "page", "white", "burger", "bond", "pilot", "lion",
               "and", "the", "army", "public", "library", "domain", "design", "studio", "house",
               "young", "hart", "gem", "clipart", "open", "sourced", "saint", "moore", "murphy",
               "powers", "smith", "cliff", "knight", "rick", "mark", "hicks", "green", "van",
               "mo", "processor", "king", "bell", "unknown", "anonymous", "junior", "by", "based",
               "on", "john", "free", "art", "steele", "bravo", "twilight", "mad", "silver",
               "love"}  # fmt: skip
    parts = {
        part
        for author in everything.authors
        for part in re.findall(r"[a-z]{4,}", author.lower())
        if part not in english
    }
    assert {"rollandin", "buculei", "balin", "francesco"} <= parts
    for i, name in enumerate(everything.names):
        words = set(re.findall(r"[a-z]+", " ".join([name, *everything.tags[i]]).lower()))
        assert not words & parts, (everything.sources[i], words & parts)


def test_foreign_words_of_the_titles_are_gone(everything):
    foreign = set(
        re.findall(
            r"\w+",
            "cavallo gatto cigno acquila farfalla pinguino elefante orso leone tigre rana gabbiano"
            " cartella finestra ragazza donna uomo foglie scala sedia tavolo casa lampada pesce"
            " lente glace gateau fiore arbre pasteque rondelle couronne",
        )
    )
    titles = {word for title in everything.titles for word in re.findall(r"[a-z]+", title.lower())}
    assert len(foreign & titles) > 15
    said = [*everything.names, *(tag for tags in everything.tags for tag in tags)]
    assert not foreign & {word for text in said for word in text.lower().split()}


def test_spelling_is_british(everything):
    american = {"color", "gray", "airplane", "jewelry", "mom", "candies", "trash", "ladybug"}
    said = [*everything.names, *(tag for tags in everything.tags for tag in tags)]
    assert not american & {word for text in said for word in text.lower().split()}


def test_authors_have_no_addresses(everything):
    assert not [author for author in everything.authors if re.search(r"@|http|\.com|HASH", author)]


@pytest.mark.parametrize(
    "caption, noun",
    [
        ("armadillo", "armadillo"),
        ("black and white butterfly", "butterfly"),
        ("slice of apple pie", "pie"),
        ("map of Africa", "map"),
        ("wolf in the snow", "wolf"),
        ("two computer monitors", "computer monitor"),
        ("cherries", "cherry"),
        ("scissors", "scissors"),
        ("bear sleeping under the stars", "bear"),
    ],
)
def test_noun_of_a_caption(caption, noun):
    assert clipart_titles.noun(caption) == noun


def test_keywords_are_mended():
    raw = ["", "Animali", "hash(0x849dc78)", "signs_and_symbols", "icon", "farfalla", "animal"]
    assert clipart_titles.keywords(raw, "orange butterfly") == ["animal", "butterfly"]
    assert clipart_titles.keywords(["unsorted", "11"], "two red mugs") == ["mug"]


def test_shipped_captions_and_concepts_follow_the_table(everything):
    rows = {path: (caption, category) for path, caption, category in clipart_titles.table()}
    assert rows.keys() == set(everything.sources)
    symbols = emoji.load(size=8)
    concepts = clipart_titles.emoji_concepts(zip(symbols.names, symbols.concepts, strict=True))
    for i, source in enumerate(everything.sources):
        assert (everything.names[i], everything.categories[i]) == rows[source]
        assert everything.concepts[i] == clipart_titles.concept(everything.names[i], concepts)


def test_curated_lists_are_all_used(everything):
    nouns = {clipart_titles.noun(name) for name in everything.names}
    assert clipart_titles.EMOJI.keys() <= nouns
    assert clipart_titles.NOUNS.keys() <= set(everything.names)
    assert {noun.lower() for noun in nouns} >= clipart_titles.COMPOUNDS


# The builder


def test_metadata_of_a_drawing():
    svg = """<svg xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
      xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
      <rdf:RDF><cc:Work><dc:title> Old
      Key </dc:title><dc:subject><rdf:Bag><rdf:li>key</rdf:li><rdf:li></rdf:li></rdf:Bag>
      </dc:subject><dc:creator><cc:Agent><dc:title>Fr&#195;&#169;d (f@x.org)</dc:title></cc:Agent>
      </dc:creator><cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work>
      </rdf:RDF></metadata></svg>"""
    assert build_clipart.metadata(svg.encode()) == {
        "title": "Old Key",
        "author": "Fréd",
        "keywords": ["key", ""],
        "licences": {build_clipart.LICENCE},
    }


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("transparent", [True, False])
def test_a_drawing_is_cut_and_centred(transparent):
    page = np.full((300, 400, 4), 255, np.uint8)
    if transparent:
        page[..., 3] = 0
    page[40:100, 200:320] = (200, 0, 0, 255)  # 60 high, 120 wide: as large as it ends up
    tile = np.asarray(build_clipart.tile(_png(page)))
    assert tile.shape == (128, 128, 4)
    assert (tile[34:94, 4:124] == (200, 0, 0, 255)).all()
    assert tile[..., 3].sum() == 60 * 120 * 255


def test_pictures_too_large_or_empty_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="nothing shows"):
        build_clipart.tile(_png(np.zeros((20, 20, 4), np.uint8)))
    monkeypatch.setattr(build_clipart, "MOST_PIXELS", 399)
    with pytest.raises(ValueError, match="20 x 20 pixels"):
        build_clipart.tile(_png(np.full((20, 20, 4), 7, np.uint8)))


# What loads


def test_images_match_the_sheet(everything):
    page = Image.open(io.BytesIO((FOLDER / "clipart.webp").read_bytes())).convert("RGBA")
    columns = page.width // 128
    for i in (0, columns - 1, columns, 777, COUNT - 1):
        y, x = i // columns * 128, i % columns * 128
        tile = page.crop((x, y, x + 128, y + 128))
        white = Image.new("RGBA", tile.size, "white")
        white.alpha_composite(tile)
        expected = torch.from_numpy(np.asarray(white.convert("RGB")).copy()).permute(2, 0, 1)
        assert torch.equal(everything.images[i], expected)


def test_shape_and_type(everything):
    assert everything.images.shape == (COUNT, 3, 128, 128)
    assert everything.images.dtype == torch.uint8
    held_out = clipart.load("test", size=64, background=None)
    assert held_out.images.shape == (len(held_out), 4, 64, 64)
    assert (
        repr(held_out)
        == f"ClipartSet({len(held_out)} drawings, images {tuple(held_out.images.shape)})"
    )


def test_background_is_blended_by_opacity(rgba):
    on_green = clipart.load(background=(10, 200, 30)).images[::16].permute(0, 2, 3, 1).numpy()
    colour, alpha = rgba[::16, ..., :3].astype(np.float32), rgba[::16, ..., 3:] / np.float32(255)
    expected = alpha * colour + (1 - alpha) * np.float32([10, 200, 30])
    assert np.abs(on_green - expected).max() <= 1  # rounding


def test_resampling_keeps_what_is_shown(everything):
    half = clipart.load(size=64).images.float()
    box = torch.nn.functional.avg_pool2d(everything.images.float(), 2)
    assert (half - box).abs().mean() < 3  # the sharper Lanczos differs only at edges
    assert (half.mean((2, 3)) - box.mean((2, 3))).abs().max() < 3


def test_every_picture_can_be_seen(everything, rgba):
    covered = (rgba[..., 3] > 127).mean((1, 2))
    assert covered.min() > 0.004  # a wing drawn in thin lines
    # On white too: some pixels are far from white.
    dark = (255 - everything.images.amin(1).int() > 64).float().mean((1, 2))
    assert dark.min() > 0.015
    # Four pixels at each edge are free.
    inside = rgba[:, 4:124, 4:124, 3].astype(np.float32).mean((1, 2)) * (120 / 128) ** 2
    assert np.abs(rgba[..., 3].astype(np.float32).mean((1, 2)) - inside).max() < 1
    assert len({tile.tobytes() for tile in rgba}) == COUNT


def test_loading_is_deterministic_and_shares_nothing(small):
    again = clipart.load(size=8)
    assert torch.equal(again.images, small.images)
    again.images.zero_()
    assert torch.equal(clipart.load(size=8).images, small.images)


def test_train_and_test_make_up_everything(small):
    train, test = clipart.load("train", size=8), clipart.load("test", size=8)
    assert set(train.sources) | set(test.sources) == set(small.sources)
    assert len(train) + len(test) == COUNT
    index = {source: i for i, source in enumerate(small.sources)}
    for part in (train, test):
        positions = [index[source] for source in part.sources]
        assert positions == sorted(positions)
        assert torch.equal(part.images, small.images[positions])
        assert part.names == tuple(small.names[i] for i in positions)


_SMALL: list[clipart.ClipartSet] = []


@given(st.lists(st.integers(0, COUNT - 1), max_size=8))
def test_select_keeps_pictures_and_words_together(indices):
    if not _SMALL:
        _SMALL.append(clipart.load(size=8))
    data = _SMALL[0]
    part = data.select(indices)
    assert len(part) == len(indices) == len(part.names)
    assert part.sources == tuple(data.sources[i] for i in indices)
    assert part.tags == tuple(data.tags[i] for i in indices)
    assert torch.equal(part.images, data.images[torch.tensor(indices, dtype=torch.long)])


def test_select_copies(small):
    part = small.select(torch.tensor([3, 1, 3]))
    assert part.names == (small.names[3], small.names[1], small.names[3])
    before = small.images[3].clone()
    part.images.zero_()
    assert torch.equal(small.images[3], before)


# The split


def test_about_a_fifth_is_held_out(everything, in_test):
    assert clipart.split_of is emoji.split_of
    held_out = [clipart.split_of(concept) == "test" for concept in set(everything.concepts)]
    assert 0.15 < np.mean(held_out) < 0.23
    assert 0.17 < in_test.mean() < 0.23
    categories = np.array(everything.categories)
    assert all(in_test[categories == category].any() for category in set(categories))


def test_no_concept_is_held_out_here_and_trained_on_there(everything, in_test):
    symbols = emoji.load(size=8)
    shared = set(everything.concepts) & set(symbols.concepts)
    assert len(shared) > 350
    sides = {"train": emoji.load("train", size=8), "test": emoji.load("test", size=8)}
    ours = {c for c, test in zip(everything.concepts, in_test, strict=True) if test}
    assert ours & set(sides["test"].concepts)
    assert not ours & set(sides["train"].concepts)
    assert not (set(everything.concepts) - ours) & set(sides["test"].concepts)
    # Chapter 07 holds out at least 500 pairs of the two together.
    assert in_test.sum() + len(sides["test"]) > 500


def test_equal_captions_are_one_concept(everything):
    of = {}
    for name, concept in zip(everything.names, everything.concepts, strict=True):
        assert of.setdefault(name, concept) == concept


@pytest.mark.parametrize(
    "names",
    [
        ("beagle", "sitting dog", "bulldog puppy"),
        ("red apple", "slice of apple", "apple with a worm"),
        ("computer monitor", "computer", "server"),
        ("glass of beer", "mug of beer"),
        ("man", "bride", "princess"),
        ("lemon", "lime"),  # one concept among the emoji
    ],
)
def test_the_same_thing_is_one_concept(everything, names):
    of = dict(zip(everything.names, everything.concepts, strict=True))
    assert len({of[name] for name in names}) == 1


def test_different_things_are_different_concepts(everything):
    of = dict(zip(everything.names, everything.concepts, strict=True))
    names = ("armadillo", "red apple", "computer", "computer mouse", "teddy bear", "brown bear")
    assert len({of[name] for name in names}) == len(names)


def test_no_near_duplicate_straddles_the_split(everything, distance, in_test):
    near = distance < NEAR
    assert near.sum() // 2 > 50
    assert not (near & (in_test[:, None] != in_test[None])).any()
    # A split of single drawings would leave some.
    one_by_one = np.array([clipart.split_of(source) == "test" for source in everything.sources])
    assert (near & (one_by_one[:, None] != one_by_one[None])).sum() // 2 > 10
    assert distance.min() > 0.025  # exact and near-exact copies were dropped


def test_no_emoji_is_a_near_duplicate_on_the_other_side():
    for ours, theirs in (("test", "train"), ("train", "test")):
        drawn = clipart.load(ours, size=64, background=None)
        symbols = emoji.load(theirs, background=None)
        both = torch.cat([drawn.images, symbols.images]).permute(0, 2, 3, 1).numpy()
        across = distances(both)[: len(drawn), len(drawn) :]
        assert across.min() > NEAR


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "valid"}, "split must be one of train, test, all: got 'valid'"),
        ({"size": 0}, "size must be a whole number of pixels above 0: got 0"),
        ({"size": True}, "size must be a whole number of pixels above 0: got True"),
        ({"background": (255, 255)}, "background must be three whole numbers from 0 to 255"),
        ({"background": (0, 0, 256)}, "background must be three whole numbers from 0 to 255"),
    ],
)
def test_load_rejects_bad_arguments(unchecked, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        unchecked(clipart.load)(**arguments)


@pytest.mark.parametrize(
    "indices, error, message",
    [
        ([0, COUNT], IndexError, f"indices must be between 0 and {COUNT - 1}: got 0 to {COUNT}"),
        ([-1], IndexError, f"indices must be between 0 and {COUNT - 1}: got -1 to -1"),
        ([0.5], TypeError, "indices must be a sequence of whole numbers"),
        ([[1, 2]], TypeError, "indices must be a sequence of whole numbers"),
    ],
)
def test_select_rejects_bad_indices(unchecked, small, indices, error, message):
    with pytest.raises(error, match=re.escape(message)):
        unchecked(clipart.ClipartSet.select)(small, indices)


@pytest.mark.parametrize("name", ["clipart.webp", "clipart.jsonl", "LICENSE-openclipart.txt"])
def test_a_changed_file_is_named(tmp_path, name):
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert shipped.checked_files(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is not the file that was shipped"):
        shipped.checked_files(tmp_path)
