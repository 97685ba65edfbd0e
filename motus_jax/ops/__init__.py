"""Pure functions on arrays: attention, rotary embeddings, flow matching."""
