"""Loading and saving of weights: backbones by reference (load), exports, tokenizers, and what they need.

A reference is LAYOUT:PATH, for example "mae:mae_pretrain_vit_base.pth", or the path of a backbone of this package.
"""

from mae_transfer.checkpoints.export import FORMATS, export_backbone, export_mae, to_dtype
from mae_transfer.checkpoints.files import RecordedStatistics, evaluated, load_strict, metadata, read, sha256, split
from mae_transfer.checkpoints.fit import fill, load_mae
from mae_transfer.checkpoints.load import (
    LAYOUTS,
    PREFIXES,
    LoadedWeights,
    load,
    load_backbone,
    own_file,
    training_metadata,
)
from mae_transfer.checkpoints.released import RANDOM, RECORD, RELEASED, downloaded, origin, zoo_file, zoo_names

__all__ = [
    "FORMATS", "LAYOUTS", "PREFIXES", "RANDOM", "RECORD", "RELEASED", "LoadedWeights", "RecordedStatistics",
    "downloaded", "evaluated",
    "export_backbone", "export_mae", "fill", "load", "load_backbone", "load_mae", "load_strict", "metadata", "origin",
    "own_file", "read", "sha256", "split", "to_dtype", "training_metadata", "zoo_file", "zoo_names",
]  # fmt: skip
