"""Sizes that cannot fit are told before anything asks for them; what fits is let through."""

import pytest
import torch

from splatdistill.config.load import resolve
from splatdistill.errors import UserError
from splatdistill.training.memory import check_memory, free_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("views.size=100000", "views.size 100,000"),
        ("gaussians.count=1000000000", "gaussians.count 1,000,000,000"),
        ("views.count=1000000000", "views.size 128 for 1000000000 views"),
        ("report.frames=1000000000", "report.size 256"),
        ("report.size=1000000", "report.size 1000000"),
    ],
)
def test_a_size_that_cannot_fit_is_one_line_that_names_it(word: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as told:
        check_memory(resolve({}, None, [word]), CPU, available=16 * 10**9)
    assert "\n" not in str(told.value)


def test_the_default_run_fits_into_very_little() -> None:
    check_memory(resolve({}), CPU, available=100 * 10**6)


def test_the_memory_of_this_machine_is_a_number_of_bytes() -> None:
    assert 10**7 < free_memory(CPU) < 10**14
