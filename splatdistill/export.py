"""`python -m splatdistill.export IN OUT`: convert a splat to another format, or to a mesh.

Heavy imports are deferred until the arguments are parsed, so that help and errors answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splatdistill import __version__
from splatdistill.cli import Parser, add_axes, note
from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.folder import RESULT

if TYPE_CHECKING:
    from torch.nn import ParameterDict

MESH_UP, RESOLUTION, TRIANGLES = "y", 128, 20_000  # of .obj and .glb


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line as a namespace."""
    parser = Parser(
        prog="python -m splatdistill.export",
        description="A splat as .ply, .compressed.ply, .splat, .spz, .glb or .sog, or as a mesh.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a splat in any of these formats, or a run's folder")
    add("target", type=Path, metavar="OUT", help="the ending says which format")
    add(
        "--up",
        choices=("y", "z", "-y"),
        help="the axis that is up in OUT; by default .ply z, as trained; .splat and .sog -y; the others y",
    )
    add_axes(parser, "IN")
    add("--spz", type=int, choices=(3, 4), default=None, help="the version of an .spz; default 3")
    add("--prune", type=float, metavar="OPACITY", help="leave out Gaussians of lower opacity, 0 to 1")
    kinds = "triangles instead of splats: a .glb with a texture, or an .obj with vertex colors"
    add("--mesh", action="store_true", help=kinds)
    add("--resolution", type=int, metavar="N", help="of a mesh: cells along its longest side; default 128")
    add("--triangles", type=int, metavar="N", help="of a mesh: at most so many, about; default 20000")
    add("--overwrite", action="store_true", help="replace OUT if it is there")
    add("--version", action="version", version=f"splatdistill {__version__}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 a user's mistake, 130 interrupted."""
    args = parse(arguments)
    return exit_status(lambda: export(args), "interrupted; nothing was written")


def export(args: argparse.Namespace) -> int:
    """Read, prune, rotate and write a scene; return the exit status."""
    mesh = args.mesh or args.target.suffix.lower() == ".obj"
    check(args, mesh)
    source = source_of(args.source)
    from splatdistill import formats
    from splatdistill.scene.gaussians import sh_degree_of

    format = None if mesh else formats.format_of(args.target)
    gaussians, comments = formats.read_splat(source, args.from_up, program=args.program, note=note)
    count = len(gaussians["means"])
    if args.prune is not None:
        gaussians = prune(gaussians, args.prune)
    kept = len(gaussians["means"])
    if not kept:
        raise UserError(f"no Gaussian of {source} is left to write; give a lower --prune")
    words = [f"{count - kept} of lower opacity than {args.prune} left out"] if kept < count else []
    if format is None:
        words.insert(0, f"{write_triangles(args, gaussians, comments)} triangles")
        note(f"{args.target}: {', '.join(words)}")
        return 0
    dropped = formats.write_splat(args.target, gaussians, comments, args.up, spz=args.spz or 3)
    if dropped:
        words.append(f"{dropped} out of range left out")
    if not format.view_dependent and sh_degree_of(gaussians):
        words.append("view-dependent color left out, which the format lacks")
    if format.up == "z" and args.up is None:
        words.append("+Z is up (--up -y for viewers that show it on its side)")
    note(f"{args.target}: {', '.join([f'{kept - dropped} Gaussians', *words])}")
    return 0


def write_triangles(args: argparse.Namespace, gaussians: ParameterDict, comments: dict[str, str]) -> int:
    """Write a scene as a mesh; return its number of triangles."""
    from splatdistill.formats.mesh import write_mesh
    from splatdistill.scene.orientation import reorient

    turned = reorient(gaussians, "z", args.up or MESH_UP)
    resolution = RESOLUTION if args.resolution is None else args.resolution
    triangles = TRIANGLES if args.triangles is None else args.triangles
    return write_mesh(args.target, turned, comments, resolution, triangles, note)


def source_of(path: Path) -> Path:
    """Return the file to read: the path itself, or the result in a run's folder; raises UserError."""
    if not path.exists():
        raise UserError(f"cannot read {path}: there is no such file")
    if not path.is_dir():
        return path
    if not (path / RESULT).is_file():
        raise UserError(f"{path} holds no finished run (no {RESULT}); give another, or a file")
    return path / RESULT


def check(args: argparse.Namespace, mesh: bool) -> None:
    """Raise UserError for incompatible options, and for a file that would be overwritten."""
    if args.prune is not None and not 0 <= args.prune <= 1:
        raise UserError(f"--prune {args.prune}: expected an opacity from 0 to 1")
    if mesh and args.target.suffix.lower() not in (".obj", ".glb"):
        raise UserError(f"{args.target} has the ending of no mesh format; expected .obj or .glb")
    if not mesh and (args.resolution is not None or args.triangles is not None):
        raise UserError(
            "--resolution and --triangles are for meshes; give --mesh, or an OUT that ends in .obj"
        )
    if args.spz is not None and (mesh or args.target.suffix.lower() != ".spz"):
        raise UserError(f"--spz is the version of an .spz; {args.target} is none")
    if args.target.exists() and not args.overwrite:
        raise UserError(f"{args.target} exists; give --overwrite or another name")


def prune(gaussians: ParameterDict, opacity: float) -> ParameterDict:
    """Keep Gaussians of at least this opacity, and those with NaN opacity, which the writer counts."""
    from splatdistill.scene.gaussians import select

    return select(gaussians, ~(gaussians["opacities"].detach().sigmoid() < opacity))


if __name__ == "__main__":
    sys.exit(main())
