"""Claims of the papers behind the methods, each with the measurement that tests it on the shipped teacher."""

from splatdistill.claims.base import Claim, Findings, Lab
from splatdistill.claims.flat import FLAT
from splatdistill.claims.solid import SOLID

CLAIMS = {claim.name: claim for claim in (*FLAT, *SOLID)}

__all__ = ["CLAIMS", "Claim", "Findings", "Lab"]
