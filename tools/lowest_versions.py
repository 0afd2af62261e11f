"""Print the lowest version that pyproject.toml allows of every direct dependency: constraints for `pip install -c`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(\[[^]]*\])?(.*)")
BOUND = re.compile(r"(>=|==)\s*([0-9][^,;\s]*)")


def lowest_versions(requirements: list[str]) -> list[str]:
    """`name==version` for each requirement, sorted; extras of the project itself are left out.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    found: dict[str, str] = {}
    for requirement in requirements:
        matched = REQUIREMENT.fullmatch(requirement)
        if matched is None or matched[1] == "dln":
            continue
        bound = BOUND.search(matched[3])
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        found[matched[1]] = f"{matched[1]}=={bound[2]}"
    return [found[name] for name in sorted(found)]


def main() -> None:
    """Print one constraint per line."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    sys.stdout.write("\n".join(lowest_versions([one for group in groups for one in group])) + "\n")


if __name__ == "__main__":
    main()
