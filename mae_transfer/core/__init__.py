"""Pure functions: normalisation, patches, mask samplers, position embeddings. No state, no model, no file."""
