"""A search is refused that no cluster of this size can hold."""

from tests.support.programs import refused


def test_a_trial_that_no_cluster_of_this_size_can_hold(toy_search, capsys):
    status, message = refused(capsys, "toy.yaml", "--set", "resources.lora.workers=64")
    assert status == 3
    assert "the cluster has no room for a trial" in message
    assert "64 workers with 1 CPU each need 64 places" in message
    assert [path.name for path in (toy_search / "runs" / "toy").iterdir()] == ["lock"]  # nothing to go on with
