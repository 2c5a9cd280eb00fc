"""Tests of `analysis_helpers.report`."""
