"""A discrete VAE with 512 codes for the tokens of 64-px images.

Its input is a second view of 32 px (half size, as in BEiT) at stride 4. Its codes lie on the 8 x 8 grid of a ViT with
8-px patches (configs/pretrain/mae_small_64px.py).

Command:   python tools/tokenizer_train.py dvae configs/tokenizer/tokens_64px.py --work-dir runs/tokens \
           --set data.root=/data/tinyimagenet
Cost:      4 epochs of 20,000 images: see docs/results/tokens.md.
Published: none at this scale.
"""

scale = "small"
epochs = 4
batch = 64
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=32,
    augmentation=dict(name="random_crop", scale=(0.35, 1.0)),
)
model = dict(codes=512, groups=3, blocks=1, width=32, decoder_input=64)
tau = dict(start=1.0, end=0.0625, epochs="62.5%")
kl = dict(start=0.0, end=6.6, epochs=0.3)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=1e-3, weight_decay=1e-4)
schedule = dict(kind="cosine", warmup_epochs=0.1, min_lr=1e-5)
precision = "float32"
evaluate_epochs = 1
evaluate_images = 1024
run = dict(workers=1)
