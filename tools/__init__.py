"""Scripts that make files of the package: the packaged model, the pictures in the docs, copies of the settings."""
