"""The suite small.py, shortened to an evening on two CPU cores.

Five epochs of pretraining, and one to eight of each transfer.

Command:   python tools/reproduce.py configs/suites/small_cpu.py --work-dir runs/small_cpu --jobs 2 \
           --root tiny=/data/tinyimagenet --root camvid=/data/camvid
Cost:      about 9 hours of one CPU core, so 5 hours of two (docs/results/pixels_vs_tokens.md); 8 GB.
Published: none at this scale. It is a small version of MAE's tables 1d, 3, 4, 5 and 7.
"""

_base_ = "small.py"
title = "small_cpu"
tables = ("1d", "3", "4", "5", "7", "12", "knn", "figure 9")
prepare = {"tokens": dict(set={"epochs": 2, "tau.epochs": 1.25}, hours=0.1), "basis": dict(hours=0.02)}
brief = dict(set={"epochs": 5, "schedule.warmup_epochs": 0.5, "precision": "float32"}, hours=0.2)
rows = {"pixel (w/ norm)": brief, "pixel (w/o norm)": brief, "PCA": brief, "dVAE token": brief}
one_epoch = {"epochs": 1, "batch": 64, "schedule.warmup_epochs": 0.1, "precision": "float32"}
transfer = {
    "finetune": dict(set={**one_epoch, "evaluate_epochs": None}, hours=0.08),
    "linear": dict(set=one_epoch, hours=0.03),
    "knn": dict(hours=0.02),
    "detect": dict(set={"epochs": 1.5}, hours=0.08),
    "segment": dict(set={"epochs": 8, "schedule.warmup_epochs": 1, "evaluate_epochs": None}, hours=0.08),
    **{f"partial-{blocks}": dict(set={**one_epoch, "protocol.tune_blocks": blocks}, hours=0.05) for blocks in (0, "half", 1, 2, 4, "all")},
}
del brief, one_epoch
