"""Building blocks of the backbones: layers, embeddings, levels."""
