"""The methods by name: those of this package, and those that other packages add.

Another package declares its methods in the entry-point group `splatdistill.methods`: NAME = "module:Class".
A method is imported when it is looked up, so that names are known at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from splatdistill.errors import UserError

if TYPE_CHECKING:
    from splatdistill.guidance.core import Method

GROUP = "splatdistill.methods"
HOMES = {  # name: module of this package and class
    "sds": "methods:SDS",
    "sdi": "methods:SDI",
    "sdi_published": "methods:SDIPublished",
    "sdi_published_perp_neg": "methods:SDIPublishedPerpNeg",
    "dsd": "dsd:DSD",
    "dsd_published": "dsd:DSDPublished",
    "dds": "methods:DDS",
    "pds": "methods:PDS",
    "dreamcatalyst": "methods:DreamCatalyst",
    "csd": "methods:CSD",
    "nfsd": "methods:NFSD",
    "ism": "methods:ISM",
    "vsd": "vsd:VSD",
    "clip": "clip:CLIP",
    "sjc": "methods:SJC",
    "asd": "dsd:ASD",
    "sds_bridge": "bridge:SDSBridge",
    "rfds": "flow:RFDS",
    "rfds_rev": "flow:RFDSRev",
    "flow_sdi": "flow:FlowSDI",
    "cfd": "cfd:CFD",
    "hifa": "hifa:HiFA",
    "sctd": "sctd:SCTD",
}


class Methods(Mapping[str, "type[Method]"]):
    """The classes of this package's methods by name."""

    def __getitem__(self, name: str) -> type[Method]:
        module, _, cls = HOMES[name].partition(":")
        return getattr(import_module(f"splatdistill.guidance.{module}"), cls)

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


METHODS = Methods()


def method_names() -> list[str]:
    """Return the names of all methods, those of other packages last; loads none of them."""
    return list(dict.fromkeys([*HOMES, *(point.name for point in entry_points(group=GROUP))]))


def check_method(name: str) -> None:
    """Raise UserError unless a method has that name; loads none."""
    names = method_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown method '{name}'; expected one of {', '.join(names)} (nearest: {near})")


def find_method(name: str) -> type[Method]:
    """Return the method class of that name; raises UserError for an unknown or a broken one."""
    check_method(name)
    if name in METHODS:
        return METHODS[name]
    return _load(next(point for point in entry_points(group=GROUP) if point.name == name))


def _load(point: EntryPoint) -> type[Method]:
    from splatdistill.guidance.core import Method

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
