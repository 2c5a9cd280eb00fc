"""Tests of `analysis_helpers.synthetic`."""
