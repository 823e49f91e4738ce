"""CrossMAE, ViT-B/16, 800 epochs of ImageNet-1K (Fu et al., arXiv 2401.14391, appendix A.6).

75 % of the patches are hidden and 25 % predicted, a third of the hidden ones. 12 decoder blocks attend to the visible
patches, each to its own mixture of all encoder features. The rest is MAE's recipe. The learning rate is MAE's times the
share of the hidden patches that is predicted. To predict all of them, set model.decoder.share=1.0 and optim.blr=1.5e-4.

Command:   torchrun --nproc-per-node 8 tools/pretrain.py configs/pretrain/crossmae_vit_base.py \
           --work-dir runs/crossmae_b --set data.root=/data/imagenet
Cost:      800 epochs are 1.02 billion images; a step takes 0.67 of the operations of MAE's.
Published: fine-tuning 83.5, or 83.7 if all hidden patches are predicted (CrossMAE, table 1); not in this package's
           tables.
"""

_base_ = "mae_vit_base_16_800e.py"

model = dict(decoder=dict(kind="cross", share=1 / 3, depth=12))
optim = dict(blr=0.5e-4)
