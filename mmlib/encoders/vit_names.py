"""What transformers calls the tensors of a ViT, and of the vision tower of a CLIP."""

import re

from torch import Tensor, nn

__all__ = ["our_names", "their_state", "vision_tower"]

CLASS_TOKEN, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"

# CLIP's names, and the older ones of ViT (transformers 5.0), become those of ViT in 5.23.
RENAMES = (
    (r"^encoder\.layers?\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.self_attn\.", ".attention."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.layer_norm1\.", ".layernorm_before."),
    (r"\.layer_norm2\.", ".layernorm_after."),
    (r"^pre_layrnorm\.", "layernorm_pre."),
    (r"^post_layernorm\.", "layernorm."),
    (r"^embeddings\.class_embedding$", CLASS_TOKEN),
    (r"^embeddings\.position_embedding\.weight$", POSITIONS),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
)


def their_state(tower: nn.Module) -> dict[str, Tensor]:
    """The tower's tensors under the names of transformers 5.23's ViT, in our shapes."""
    state = {}
    for name, tensor in tower.state_dict().items():
        for old, new in RENAMES:
            name = re.sub(old, new, name)
        state[name] = tensor
    state[CLASS_TOKEN] = state[CLASS_TOKEN].flatten()
    state[POSITIONS] = state[POSITIONS].reshape(-1, state[CLASS_TOKEN].numel())
    return state


def our_names(layers: int, *, norm_before: bool, patch_bias: bool) -> dict[str, list[str]]:
    """For each of our parameters, the tensors of transformers that make it up."""
    modules = {
        "patch_embedding.projection": ["embeddings.patch_embeddings.projection"],
        "norm_before": ["layernorm_pre"],
        "encoder.norm": ["layernorm"],
    }
    for layer in range(layers):
        ours, theirs = f"encoder.blocks.{layer}", f"layers.{layer}"
        modules |= {
            f"{ours}.self_norm": [f"{theirs}.layernorm_before"],
            f"{ours}.self_attention.qkv_proj": [
                f"{theirs}.attention.{part}_proj" for part in ("q", "k", "v")
            ],
            f"{ours}.self_attention.out_proj": [f"{theirs}.attention.o_proj"],
            f"{ours}.mlp_norm": [f"{theirs}.layernorm_after"],
            f"{ours}.mlp.0": [f"{theirs}.mlp.fc1"],
            f"{ours}.mlp.3": [f"{theirs}.mlp.fc2"],
        }
    if not norm_before:
        del modules["norm_before"]
    names = {
        f"{ours}.{kind}": [f"{their}.{kind}" for their in theirs]
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }
    if not patch_bias:
        del names["patch_embedding.projection.bias"]
    return names | {"class_token": [CLASS_TOKEN], "positions": [POSITIONS]}


def vision_tower(model: nn.Module) -> nn.Module:
    """The vision tower inside a model of transformers; 5.0 wraps CLIP's once more than 5.23.

    Raises:
        TypeError: there is none.
    """
    tower = model
    while True:
        inner = getattr(tower, "vision_model", None) or getattr(tower, "vit", None)
        if inner is None:
            break
        tower = inner
    if not type(tower).__name__.startswith(("ViTModel", "CLIPVision")):
        raise TypeError(
            f"model must be, or hold, a ViTModel or CLIPVisionModel: got {type(model).__name__}"
        )
    return tower
