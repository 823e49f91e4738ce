"""From results to the paper's tables."""
