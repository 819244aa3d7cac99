"""`python -m moeits`, which is also what `accelerate launch -m moeits` runs."""

from moeits.command_line.app import main

if __name__ == "__main__":
    main()
