"""Texts to tokens, and tokens to the elements that scores are reported for."""
