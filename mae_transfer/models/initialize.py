"""Initial weights of encoder and decoder, drawn as in the code of each method.

N is a normal distribution of standard deviation 0.02, TN is N truncated at one standard deviation (BEiT's
trunc_normal_), X is Xavier's uniform distribution.

init      linear layers      patch filters  class, mask token  learned positions  patch bias  other biases
mae       X                  X              N                  sin-cos            uniform     0
beit      TN, rescaled       TN             TN                 TN                 0           0
simmim    TN, rescaled       TN             TN                 TN                 0           0
maskfeat  N                  N              N                  N                  uniform     0.02
vit       X (q, k, v apart)  LeCun normal   0, N               N                  0           0
dino      N                  uniform        N, 0               N                  uniform     0
moco-v3   X (q, k, v apart)  X              1e-6, N            sin-cos            0           0

1e-6: normal with this standard deviation. DINO's mask token is iBOT's (models/joint.py).
Rescaled: attn.proj and mlp.fc2 of block l, 1-based, are divided by sqrt(2 l). Uniform: torch's default for a
convolution, within 1/sqrt(p * p * C). The prediction layer has torch's uniform weights and bias (simmim), a bias of 0
(maskfeat), or weights of 0 (vit). Norms start at weight 1 and bias 0, except that the norms in maskfeat's blocks have a
bias of 0.02. The biases of vit's MLPs are normal with standard deviation 1e-6. LayerScale and the tables of relative
positions are constants.

Sources: facebookresearch/mae models_mae.py; microsoft/unilm beit/modeling_pretrain.py;
microsoft/SimMIM models/simmim.py; facebookresearch/SlowFast slowfast/models/video_model_builder.py and head_helper.py,
whose MaskFeat does not rescale; google-research/vision_transformer vit_jax/models_vit.py; facebookresearch/dino
vision_transformer.py and bytedance/ibot models/vision_transformer.py, which cut at 100 standard deviations; timm's
init_weights_vit_moco, and section 4 of MoCo v3. MIMDet's models/benchmarking.py initialises Li et al.'s detectors as
BEiT does.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers.weight_init import lecun_normal_
from torch import Tensor, nn

Init = Literal["mae", "beit", "simmim", "maskfeat", "vit", "dino", "moco-v3"]

STD = 0.02


@torch.no_grad()
def initialize(module: nn.Module, init: Init) -> None:
    """Draw the weights of a ViT or an MAE in place, from torch's generator, in the order of its modules."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not (init == "simmim" and _predicts(name)):
            _weights(name, layer, init)
            _bias(name, layer, init)
        elif isinstance(layer, nn.LayerNorm) and init == "maskfeat" and "blocks." in name:
            nn.init.constant_(layer.bias, STD)
        for leaf in ("cls_token", "mask_token", "pos_embed"):
            token = layer._parameters.get(leaf)
            if token is not None and token.requires_grad and not (init in ("mae", "moco-v3") and leaf == "pos_embed"):
                _token(leaf, token, init)
    if init in ("beit", "simmim"):
        rescale_by_depth(module)


def rescale_by_depth(module: nn.Module) -> None:
    """Divide the weights of attn.proj and mlp.fc2 of block l, 1-based, by sqrt(2 l) (BEiT, 2106.08254, section 2.5)."""
    for part in module.modules():
        blocks = part._modules.get("blocks")
        for layer, block in enumerate(blocks if isinstance(blocks, nn.ModuleList) else (), start=1):
            for name in ("attn.proj.weight", "mlp.fc2.weight"):
                block.get_parameter(name).data.div_((2.0 * layer) ** 0.5)


def _weights(name: str, layer: nn.Linear | nn.Conv2d, init: Init) -> None:
    matrix = layer.weight.view(len(layer.weight), -1)
    if init == "dino" and isinstance(layer, nn.Conv2d):
        return
    if init in ("beit", "simmim"):
        nn.init.trunc_normal_(matrix, std=STD, a=-STD, b=STD)
    elif init in ("maskfeat", "dino"):
        nn.init.normal_(matrix, std=STD)
    elif init == "vit" and isinstance(layer, nn.Conv2d):
        lecun_normal_(layer.weight)
    elif init == "vit" and _predicts(name):
        nn.init.zeros_(matrix)
    else:
        for part in matrix.chunk(3) if init in ("vit", "moco-v3") and name.endswith("attn.qkv") else (matrix,):
            nn.init.xavier_uniform_(part)


def _bias(name: str, layer: nn.Linear | nn.Conv2d, init: Init) -> None:
    """Initialise the bias; the patch convolution of mae, maskfeat and dino keeps torch's default."""
    if layer.bias is None or (isinstance(layer, nn.Conv2d) and init in ("mae", "maskfeat", "dino")):
        return
    if init == "vit" and ".mlp." in name:
        nn.init.normal_(layer.bias, std=1e-6)
    else:
        nn.init.constant_(layer.bias, STD if init == "maskfeat" and not _predicts(name) else 0.0)


def _token(leaf: str, token: Tensor, init: Init) -> None:
    if init in ("beit", "simmim"):
        nn.init.trunc_normal_(token, std=STD, a=-STD, b=STD)
    elif init == "vit" and leaf == "cls_token":
        nn.init.zeros_(token)
    elif init == "moco-v3" and leaf == "cls_token":
        nn.init.normal_(token, std=1e-6)
    else:
        nn.init.normal_(token, std=STD)


def _predicts(name: str) -> bool:
    """Return whether a layer is the prediction layer of an MAE."""
    return name.endswith("decoder.pred")
