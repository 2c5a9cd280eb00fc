"""Tests of `analysis_helpers.plots`."""
