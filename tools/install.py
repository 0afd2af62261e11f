"""Install packages with uv, which takes seconds where pip takes minutes; with pip where uv fails.

    python tools/install.py -r requirements.lock --no-deps
    python tools/install.py -e '.[dev]' -c lowest.txt

Arguments are those of `pip install`. uv gets the indexes, certificate and timeout that pip is configured with. The
installed build of torch stays: its exact version, with the label of the build, is a constraint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# settings of pip that take a value, or several between blanks, with uv's name of the same
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
}
VARIABLES = {"cert": "SSL_CERT_FILE", "timeout": "UV_HTTP_TIMEOUT", "default-timeout": "UV_HTTP_TIMEOUT"}


def pip_settings(listed: str) -> dict[str, str]:
    """Settings in the output of `pip config list` that hold for `pip install`; the environment overrides files."""
    found: dict[str, tuple[int, str]] = {}
    order = ("global", "install", ":env:")
    for line in listed.splitlines():
        key, equals, value = line.partition("=")
        section, dot, name = key.partition(".")
        if equals and dot and section in order:
            ranked = (order.index(section), value.strip().strip("'\""))
            found[name] = max(found.get(name, ranked), ranked, key=lambda one: one[0])
    return {name: value for name, (_, value) in found.items()}


def as_uv_takes_them(settings: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Options and environment variables of uv that say what `settings` say to pip."""
    # pip takes the best version of all indexes, uv by default those of the first index that knows the package
    options = ["--index-strategy", "unsafe-best-match"]
    if settings.get("no-index", "false").lower() in {"1", "true", "yes", "on"}:
        options.append("--no-index")
    for name, option in OPTIONS.items():
        for value in settings.get(name, "").replace("\\n", " ").split():
            options += [option, value]
    return options, {VARIABLES[name]: settings[name] for name in VARIABLES if name in settings}


def locked(name: str) -> str:
    """The line of requirements.lock for a package.

    Raises:
        LookupError: the file does not list it.
    """
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line
    raise LookupError(f"{LOCK.name} has no line for {name}")


def main(arguments: list[str]) -> int:
    """Install into the environment of this interpreter; the exit code of the installer that ran last."""
    listed = subprocess.run([*PIP, "config", "list"], stdout=subprocess.PIPE, text=True, check=False).stdout  # noqa: S603
    options, variables = as_uv_takes_them(pip_settings(listed))
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder) / "torch.txt"
        build.write_text(f"torch=={metadata.version('torch')}\n", encoding="utf-8")
        arguments = [*arguments, "-c", str(build)]
        code = subprocess.call([*PIP, "install", "-q", "--no-deps", "--no-compile", locked("uv")])  # noqa: S603
        if not code:
            command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *options, *arguments]
            code = subprocess.call(command, env={**variables, **os.environ})  # noqa: S603
            if not code:
                return 0
        sys.stderr.write("uv could not install the packages (its message is above): pip does, which takes minutes\n")
        return subprocess.call([*PIP, "install", "--no-compile", *arguments])  # noqa: S603


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
