"""The attention rewrite and the two phase modules (PyTorch)."""
