"""The demo: moeits at work on a small trained model that the package carries. Run it with `python -m moeits.demo`.

`demo-qwen2moe/` is a Qwen2-MoE trained for this project on public-domain text, `valid.jsonl` text it has not seen,
`train.jsonl` a sample of what it was trained on. `scripts/` of the repository has how they were made.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "demo-qwen2moe"
VALID = Path(__file__).parent / "valid.jsonl"
TRAIN = Path(__file__).parent / "train.jsonl"
