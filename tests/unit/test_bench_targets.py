"""The benchmark of targets: each target trains its own last layer on the shared model. No assertion is about time."""

import torch

from mae_transfer.bench import targets
from mae_transfer.bench.options import Workload


def test_every_target_takes_its_turn_and_is_compared_within_its_round() -> None:
    records = {
        row["target"]: row
        for row in targets.run(Workload(size="vit_tiny", image=32, batch=2), modes=["eager"], rounds=1, steps=1)
    }
    assert list(records) == list(targets.TARGETS)
    assert records["pixel"]["time_over_pixel"] == 1.0
    assert (
        records["token, DALL-E's encoder"]["tokenizer_gmacs_per_image"]
        > 10 * records["token, a small dVAE"]["tokenizer_gmacs_per_image"]
    )
    assert records["token, kept ids"]["tokenizer_gmacs_per_image"] is None


def test_dall_es_encoder_has_the_26_gmac_of_a_112_px_view() -> None:
    with torch.device("meta"):
        cfg = targets.DVAEConfig()
        network = targets.encoder(cfg)
    with targets.FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 112, 112, device="meta"))
    assert 25 < counter.get_total_flops() / 2e9 < 27
