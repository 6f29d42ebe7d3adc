"""A captioner on a folder in COCO's format: read, trained and marked with five references."""

import pytest
import torch
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_tensor

from mmlib.captioning import CaptionDecoding, CaptionerConfig, ImageCaptioner, LSTMCaptioner
from mmlib.captioning_transformer import TransformerCaptioner
from mmlib.data import coco
from mmlib.decoding import beam_search
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.tokenizers import word_tokenizer
from mmlib.language_model import next_token_loss
from mmlib.metrics.bleu import bleu
from mmlib.metrics.cider import cider
from mmlib.training import TrainConfig, fit


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> coco.ExampleFiles:
    return coco.write_example(tmp_path_factory.mktemp("coco"), images=20, size=32)


def captions_of(data: Dataset, tokenizer) -> list[list[list[str]]]:
    return [[tokenizer.tokenize(text) for text in data.captions(i)] for i in range(len(data))]


@pytest.mark.parametrize("kind", [LSTMCaptioner, TransformerCaptioner])
def test_it_learns_to_caption_the_pictures(files, kind):
    data = coco.Captions.karpathy(files.root, files.karpathy, "train", to_tensor).select(range(6))
    tokenizer = word_tokenizer([text for i in range(6) for text in data.captions(i)])
    images = torch.stack([data[i].image for i in range(6)])
    assert images.shape == (6, 3, 32, 32)
    torch.manual_seed(0)
    encoder = SmallCNN(16)
    config = CaptionerConfig(tokenizer.vocab_size, encoder.dim, max_regions=64, dim=48)
    model = ImageCaptioner(encoder, kind(config))

    def batch(step):
        # One of the five captions of each picture, another one each time.
        return tokenizer.encode([data.caption(i, seed=0, epoch=step) for i in range(6)])

    def loss(model, batch):
        ids, keep = batch
        return next_token_loss(model(images, ids)[0], ids, keep)

    def write():
        model.eval()
        decoding = CaptionDecoding(model.captioner, model.encoder(images).tokens)
        limits = {"begin": tokenizer.begin_id, "end": tokenizer.end_id, "max_length": 40}
        made = beam_search(decoding, beams=3, length_penalty=1.0, **limits)
        model.train()
        return [text.split() for text in tokenizer.decode(made.tokens[:, 0])]

    references = captions_of(data, tokenizer)
    assert all(len(five) == 5 for five in references)
    before = bleu(write(), references).score
    history = fit(model, loss, batch, TrainConfig(60, learning_rate=1e-2, progress=False))
    assert history.losses[-1] < 0.5 * history.losses[0]
    made = write()
    assert bleu(made, references).score > max(0.2, before)
    # Each caption is more like those of its own picture than like those of another.
    others = references[1:] + references[:1]
    assert cider(made, references).score > 2 * cider(made, others).score


def test_people_agree_with_people_more_than_with_strangers(files):
    """What CIDEr of five references a person would get: one caption against the other four."""
    data = coco.Captions.karpathy(files.root, files.karpathy, "train")
    tokenizer = word_tokenizer([text for i in range(len(data)) for text in data.captions(i)])
    words = captions_of(data, tokenizer)
    left_out, rest = [five[0] for five in words], [five[1:] for five in words]
    own, strange = cider(left_out, rest).score, cider(left_out, rest[1:] + rest[:1]).score
    assert own > 3 * strange
    assert bleu(left_out, rest).score > bleu(left_out, rest[1:] + rest[:1]).score
