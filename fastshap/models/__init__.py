"""What is asked of a model: loading, the one in the package, devices, locks, copies, provenance."""
