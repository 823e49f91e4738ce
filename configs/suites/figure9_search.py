"""Figure 9 with its search of the number of epochs.

For each number of blocks it takes the best of 50, 100 and 200 epochs on held-out images.

Command:   python tools/reproduce.py configs/suites/figure9_search.py --work-dir runs/figure9_search \
           --root imagenet=/data/imagenet --gpus-per-node 8
Cost:      350 h of pretraining; per number of blocks, 280 to 460 h more for search runs of 350 epochs in total
           (estimated from FLOPs at 100 TFLOP/s sustained).
Published: 73.5 (0 blocks) to 84.9 (24) for MAE, as in configs/suites/figure9.py (figure 9; the paper searched the three
           lengths, appendix A.1).
"""

_base_ = "figure9.py"
title = "figure9_search"
lengths = dict(grid={"epochs": (50.0, 100.0, 200.0)}, set={"data.holdout_fraction": 0.04}, hours=154.0)
transfer = {f"partial-{blocks}": dict(sweep=lengths) for blocks in (0, "half", 1, 2, 4, 6, 12, 18, 24)}
del lengths
