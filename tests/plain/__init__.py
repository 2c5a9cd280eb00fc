"""A second, plain implementation of the estimators, the original's functions, standard errors and decomposition.

It reads `results.json` by itself, follows the written formulas sequence by sequence, and imports nothing of the
package: where the two agree, a mistake would have to be made twice.
"""
