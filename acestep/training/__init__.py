"""Training: of the transformer, of adapters for it, and of the codec. Knows nothing of where data lies or who asks."""
