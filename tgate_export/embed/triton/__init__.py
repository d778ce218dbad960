"""Serve a bundle with Triton Inference Server: the repository, the model in it, and a client."""
