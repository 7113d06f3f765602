"""The invented world's models, from nothing: data, curriculum, training, the autoregressive twin."""
