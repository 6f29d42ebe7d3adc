r"""Text to token ids and back: word pieces, byte pairs, characters, words, and CLIP's own.

One :class:`Tokenizer` for all of them, made by five functions:

===============================  ======================================================
:func:`wordpiece_tokenizer`      BERT's word pieces, with MiniLM's vocabulary of 30,522
:func:`clip_tokenizer`           CLIP's byte pairs, 49,408, from open_clip's merges
:func:`bpe_tokenizer`            byte pairs trained on your texts; loses nothing
:func:`character_tokenizer`      the characters of your texts: Chinese, or mixed text
:func:`word_tokenizer`           the words and punctuation marks of your texts
===============================  ======================================================

The `tokenizers <https://huggingface.co/docs/tokenizers>`_ library splits and looks up; what is
around it (special tokens, padding, truncation) is here, where one can read it. A text that is
too long is an error unless ``truncate=True`` is asked for: words are never lost in silence.

References:
    Sennrich, Haddow, Birch, *Neural Machine Translation of Rare Words with Subword Units*,
    ACL 2016. Schuster and Nakajima, *Japanese and Korean Voice Search*, ICASSP 2012 (word
    pieces). Radford et al., *Learning Transferable Visual Models From Natural Language
    Supervision*, ICML 2021.
"""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mmlib.encoders.tokenizer import Backend, Tokenizer, TokenPairs, Tokens, import_ftfy

__all__ = [
    "TokenPairs",
    "Tokenizer",
    "Tokens",
    "bpe_tokenizer",
    "character_tokenizer",
    "clip_tokenizer",
    "word_tokenizer",
    "wordpiece_tokenizer",
]

#: Names of the special tokens in the vocabularies that are made here, ids 0 to 4.
SPECIALS = {
    "pad": "<pad>",
    "begin": "<begin>",
    "end": "<end>",
    "unknown": "<unknown>",
    "mask": "<mask>",
}


def wordpiece_tokenizer(vocabulary: str | Path | None = None) -> Tokenizer:
    """BERT's uncased word pieces: equal to transformers' ``BertTokenizer``.

    A text is lowered and loses its accents, Chinese characters stand alone, and a word becomes
    the longest pieces that the vocabulary has, ``[UNK]`` where none fit or it has more than 100
    characters. ``[MASK]`` and the other special tokens are recognised in a text, as in
    transformers.

    Args:
        vocabulary: A ``vocab.txt``, one piece a line; MiniLM's by default, which is that of
            bert-base-uncased.

    >>> tokenizer = wordpiece_tokenizer()
    >>> tokenizer.tokenize("Une étoile, embeddings!")
    ['une', 'et', '##oi', '##le', ',', 'em', '##bed', '##ding', '##s', '!']
    """
    if vocabulary is None:
        from mmlib.encoders import pretrained

        vocabulary = pretrained.files("minilm")["vocabulary"]
    pieces = Path(vocabulary).read_text(encoding="utf-8").splitlines()
    names = {"pad": "[PAD]", "begin": "[CLS]", "end": "[SEP]", "unknown": "[UNK]", "mask": "[MASK]"}
    ids = {piece: index for index, piece in enumerate(pieces)}
    backend = Backend(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(backend, names, max_length=512)
    backend.add_special_tokens(list(names.values()))
    return tokenizer


def clip_tokenizer(merges: str | Path | None = None) -> Tokenizer:
    """CLIP's byte pairs: equal to open_clip's and OpenAI's ``SimpleTokenizer``.

    Broken encodings and HTML entities are mended, white space becomes single spaces, everything
    is lowered; then 48,894 merges of bytes, the last of each word marked ``</w>``. Sequences
    have at most 77 tokens. For open_clip's fixed shape and its silent cut, ask for
    ``encode(texts, truncate=True, pad_to=77)``. The end token's place is found by its id,
    :func:`mmlib.encoders.pooling.end_positions`.

    Differs from open_clip's only for letters of the newest Unicode versions and the combining
    iota U+0345, which its ``regex`` and this library's tables class differently.

    Args:
        merges: ``bpe_simple_vocab_16e6.txt.gz``; open_clip's by default.

    >>> clip_tokenizer().tokenize("A dog&#39;s DINNER")
    ['a</w>', 'dog</w>', "'s</w>", 'dinner</w>']
    """
    if merges is None:
        from mmlib.encoders import pretrained

        merges = pretrained.files("clip-bpe")["merges"]
    import_ftfy()  # now, and not at the first text
    lines = gzip.decompress(Path(merges).read_bytes()).decode("utf-8").split("\n")
    # A comment first, then more merges than CLIP takes.
    pairs = [tuple(line.split()) for line in lines[1 : 1 + 48_894]]
    letters = _byte_letters()
    names = {"begin": "<start_of_text>", "end": "<end_of_text>"}
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *map("".join, pairs)]
    ids = {piece: index for index, piece in enumerate([*vocabulary, *names.values()])}
    backend = Backend(models.BPE(ids, pairs, end_of_word_suffix="</w>"))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, names, max_length=77, clean="clip")
    backend.add_special_tokens(list(names.values()))
    return tokenizer


def bpe_tokenizer(
    texts: Sequence[str], vocab_size: int = 1000, max_length: int | None = None
) -> Tokenizer:
    """Byte pairs trained on texts: every Unicode string can be encoded, and comes back the same.

    Starts from the 256 bytes and joins the most frequent pair within words until there are
    ``vocab_size`` ids, special tokens included, or nothing comes twice. The same texts in the
    same order give the same tokenizer. A ``<pad>`` in a text is five characters, not padding.

    Args:
        texts: What to learn from.
        vocab_size: Most ids; at least 260, the bytes and special tokens.
        max_length: Longest sequence of ids, special tokens included.

    Raises:
        ValueError: there are no texts, or ``vocab_size`` is too small.

    >>> tokenizer = bpe_tokenizer(["a red star", "a red ring"], vocab_size=270)
    >>> tokenizer.tokenize("a red 星")
    ['a', 'Ġred', 'Ġ', 'æ', 'ĺ', 'Ł']
    >>> tokenizer.decode(tokenizer.encode(["a red 星"]).ids)
    ['a red 星']
    """
    names = {role: name for role, name in SPECIALS.items() if role != "unknown"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(names) + len(alphabet):
        raise ValueError(
            f"vocab_size must be at least {len(names) + len(alphabet)}: got {vocab_size}"
        )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner = Backend(models.BPE())
    learner.pre_tokenizer = split
    learner.train_from_iterator(
        _checked_texts(texts),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=alphabet,
            special_tokens=list(names.values()),
            show_progress=False,
        ),
    )
    # A tokenizer that was trained recognises its special tokens in a text, and would not give
    # back a text that holds one. Only the vocabulary and the merges are taken.
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Backend(models.BPE(learned["vocab"], merges))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    return Tokenizer(backend, names, max_length)


def character_tokenizer(texts: Sequence[str], max_length: int | None = None) -> Tokenizer:
    """One id for each character of the texts, in Unicode's order; others are ``<unknown>``.

    What Chinese is usually split into where no dictionary is at hand: no word is unknown that is
    made of known characters. Nothing is lowered or left out, spaces neither.

    Raises:
        ValueError: there are no texts.

    >>> tokenizer = character_tokenizer(["红色的圆形", "red"])
    >>> tokenizer.tokenize("红圆 red")
    ['红', '圆', '<unknown>', 'r', 'e', 'd']
    """
    # Not ".", which leaves line breaks out.
    split = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    found = sorted(set().union(*_checked_texts(texts)))
    return _lookup(found, split, decoders.Fuse(), max_length)


def word_tokenizer(
    texts: Sequence[str], min_count: int = 1, max_length: int | None = None
) -> Tokenizer:
    """One id for each word and punctuation mark of the texts; others are ``<unknown>``.

    Words are runs of letters, digits and underscores; case counts. The more frequent come
    first, equally frequent ones in Unicode's order. Decoding puts one space between all.

    Args:
        texts: Where the words come from.
        min_count: Words that come less often are left out.
        max_length: Longest sequence of ids, special tokens included.

    Raises:
        ValueError: there are no texts, or ``min_count`` is below 1.

    >>> tokenizer = word_tokenizer(["a red star, a red ring"])
    >>> tokenizer.tokenize("a blue star.")
    ['a', '<unknown>', 'star', '<unknown>']
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1: got {min_count}")
    split = pre_tokenizers.Whitespace()
    counts = Counter(
        word for text in _checked_texts(texts) for word, _ in split.pre_tokenize_str(text)
    )
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return _lookup([w for w in ordered if counts[w] >= min_count], split, None, max_length)


def _lookup(
    pieces: list[str],
    split: pre_tokenizers.PreTokenizer,
    decoder: decoders.Decoder | None,
    max_length: int | None,
) -> Tokenizer:
    names = list(SPECIALS.values())
    ids = {piece: index for index, piece in enumerate([*names, *pieces])}
    backend = Backend(models.WordLevel(ids, unk_token=SPECIALS["unknown"]))
    backend.pre_tokenizer = split
    if decoder is not None:  # without one, pieces are joined by spaces
        backend.decoder = decoder
    return Tokenizer(backend, SPECIALS, max_length)


def _checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings: got one string, wrap it in []")
    texts = list(texts)
    if not any(texts):
        raise ValueError("texts must hold at least one character")
    return texts


def _byte_letters() -> list[str]:
    """The letters that stand for bytes in CLIP's vocabulary (and GPT-2's), in its order.

    Printable bytes stand for themselves and come first; the others get letters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
