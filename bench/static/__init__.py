"""What the compiler makes of the kernels, and what noise costs."""
