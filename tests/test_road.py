"""The way of a traced call through the library stays short."""

import pytest

from tests.road import CALLS, trace


@pytest.mark.parametrize(
    ("name", "files", "moves"),
    # With Python 3.11, which has a frame for each comprehension; later versions move less.
    [("LowRank", 27, 216), ("Activities(layerwise=True)", 29, 376)],
)
def test_the_way_of_a_call(name, files, moves):
    road = trace(CALLS[name])
    assert len(road.files) <= files, road.files
    assert road.moves <= moves
