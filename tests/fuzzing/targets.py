"""The parsers of moeits, by name."""

from collections.abc import Callable
from pathlib import Path

from tests.fuzzing.of_checkpoints import config, families, header, index, opened, quantizer
from tests.fuzzing.of_codecs import edits, packed
from tests.fuzzing.of_finished import finished_calibration, finished_refit, finished_scores
from tests.fuzzing.of_flags import command_line, recipes, sizes
from tests.fuzzing.of_plans import evidence, plan, protected, signals
from tests.fuzzing.of_runs import file_of_a_run, results, run_folder
from tests.fuzzing.of_texts import calibration_texts, evaluation_texts, healing_data
from tests.fuzzing.parser import Parser

PARSERS: dict[str, Callable[[Path], Parser]] = {
    "header": header,
    "index": index,
    "config": config,
    "families": families,
    "quantizer": quantizer,
    "packed": packed,
    "opened": opened,
    "plan": plan,
    "edits": edits,
    "evidence": evidence,
    "signals": signals,
    "protected": protected,
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
    "calibration": calibration_texts,
    "finished": finished_scores,
    "watched": finished_calibration,
    "fitted": finished_refit,
    "cli": command_line,
}
