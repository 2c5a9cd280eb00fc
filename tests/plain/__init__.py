"""A second, plain implementation of the numbers that the notebooks show, for tests to hold the package against.

It reads `results.json` by itself, follows the written formulas sequence by sequence, and shares no code with the
package: where the two agree, a mistake would have to be made twice.
"""
