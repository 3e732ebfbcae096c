"""Claims of the papers behind the methods, each with an experiment that tests it on the shipped teacher.

The names are known at once; `all_claims` imports the experiments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatdistill.measure.claims.base import Claim

NAMES = (
    "sdi-1", "sdi-2", "sdi-3", "dsd-1", "dsd-2", "sdi-4", "sdi-5",
    "dsd-3d", "dsd-paths", "cfd-3d", "pds-1", "df-1", "mv-1", "table",
)  # fmt: skip


def all_claims() -> dict[str, Claim]:
    """Return the claims by name, in the order of NAMES."""
    from splatdistill.measure.claims.latents import FLAT
    from splatdistill.measure.claims.models import OF_MODELS
    from splatdistill.measure.claims.splats import SOLID

    found = {claim.name: claim for claim in (*FLAT, *SOLID, *OF_MODELS)}
    return {name: found[name] for name in NAMES}
