"""A cluster's history that cannot be read is explained in a sentence."""

import pytest

from components.cluster.capacity.node_history import node_history
from components.errors import InputError


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_a_dashboard_that_does_not_answer_is_named_with_the_way_out(address):
    with pytest.raises(
        InputError, match=rf"--address {address}: no dashboard that lists its nodes \(.*http://HEAD:8265"
    ):
        node_history(address)
