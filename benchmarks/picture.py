"""Draws the ratios (JSON on stdin) into an SVG file. Runs with the packages of the peers."""

import json
import sys

import matplotlib as mpl

mpl.use("svg")
# Text stays text, and the same figures make the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "todo", "font.family": "sans-serif", "font.size": 10})

from matplotlib import pyplot as plt  # noqa: E402 (the settings above come first)

COLOURS = ["#4c72b0", "#55a868", "#8172b3", "#ccb974", "#8c8c8c"]


def draw(calls: list[str], ratios: dict[str, list[list[float]]], path: str) -> None:
    """Draw a group of bars for each call, one for each peer: [median, least, greatest] times the service's CPU."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(ratios)
    for turn, ((peer, spreads), colour) in enumerate(zip(ratios.items(), COLOURS, strict=False)):
        places = [place + (turn - (len(ratios) - 1) / 2) * width for place in range(len(calls))]
        medians = [median for median, _, _ in spreads]
        whiskers = [[median - least for median, least, _ in spreads], [most - median for median, _, most in spreads]]
        # Bars start at 1: more expensive goes up, cheaper goes down.
        axes.bar(places, [median - 1 for median in medians], width * 0.92, bottom=1, label=peer, color=colour)
        axes.errorbar(places, medians, whiskers, fmt="none", ecolor="#333333", elinewidth=0.8)
        for place, (median, least, most) in zip(places, spreads, strict=True):
            is_dearer = median >= 1
            axes.annotate(
                f"{median:.2g}" if median < 10 else f"{median:.0f}",
                (place, most if is_dearer else least),
                (0, 2 if is_dearer else -2),
                textcoords="offset points",
                ha="center",
                va="bottom" if is_dearer else "top",
                fontsize=7,
            )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log", base=2)
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.margins(y=0.1)
    axes.set_xticks(range(len(calls)), calls)
    axes.set_ylabel("server CPU per request\n(service = 1×, log scale)")
    axes.legend(ncols=len(ratios), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(**json.load(sys.stdin), path=sys.argv[1])
