"""The demo from three seeds, each with pretrainings of its own.

The numbers are in docs/results/mini.md.

Command:   python tools/reproduce.py configs/suites/mini_seeds.py --work-dir runs/mini_seeds --jobs 2
Cost:      15 to 30 minutes on two CPU cores, 2 GB.
Published: none.
"""

_base_ = "mini.py"

title = "mini_seeds"
seeds = (0, 1, 2)
pretrain_seeds = "each"
