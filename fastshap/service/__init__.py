"""Many requests: a queue whose texts share model calls, and an HTTP app around it."""
