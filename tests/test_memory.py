"""The measuring of memory itself: what a child takes is seen, what its parent holds is not."""

from tests.memory import linux, printed

ALLOCATE = """
with Growth() as growth:
    held = b"x" * int(sys.argv[1])
    del held
print(growth.bytes)
"""


@linux
def test_growth_is_the_childs_own():
    """A child of a large process is charged with its own peak, also if it is over again."""
    large = b"x" * 150_000_000
    (grown,) = printed(ALLOCATE, 40_000_000)
    assert 38_000_000 <= grown < 60_000_000
    (grown,) = printed(ALLOCATE, 1000)
    assert grown < 10_000_000
    assert len(large) == 150_000_000
