"""The English world: its words, texts, oracle, and the models that are trained on it."""
