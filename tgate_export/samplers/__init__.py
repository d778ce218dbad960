"""From diffusers schedulers to sampler tables."""
