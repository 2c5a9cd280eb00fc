"""The suite held against known truth over 10,000 batches; slow, so its summary is stored with the package."""
