"""Tests mirror the package: a file for each module, each test a claim about behaviour."""
