"""A discrete VAE of DALL-E's size on ImageNet-1K.

8192 codes at stride 8 (arXiv 2102.12092, appendix A.2). The KL weight rises to 6.6 over 5,000 steps, the temperature
falls to 1/16 over 150,000 steps, the rate to 1.25e-6; weights are averaged. Schedules are in epochs of 1.28M images at
batch 512. The paper trained 3M steps on other data.

Command:   torchrun --nproc-per-node 8 tools/tokenizer_train.py dvae configs/tokenizer/dalle_8192.py \
           --work-dir runs/dvae --set data.root=/data/imagenet
Cost:      480 epochs are 1.2M steps of 512 images of 256 px; not measured here. tokens_64px.py runs on a laptop.
Published: none for ImageNet.
"""

scale = "paper"
epochs = 480
batch = 512
data = dict(
    train=dict(name="folder", split="train"),
    val=dict(name="folder", split="val"),
    size=256,
    augmentation=dict(name="random_crop", scale=(0.5, 1.0)),
)
model = dict(codes=8192, groups=4, blocks=2, width=256, decoder_input=128)
tau = dict(start=1.0, end=0.0625, epochs=60.0)
kl = dict(start=0.0, end=6.6, epochs=2.0)
optim = dict(algorithm=dict(name="adamw", betas=(0.9, 0.999)), lr=1e-4, weight_decay=1e-4)
schedule = dict(kind="cosine", min_lr=1.25e-6)
ema_decay = 0.999
precision = "bfloat16"
evaluate_epochs = 10
run = dict(device_batch=64, workers=10)
