"""How a pruned checkpoint is written."""

import re
from dataclasses import dataclass

from moeits.errors import SettingError
from moeits.settings import EXPERT, OUTPUT, setting

LAYOUTS = ("auto", "per-layer", "uniform", "padded")
ONE_NUMBER = ("uniform", "padded")
"""Layouts with one number of experts for all layers."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The form of the output."""

    layout: str = setting(
        "auto",
        help="Counts of experts: auto as planned, uniform evened out along the plan's order, padded to the largest.",
        panel=OUTPUT,
        choices=LAYOUTS,
    )
    max_shard_size: str | int | None = setting(
        None,
        help="Largest shard, such as 5GB.",
        panel=EXPERT,
        metavar="SIZE",
        shown_default="the source's largest",
    )
    drop_mtp: bool = setting(
        False, help="Leave out the layers for multi-token prediction, whose experts no plan covers.", panel=OUTPUT
    )
    base_model: str | None = setting(
        None,
        help="Hub id of the source, for the card of what is made from a local folder.",
        panel=EXPERT,
        metavar="ORG/NAME",
        shown_default="the source's, if it is of the hub",
    )
    dry_run: bool = setting(
        False,
        help="Say what it would take (sizes, disk, memory, an estimate of the time); write nothing.",
        panel=OUTPUT,
    )
    overwrite: bool = setting(False, help="Replace a checkpoint at the output.", panel=OUTPUT)

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise SettingError(f"--layout {self.layout} is not one of {', '.join(LAYOUTS)}.")
        if self.base_model is not None and not re.fullmatch(
            r"[^\W_][\w.-]{0,95}/[^\W_][\w.-]{0,95}", self.base_model, re.ASCII
        ):
            raise SettingError(f"--base-model {self.base_model[:60]} is not a hub id: give ORG/NAME.")
