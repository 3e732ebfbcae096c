"""The one place that decides which Gaussians can be stored and drawn, and how other values are fixed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from splatdistill.errors import UserError
from splatdistill.scene.gaussians import NAMES

OPAQUE = 15.0  # the logit that alpha 1 is stored as: 1 - 3e-7, the last byte of 8 bits
FLAT = -20.0  # the log scale that a thickness of 0 is stored as
LARGEST = 40.0  # log scale; the covariance of a larger one overflows in float32


class Account(NamedTuple):
    """Counts of Gaussians left out and changed, by reason, and their total number."""

    total: int
    left_out: dict[str, int]
    changed: dict[str, int]

    @property
    def dropped(self) -> int:
        """The number of Gaussians left out."""
        return sum(self.left_out.values())

    def __str__(self) -> str:
        """Return one line; empty when nothing was left out or changed."""
        parts = [f"{n} {what}" for what, n in self.changed.items() if n]
        if self.dropped:
            reasons = ", ".join(f"{n} {why}" for why, n in self.left_out.items() if n)
            parts.insert(0, f"{self.dropped} of {self.total} Gaussians left out ({reasons})")
        return "; ".join(parts)


@torch.no_grad()
def storable(gaussians: ParameterDict, reach: float = torch.inf) -> tuple[ParameterDict, Account]:
    """Return the Gaussians with finite, drawable values, in order, and an account of the rest.

    A logit opacity of +inf is alpha 1 and becomes OPAQUE; one of -inf is alpha 0, which is invisible, and is
    left out. A log scale of -inf is a thickness of 0 and becomes FLAT; above LARGEST it is cut to that. What
    has any other value that is not finite is left out; so is what lies farther out than reach on an axis.
    Returns the very same object when nothing is to be done. Raises UserError when all would be left out.
    """
    scales, opacities = gaussians["scales"].detach(), gaussians["opacities"].detach()
    opaque, flat = opacities == torch.inf, (scales == -torch.inf).any(1)
    large = ((scales > LARGEST) & scales.isfinite()).any(1)
    finite = {
        name: gaussians[name].detach().isfinite().flatten(1).all(1)
        for name in ("means", "quats", "sh0", "shN")
    }
    fine = torch.ones_like(opaque)
    left_out: dict[str, int] = {}

    def leave_out(why: str, bad: Tensor) -> None:
        left_out[why] = int((bad & fine).sum())
        fine.logical_and_(~bad)

    leave_out("without a finite position", ~finite["means"])
    leave_out("without a finite size", ((scales == torch.inf) | scales.isnan()).any(1))
    leave_out("without a finite rotation", ~finite["quats"])
    leave_out("without a finite color", ~(finite["sh0"] & finite["shN"]))
    leave_out("whose opacity is no number", opacities.isnan())
    leave_out("invisible, of alpha 0", opacities == -torch.inf)
    leave_out("too far out", (gaussians["means"].detach().abs() > reach).any(1))
    changed = {
        "of alpha 1 stored as opaque": int((opaque & fine).sum()),
        f"flat ones given a log scale of {FLAT:g}": int((flat & fine).sum()),
        f"larger than e^{LARGEST:g} cut to that": int((large & fine).sum()),
    }
    account = Account(len(fine), left_out, changed)
    if account.dropped == len(fine) > 0:
        raise UserError(f"none of the {len(fine)} Gaussians can be stored or shown: {account}")
    if not account.dropped and not any(changed.values()):
        return gaussians, account
    values = {name: gaussians[name].detach()[fine] for name in NAMES}
    values["opacities"].masked_fill_(values["opacities"] == torch.inf, OPAQUE)
    values["scales"].masked_fill_(values["scales"] == -torch.inf, FLAT).clamp_(max=LARGEST)
    return ParameterDict([(name, Parameter(value)) for name, value in values.items()]), account
