"""What is scored and how, and what that may take of the machine."""

from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from moeits.errors import SettingError
from moeits.settings import EXPERT, SCORING, did_you_mean, setting
from moeits.signals import PAIR_SIGNALS, SIGNALS, ExpertSignal, PairSignal

DIAGONALS = ("zero", "excluded")
NONE = "none"
"""The estimator of a scoring that measures no redundancy."""


def _settings_of_signals() -> Any:
    """A dataclass of the settings of all signals, by which each of them becomes a flag; two may share one."""
    known: dict[str, tuple[str, Any, Any]] = {}
    for signal in SIGNALS:
        hints = get_type_hints(signal)
        for each in fields(signal):  # type: ignore[arg-type]
            own = (each.name, hints[each.name], field(default=each.default, metadata=each.metadata))
            _, kind, shared = known.setdefault(each.name, own)
            assert (kind, shared.default) == (own[1], each.default), f"two signals differ in their setting {each.name}"
    return make_dataclass(
        "SignalSettings", known.values(), frozen=True, kw_only=True, namespace={"__module__": __name__}
    )


SignalSettings: Any = _settings_of_signals()


@dataclass(frozen=True, kw_only=True)
class Scoring(SignalSettings):
    """What the scores depend on, the settings of every signal among them."""

    estimator: str = setting(
        "nmi",
        help="How redundancy is estimated; none: only --signals are measured.",
        panel=SCORING,
        choices=(*(each.name for each in PAIR_SIGNALS), NONE),
    )
    signals: str | None = setting(
        None,
        help=f"Keep these beside the redundancy, separated by commas: {', '.join(each.name for each in SIGNALS)}.",
        panel=SCORING,
        metavar="NAME,NAME",
        shown_default="none",
    )
    diagonal: str = setting(
        "zero", help="The zeros R_ii in mean and iqr: zero lets them count.", panel=EXPERT, choices=DIAGONALS
    )

    def __post_init__(self) -> None:
        if self.diagonal not in DIAGONALS:
            raise SettingError(f"--diagonal {self.diagonal} is not one of {', '.join(DIAGONALS)}.")
        _ = self.redundancy(), self.beside()

    def measured(self) -> "tuple[PairSignal | ExpertSignal, ...]":
        """All signals, the redundancy first. Raises SettingError if there are none, or if none has a setting given."""
        redundancy = self.redundancy()
        chosen = (*((redundancy,) if redundancy else ()), *self.beside())
        if not chosen:
            raise SettingError(f"--estimator {NONE} measures no redundancy: give --signals, or another estimator.")
        for name, value in self._given().items():
            if not any(name in _own_settings(type(signal)) for signal in chosen):
                flag = "--" + name.replace("_", "-")
                asked = f"--estimator {self.estimator}" + (f" --signals {self.signals}" if self.signals else "")
                raise SettingError(f"{asked} has no setting {name} ({value}): leave {flag} out.")
        return chosen

    def refuse_unused(self, why: str) -> None:
        """Raises SettingError, which begins with the reason, if anything was asked of a scoring that nobody does."""
        for each in fields(self):
            if (value := getattr(self, each.name)) != each.default:
                flag = "--" + each.name.replace("_", "-")
                raise SettingError(f"{why}, so {flag} {value} has no effect: leave {flag} out.")

    def redundancy(self) -> PairSignal | None:
        """The signal by which redundancy is measured; None where none is."""
        if self.estimator == NONE:
            return None
        for signal in PAIR_SIGNALS:
            if signal.name == self.estimator:
                return self._set_up(signal)
        known = [*(each.name for each in PAIR_SIGNALS), NONE]
        raise SettingError(
            f"--estimator {self.estimator} is not one of {', '.join(known)}.{did_you_mean(self.estimator, known)}"
        )

    def beside(self) -> "tuple[PairSignal | ExpertSignal, ...]":
        """The signals that are kept beside it, in the order in which they were asked for."""
        known = {each.name: each for each in SIGNALS}
        names = [name.strip() for name in (self.signals or "").split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise SettingError(f"--signals {name} is not one of {', '.join(known)}.{did_you_mean(name, known)}")
        return tuple(self._set_up(known[name]) for name in dict.fromkeys(names))

    def facts(self) -> dict[str, Any]:
        """What was asked for, as JSON values: what a sweep of 0.1 keeps, and whatever else is not at its default."""
        values = asdict(self) | {"bins": str(self.bins)}
        always = ("preset", "estimator", "bins", "projection_weights", "diagonal")
        return {
            each.name: values[each.name]
            for each in fields(self)
            if each.name in always or getattr(self, each.name) != each.default
        }

    def _set_up(self, signal: type[Any]) -> Any:
        return signal(**{name: value for name, value in self._given().items() if name in _own_settings(signal)})

    def _given(self) -> dict[str, Any]:
        """The settings of signals that are not at their default."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(SignalSettings)
            if getattr(self, each.name) != each.default
        }


def _own_settings(signal: type[Any]) -> set[str]:
    return {each.name for each in fields(signal)}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a scoring may take; what comes out does not depend on it."""

    threads: int | None = setting(None, help="Threads of the scoring.", panel=SCORING, shown_default="all cores")
    memory: str | int = setting(
        "2GiB",
        help="Bound on the weights held at once, encoded and as they are read.",
        panel=SCORING,
        metavar="SIZE",
    )

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise SettingError(f"--threads {self.threads} is out of range: give 1 or more.")
