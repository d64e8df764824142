"""fastshap beside its peers, and one version beside another."""
