"""The claims of ``book/errata.md`` that a machine can check.

Each test is named in the entry that it supports, and ``test_page_and_tests_agree`` holds the two
together. The five documents' listings are quoted only as far as a check needs them.
"""

import ast
import math
import re
import symtable
import warnings
from importlib.metadata import metadata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.specifiers import SpecifierSet
from torch import nn
from torch.utils.data import default_collate

from mmlib.attention import attention

ERRATA = Path(__file__).parents[1] / "book" / "errata.md"
ABOUT_THE_PAGE = {
    "test_page_and_tests_agree",
    "test_entries_are_complete",
    "test_entries_are_counted",
}
CHECKED = re.compile(r"`(test_\w+)`")


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# The page


def entries() -> dict[str, str]:
    """Every entry of the page: its number and its text."""
    parts = re.split(r"^\*\*(\d{3}-\d+)\. ", ERRATA.read_text(encoding="utf8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_page_and_tests_agree():
    named = set(CHECKED.findall(ERRATA.read_text(encoding="utf8")))
    tests = {name for name in globals() if name.startswith("test_")}
    assert named | ABOUT_THE_PAGE == tests


def test_entries_are_complete():
    found = entries()
    assert len(found) >= 60
    for document in ("000", "001", "002", "003", "004"):
        numbers = [int(name[4:]) for name in found if name.startswith(document)]
        assert numbers == list(range(1, len(numbers) + 1)), document
    for name, text in found.items():
        text = text.split("\n\n(errata-")[0].split("\n\n## ")[0]
        assert re.match(r".+\*\* \(§?.+, .+\)\n", text), f"{name} has no title, place and kind"
        assert "**Here:**" in text, f"{name} does not say where it is put right"
        quotation = re.search(r"^> (.+)(?:\n> (.+))?\n(?!>)", text, flags=re.M)
        assert quotation, f"{name} has no quotation of at most two lines"


def test_entries_are_counted():
    page = ERRATA.read_text(encoding="utf8")
    table = dict(re.findall(r"^\| ([a-z ]+) \| (\d+) \|", page, flags=re.M))
    kinds = [re.match(r".+\*\* \(.+, (.+?)\)\n", text)[1] for text in entries().values()]
    counted = {kind: str(kinds.count(kind)) for kind in set(kinds)}
    assert table == counted | {"all": str(len(kinds))}


# Document 000


def test_gpt_has_no_cross_attention():
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=8, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    names = [name for name, _ in transformers.GPT2Model(config).named_modules()]
    assert any(name.endswith("attn") for name in names)
    assert not any("cross" in name for name in names)


def test_split_heads_do_not_fit_the_output_matrix():
    length, dim, d_k, heads = 5, 12, 6, 3
    query = torch.randn(length, dim) @ torch.randn(dim, d_k)
    output_matrix = torch.randn(heads * d_k, dim)
    joined = torch.cat(query.chunk(heads, dim=1), dim=1)  # "divided into h submatrices"
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        joined @ output_matrix
    # What the formulas mean: one full d_k per head.
    heads_out = [torch.randn(length, dim) @ torch.randn(dim, d_k) for _ in range(heads)]
    assert (torch.cat(heads_out, dim=1) @ output_matrix).shape == (length, dim)


def test_bilinear_form_is_no_dot_product():
    image, text = torch.randn(4), torch.randn(4)
    assert torch.allclose(image @ torch.eye(4) @ text, image @ text)
    assert not torch.allclose(image @ torch.randn(4, 4) @ text, image @ text)
    assert (torch.randn(3) @ torch.randn(3, 4) @ text).shape == ()  # other sizes: no dot product


def test_two_linear_heads_make_a_bilinear_form():
    image, text = torch.randn(2, 7), torch.randn(3, 5)
    to_image, to_text = nn.Linear(7, 4, bias=False), nn.Linear(5, 4, bias=False)
    matrix = to_image.weight.T @ to_text.weight
    assert torch.allclose(to_image(image) @ to_text(text).T, image @ matrix @ text.T, atol=1e-6)
    assert torch.linalg.matrix_rank(matrix) == 4


def test_listing_000_has_unbound_names():
    from torchvision.datasets import CocoCaptions

    line = "CocoCaptions(root='./data', annFile='a.json', transform=transforms.ToTensor())"
    with pytest.raises(NameError, match="transforms"):
        eval(line, {"CocoCaptions": CocoCaptions})
    with pytest.raises(NameError, match="device"):
        eval("torch.arange(len(images)).to(device)", {"torch": torch, "images": [0]})


def test_coco_pictures_do_not_batch():
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate([torch.zeros(3, 426, 640), torch.zeros(3, 640, 480)])


def test_coco_yields_a_list_of_captions():
    from torchvision.datasets import CocoCaptions

    class Annotations:  # the two calls that torchvision makes of pycocotools
        def getAnnIds(self, image_id):  # noqa: N802
            return range(5)

        def loadAnns(self, ids):  # noqa: N802
            return [{"caption": f"caption {i}"} for i in ids]

    dataset = object.__new__(CocoCaptions)
    dataset.coco = Annotations()
    captions = dataset._load_target(0)
    assert captions == [f"caption {i}" for i in range(5)]
    texts = default_collate([captions, captions])
    assert [len(column) for column in texts] == [2] * 5  # by position, not by picture
    with pytest.raises(TypeError):
        texts["input_ids"]
    with pytest.raises(RuntimeError, match="equal size"):  # some pictures have six captions
        default_collate([captions, [*captions, "a sixth"]])


def test_pretrained_argument_is_deprecated():
    import torchvision

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torchvision.models.resnet18(pretrained=False)
    assert any("'pretrained' is deprecated" in str(one.message) for one in caught)


def test_listing_000_breaks_off():
    with pytest.raises(SyntaxError):
        compile('print(f"Train Loss: {train_loss/len', "000", "exec")


# Document 001


def test_attention_over_one_key_is_the_constant_one():
    scores = torch.randn(4, 1)
    assert torch.equal(scores.softmax(dim=-1), torch.ones(4, 1))


def listing_001_attention(query, key, value, units=8):
    """The arithmetic of the document's CrossModalAttention on what its encoders return."""
    return (query @ key.T / math.sqrt(units)).softmax(dim=-1) @ value


def test_listing_001_attends_over_the_batch():
    text, image = torch.randn(2, 8), torch.randn(2, 8)  # one vector each, as pooled features are
    before = listing_001_attention(text, image, image)
    right_before, _ = attention(text[:, None], image[:, None], image[:, None])
    image[1] = torch.randn(8)  # another example's picture
    assert not torch.allclose(before[0], listing_001_attention(text, image, image)[0])
    right, _ = attention(text[:, None], image[:, None], image[:, None])
    assert torch.equal(right_before[0], right[0])


def test_listing_001_has_unbound_names():
    source = (
        "import tensorflow as tf\n"
        "def text_encoder(text, embedding_dim):\n"
        "  return hub.KerasLayer('bert')([text])\n"
        "class CrossModalAttention:\n"
        "  def __init__(self, units):\n"
        "    self.Wq = units\n"
        "  def call(self, query, key, value):\n"
        "    return tf.cast(units, tf.float32)\n"
    )
    module = symtable.symtable(source, "001", "exec")
    encoder = next(child for child in module.get_children() if child.get_name() == "text_encoder")
    assert encoder.lookup("hub").is_global()
    assert "hub" not in module.get_identifiers()
    cls = next(c for c in module.get_children() if c.get_name() == "CrossModalAttention")
    call = next(child for child in cls.get_children() if child.get_name() == "call")
    assert call.lookup("units").is_global()  # it works only because a global has the same name
    assert not encoder.lookup("embedding_dim").is_referenced()


def test_one_step_gives_one_word():
    decoder = nn.LSTM(8, 6, batch_first=True)
    context = torch.randn(2, 8)
    output, _ = decoder(context[:, None])
    assert output.shape == (2, 1, 6)
    with pytest.raises(RuntimeError, match="Expected target size"):
        F.cross_entropy(output.transpose(1, 2), torch.zeros(2, 7, dtype=torch.long))


def test_worked_concatenation_holds():
    text, image = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.1, 0.7, 0.9])
    assert torch.equal(torch.cat([text, image]), torch.tensor([0.2, 0.5, 0.8, 0.1, 0.7, 0.9]))


def test_fusion_needs_equal_sizes():
    text, image = torch.randn(768), torch.randn(2048)  # BERT base and ResNet-50
    assert torch.cat([text, image]).shape == (2816,)
    with pytest.raises(RuntimeError, match="must match"):
        text * image
    with pytest.raises(RuntimeError, match="must match"):
        0.5 * text + 0.5 * image


def test_weights_that_do_not_sum_to_one_give_no_average():
    text, image = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    mixture = 0.9 * text + 0.8 * image
    assert (mixture > torch.maximum(text, image)).any()
    average = 0.9 * text + 0.1 * image
    assert ((average >= torch.minimum(text, image)) & (average <= torch.maximum(text, image))).all()


def test_rotation_makes_a_relation_false():
    picture = torch.zeros(3, 8, 8)
    picture[0, 4, 1] = 1.0  # a red dot, left of
    picture[2, 4, 6] = 1.0  # a blue dot

    def column(channel, image):
        return int(image[channel].nonzero()[0, 1])

    turned = torch.rot90(picture, 2, dims=(1, 2))
    assert column(0, picture) < column(2, picture)
    assert column(0, turned) > column(2, turned)


# Document 002


@pytest.fixture(scope="module")
def clip():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        size = dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        text = dict(**size, vocab_size=20, max_position_embeddings=8)
        text |= dict(bos_token_id=18, eos_token_id=19, pad_token_id=1)
        vision = dict(**size, image_size=16, patch_size=8)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config).eval()
        tokens, pictures = torch.randint(2, 18, (5, 8)), torch.randn(5, 3, 16, 16)
        with torch.no_grad():
            return model, model(input_ids=tokens, pixel_values=pictures, return_loss=True)


def contrastive_sums(clip):
    """The image-to-text and the text-to-image term of documents 002 and 003."""
    model, out = clip
    temperature = 1 / model.logit_scale.exp().item()
    similarity = F.cosine_similarity(out.image_embeds[:, None], out.text_embeds[None], dim=-1)
    scores = (similarity / temperature).exp()
    match = scores.diagonal()
    return -(match / scores.sum(1)).log().mean(), -(match / scores.sum(0)).log().mean()


def test_vit_is_no_convolutional_network(clip):
    vision = clip[0].vision_model
    layers = [m for m in vision.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    assert len(layers) == 1  # it cuts the picture into patches
    assert layers[0].kernel_size == layers[0].stride == (8, 8)


def test_one_way_loss_is_not_the_loss_of_clip(clip):
    to_text, _ = contrastive_sums(clip)
    assert abs(to_text - clip[1].loss) > 1e-3


def test_symmetric_sum_is_twice_the_loss_of_clip(clip):
    to_text, to_image = contrastive_sums(clip)
    assert torch.allclose(to_text + to_image, 2 * clip[1].loss, atol=1e-5)
    assert torch.allclose((to_text + to_image) / 2, clip[1].loss, atol=1e-5)


def test_temperature_sets_how_much_the_hardest_negative_counts():
    shares = []
    for temperature in (1.0, 0.07):
        similarity = torch.tensor([[0.6, 0.5, 0.1, -0.2]], requires_grad=True)
        F.cross_entropy(similarity / temperature, torch.tensor([0])).backward()
        negatives = similarity.grad[0, 1:]
        shares.append((negatives[0] / negatives.sum()).item())
    assert shares[0] < 0.5 < 0.99 < shares[1]


def test_vae_objective_is_the_negative_elbo():
    # z ~ N(0, 1), x | z ~ N(z, 1): everything has a closed form, p(x) = N(0, 2).
    x = 1.3
    evidence = 0.5 * math.log(2 * math.pi * 2) + x**2 / 4  # -log p(x)

    def objective(mean, var):
        reconstruction = 0.5 * math.log(2 * math.pi) + 0.5 * ((x - mean) ** 2 + var)
        return reconstruction + 0.5 * (var + mean**2 - 1 - math.log(var))

    assert objective(x / 2, 0.5) == pytest.approx(evidence, abs=1e-12)  # the true posterior
    assert objective(0.0, 1.0) > evidence


def test_listing_002_does_not_import_image():
    with pytest.raises(NameError, match="Image"):
        eval('Image.open("path/to/image.jpg")', {"torch": torch})


def test_one_caption_is_always_the_best():
    assert torch.equal(torch.randn(3, 1).softmax(dim=-1), torch.ones(3, 1))


def test_cosine_similarity_compares_row_by_row():
    images, texts = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.cosine_similarity(images, texts).shape == (3,)  # pairs, not a 3 x 3 table
    with pytest.raises(RuntimeError):
        torch.cosine_similarity(images, torch.randn(2, 8))


def test_transformers_has_no_dalle():
    assert not hasattr(transformers, "DALL_E")
    with pytest.raises(ImportError):
        exec("from transformers import DALL_E")


# Document 003


def test_missing_scale_changes_the_weights():
    query, key = torch.randn(1000, 256), torch.randn(1000, 256)
    scores = (query * key).sum(dim=1)
    assert scores.var().sqrt().item() == pytest.approx(16, rel=0.1)  # sqrt(d_k)
    bare = (query[:50] @ key.T).softmax(dim=-1)
    scaled = (query[:50] @ key.T / 16).softmax(dim=-1)
    assert bare.amax(dim=1).mean() > 0.8 > 0.05 > scaled.amax(dim=1).mean()


def test_weights_sum_over_all_positions():
    weights = torch.randn(4, 4).softmax(dim=-1)
    assert torch.allclose(weights.sum(dim=1), torch.ones(4))
    assert ((weights.sum(dim=1) - weights.diagonal()) < 1).all()  # without j = i: less than one


def test_attention_without_positions_ignores_order():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    tokens, order = torch.randn(1, 5, 8), torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(layer(tokens)[:, order], layer(tokens[:, order]), atol=1e-5)


def test_decoder_without_causal_mask_sees_the_future():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    target, memory = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    changed = target.clone()
    changed[:, 3] += 1
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    assert not torch.allclose(layer(target, memory)[:, 0], layer(changed, memory)[:, 0])
    first, second = (layer(t, memory, tgt_mask=causal)[:, 0] for t in (target, changed))
    assert torch.allclose(first, second, atol=1e-6)


# Document 004


def test_flowchart_leads_text_through_pictures():
    arrows = {"text": {"image", "audio"}, "image": {"features"}, "audio": {"features"}}
    assert "features" not in arrows["text"]
    assert all("text" not in targets for targets in arrows.values())


def bert_layer():
    from transformers.models.bert.modeling_bert import BertLayer

    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=32, attn_implementation="eager"
    )
    return BertLayer(config).eval()


def run_bert_layer(layer, x, residual=True):
    """One block with BERT's own parts: as BERT joins them, or as document 004 does."""
    first, second = layer.attention.output, layer.output
    context = layer.attention.self(x)[0]
    attended = first.dense(context)
    if not residual:  # h2 = attention(h1), h3 = feedforward(h2), h4 = LayerNorm(h3)
        return second.LayerNorm(second.dense(layer.intermediate(attended)))
    attended = first.LayerNorm(attended + x)
    return second.LayerNorm(second.dense(layer.intermediate(attended)) + attended)


def test_bert_block_has_residuals_and_two_norms():
    layer, x = bert_layer(), torch.randn(2, 5, 16)
    expected = layer(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert torch.allclose(run_bert_layer(layer, x), expected, atol=1e-6)
    assert not torch.allclose(run_bert_layer(layer, x, residual=False), expected, atol=0.1)
    assert sum(isinstance(m, nn.LayerNorm) for m in layer.modules()) == 2


def test_linear_after_softmax_gives_no_distribution():
    hidden, linear = torch.randn(3, 16), nn.Linear(16, 4)
    printed = linear(hidden.softmax(dim=-1))
    meant = linear(hidden).softmax(dim=-1)
    assert torch.allclose(meant.sum(dim=-1), torch.ones(3))
    assert not torch.allclose(printed.sum(dim=-1), torch.ones(3))
    assert (printed < 0).any()


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return transformers.BertTokenizer(str(tmp_path / "vocab.txt"))


@pytest.fixture
def classifier():
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        intermediate_size=32,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def test_tokenizer_refuses_a_picture(tokenizer):
    for picture in (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8).numpy()):
        with pytest.raises((ValueError, TypeError)):
            tokenizer(picture, return_tensors="pt", max_length=128, padding="max_length")


def test_listing_004_never_reads_the_description():
    source = (
        "def __getitem__(self, item):\n"
        "    image = self.images[item]\n"
        "    description = self.descriptions[item]\n"
        "    encoding = self.tokenizer(image)\n"
        "    return encoding\n"
    )
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    uses = [type(node.ctx) for node in names if node.id == "description"]
    assert uses == [ast.Store]


def test_padding_is_labelled_like_a_word(tokenizer):
    ids = tokenizer("a cat", max_length=8, padding="max_length")["input_ids"]
    labels = [{"O": 0}[tag] for tag in ["O"] * len(ids)]
    assert ids.count(0) == 4 and labels == [0] * 8  # transformers ignores -100, not 0


def test_one_label_means_regression(classifier):
    tokens, labels = torch.randint(0, 7, (4, 6)), torch.randn(4)
    out = classifier(tokens, labels=labels)
    assert classifier.config.problem_type == "regression"
    assert torch.allclose(out.loss, F.mse_loss(out.logits.squeeze(), labels))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_token_labels_do_not_fit_a_sentence_classifier(classifier):
    tokens, labels = torch.zeros(16, 128, dtype=torch.long), torch.zeros(16, 128)
    with pytest.raises(RuntimeError, match="must match"):
        classifier(tokens, labels=labels)


def test_argmax_over_a_third_axis_fails(classifier):
    logits = classifier(torch.zeros(2, 6, dtype=torch.long)).logits
    assert logits.shape == (2, 1)
    with pytest.raises(IndexError, match="Dimension out of range"):
        logits.argmax(dim=2)


def test_one_tag_is_always_predicted_right():
    predicted = torch.randn(32, 128, 1).argmax(dim=2)  # any model at all
    assert (predicted == torch.zeros(32, 128)).float().mean() == 1.0


def test_transformers_has_no_adamw():
    assert not hasattr(transformers, "AdamW")
    assert hasattr(torch.optim, "AdamW")


def test_python_38_is_too_old():
    for package in ("torch", "transformers"):
        assert "3.8.20" not in SpecifierSet(metadata(package)["Requires-Python"])


def test_merged_lora_is_no_faster():
    frozen = nn.Linear(64, 64, bias=False)
    down, up, x = torch.randn(4, 64), torch.randn(64, 4), torch.randn(2, 64)
    merged = frozen.weight + up @ down
    assert torch.allclose(x @ merged.T, frozen(x) + x @ down.T @ up.T, atol=1e-3)
    assert merged.shape == frozen.weight.shape  # as many multiplications as before
