"""Which rows stand for all of them."""


def evenly_spaced(rows: int, count: int) -> list[int]:
    """At most `count` of the rows, in ascending order and at even distances.

    >>> evenly_spaced(10, 4)
    [0, 2, 5, 7]
    """
    return [number * rows // count for number in range(count)] if count < rows else list(range(rows))
