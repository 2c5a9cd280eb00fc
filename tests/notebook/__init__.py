"""Tests of `analysis_helpers.notebook`."""
