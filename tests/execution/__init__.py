"""Tests of `analysis_helpers.execution`."""
