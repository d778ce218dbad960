"""What a bundle holds and how it is stored: the contract between build and run."""
