"""Numbers that others published, each with its source: what a table sets beside yours."""

from mae_transfer.suite.published.dense import DENSE
from mae_transfer.suite.published.entry import Published
from mae_transfer.suite.published.frozen import FROZEN
from mae_transfer.suite.published.imagenet import IMAGENET
from mae_transfer.suite.published.survey import SURVEY

PUBLISHED: tuple[Published, ...] = IMAGENET + DENSE + SURVEY + FROZEN

__all__ = ["PUBLISHED", "Published"]
