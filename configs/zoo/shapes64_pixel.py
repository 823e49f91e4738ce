"""The MAE `zoo:shapes64_pixel`: raw pixels, scenes of one to four solids (synthetic data).

Command:   python tools/pretrain.py configs/zoo/shapes64_pixel.py --work-dir runs/zoo_pixel
Cost:      about 8 minutes on one CPU core.
Published: none.
"""

_base_ = "shapes64_norm_pixel.py"

target = dict(name="pixel")
