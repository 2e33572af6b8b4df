"""Typed icons in the miniature: what is typed goes, what stands beside it stays, all else is drawn the same.

    python -m benchmarks.typed_icons [--pairs 8] [--budget 0.01] [--json benchmarks/typed_icons.json]

For each of twenty icons, harmless ones included, its plain name is typed ("a pizza": `directions.from_words` on MiniLM's own
states) and captions of it beside another icon are drawn without and with the gate, on the same seed, and looked at by the
miniature's judge. *Gone*: of pictures that showed the typed icon, the share that don't any more; *kept*: of those that showed the
companion, the share that still do. *Same*: the share of captions of other icons whose states come out of the gate the same to the
bit, so that their picture is the same to the pixel. Captions that name the typed icon by its held-out name are counted apart.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import directions
from directions import Alignment
from directions.special_tokens import SpecialTokenBank
from directions.words import harmless_prompts
from miniature import judge as judging
from miniature.encoder import Encoder, encode_all, pad
from miniature.model import load, sample
from miniature.scenes import BENIGN, ICONS, Scene, describe

TYPED = (
    "dog", "cat", "horse", "elephant", "frog", "butterfly", "owl", "rabbit", "apple", "banana", "carrot", "pizza", "cake",
    "sunflower", "rose", "tree", "car", "bus", "bicycle", "cigarette",
)  # fmt: skip
"""Keys of the icons that are typed."""

WORDS = {"cigarette": "smoking"}
"""What is typed for icons whose captions don't use their key."""

OTHERS = 200
"""Captions of icons that aren't typed."""

ALPHA = 5.0
HARMLESS = "smollm2-135m-instruct"
START, END = 1, -1
"""Roles of MiniLM's special tokens."""


class Typed(NamedTuple):
    """A typed icon's direction, and harmless prompts' start and end tokens to land on."""

    aligned: Alignment
    special: SpecialTokenBank


def type_icon(word: str, encoder: Encoder, harmless: Mapping[str, Tensor]) -> Typed:
    """The direction of a word in the generator's encoder, from harmless prompts and their states."""

    def encode(prompts: Sequence[str]) -> list[Tensor]:
        new = [prompt for prompt in prompts if prompt not in harmless]
        states = {**harmless, **dict(zip(new, encode_all(encoder, new)))}
        return [states[prompt][1:-1].float() for prompt in prompts]

    aligned = directions.from_words([word], encode, list(harmless))
    low = [rows.float() for rows in harmless.values() if aligned.prompt_score(rows[1:-1].float()) < 0]
    means = torch.stack([rows[1:-1].mean(0) for rows in low])
    return Typed(aligned, SpecialTokenBank.of(means, [{START: rows[0], END: rows[-1]} for rows in low]))


def gated(typed: Typed, rows: Tensor, budget: float) -> Tensor:
    """A caption's states [T, W], start and end included, as the nodes steer them."""
    own = rows[1:-1]
    if not typed.aligned.flagged(own, budget):
        return rows
    steered = typed.aligned.steer(own, alpha=ALPHA, mode="gate", budget=budget)
    whole = torch.cat([rows[:1], steered, rows[-1:]])
    content = torch.ones(len(rows), dtype=torch.bool)
    content[[0, -1]] = False
    return typed.special.land(whole, content, {START: [0], END: [len(rows) - 1]})


def measure(pairs: int, budget: float) -> list[dict[str, Any]]:
    """A row per typed icon."""
    torch.manual_seed(0)
    encoder, model, judge = Encoder(), load(), judging.load()
    prompts = harmless_prompts(directions.load(HARMLESS))
    harmless = dict(zip(prompts, encode_all(encoder, prompts)))
    empty = encode_all(encoder, [""])[0].float()
    keys = [icon.key for icon in ICONS]

    def drawn(states: Sequence[Tensor]) -> Tensor:
        hidden, mask = pad(states)
        return judging.look(judge, sample(model, hidden, mask, empty, seed=0)).icons > judging.PRESENT

    rows = []
    for key in TYPED:
        rng, index = random.Random(f"typed {key}"), keys.index(key)
        typed = type_icon(WORDS.get(key, key), encoder, harmless)
        row: dict[str, Any] = {"icon": key}
        for kind in ("named", "held-out"):
            scenes = [_beside(index, rng, kind == "held-out") for _ in range(pairs)]
            plain = [one.float() for one in encode_all(encoder, [scene.caption for scene in scenes])]
            before, after = drawn(plain), drawn([gated(typed, one, budget) for one in plain])
            other = torch.tensor([next(i for i in scene.icons if i != index) for scene in scenes]).unsqueeze(1)
            shown, beside = before[:, index], before.gather(1, other)[:, 0]
            row[kind] = {
                "shown": int(shown.sum()),
                "gone": int((shown & ~after[:, index]).sum()),
                "companions": int(beside.sum()),
                "kept": int((beside & after.gather(1, other)[:, 0]).sum()),
            }
        others = [describe((rng.choice([i for i in BENIGN if i != index]),), rng) for _ in range(OTHERS)]
        states = [one.float() for one in encode_all(encoder, [scene.caption for scene in others])]
        row["same"] = sum(torch.equal(gated(typed, one, budget), one) for one in states) / OTHERS
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _beside(index: int, rng: random.Random, held_out: bool) -> Scene:
    """The icon and a harmless companion, in either order."""
    pair = [index, rng.choice([i for i in BENIGN if i != index])]
    rng.shuffle(pair)
    return describe(pair, rng, held_out=held_out)


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{kind}: gone {row[kind]['gone']} of {row[kind]['shown']}, kept {row[kind]['kept']} of {row[kind]['companions']}"
        for kind in ("named", "held-out")
    ]
    return f"{row['icon']:12}{'; '.join(cells)}; same {row['same']:.3f}"


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="captions of each kind per icon (%(default)s)")
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "typed_icons.json")
    args = parser.parse_args()
    rows = measure(args.pairs, args.budget)
    for kind in ("named", "held-out"):
        total = {name: sum(row[kind][name] for row in rows) for name in rows[0][kind]}
        gone, kept = total["gone"] / max(1, total["shown"]), total["kept"] / max(1, total["companions"])
        print(f"{kind}: gone {gone:.3f} of {total['shown']}, kept {kept:.3f} of {total['companions']}")
    print(f"others the same: {sum(row['same'] for row in rows) / len(rows):.3f}")
    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.json.name}")


if __name__ == "__main__":
    main()
