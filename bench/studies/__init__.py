"""How far scores are off, and whether the stated errors are right."""
