"""Adapters: what is added, what learns, what is saved, and what stays as it was."""

import inspect

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmlib.adapters import Adapters, Heads
from mmlib.attention import MultiHeadAttention
from mmlib.block import TransformerBlock, TransformerConfig
from mmlib.lora import LoRALinear
from mmlib.trainable import bitfit, count, head_only, train_only
from mmlib.training import TrainConfig, fit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """An attention layer, a feed-forward layer and a head."""

    def __init__(self):
        super().__init__()
        self.attention = MultiHeadAttention(8, 2)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x, context=None):
        x = x + self.attention(x, context)[0]
        return self.head(self.norm(x + self.mlp(x)).mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small()


def stir(adapters, name, seed=5):
    """Give an adapter's additions an effect, as training does."""
    for i, layer in enumerate(adapters.layers.values()):
        layer.up[name].data.copy_(draw(*layer.up[name].shape, seed=seed + i))


def test_the_formula():
    base = nn.Linear(4, 3)
    weight = base.weight.detach().clone()
    layer = LoRALinear(base)
    layer.add("a", rank=2, alpha=6.0)
    layer.up["a"].data.copy_(draw(3, 2))
    x = draw(5, 4, seed=1)
    low, up = layer.down["a"].detach(), layer.up["a"].detach()
    want = x @ (weight + 3.0 * up @ low).T + base.bias
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.weight, weight + 3.0 * up @ low)


def test_a_new_adapter_changes_nothing(model):
    x = draw(2, 5, 8)
    before = model(x)
    adapters = Adapters(model, ["qkv_proj", "mlp.0"])
    adapters.add("a", rank=3)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("context", [None, draw(2, 4, 8, seed=3)])
def test_merged_and_not_merged_are_the_same(model, context):
    adapters = Adapters(model, ["qkv_proj", "out_proj", "mlp.0", "mlp.2"])
    adapters.add("a", rank=2, alpha=4.0)
    stir(adapters, "a")
    x = draw(2, 5, 8)
    with torch.no_grad():
        apart = model(x, context)
        plain = {k: layer.base.weight.clone() for k, layer in adapters.layers.items()}
        adapters.merge()
        torch.testing.assert_close(model(x, context), apart, rtol=1e-5, atol=1e-6)
        adapters.unmerge()
        for name, layer in adapters.layers.items():
            assert torch.equal(layer.base.weight, plain[name])
        adapters.use(None)
        assert not torch.allclose(model(x, context), apart, atol=1e-2)


def test_cross_attention_reads_the_addition():
    # Its queries come from a third of the fused projection, which is not called as a layer.
    attention = MultiHeadAttention(8, 2)
    x, context = draw(1, 3, 8), draw(1, 4, 8, seed=1)
    holder = nn.ModuleDict({"attention": attention, "head": nn.Linear(8, 2)})
    before = attention(x, context)[0]
    adapters = Adapters(holder, ["qkv_proj"])
    adapters.add("a", rank=2)
    stir(adapters, "a")
    layer = adapters.layers["attention.qkv_proj"]
    after = attention(x, context)[0]
    assert not torch.allclose(before, after, atol=1e-3)
    after.sum().backward()
    assert layer.down["a"].grad.abs().sum() > 0 and layer.base.weight.grad is None


def test_the_base_never_moves_and_the_adapter_does(model):
    adapters = Adapters(model, ["qkv_proj", "mlp.0"])
    adapters.add("a", rank=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stir(adapters, "a")  # with zeros in `up` the first step would leave `down` as it is
    before |= {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = draw(16, 5, 8), torch.arange(16) % 3

    def loss(model, batch):
        return nn.functional.cross_entropy(model(x), y)

    fit(model, loss, lambda n: x, TrainConfig(5, learning_rate=0.05, progress=False))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == learns
    assert {"head.own.a.weight", "head.own.a.bias"} < moved
    assert all(n.startswith("head.own.a") or n.endswith((".down.a", ".up.a")) for n in moved)
    assert len(moved) == 2 + 2 * 2


def test_adapters_are_switched_with_their_heads(model):
    x = draw(2, 5, 8)
    base = model(x)
    adapters = Adapters(model, ["qkv_proj"])
    adapters.add("a", rank=2)
    stir(adapters, "a", seed=1)
    with_a = model(x)
    adapters.add("b", rank=4, new_heads={"head": nn.Linear(8, 7)})
    stir(adapters, "b", seed=2)
    with_b = model(x)
    assert with_b.shape == (2, 7) and adapters.names == ("a", "b")
    adapters.use("a")
    torch.testing.assert_close(model(x), with_a, rtol=0, atol=0)
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learns and not any(".b." in f"{name}." for name in learns)
    adapters.use("b")
    torch.testing.assert_close(model(x), with_b, rtol=0, atol=0)
    adapters.use(None)
    torch.testing.assert_close(model(x), base, rtol=0, atol=0)
    assert count(model) == 0


def test_an_adapter_is_saved_apart_and_loads_elsewhere(model, tmp_path):
    x = draw(2, 5, 8)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapters = Adapters(model, ["qkv_proj", "mlp.0"])
    adapters.add("a", rank=2, alpha=8.0, new_heads={"head": nn.Linear(8, 5)})
    stir(adapters, "a")
    want = model(x)
    adapters.merge()
    adapters.save("a", tmp_path / "deep" / "merged.safetensors")
    adapters.unmerge()
    adapters.save("a", tmp_path / "apart.safetensors")
    merged, apart = (
        load_file(tmp_path / n) for n in ("deep/merged.safetensors", "apart.safetensors")
    )
    assert merged.keys() == apart.keys()
    assert all(torch.equal(merged[key], apart[key]) for key in apart)
    assert not any(torch.equal(v, b) for v in apart.values() for b in base.values())
    fresh = Small()
    fresh.load_state_dict(base)
    others = Adapters(fresh, ["qkv_proj", "mlp.0"])
    others.load("mine", tmp_path / "apart.safetensors", {"head": nn.Linear(8, 5)})
    torch.testing.assert_close(fresh(x), want, rtol=0, atol=0)
    wrong = Adapters(Small(), ["out_proj"])
    with pytest.raises(ValueError, match="must be for the layers"):
        wrong.load("mine", tmp_path / "apart.safetensors")


def test_dropout_only_acts_in_training():
    layer = LoRALinear(nn.Linear(64, 4))
    layer.add("a", rank=2, dropout=0.5)
    layer.up["a"].data.fill_(1.0)
    x = torch.ones(3, 64)
    torch.manual_seed(0)
    assert not torch.allclose(layer(x)[0], layer(x)[1])
    layer.eval()
    torch.testing.assert_close(layer(x)[0], layer(x)[1])


def test_what_learns_is_counted_by_hand(model):
    assert count(model, all_parameters=True) == 8 * 24 + 24 + 8 * 8 + 8 + 2 * 128 + 24 + 16 + 27
    assert head_only(model) == 27
    assert bitfit(model) == 24 + 8 + 16 + 8 + 8 + 27
    assert model.norm.bias.requires_grad and not model.norm.weight.requires_grad
    assert train_only(model, ["mlp.0.", "norm."]) == 144 + 16
    adapters = Adapters(model, ["qkv_proj"])
    adapters.add("a", rank=2)
    assert count(model) == 2 * 8 + 24 * 2 + 27


def test_names_are_whole_and_every_fitting_layer_is_taken():
    block = TransformerBlock(TransformerConfig(dim=8, heads=2), cross=True)
    holder = nn.ModuleDict({"block": block, "head": nn.Linear(8, 2)})
    adapters = Adapters(holder, ["qkv_proj"])
    assert set(adapters.layers) == {
        "block.self_attention.qkv_proj",
        "block.cross_attention.qkv_proj",
    }
    with pytest.raises(ValueError, match="targets"):
        Adapters(nn.ModuleDict({"qkv_proj": nn.Linear(2, 2), "head": nn.Linear(2, 2)}), ["proj"])


def test_the_draw_leaves_torchs_state_alone(model):
    state = torch.random.get_rng_state()
    adapters = Adapters(model, ["qkv_proj"])
    adapters.add("a", rank=2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    first = adapters.layers["attention.qkv_proj"].down["a"]
    adapters.add("b", rank=2, seed=3)
    second = adapters.layers["attention.qkv_proj"].down["b"]
    assert torch.equal(first, second)
    assert first.abs().max() <= 8**-0.5


def conv():
    inspect.unwrap(LoRALinear.__init__)(LoRALinear.__new__(LoRALinear), nn.Conv2d(1, 1, 1))


def lora(**options):
    layer = LoRALinear(nn.Linear(4, 3))
    layer.add(**({"name": "a", "rank": 2} | options))
    return layer


BAD = [
    (lambda m: conv(), TypeError, "linear layer"),
    (lambda m: lora(rank=0), ValueError, "rank"),
    (lambda m: lora(rank=4), ValueError, "rank"),
    (lambda m: lora(dropout=1.0), ValueError, "dropout"),
    (lambda m: lora(name=""), ValueError, "name"),
    (lambda m: lora(name="a.b"), ValueError, "name"),
    (lambda m: lora().add("a", 1), ValueError, "name"),
    (lambda m: Adapters(m, "qkv_proj"), TypeError, "one string"),
    (lambda m: Adapters(m, ["nothing"]), ValueError, "targets"),
    (lambda m: Adapters(m, ["qkv_proj"], ["nothing"]), ValueError, "heads"),
    (lambda m: (Adapters(m, ["qkv_proj"]), Adapters(m, ["mlp.0"])), ValueError, "adapters yet"),
    (lambda m: Adapters(m, ["qkv_proj"]).use("b"), ValueError, "name"),
    (lambda m: Adapters(m, ["qkv_proj"]).state("b"), ValueError, "name"),
    (
        lambda m: Adapters(m, ["qkv_proj"]).add("a", 2, new_heads={"x": nn.Linear(1, 1)}),
        ValueError,
        "new_heads",
    ),
    (lambda m: train_only(m, ["nothing"]), ValueError, "starts"),
    (lambda m: train_only(m, lambda name: False), ValueError, "something to learn"),
    (lambda m: train_only(m, []), ValueError, "something to learn"),
    (lambda m: head_only(m, ["hea"]), ValueError, "wanted"),
    (lambda m: bitfit(m, ["hea"]), ValueError, "heads"),
]


@pytest.mark.parametrize("call, error, words", BAD)
def test_bad_input(model, call, error, words):
    with pytest.raises(error, match=words):
        call(model)


def test_nothing_is_switched_or_added_while_merged(model):
    adapters = Adapters(model, ["qkv_proj"])
    adapters.add("a", rank=2)
    stir(adapters, "a")
    adapters.merge()
    for call in (lambda: adapters.use(None), lambda: adapters.add("b", 2), adapters.merge):
        with pytest.raises(ValueError, match="unmerge"):
            call()
    adapters.unmerge()
    adapters.use(None)


def test_heads_pass_everything_on():
    head = Heads(nn.Bilinear(2, 3, 4))
    x, y = draw(5, 2), draw(5, 3, seed=1)
    torch.testing.assert_close(head(x, input2=y), head.base(x, y))
