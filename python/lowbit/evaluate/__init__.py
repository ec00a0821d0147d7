"""Measures of models: perplexity, divergence, speed, and all of them for a series of formats (`lowbit.ladder`)."""

from lowbit.evaluate.measures import Divergence, Figures, Perplexity, compare, kl_divergence, perplexity

__all__ = ["Divergence", "Figures", "Perplexity", "compare", "kl_divergence", "perplexity"]
