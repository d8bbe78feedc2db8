"""Draws curve.svg, F1 against how many columns are kept, from the outcomes in this folder: python curve.py."""

from __future__ import annotations

import lzma
import tempfile
from pathlib import Path

from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.pooled import BySeed, estimate_pooled
from latentwire.evaluation.statistics import Estimate
from latentwire.evaluation.summarize import by_arm
from latentwire.studies import drawing

HERE = Path(__file__).parent
RATIOS = (4, 8, 16)
LINES = {"text, with adapters": "adapted/adapted_text", "text, after a prefix": "read/styled_text"} | {
    name: f"untrained/{name}" for name in ("text", "none")
}
CURVES = {
    "latents": (("again/latents", "seed1/latents", "seed2/latents"), ("eight/latents8",), ("sixteen/latents16",)),
    "evict": (("untrained/evict",), ("eight/evict8",), ("sixteen/evict16",)),
    "budget": (("untrained/budget",), ("eight/budget8",), ("sixteen/budget16",)),
}
"""For each curve and ratio, the readings: several are seeds of one training."""


def outcomes() -> dict[str, list[Outcome]]:
    """What was kept, by file and arm: `read/latents`."""
    found: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted(HERE.glob("*.jsonl.xz")):
            path = Path(folder) / file.stem
            path.write_bytes(lzma.decompress(file.read_bytes()))
            stage = file.name.removesuffix(".jsonl.xz")
            found |= {f"{stage}/{arm}": own for arm, own in by_arm(read_outcomes(path)).items()}
    return found


def points(kept: dict[str, list[Outcome]]) -> dict[str, list[Estimate]]:
    """F1 of every curve at each ratio, over seeds where there are several."""

    def estimated(readings: tuple[str, ...]) -> Estimate:
        seeds: BySeed = {reading: kept[reading] for reading in readings}
        return estimate_pooled(seeds, "f1")

    return {name: [estimated(readings) for readings in curve] for name, curve in CURVES.items()}


def main() -> None:
    kept = outcomes()
    figure = drawing.figure(5.4, 3.4)
    panel = figure.subplots()
    for at, (name, line) in enumerate(LINES.items()):
        height = estimate_pooled({"": kept[line]}, "f1").value
        panel.axhline(height, color="0.35", linestyle=(":", "--", "-", "-.")[at], linewidth=1, label=name)
    for name, found in points(kept).items():
        ends = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
        panel.errorbar(RATIOS, [each.value for each in found], ends, marker=".", linewidth=1.2, label=name)
    panel.set(xscale="log", ylim=(0, 0.72), xlabel="columns of the passage for one that is kept", ylabel="F1")
    panel.set_xticks(RATIOS, [f"{ratio} : 1" for ratio in RATIOS])
    panel.minorticks_off()
    figure.legend(loc="outside right center", fontsize=8)
    drawing.write(figure, HERE / "curve.svg")


if __name__ == "__main__":
    main()
