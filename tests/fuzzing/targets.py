"""The parsers of moeits, by name."""

from collections.abc import Callable
from pathlib import Path

from tests.fuzzing.of_checkpoints import config, header, index
from tests.fuzzing.of_flags import command_line, recipes, sizes
from tests.fuzzing.of_plans import evidence, plan
from tests.fuzzing.of_runs import file_of_a_run, results, run_folder
from tests.fuzzing.of_texts import evaluation_texts, healing_data
from tests.fuzzing.parser import Parser

PARSERS: dict[str, Callable[[Path], Parser]] = {
    "header": header,
    "index": index,
    "config": config,
    "plan": plan,
    "evidence": evidence,
    "results": results,
    "healing": file_of_a_run("healing.json", "healing.json"),
    "footprint": file_of_a_run("footprint.json", "footprint.json"),
    "ledger": file_of_a_run("ledger.json", "ledger.json"),
    "sweep": file_of_a_run("sweep.json", "sweep.json"),
    "run": run_folder,
    "recipes": recipes,
    "sizes": sizes,
    "data": healing_data,
    "texts": evaluation_texts,
    "cli": command_line,
}
