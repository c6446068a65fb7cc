"""Verification: an output is made again by a second path, and compared. One module for each noun.

The second path shares no arithmetic with the first. `reference` says what a view's elements are,
`formula` what an output tensor is, `rounding` what a number becomes in another dtype, all in numpy
and, where float64 is too coarse, in exact fractions. The compiled kernels and `View.read` are never
called.
"""
