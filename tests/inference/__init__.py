"""Tests of `analysis_helpers.inference`."""
