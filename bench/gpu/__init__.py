"""The kernels and whole explanations on a GPU."""
