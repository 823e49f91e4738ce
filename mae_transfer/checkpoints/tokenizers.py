"""Files that targets need: PCA bases and tokenizers, this package's own and DALL-E's released autoencoder.

DALL-E's pickle is read without running its code.
"""

from __future__ import annotations

import pickle
import re
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import SourceChangeWarning

from mae_transfer.checkpoints.files import (
    AGAIN,
    DAMAGED,
    check_finite,
    load_strict,
    metadata,
    read,
    shorten,
    split,
    write,
)
from mae_transfer.checkpoints.released import downloaded
from mae_transfer.config import validate
from mae_transfer.core.normalize import check_statistics
from mae_transfer.core.pca import Basis
from mae_transfer.models.dvae import DVAE, DVAEConfig, DVAETokenizer, decoder, encoder

FORMAT = "mae_transfer.tokenizer/1"
BASIS = "mae_transfer.basis/1"
BASIS_TENSORS = ("mean", "components", "variance", "explained")
KNOWN = (
    "give a tokenizer.safetensors, released:dalle_encoder, dalle:PATH with DALL-E's encoder, or random:CODES/STRIDE "
    "(e.g. random:8192/8)"
)


def export_tokenizer(path: Path, dvae: DVAE, *, about: Mapping[str, Any]) -> None:
    """Write an autoencoder as .safetensors; the metadata hold its architecture and `about`."""
    write(path, dvae.state_dict(), {"format": FORMAT, "architecture": dvae.cfg.model_dump(mode="json"), **about})


def load_tokenizer(reference: str) -> DVAETokenizer:
    """Return the tokenizer of a reference, frozen.

    Args:
        reference: the path of a tokenizer.safetensors of this package; dalle:PATH, DALL-E's released encoder.pkl or its
            plain state dict, optionally with decoder.pkl beside it; released:dalle_encoder, the same file, downloaded
            once; random:CODES/STRIDE, initialised from torch's current seed.
    Raises:
        ValueError: unknown prefix; a file that is missing, damaged, of another layout, or would run code.
    """
    named = downloaded(reference)
    try:
        prefix, rest = split(named, ("dalle", "random"))
    except ValueError:
        raise ValueError(f"no tokenizer {reference!r}: {KNOWN}") from None
    opened = _own(Path(rest)) if not prefix else _dalle(Path(rest)) if prefix == "dalle" else _random(rest)
    return opened.requires_grad_(False).eval()


def _random(size: str) -> DVAETokenizer:
    if re.fullmatch(r"\d+/(1|2|4|8|16|32)", size):
        codes, stride = map(int, size.split("/"))
        cfg = DVAEConfig(codes=codes, groups=stride.bit_length(), blocks=1, width=8, decoder_input=8)
        return DVAETokenizer(cfg, encoder(cfg), decoder(cfg))
    raise ValueError(f"no tokenizer 'random:{size}': {KNOWN}")


def _own(path: Path) -> DVAETokenizer:
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a tokenizer of this package (format {about.get('format')!r}, not {FORMAT!r}); "
            "train one with tools/tokenizer_train.py"
        )
    if not isinstance(about.get("architecture"), dict):
        raise ValueError(f"{path} is damaged: its metadata have no architecture; {AGAIN}")
    dvae = DVAE(validate(about["architecture"], DVAEConfig, where=f"architecture in {path}"))
    load_strict(dvae, read(path), where=str(path))
    return DVAETokenizer(dvae.cfg, dvae.encoder, dvae.decoder)


def _dalle(path: Path) -> DVAETokenizer:
    """Read the released autoencoder; names and shapes of the weights determine its size."""
    tensors = _tensors(path)
    first, last = (_stem(tensors, name, where=path) for name in ("blocks.input.weight", "blocks.output.conv.weight"))
    groups = max((int(found[1]) for name in tensors if (found := re.match(r"blocks\.group_(\d+)\.", name))), default=0)
    blocks = max(
        (int(found[1]) for name in tensors if (found := re.match(r"blocks\.group_1\.block_(\d+)\.", name))), default=0
    )
    beside = path.with_name("decoder.pkl")
    other = _tensors(beside) if beside.is_file() and beside != path else None
    embed = len(_stem(other, "blocks.input.weight", part="decoder", where=beside)) if other is not None else 1
    sizes = {"codes": len(last), "groups": groups, "blocks": blocks, "width": len(first), "decoder_input": embed}
    cfg = validate(sizes, DVAEConfig, where=f"sizes of the encoder in {path}")
    half = encoder(cfg)
    load_strict(half, tensors, where=str(path))
    if other is None:
        return DVAETokenizer(cfg, half, None)
    back = decoder(cfg)
    load_strict(back, other, where=str(beside))
    return DVAETokenizer(cfg, half, back)


def _stem(tensors: Mapping[str, Tensor], name: str, *, part: str = "encoder", where: Path) -> Tensor:
    """Return the weights of a convolution; ValueError if there are none under this name."""
    if name not in tensors or tensors[name].ndim != 4:
        raise ValueError(
            f"{where} holds no {part} of DALL-E: it has no {name} of 4 dimensions; its names are "
            f"{shorten(sorted(tensors)) or 'none'}"
        )
    return tensors[name]


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict or a pickled module of DALL-E, under torch's names (w, b -> weight, bias)."""
    try:
        content = read(path)
    except ValueError:
        if not path.is_file():
            raise
        content = dict(_walk(_unpickle(path), where=path))
    return {
        re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name)): tensor
        for name, tensor in content.items()
        if isinstance(tensor, Tensor)
    }


class _Sealed(type):
    """Metaclass that refuses changes of class attributes, which a pickle could otherwise make."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name} of a class")


class _Stub(metaclass=_Sealed):
    """Stand-in for a module of a pickle: it keeps the stored attributes and has no behaviour."""

    dump_patches = False  # torch reads this attribute of a module class in old files


_STUBBED = re.compile(
    r"dall_e\.(encoder\.Encoder(Block)?|decoder\.Decoder(Block)?|utils\.Conv2d)"
    r"|torch\.nn\.modules\.(container\.Sequential|activation\.ReLU|pooling\.MaxPool2d|linear\.Identity"
    r"|upsampling\.Upsample)"
)
_REAL = re.compile(
    r"collections\.OrderedDict|(__builtin__|builtins)\.set|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(Float|Half)Storage|torch\.(device|float(32|16))"
)


class _Unpickler(pickle.Unpickler):
    """Unpickler of tensors and plain values; modules of DALL-E and torch become stubs, any other name is an error."""

    def find_class(self, module: str, name: str) -> Any:
        dotted = f"{module}.{name}"
        if _STUBBED.fullmatch(dotted):
            return _Stub
        if _REAL.fullmatch(dotted):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {dotted}")


def _load(file: IO[bytes], *, encoding: str = "ASCII") -> Any:
    return _Unpickler(file, encoding=encoding).load()


_PICKLE = types.SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="pickle")


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SourceChangeWarning)  # a stub has another source than the module
            # torch gives this warning and then runs the archive: turn it into an error.
            warnings.filterwarnings("error", "(?s).*TorchScript archive", UserWarning)
            return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except UserWarning:
        raise ValueError(
            f"{path} was not read, because reading it could run code: it is a TorchScript archive; "
            "save only its tensors"
        ) from None
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was not read, because reading it could run code: {error}, which is neither a tensor nor a part of "
            "DALL-E's autoencoder. If you trust its source, load it with DALL-E's code and save only its tensors"
        ) from None
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or not a weight file ({type(error).__name__}); {AGAIN}") from None


def _walk(module: Any, prefix: str = "", *, where: Path) -> list[tuple[str, Tensor]]:
    """Return the parameters of a tree of stubs, with their dotted names."""
    if not isinstance(module, _Stub):
        raise ValueError(
            f"{where} holds a {type(module).__name__} instead of a module of DALL-E: give DALL-E's encoder.pkl"
        )
    own = [
        (prefix + name, tensor)
        for name, tensor in module.__dict__.get("_parameters", {}).items()
        if isinstance(tensor, Tensor)
    ]
    return own + [
        found
        for name, child in module.__dict__.get("_modules", {}).items()
        for found in _walk(child, f"{prefix}{name}.", where=where)
    ]


def save_basis(path: Path, basis: Basis) -> None:
    """Write a basis as .safetensors; the metadata hold the patch size and the statistics that it was fitted with."""
    about = {"format": BASIS, "patch": basis.patch, "mean": basis.statistics.mean, "std": basis.statistics.std}
    write(path, {name: getattr(basis, name) for name in BASIS_TENSORS}, about)


def load_basis(path: Path) -> Basis:
    """Read a file of `save_basis`; ValueError if it is missing, damaged or of another kind."""
    if not path.is_file():
        raise ValueError(
            f"the basis {str(path)!r} does not exist: fit one with tools/tokenizer_train.py pca CONFIG "
            f"--work-dir {path.parent}"
        )
    about = metadata(path)
    if about.get("format") != BASIS:
        raise ValueError(
            f"{path} is not a PCA basis of this package (format {about.get('format')!r}, not {BASIS!r}); "
            "fit one with tools/tokenizer_train.py pca"
        )
    tensors, patch, mean, std = read(path), *(about.get(key) for key in ("patch", "mean", "std"))
    complete = tensors.keys() == set(BASIS_TENSORS)
    if not (complete and isinstance(mean, list) and isinstance(std, list) and isinstance(patch, int)):
        raise ValueError(
            f"{path} lacks a part of a PCA basis ({', '.join(BASIS_TENSORS)}, patch, mean and std); fit it again"
        )
    statistics = check_statistics(mean, std, where=f"metadata of {path}")
    values = patch**2 * len(mean)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rows = shapes["variance"]
    wanted = {"mean": (values,), "components": (*rows, values), "variance": rows, "explained": rows}
    if shapes != wanted or len(rows) != 1:
        raise ValueError(f"{path} has tensors of shapes {shapes}, which do not fit patches of {patch} px; fit it again")
    check_finite(tensors, where=path)
    return Basis(**tensors, patch=patch, statistics=statistics)
