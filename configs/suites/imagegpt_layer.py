"""Chooses the layer of ImageGPT for a linear probe of ImageNet on held-out training images, then trains the probe.

The probe reads the mean over all pixels, without augmentation, so that each layer is one pass over the images. Layers
are tried on a tenth of the labels. The weights are a folder of the Hub, openai/imagegpt-large (docs/backbones.md).

Command:   python tools/reproduce.py configs/suites/imagegpt_layer.py --work-dir runs/igpt --root imagenet=/data/imagenet
Cost:      about 23 h at 40 TFLOP/s sustained (2.8 TFLOP per image and 48 blocks: an estimate), 10 h of it for layers.
Published: linear 60.3 (iGPT-L at 32 px; Chen et al., ICML 2020), trained with random crops.
"""

title = "imagegpt_layer"
device = "GPU at 40 TFLOP/s"
tables = ("survey",)
roots = dict(imagenet="data/imagenet")
rows = {"iGPT-L": dict(backbone="hf:data/imagegpt-large")}
transfer = {
    "linear": dict(
        tool="cls_train",
        config="../classify/linear_probe_row.py",
        data="imagenet",
        set={
            "data.size": 32,
            "data.shorter_side": 1.0,
            "data.augmentation": dict(name="none", shorter_side=1.0),
            "protocol.pools": ("mean",),
        },
        sweep=dict(
            grid={"backbone.changes.depth": (16, 20, 24, 28, 32)}, set={"data.label_fraction": 0.1}, hours=2.0
        ),
        hours=13.0,
    )
}
