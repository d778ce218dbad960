"""The methods, a file each, and the denoiser rewritten for them."""
