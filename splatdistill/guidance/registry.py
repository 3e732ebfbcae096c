"""The methods by name: those of this package, and those that other packages add.

Another package declares its methods in the entry-point group `splatdistill.methods`: NAME = "module:Class".
"""

import difflib
from importlib.metadata import EntryPoint, entry_points

from splatdistill.errors import UserError
from splatdistill.guidance.clip import CLIP
from splatdistill.guidance.core import Method
from splatdistill.guidance.dsd import DSD, DSDPublished
from splatdistill.guidance.methods import (
    CSD,
    DDS,
    ISM,
    NFSD,
    PDS,
    SDI,
    SDS,
    SJC,
    DreamCatalyst,
    SDIPublished,
    SDIPublishedPerpNeg,
)
from splatdistill.guidance.vsd import VSD

GROUP = "splatdistill.methods"
CLASSES = (
    SDS,
    SDI,
    SDIPublished,
    SDIPublishedPerpNeg,
    DSD,
    DSDPublished,
    DDS,
    PDS,
    DreamCatalyst,
    CSD,
    NFSD,
    ISM,
    VSD,
    CLIP,
    SJC,
)
METHODS: dict[str, type[Method]] = {cls.name: cls for cls in CLASSES}


def method_names() -> list[str]:
    """Return the names of all methods, those of other packages last; loads none of them."""
    return list(dict.fromkeys([*METHODS, *(point.name for point in entry_points(group=GROUP))]))


def find_method(name: str) -> type[Method]:
    """Return the method class of that name; raises UserError for an unknown or a broken one."""
    if name in METHODS:
        return METHODS[name]
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _load(point)
    names = method_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown method '{name}'; expected one of {', '.join(names)} (nearest: {near})")


def _load(point: EntryPoint) -> type[Method]:
    try:
        found = point.load()
    except Exception as error:  # a third party's module may raise anything
        raise UserError(
            f"method '{point.name}' of {point.value} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method '{point.name}': {point.value} is no subclass of splatdistill.Method")
    if found.name != point.name:
        raise UserError(
            f"method '{point.name}': {point.value} calls itself '{found.name}'; give both one name"
        )
    return found
