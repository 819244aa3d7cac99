"""The Dockerfile agrees with the project: what it copies, pins, installs and starts."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"[\w.-]+==", line)
)


def those(instruction: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{instruction} ")]


def copied() -> list[str]:
    """What comes from the project's folder."""
    return [name for line in those("COPY") if "--from" not in line for name in line.split()[:-1]]


def test_what_it_copies_is_there_and_is_sent_to_the_daemon() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in copied():
        assert (ROOT / name).exists(), name
        sent = True
        for line in lines:  # the last line that fits decides
            if fnmatch(name, line.removeprefix("!")):
                sent = line.startswith("!")
        assert sent, name


def test_what_the_build_needs_is_copied_before_it() -> None:
    project = PROJECT["project"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], "constraints.txt"}
    packages = {Path(each).parts[0] for each in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert set(copied()) == needed | packages
    assert PROJECT["tool"]["hatch"]["version"]["path"].startswith("src/")
    builds = next(index for index, line in enumerate(LINES) if "pip install" in line and "'.[" in line)
    assert max(index for index, line in enumerate(LINES) if line.startswith("COPY") and "--from" not in line) < builds


def test_its_pins_are_those_of_the_project() -> None:
    installs = [line for line in those("RUN") if "pip install" in line]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    (torch,) = re.findall(r"\btorch==(\S+)", installs[0])
    in_constraints = [line for line in (ROOT / "Makefile").read_text().splitlines() if "torch==" in line]
    assert "TORCH_INDEX" in those("ARG")
    assert '--index-url "$TORCH_INDEX"' in installs[0]
    assert all(f"torch=={torch}" in line for line in in_constraints)
    assert PINS["torch"] == torch
    images = {line.split()[0] for line in those("FROM")}
    assert len(images) == 1, "what was built for one Python is run by it"
    (version,) = re.findall(r"^python:(\d+\.\d+)\.\d+-slim-", images.pop())
    assert f">={version}" == PROJECT["project"]["requires-python"]


def test_its_extras_and_its_program_are_the_projects() -> None:
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", "\n".join(those("RUN")))
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    (program,) = re.findall(r'^\["(\w+)"\]$', "\n".join(those("ENTRYPOINT")))
    assert program in PROJECT["project"]["scripts"]


def test_it_runs_as_nobody_who_may_do_all_and_from_the_stage_that_was_built() -> None:
    (user,) = those("USER")
    assert user not in {"root", "0"}
    assert any(f"useradd --create-home --uid 1000 {user}" in line for line in those("RUN"))
    stages = {line.split(" AS ")[1] for line in those("FROM") if " AS " in line}
    assert {name for line in those("COPY") for name in re.findall(r"--from=(\w+)", line)} == stages
    start = [index for index, line in enumerate(LINES) if line.startswith(("USER", "ENTRYPOINT"))]
    assert start == sorted(start)
