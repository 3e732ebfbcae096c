"""Claims of the papers behind the methods, each with an experiment that tests it on the shipped teacher."""

from splatdistill.measure.claims.base import Claim, Findings, Lab
from splatdistill.measure.claims.latents import FLAT
from splatdistill.measure.claims.splats import SOLID

CLAIMS = {claim.name: claim for claim in (*FLAT, *SOLID)}

__all__ = ["CLAIMS", "Claim", "Findings", "Lab"]
