"""The chart of rounds: that it shows what happened is for people to see; that it can be drawn is seen here."""

from pathlib import Path

import pytest
from matplotlib import image

from services.commands.charts import check_suffix, draw_rounds
from wmss.errors import WmssError


def one_round(number, *, sampled=(64, 0), reading=None):
    levels = [
        {
            "level": level,
            "num_sampled": count,
            "num_accepted": count // 4,
            "num_selected": count // 8,
            "interval_90": [0.1, 0.4] if count else None,
        }
        for level, count in enumerate(sampled, start=1)
    ]
    held_out = {"levels": [{"level": level, "pass_at_1": 0.1 * level, "standard_error": 0.02} for level in (1, 2)]}
    return {
        "round": number,
        "label": "improving",
        "levels": levels,
        "held_out": held_out,
        "reading": reading,
        "best_round": 1,
        "stop": None,
    }


ROUNDS = [one_round(1), one_round(2, sampled=(0, 64), reading={"v_minus": 0.1, "v_plus": 0.9})]


@pytest.mark.parametrize("arms", [{"job": ROUNDS}, {"one": ROUNDS, "other": ROUNDS[:1]}])
def test_rounds_are_drawn(tmp_path, arms):
    draw_rounds(arms, tmp_path / "rounds.png")
    pixels = image.imread(tmp_path / "rounds.png")
    assert pixels.std() > 0.05  # not a blank page


def test_other_pictures_are_refused():
    with pytest.raises(WmssError, match=r"--chart: expected a file name ending in \.png"):
        check_suffix(Path("rounds.gif"), param="--chart")
