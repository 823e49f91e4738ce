"""A small iBOT for 64-px images: dino_small_64px.py and patches that are hidden from the student.

Images and patches share a head. One half of the wide views has hidden patches, 10 to 50 % of them.

Command:   python tools/pretrain.py configs/pretrain/ibot_small_64px.py --work-dir runs/tiny_ibot \
           --set data.root=/data/tinyimagenet \
           --set monitor.data.root=/data/tinyimagenet --set monitor.every_epochs=5
Cost:      that of dino_small_64px.py, and the head for the patches.
Published: none at this scale.
"""

_base_ = "./dino_small_64px.py"

objective = dict(patches="masked")
mask = dict(name="block", ratio=0.3, spread=0.2, share=0.5)
