"""A small discrete VAE on generated scenes (synthetic), for trying token targets in minutes.

Command:   python tools/tokenizer_train.py dvae configs/mini/tokenizer.py --work-dir runs/mini_tokenizer
Cost:      minutes on two CPU cores.
Published: none for generated scenes.
"""

scale = "mini"
epochs = 8
batch = 64
data = dict(
    train=dict(name="shapes", size=32, length=2048, objects=(1, 1)),
    val=dict(name="shapes", size=32, length=128, seed=1, objects=(1, 1)),
    size=32,
    augmentation=dict(name="random_crop", scale=(0.5, 1.0)),
)
model = dict(codes=128, groups=3, blocks=1, width=16, decoder_input=32)
tau = dict(start=1.0, end=0.0625, epochs=5.0)
kl = dict(start=0.0, end=6.6, epochs=1.0)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=2e-3, weight_decay=1e-4)
schedule = dict(kind="cosine", warmup_epochs=0.2)
precision = "float32"
evaluate_epochs = 4
run = dict(workers=1)
