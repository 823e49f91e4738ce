"""The paper's tables with one's own numbers."""
