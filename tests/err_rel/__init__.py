"""Tests of `analysis_helpers.err_rel`."""
