"""How ordinary prompts are read: `python benchmarks/ordinary.py [--prompts FILE]`.

Each line of benchmarks/ordinary.txt, prompts as people write them, is read by the shipped teacher's
vocabulary. Writes benchmarks/results/ordinary.tsv: the prompt, the words that the teacher gets, and what was
taken for what; a person judges which of these make sense.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import RESULTS

from splatdistill.errors import UserError
from splatdistill.priors.loading import words_of


def read(prompt: str) -> tuple[str, str]:
    """Return the words that the teacher gets of a prompt, and what was said of it."""
    words = words_of("real")
    assert words is not None
    try:
        text, lines = words.understand(prompt)
    except UserError as error:
        return "", str(error)
    return text, "; ".join(lines)


def main() -> None:
    """Read all, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parent / "ordinary.txt")
    options = parser.parse_args()
    prompts = options.prompts.read_text("utf-8").splitlines()
    rows = [(prompt, *read(prompt)) for prompt in prompts]
    table = ["\t".join(row) for row in [("prompt", "read as", "said"), *rows]]
    (RESULTS / "ordinary.tsv").write_text("\n".join(table) + "\n", "utf-8")
    taken = sum(bool(said) for _, text, said in rows if text)
    print(f"{len(rows)} prompts, {taken} with a line, {sum(not text for _, text, _ in rows)} refused")


if __name__ == "__main__":
    main()
