"""Tests of what needs PyTorch."""
