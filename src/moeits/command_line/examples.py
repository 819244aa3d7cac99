"""Two examples of every command, shown under its `--help`. A test runs them as they stand, on a small MODEL."""

EXAMPLES: dict[str, tuple[str, str]] = {
    "inspect": ("moeits inspect MODEL", "moeits inspect MODEL --max-size 60KiB"),
    "score": ("moeits score MODEL -o evidence.safetensors", "moeits score MODEL -o evidence.safetensors --memory 4GiB"),
    "gather": (
        "moeits gather shard-1.safetensors shard-2.safetensors -o evidence.safetensors",
        "moeits gather shard-2.safetensors shard-1.safetensors -o evidence.safetensors --json",
    ),
    "calibrate": (
        "moeits calibrate MODEL -o signals.safetensors",
        "moeits calibrate MODEL --data self --tokens 8192 -o own.safetensors",
    ),
    "plan": (
        "moeits plan evidence.safetensors --reduction 0.5 -o plan.json",
        "moeits plan evidence.safetensors --criterion random --like plan.json -o control.json",
    ),
    "prune": (
        "moeits prune MODEL --plan plan.json -o SMALLER",
        "moeits prune MODEL --plan plan.json --layout uniform -o UNIFORM",
    ),
    "simplify": (
        "moeits simplify MODEL --reduction 50% -o HALF",
        "moeits simplify MODEL --max-size 60KiB --layout uniform -o FITTING",
    ),
    "refit": (
        "moeits refit HALF --parent MODEL -o REFITTED",
        "moeits refit HALF --parent MODEL --data self --tokens 8192 -o REFITTED-SELF",
    ),
    "forecast": (
        "moeits forecast MODEL -o forecast.json",
        "moeits forecast MODEL --reductions 25%,50% --budget 0.1 --data self --tokens 8192 -o forecast.json",
    ),
    "heal": (
        "moeits heal HALF --data texts.jsonl --recipe small -o HEALED",
        "moeits heal HALF --data texts.jsonl --targets router --steps 50 -o HEALED-ROUTERS",
    ),
    "evaluate": (
        "moeits evaluate HALF --perplexity texts.jsonl -o half.json",
        "moeits evaluate HALF --tasks arc_easy,hellaswag --limit 100 -o accuracy.json",
    ),
    "compare": ("moeits compare whole.json half.json", "moeits compare whole.json half.json --tasks arc_easy"),
    "compare-criteria": (
        "moeits compare-criteria MODEL --criteria moeits,random:8,reap,reconstruction -o RUN",
        "moeits compare-criteria MODEL --keep 75% --refit no --perplexity texts.jsonl -o RUN",
    ),
    "measure": ("moeits measure HALF -o footprint.json", "moeits measure HALF --no-run -o footprint.json"),
    "sweep": (
        "moeits sweep MODEL -o RUN",
        "moeits sweep MODEL --perplexity texts.jsonl --control 3 -o RUN-WITH-LOSS",
    ),
    "export": (
        "moeits export UNIFORM --gguf model.gguf",
        "moeits export UNIFORM --gguf model-f16.gguf --outtype f16 --converter llama.cpp",
    ),
    "push": ("moeits push OUT org/name", "moeits push OUT org/name --report report.html --public"),
    "run": ("moeits run recipe.yaml", "moeits run RUN/recipe.yaml -o AGAIN"),
    "report": ("moeits report RUN -o report.html", "moeits report RUN --format md -o report.md"),
}


def epilog(command: str) -> str:
    """The examples as a paragraph each, which `--help` shows as a line each."""
    return "\n\n".join(("Examples:", *(f"  {example}" for example in EXAMPLES[command])))
