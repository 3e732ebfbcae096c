"""What comes out, judged: run with `make quality`."""

import pytest
from judge import load_judge
from main_job import CPU
from main_job import evaluate as evaluate_main_job
from teacher import autoencoder_psnr
from teacher import evaluate as evaluate_teacher

from splatdistill.priors import load_prior
from splatdistill.priors.base import Prior
from splatdistill.priors.words import object_prompts

pytestmark = pytest.mark.quality


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_prior("embedded", CPU)


def test_the_teachers_samples_show_what_was_asked(prior: Prior) -> None:
    result = evaluate_teacher(prior, load_judge(), samples=4, guidance=4.0, steps=50)
    assert result["object"] >= 0.95 and result["color"] >= 0.95, result


def test_the_autoencoder_keeps_small_parts(prior: Prior) -> None:
    assert autoencoder_psnr(prior) >= 36.0


def test_splats_show_what_was_asked(prior: Prior) -> None:
    result, _ = evaluate_main_job(prior, load_judge(), "sdi", object_prompts()[:20])
    assert result["object"] >= 0.90 and result["color"] >= 0.93, result
    assert all(run["gaussians"] >= 50 for run in result["runs"])
