"""Table 1d: the reconstruction target (MAE, arXiv 2111.06377). ViT-L/16, 800 epochs.

Command:   python tools/pretrain.py configs/ablations/table1d.py --row all --work-dir runs/table1d \
           --set data.root=/data/imagenet
           (--mini: generated images, CPU)
Cost:      15.4 h on 128 TPU-v3 cores at the paper's scale per row (table 2); with --mini a few minutes of CPU per row.
Published: fine-tuning 84.9 / 85.4 / 84.6 / 85.3, linear probe 73.5 / 73.9 / 72.3 / 71.6 (table 1d).
Run `tools/tokenizer_train.py pca` first for the PCA row. The token row needs DALL-E's encoder.pkl or a tokenizer from
`tools/tokenizer_train.py dvae`.
"""

title = "table 1d"
rows = {
    "pixel (w/o norm)": {"target": {"name": "pixel"}},
    "pixel (w/ norm)": {"target": {"name": "norm_pixel"}},
    "PCA": {"target": {"name": "pca", "basis": "runs/pca/basis.safetensors"}},
    "dVAE token": {"target": {"name": "token", "tokenizer": "dalle:encoder.pkl"}},
}
paper = dict(base="../pretrain/mae_vit_large_16_800e.py", overrides={})
mini = dict(
    base="../mini/pretrain.py",
    overrides={},
    rows={
        "PCA": {"target": {"name": "pca", "basis": "runs/mini_pca/basis.safetensors"}},
        "dVAE token": {"target": {"name": "token", "tokenizer": "runs/mini_tokenizer/tokenizer.safetensors"}},
    },
)
