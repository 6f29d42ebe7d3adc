"""Tokenizers: equal to transformers' and open_clip's, lossless where they say so, never silent."""

import json
import random
import subprocess
import sys
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.data import emoji, scenes
from mmlib.encoders import pretrained
from mmlib.encoders.tokenizer import CLEANERS, Backend, Tokenizer
from mmlib.encoders.tokenizers import (
    bpe_tokenizer,
    character_tokenizer,
    clip_tokenizer,
    word_tokenizer,
    wordpiece_tokenizer,
)

NASTY = [
    "",
    " ",
    "\t\n  \r ",
    "a photo of a cat",
    "A PHOTO OF A CAT",
    "  spaces   everywhere\t\tand\nlines\u00a0 ",
    "it's we'll they've I'm you'd he'RE o'clock ''s 's' 't",
    "don't won't can't shouldn't've y'all'd've rock 'n' roll",
    "Une étoile à côté d'un cœur, naïve façade",
    "Straße ÅNGSTRÖM İstanbul ǅ ﬁﬂ ſ 'ſ K",
    "e\u0301 combining \u0301\u0301\u0301 and Z͑ͫ̓a̴l̷g̶o̸",
    "红色的圆形在蓝色的正方形上面。",
    "mixed 红色 red星star 星 3个 ３",
    "日本語のテキスト、カタカナ、한국어 텍스트",
    "العربية עברית हिन्दी ไทย русский ελληνικά",
    "😀 😂❤️👩‍👩‍👧‍👦👍🏽🇬🇧 ☃️",
    "a😀b",
    "fish &amp; chips &lt;b&gt; &quot;x&quot; &amp;amp; &nbsp; &#128512; &notit; &",
    "schÃ¶n â€œquotesâ€ l\u2019humanitÃ© \u201ccurly\u201d ï¬\x81",
    "\ufeffBOM \u200bzero\u200dwidth \u00adsoft \u202etxet",
    "\x00 null \x07 bell \x1b[31m \x7f \x85 \ufffd",
    "12345 1,000,000.50 3.14e-10 ½ ² Ⅻ ٣ 1st",
    "!!! ??? ... --- ___ *** (((())) <<>> || \\ // @user #tag $5 100% a_b a-b",
    "https://example.com/path?query=1&other=2#x e@mail.org",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101,
    "word " * 200,
    "CamelCase snake_case kebab-case SHOUTING123abc",
    "<start_of_text> <end_of_text> <END_OF_TEXT>x<start_of_text",
    "[MASK] [mask] x[SEP]y [PAD] [UNK] [CLS",
    "<pad> <begin>text<end> <unknown> <mask>",
    "\U0010ffff\ue000\U000e0001",
]


@pytest.fixture(scope="module")
def captions():
    drawn = scenes.sample(300, seed=0)
    return [scenes.caption(scene, language) for scene in drawn for language in ("en", "zh")]


@pytest.fixture(scope="module")
def bpe(captions):
    return bpe_tokenizer(captions, vocab_size=600)


@pytest.fixture(scope="module")
def wordpiece():
    return wordpiece_tokenizer()


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer()


@pytest.fixture(scope="module")
def bert_reference():
    from transformers import BertTokenizer

    path = pretrained.files("minilm")["vocabulary"]
    return BertTokenizer(vocab=str(path), do_lower_case=True)


@pytest.fixture(scope="module")
def open_clip_reference():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def random_texts(count, seed=0):
    """Pieces of nasty texts, glued without regard for sense."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        parts = [generator.choice(NASTY)[generator.randrange(30) :][:12] for _ in range(5)]
        found.append(generator.choice(["", " "]).join(parts))
    return found


# --- word pieces -------------------------------------------------------------------------------


def test_wordpiece_equals_transformers(wordpiece, bert_reference):
    texts = [*NASTY, *random_texts(500), *emoji.load().names, *emoji.load().names_zh]
    expected = bert_reference(texts, padding=True)
    ids, keep = wordpiece.encode(texts)
    assert ids.tolist() == expected["input_ids"]
    assert keep.long().tolist() == expected["attention_mask"]
    # The corpus reaches what it should: unknown words, hidden words, pieces.
    assert {wordpiece.unknown_id, wordpiece.mask_id} <= set(ids.flatten().tolist())


def test_wordpiece_pairs_equal_transformers(wordpiece, bert_reference):
    first, second = [*NASTY, *random_texts(50)], [*NASTY[::-1], *random_texts(50, seed=1)]
    expected = bert_reference(first, second, padding=True)
    ids, keep, types = wordpiece.encode_pairs(first, second)
    assert ids.tolist() == expected["input_ids"]
    assert keep.long().tolist() == expected["attention_mask"]
    assert types.tolist() == expected["token_type_ids"]


@pytest.mark.parametrize("length", [4, 5, 8, 17, 64])
def test_truncation_equals_transformers(wordpiece, bert_reference, length):
    first, second = [*NASTY, *random_texts(50)], [*NASTY[::-1], *random_texts(50, seed=1)]
    options = dict(padding="max_length", truncation="longest_first", max_length=length)
    ids, _ = wordpiece.encode(first, length, truncate=True, pad_to=length)
    assert ids.tolist() == bert_reference(first, **options)["input_ids"]
    pairs = wordpiece.encode_pairs(first, second, length, truncate=True, pad_to=length)
    expected = bert_reference(first, second, **options)
    assert pairs.ids.tolist() == expected["input_ids"]
    assert pairs.types.tolist() == expected["token_type_ids"]


def test_wordpiece_ids_are_those_of_bert(wordpiece):
    assert wordpiece.vocab_size == 30522
    special = (wordpiece.pad_id, wordpiece.unknown_id, wordpiece.begin_id)
    assert (*special, wordpiece.end_id, wordpiece.mask_id) == (0, 100, 101, 102, 103)
    assert wordpiece.max_length == 512


def test_wordpiece_decodes_to_readable_text(wordpiece):
    tokens = wordpiece.encode(["Hello, embeddings!", "Hi"])
    assert wordpiece.decode(*tokens) == ["hello, embeddings!", "hi"]
    pairs = wordpiece.encode_pairs(["a star"], ["a ring"])
    assert wordpiece.decode(pairs.ids, pairs.keep) == ["a star a ring"]


# --- CLIP --------------------------------------------------------------------------------------


def test_clip_equals_open_clip(clip, open_clip_reference):
    texts = [*NASTY, *random_texts(500), *emoji.load().names, *emoji.load().characters]
    ids, _ = clip.encode(texts, truncate=True, pad_to=77)
    assert torch.equal(ids, open_clip_reference(texts))


@given(text=st.text(max_size=40))
@settings(max_examples=300)
def test_clip_equals_open_clip_on_any_text(clip, open_clip_reference, text):
    # Its `regex` and our table know the letters of different Unicode versions; see the docstring.
    known = "".join(c for c in text if unicodedata.category(c) != "Cn" and c != "\u0345")
    ids, keep = clip.encode([known], truncate=True)
    assert ids[0].tolist() == open_clip_reference([known])[0, : ids.shape[1]].tolist()
    assert keep.all()


@given(text=st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=30))
@settings(max_examples=300)
def test_clip_cleans_ascii_as_open_clip_does(clip, open_clip_reference, text):
    assert CLEANERS[clip.clean](text) == open_clip_reference.clean_fn(text)


def test_clip_splits_every_character_that_python_knows_as_open_clip_does(clip, open_clip_reference):
    split = clip.backend.pre_tokenizer
    differ = []
    for code in range(0x30000):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Cs", "Co"):
            continue
        text = f"a{character}1"
        pieces = [text[start:end] for _, (start, end) in split.pre_tokenize_str(text)]
        if pieces != open_clip_reference.pat.findall(text):
            differ.append(character)
    assert differ == ["\u0345"]


def test_clip_keeps_the_end_when_it_cuts(clip):
    ids, keep = clip.encode(["word " * 200, "word"], truncate=True)
    assert ids.shape == (2, 77) and clip.max_length == 77
    assert ids[0, 0] == clip.begin_id == 49406
    assert ids[0, -1] == clip.end_id == 49407
    assert keep.sum(dim=1).tolist() == [77, 3]
    assert ids[1, 3:].unique().tolist() == [clip.pad_id] == [0]
    assert clip.vocab_size == 49408


def test_clip_decodes_what_it_encodes(clip, open_clip_reference):
    texts = ["a cat's dinner !", "红色 😀", "!"]
    tokens = clip.encode(texts)
    expected = ["a cat 's dinner !", "红色 😀", "!"]
    assert clip.decode(*tokens) == expected
    assert clip.decode(tokens.ids) == expected  # padding with 0, which is "!", does not show
    for text, shown in zip(texts, expected, strict=True):
        assert open_clip_reference.decode(open_clip_reference.encode(text)).strip() == shown


# --- byte pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_bpe_gives_every_nasty_text_back(bpe, text):
    tokens = bpe.encode([text, "a red star"])
    assert bpe.decode(*tokens) == bpe.decode(tokens.ids) == [text, "a red star"]


@given(text=st.text())
@settings(max_examples=300)
def test_bpe_gives_any_text_back(bpe, text):
    assert bpe.decode(bpe.encode([text]).ids) == [text]


def test_bpe_learns_what_is_frequent(bpe, captions):
    assert bpe.vocab_size == 600
    assert bpe.tokenize("a small red star") == ["a", "Ġsmall", "Ġred", "Ġstar"]
    unlearned = bpe_tokenizer(captions, vocab_size=260)
    lengths = [t.encode(captions).keep.sum().item() for t in (bpe, unlearned)]
    assert lengths[1] > 3 * lengths[0]
    assert unlearned.vocab_size == 260  # bytes and four special tokens


def test_bpe_equals_merging_by_hand():
    """Against the algorithm of Sennrich et al. written out, on words without ties."""
    corpus = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    trained = bpe_tokenizer(corpus, vocab_size=264)
    words = {tuple(word): corpus.count(word) for word in set(corpus)}
    for merge in range(4):
        counts = {}
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + count
        # Of equally frequent pairs the library takes the one whose ids come first.
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        assert trained.backend.id_to_token(260 + merge) == "".join(best)
        joined = {}
        for word, count in words.items():
            text, at = [], 0
            while at < len(word):
                if word[at : at + 2] == best:
                    text.append("".join(best))
                    at += 2
                else:
                    text.append(word[at])
                    at += 1
            joined[tuple(text)] = count
        words = joined


def test_bpe_training_is_the_same_in_every_process(captions, tmp_path):
    bpe_tokenizer(captions, vocab_size=600).save(tmp_path / "here.json")
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    code = (
        "import json; from mmlib.encoders.tokenizers import bpe_tokenizer\n"
        f"texts = json.load(open({str(tmp_path / 'captions.json')!r}))\n"
        f"bpe_tokenizer(texts, vocab_size=600).save({str(tmp_path / 'there.json')!r})"
    )
    environment = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


# --- characters and words ----------------------------------------------------------------------


def test_characters_of_the_training_texts_come_back():
    texts = [text for text in NASTY if text]
    tokenizer = character_tokenizer(texts)
    assert tokenizer.decode(*tokenizer.encode(texts)) == texts
    assert tokenizer.vocab_size == 5 + len(set("".join(texts)))
    tokens = tokenizer.encode(["a\u2603\U0001f9ff"])
    assert tokens.ids[0].tolist().count(tokenizer.unknown_id) == 1  # the amulet, not the snowman
    assert character_tokenizer(texts[::-1]).backend.to_str() == tokenizer.backend.to_str()


def test_chinese_captions_are_one_id_a_character(captions):
    chinese = captions[1::2]
    tokenizer = character_tokenizer(chinese)
    _, keep = tokenizer.encode(chinese)
    assert keep.sum(dim=1).tolist() == [len(text) + 2 for text in chinese]


def test_words_are_ordered_by_frequency_and_others_unknown():
    tokenizer = word_tokenizer(["a red star, a ring", "a star; a heart"], min_count=2)
    assert tokenizer.vocab_size == 5 + 2
    ids, _ = tokenizer.encode(["a star a ring"])
    assert ids.tolist() == [[1, 5, 6, 5, 3, 2]]
    assert tokenizer.unknown_id == 3
    assert tokenizer.decode(ids) == ["a star a <unknown>"]


def test_words_hold_every_english_caption(captions):
    english = captions[::2]
    tokenizer = word_tokenizer(english)
    tokens = tokenizer.encode(english)
    assert tokenizer.unknown_id not in tokens.ids
    spaced = [" ".join(scenes.tokenize(text, "en")) for text in english]
    assert tokenizer.decode(*tokens) == spaced


# --- what all have in common -------------------------------------------------------------------


def all_tokenizers():
    texts = ["a red star", "红色的圆形"]
    return {
        "bpe": bpe_tokenizer(texts, 280),
        "characters": character_tokenizer(texts),
        "clip": clip_tokenizer(),
        "words": word_tokenizer(texts),
        "wordpiece": wordpiece_tokenizer(),
    }


@pytest.fixture(scope="module", params=["bpe", "characters", "clip", "words", "wordpiece"])
def tokenizer(request):
    return all_tokenizers()[request.param]


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    tokens, again = (
        tokenizer.encode(NASTY, 70, truncate=True),
        loaded.encode(NASTY, 70, truncate=True),
    )
    assert torch.equal(tokens.ids, again.ids) and torch.equal(tokens.keep, again.keep)
    assert tokenizer.decode(*tokens) == loaded.decode(*again)
    for name in ("vocab_size", "max_length", "pad_id", "begin_id", "end_id", "mask_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_shapes_and_types(tokenizer):
    ids, keep = tokenizer.encode(["red", "a red star", ""])
    assert ids.dtype == torch.int64 and keep.dtype == torch.bool and ids.shape == keep.shape
    assert (ids[:, 0] == tokenizer.begin_id).all()
    lengths = keep.sum(dim=1)
    assert (ids[torch.arange(3), lengths - 1] == tokenizer.end_id).all()
    assert lengths[2] == 2 and lengths.max() == ids.shape[1]
    assert (ids[~keep] == tokenizer.pad_id).all()
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    wide = tokenizer.encode(["red"], pad_to=20)
    assert wide.ids.shape == (1, 20) and wide.keep.sum() == lengths[0]


def test_a_batch_changes_nothing(tokenizer):
    texts = [text for text in NASTY if len(text) < 60]
    together = tokenizer.encode(texts, truncate=True)
    for row, text in enumerate(texts):
        alone = tokenizer.encode([text], truncate=True)
        assert together.ids[row][together.keep[row]].tolist() == alone.ids[0].tolist()


def test_no_word_is_lost_in_silence(tokenizer):
    with pytest.raises(ValueError, match=r"texts\[1\] has \d+ tokens, more than max_length=6"):
        tokenizer.encode(["red", "a red star " * 5], max_length=6)
    with pytest.raises(ValueError, match="pair 0 has"):
        tokenizer.encode_pairs(["a red star " * 5], ["red"], max_length=6)
    ids, keep = tokenizer.encode(["a red star " * 5], max_length=6, truncate=True)
    assert ids.shape == (1, 6) and ids[0, -1] == tokenizer.end_id and keep.all()


@pytest.mark.parametrize(
    "texts, error, message",
    [
        ("a red star", TypeError, "texts must be a sequence of strings: got one string"),
        ([], ValueError, "texts must not be empty"),
        (["red", None], TypeError, r"texts\[1\] must be a string: got NoneType"),
        (["red", b"red"], TypeError, r"texts\[1\] must be a string: got bytes"),
        (["\ud800"], ValueError, r"texts\[0\] is not valid Unicode: .*surrogates"),
    ],
)
def test_bad_texts(tokenizer, unchecked, texts, error, message):
    with pytest.raises(error, match=message):
        unchecked(Tokenizer.encode)(tokenizer, texts)


def test_bad_lengths(clip):
    with pytest.raises(ValueError, match="max_length must be above 2, the special tokens: got 2"):
        clip.encode(["red"], 2)
    with pytest.raises(ValueError, match="max_length must be at most the tokenizer's 77: got 78"):
        clip.encode(["red"], 78)
    with pytest.raises(ValueError, match="pad_to must be at least the longest .* 5: got 4"):
        clip.encode(["a red star"], pad_to=4)
    with pytest.raises(ValueError, match="first and second must pair up: got 2 and 1 texts"):
        clip.encode_pairs(["a", "b"], ["c"])


def test_bad_ids(clip, unchecked):
    with pytest.raises(ValueError, match="ids must lie from 0 to 49407: got 49408 in row 1"):
        clip.decode(torch.tensor([[1, 2], [3, 49408]]))
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        unchecked(Tokenizer.decode)(clip, torch.tensor([[1, 2]]), torch.ones(1, 3).bool())


def test_bad_training():
    with pytest.raises(ValueError, match="vocab_size must be at least 260: got 259"):
        bpe_tokenizer(["red"], 259)
    for make in (bpe_tokenizer, character_tokenizer, word_tokenizer):
        with pytest.raises(ValueError, match="texts must hold at least one character"):
            make([""])
        with pytest.raises(TypeError, match="got one string"):
            make("red")
    with pytest.raises(ValueError, match="min_count must be at least 1: got 0"):
        word_tokenizer(["red"], min_count=0)


def test_bad_construction(clip):
    specials = dict(clip.specials)
    with pytest.raises(ValueError, match=r"specials must name begin and end.*got \['begin'\]"):
        Tokenizer(clip.backend, {"begin": "a"})
    with pytest.raises(ValueError, match=r"specials must be in the vocabulary: \['<no>'\]"):
        Tokenizer(clip.backend, {**specials, "mask": "<no>"})
    with pytest.raises(ValueError, match="clean must be one of .*: got 'soap'"):
        Tokenizer(clip.backend, specials, clean="soap")
    with pytest.raises(ValueError, match="max_length must be above 2"):
        Tokenizer(clip.backend, specials, max_length=1)


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"format": "another"}', '{"format": "mmlib tokenizer 1"}']
)
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="bad.json is not a tokenizer that mmlib saved"):
        Tokenizer.load(path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "missing.json")


def test_a_missing_library_is_named(monkeypatch):
    import importlib

    import mmlib.encoders.tokenizer as module

    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ImportError, match=r'pip install "mmlib\[pretrained\]"'):
        clip_tokenizer()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'pip install "mmlib\[pretrained\]"'):
        importlib.import_module(module.__name__).__loader__.exec_module(
            importlib.util.module_from_spec(module.__spec__)
        )


def test_the_backend_is_the_library_itself(bpe):
    assert isinstance(bpe.backend, Backend)
