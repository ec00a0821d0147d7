"""Measures of models on a text: perplexity, divergence, speed, and all of them by format (`lowbit.ladder`)."""

from lowbit.evaluate.measures import Divergence, Figures, Perplexity, compare, kl_divergence, perplexity

__all__ = ["Divergence", "Figures", "Perplexity", "compare", "kl_divergence", "perplexity"]
