r"""The pooled vector without the other tokens of the last block.

CLIP reads one token of each tower: the class token of a picture, the end of a text. In the last
block that token needs the keys and values of all others, but their queries, attention and
feed-forward layers are computed for nothing:

.. math:: y_p = h + \operatorname{FFN}(\operatorname{norm}(h)), \qquad
          h = x_p + \operatorname{attention}(\operatorname{norm}(x)_p,\, \operatorname{norm}(x))

for the one position :math:`p`. Of a block's :math:`12 d^2` multiplications a token, :math:`2 d^2`
are left for all tokens but one. And what stands after the last end of a batch of causal texts is
seen by nothing that is read, so it is cut off.

The results are those of the towers, but for rounding; attention weights and the other tokens are
to be had from the towers themselves. In bf16 on a CPU the attention is computed by its formula,
which :func:`written_out` explains.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import TransformerBlock
from mmlib.encoders.pooling import check_text, end_positions, take_tokens
from mmlib.encoders.regions import check_images
from mmlib.encoders.text import TextTransformer
from mmlib.encoders.vit import ViT

__all__ = ["block_at", "pool_text", "pool_vit", "written_out"]


def block_at(
    block: TransformerBlock,
    x: Float[Tensor, "batch length dim"],
    positions: Int[Tensor, " batch"],
    keep: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch dim"]:
    """What a pre-norm block of self-attention gives at one position of each row.

    Args:
        block: The block.
        x: What enters it.
        positions: The position that is wanted in each row.
        keep: What that position may attend to.

    Raises:
        ValueError: the block is post-norm or has cross-attention.
    """
    if not block.norm_first or block.cross:
        raise ValueError("block must be pre-norm and without cross-attention")
    normed = block.self_norm(x)
    query = rearrange(take_tokens(normed, positions), "batch dim -> batch 1 dim")
    out, _ = block.self_attention(query, normed, keep, return_weights=written_out(x))
    y = rearrange(take_tokens(x, positions), "batch dim -> batch 1 dim") + block.dropout(out)
    y = y + block.dropout(block.mlp(block.mlp_norm(y)))
    return rearrange(y, "batch 1 dim -> batch dim")


def pool_vit(
    tower: ViT, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch dim"]:
    """``tower(images).pooled`` of a ViT that pools by its class token.

    Args:
        tower: The tower.
        images: Pictures of the configured size.

    Raises:
        TypeError: ``images`` is not floating point.
        ValueError: a wrong shape or size, or the tower pools by the mean.
    """
    size = tower.config.image_size
    if tower.config.pool != "cls":
        raise ValueError(f"tower must pool by its class token: got pool={tower.config.pool!r}")
    check_images(images, None, tower.config.channels)
    if images.shape[2:] != (size, size):
        raise ValueError(
            f"images must be {size} × {size} pixels: got {images.shape[2]} × {images.shape[3]}"
        )
    x = tower.patch_embedding(images)
    x = torch.cat([tower.class_token.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
    x = tower.norm_before(tower.dropout(x + tower.positions))
    first = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return _last(tower.encoder, x, first)


def pool_text(
    tower: TextTransformer, ids: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch dim"]:
    """``tower(ids).pooled`` of a causal text tower that pools at the end of the text.

    Args:
        tower: The tower.
        ids: Token ids, padded at the end with anything: a causal tower reads no padding.

    Raises:
        TypeError: ``ids`` does not hold integers.
        ValueError: a wrong shape, an id outside the vocabulary, a row without an end, an end
            beyond the last position, or the tower is of another kind.
    """
    config = tower.config
    if not config.causal or config.pool != "end":
        raise ValueError(
            "tower must be causal and pool at the end: "
            f"got causal={config.causal}, pool={config.pool!r}"
        )
    check_text(ids, None, config.vocab_size)
    ends = end_positions(ids, config.end_id)
    if ids.device.type == "cpu":  # elsewhere reading the number would make the host wait
        ids = ids[:, : int(ends.max()) + 1]
    if ids.shape[1] > config.max_length:
        raise ValueError(f"ids must have at most {config.max_length} positions: got {ids.shape[1]}")
    x = tower.dropout(tower.position(tower.token(ids)))
    before = torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]
    return _last(tower.stack, x, ends, before)


def written_out(x: Float[Tensor, "batch length dim"]) -> bool:
    """Whether attention is faster by its formula than by PyTorch's fused kernel.

    True in bf16 on a CPU, up to 128 tokens. There the kernel took 4 to 5 times as long, forward
    and backward, as two products and a softmax (20 to 77 tokens, PyTorch 2.14, one core with
    AVX-512 and bf16 products but no matrix units): a third of a training step. In fp32 the two
    are about as fast, and the kernel needs less memory.

    Args:
        x: What enters a block. Under autocast its dtype is still fp32, so autocast is asked too.
    """
    if x.device.type != "cpu" or x.shape[1] > 128:
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype) == torch.bfloat16


def _last(stack: nn.Module, x: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
    """Run all blocks of a stack but the last, that one at a position only, then the norm."""
    causal = keep is not None
    for block in stack.blocks[:-1]:
        x, _ = block(x, causal=causal, return_weights=written_out(x))
    return stack.norm(block_at(stack.blocks[-1], x, positions, keep))
