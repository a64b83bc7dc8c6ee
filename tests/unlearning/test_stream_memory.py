"""Nothing grows: a stream holds as much after a hundred requests as after ten."""

from collections.abc import Callable
from pathlib import Path

import pytest
from unlearning_toys import N, delete, recorded

from metagradient.unlearning import DeltaGrad, Method, Request, Retrain, stream

ROOM = 8 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("method", [DeltaGrad(), Retrain()], ids=["DeltaGrad", "Retrain"])
def test_a_long_stream_holds_no_more_than_a_short_one(
    method: Method, held: Callable[[], tuple[int, int]], tmp_path: Path
) -> None:
    """A history of the network is 0.4 MB: one of them kept for each request would be 36 MB."""
    run = recorded("full", hidden=96)
    requests: list[Request] = []
    for i in range(55):  # the same few rows leave and come back
        requests += [delete(i % N), Request("add", delete(i % N).rows)]
    found = {}
    for served in stream(method, run, requests, tmp_path):
        if served.done in (10, 110):
            found[served.done] = held()
    (tensors, before), (later, after) = found[10], found[110]
    assert later - tensors < 10  # not one of them for each request
    assert after - before < ROOM
