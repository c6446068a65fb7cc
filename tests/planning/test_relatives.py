"""What the places of post, base and new base tell about a recipe."""

import json
from pathlib import Path

import numpy as np
import pytest

from paramdelta import Delta, Recipe, Severity, UsageError, extract, plan
from paramdelta.planning.relatives import FAR
from tests.checkpoints import llama, moved, save
from tests.planning.test_plan import codes, three

STUDY = Path(__file__).parents[2] / "docs" / "study"


def models(tmp_path, **amounts):
    """Folders of base, post and new base, each moved from base by so much."""
    base = llama()
    made = {"base": save(tmp_path / "base", base)}
    for seed, (name, amount) in enumerate(amounts.items(), 1):
        made[name] = save(tmp_path / name, moved(base, seed, amount))
    return {name: str(folder) for name, folder in made.items()}


def told(made):
    """Severity by code for a recipe."""
    return codes(plan(Recipe(made["new"], (Delta(made["post"], made["base"]),))))


def test_the_shift_beside_the_delta(tmp_path):
    """Printed as a ratio; independent movements have a cosine near 0."""
    made = models(tmp_path, post=0.002, new=0.001)
    shown = plan(Recipe(made["new"], (Delta(made["post"], made["base"]),)))
    assert shown.findings == ()
    shift = shown.shifts["post"]
    assert shift.ratio == pytest.approx(0.5, rel=0.05)
    assert abs(shift.cosine) < 0.1
    assert shift.nearness == pytest.approx((1 + 4) ** 0.5, rel=0.05)
    assert shown.to_dict()["shifts"]["post"]["ratio"] == shift.ratio


def test_post_and_base_swapped(tmp_path):
    """The new base is then nearer to what is called post."""
    made = models(tmp_path, post=0.002, new=0.001)
    swapped = made | {"post": made["base"], "base": made["post"]}
    assert told(swapped) == {"post-base-swapped": Severity.WARNING}


def test_a_template_that_only_base_has(tmp_path):
    """Swapped as well, whatever the distances say."""
    base = llama()
    config = {"chat_template": "{{ messages }}"}
    folders = [
        save(tmp_path / "base", base),
        save(tmp_path / "post", moved(base, 1)),
        save(tmp_path / "new", moved(base, 2)),
    ]
    (folders[0] / "tokenizer_config.json").write_text(json.dumps(config))
    made = dict(zip(("base", "post", "new"), map(str, folders), strict=True))
    assert told(made)["template-only-in-base"] is Severity.WARNING
    (folders[1] / "tokenizer_config.json").write_text(json.dumps(config))
    assert "template-only-in-base" not in told(made)


def test_another_post_as_base(tmp_path):
    """The new base then differs from it against that post's Δ."""
    made = models(tmp_path, post=0.002, other=0.002, new=0.001)
    assert told(made | {"base": made["other"]}) == {"delta-along-shift": Severity.WARNING}


def test_equal_checkpoints(tmp_path):
    """base = new base gives post; new base = post has the Δ already."""
    made = models(tmp_path, post=0.002)
    assert told(made | {"new": made["base"]}) == {"new-base-is-base": Severity.WARNING}
    assert told(made | {"new": made["post"]}) == {"new-base-is-post": Severity.WARNING}
    half = Recipe(made["base"], (Delta(made["post"], made["base"], 0.5),))
    assert codes(plan(half)) == {"new-base-is-base": Severity.NOTE}


def test_extract_has_no_new_base(tmp_path):
    """Its plan says nothing of one."""
    made = models(tmp_path, post=0.002)
    done = extract((made["post"], made["base"]), tmp_path / "delta")
    assert done.plan.findings == ()
    assert done.plan.shifts == {}


def test_a_far_shift(tmp_path):
    """A warning that says what the study found."""
    near, far = models(tmp_path / "a", post=0.002, new=0.0025), None
    assert told(near) == {}
    far = models(tmp_path / "b", post=0.001, new=0.004)
    assert told(far) == {"shift-far": Severity.WARNING}


def test_the_threshold_is_the_studys():
    """`FAR` is the smallest shift / Δ of the study at which a point keeps less than half."""
    page = (STUDY.parent / "study.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| shift / delta |"))
    assert float(row.split("|")[4]) == FAR


@pytest.mark.parametrize("scale", [100, -3.0])
def test_an_extreme_scale(tmp_path, scale):
    """A warning."""
    made = models(tmp_path, post=0.002, new=0.001)
    recipe = Recipe(made["new"], (Delta(made["post"], made["base"], scale),))
    assert codes(plan(recipe)) == {"scale-extreme": Severity.WARNING}


def test_a_code_that_does_not_exist(tmp_path):
    """An error that names the nearest."""
    made = models(tmp_path, post=0.002, new=0.001)
    with pytest.raises(UsageError, match="only-in-post") as caught:
        plan(Recipe(made["new"], (Delta(made["post"], made["base"]),), allow=("only_in_post",)))
    assert caught.value.code == "unknown-allow"


def test_numbers_that_are_not_finite(tmp_path):
    """They are left out of the sample."""
    base = llama()
    broken = {n: v.copy() for n, v in moved(base, 1).items()}
    for value in broken.values():
        value[:1] = np.uint16(0x7FC0)
    made = plan(three(tmp_path, base=base, post=broken))
    assert np.isfinite(made.shifts["post"].ratio)
