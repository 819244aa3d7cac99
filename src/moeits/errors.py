"""What can go wrong, as a tree. Every message is a sentence for the person who must act.

    MoeitsError
    ├── SettingError        an argument out of range or unknown (also a ValueError)
    ├── CheckpointError     a checkpoint that cannot be read as what it claims to be (also a ValueError)
    │   ├── UnknownArchitecture   a model_type nobody has described yet
    │   ├── NonFiniteWeight       NaN or infinity in a weight
    │   └── UnscorableWeight      a dtype that can be moved but not computed with
    ├── FamilyError         a table of families that is not one (also a ValueError)
    ├── ShapeMismatch       two weights of different size were to be compared (also a ValueError)
    ├── EvidenceError       evidence that is broken, or of another checkpoint (also a ValueError)
    ├── PlanError           a plan that is broken, or of another checkpoint (also a ValueError)
    │   └── BudgetOutOfReach      floors are reached before the budget is met
    ├── OutputError         the result cannot be written where it should go
    ├── HealingError        training cannot start or must stop
    ├── CalibrationError    a model cannot be watched or refitted on these tokens
    ├── EvaluationError     an evaluation, a measurement or a report cannot be made
    └── MissingExtra        an optional dependency is not installed (also an ImportError)

The command line prints the message and exits with 2. `assert` is for what we got wrong ourselves.
"""


class MoeitsError(Exception):
    """Anything a user of moeits can fix; the message says how."""


class SettingError(MoeitsError, ValueError):
    """An argument that is out of range, unknown, or at odds with another."""


class CheckpointError(MoeitsError, ValueError):
    """A checkpoint that cannot be read as what it claims to be."""


class UnknownArchitecture(CheckpointError):
    """A model_type that no entry of `experts/families.toml` describes."""


class NonFiniteWeight(CheckpointError):
    """NaN or infinity in a weight."""


class UnscorableWeight(CheckpointError):
    """A weight whose dtype can be moved but not computed with."""


class FamilyError(MoeitsError, ValueError):
    """A table of families that cannot be read, or an entry of it that does not describe a family."""


class ShapeMismatch(MoeitsError, ValueError):
    """Two weights of different size were to be compared."""


class EvidenceError(MoeitsError, ValueError):
    """Evidence that is broken, or belongs to another checkpoint."""


class PlanError(MoeitsError, ValueError):
    """A plan that is broken, or belongs to another checkpoint."""


class BudgetOutOfReach(PlanError):
    """The floors are reached before the budget is met."""


class OutputError(MoeitsError):
    """The result cannot be written where it should go."""


class HealingError(MoeitsError):
    """Training cannot start, or must stop."""


class CalibrationError(MoeitsError):
    """A model cannot be watched, or refitted, on these tokens."""


class EvaluationError(MoeitsError):
    """An evaluation, a measurement or a report cannot be made."""


class MissingExtra(MoeitsError, ImportError):
    """An optional dependency is not installed."""
