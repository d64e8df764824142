"""fastshap inside other engines. Nothing of them is needed until it is asked for."""
