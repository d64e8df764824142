"""What makes the packaged model, and the pictures in the docs."""
