"""Tests of `analysis_helpers.runs`."""
