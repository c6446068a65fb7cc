"""The arithmetic: pure functions on arrays, compiled by numba. No I/O and no tensor names."""
