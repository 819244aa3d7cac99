"""The command `moeits`, `python -m moeits`, and what `accelerate launch -m moeits` runs.

Nothing is imported outside of `main`, so that an interrupt while modules are imported is one line like any other.
"""

import sys

# The exit code by which shells tell of an interrupt from the keyboard.
INTERRUPTED = 130


def main() -> None:
    """Run one command. Exit code 0, or 2 with one sentence on standard error; 130 after an interrupt."""
    try:
        from moeits.command_line.app import main as run

        run()
    except (KeyboardInterrupt, RuntimeError) as error:
        # An interrupt while a class is made comes wrapped, until Python 3.12.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        sys.stderr.write("moeits: Interrupted.\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
