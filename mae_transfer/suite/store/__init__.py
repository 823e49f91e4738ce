"""The runs of a suite in its work dir: identity, whether they are done, notes, start and end."""
