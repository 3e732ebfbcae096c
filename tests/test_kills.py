"""The campaign of kills, in short: no run is lost by a kill at any operation on files."""

import pytest
from kills import campaign


@pytest.mark.parametrize("kind, moments", [("default", range(2, 100, 17)), ("mcmc", range(5, 100, 25))])
def test_a_kill_at_an_operation_on_files_loses_nothing(teacher, tmp_path, kind, moments):
    for tally in campaign(teacher, kind, tmp_path, moments).values():
        assert tally.kills > 0 and tally.lost == tally.different == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "default", "mcmc", "vsd"])
def test_a_kill_at_every_operation_on_files_loses_nothing(teacher, tmp_path, kind):
    for tally in campaign(teacher, kind, tmp_path, range(10**6)).values():
        assert tally.kills > 20 and tally.lost == tally.different == 0
