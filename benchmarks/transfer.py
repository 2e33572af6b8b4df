"""Does a direction learned elsewhere work here? Source x target x method x category, with native and random beside it.

    python -m benchmarks.transfer [--targets minilm gemma-3-270m] [--json benchmarks/transfer.json]

On held-out themes: `order` is the share of pairs whose safe half lies on the safe side of the vector (`order_by_score`: by
the prompt score; `order_by_pooled_score`: by the reader on pooled states), `cosine` the
agreement with the native direction (learned on the target from the training pairs), `tpr1` and
`tpr5` the unsafe halves found at 1% and 5% false positives on fresh benign prompts and held-out safe halves.
`native` is the plain mean difference and a logistic regression on pooled states; `native, aligned` is what the pack
would make of a native direction, token scores and categories included. `flagged_mentions` is the share of harmless prompts
that name something unsafe which the budget flags. What is found and flagged by kind of prompt: benchmarks/reading.py.
`--split fresh` measures on themes that were written after everything was chosen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

import directions
from directions.direction import GLOBAL
from directions.estimate import fit_reader
from directions.prompts import read_anchors, read_pairs

from .baselines import native as native_direction
from .models import target_states

METHODS = ("svd", "ridge", "cca", "mlp", "auto")


def _pooled(states: list[Tensor]) -> Tensor:
    return torch.stack([rows.mean(0) for rows in states])


def _found(benign: Tensor, unsafe: Tensor, share: float) -> float:
    return (unsafe > benign.quantile(1 - share)).float().mean().item()


def measure(
    source: str, target: str, methods: Sequence[str] = METHODS, split: str = "held_out"
) -> list[dict[str, Any]]:
    """One row per method and category; `split` is the pairs' to measure on."""
    direction = directions.load(source)
    train, held = read_pairs(split="train"), read_pairs(split=split)
    fresh = [a.prompt for a in read_anchors(split="held_out", kinds=("everyday",))]
    anchors = list(direction.anchor_prompts)
    named = [a.prompt for a in read_anchors(split="held_out", kinds=("mention",))]
    groups = [
        anchors,
        [p.safe for p in train],
        [p.unsafe for p in train],
        [p.safe for p in held],
        [p.unsafe for p in held],
        fresh,
        named,
    ]
    states = target_states(target, [prompt for group in groups for prompt in group])
    parts, at = [], 0
    for group in groups:
        parts.append(states[at : at + len(group)])
        at += len(group)
    anchor_states = parts[0]
    pooled = [_pooled(part) for part in parts]
    own = direction.groups == torch.arange(len(direction.anchor_prompts))
    plain = pooled[0][own & ~direction.mentioned]
    rows = []
    generator = torch.Generator().manual_seed(0)
    names = (GLOBAL, *direction.categories)
    native_aligned = directions.align(native_direction(target, direction), anchor_states, method="ridge")
    candidates: dict[str, Any] = {m: directions.align(direction, anchor_states, method=m) for m in methods}
    for name in names:
        pick_train = torch.tensor([name in (GLOBAL, p.category) for p in train])
        pick = torch.tensor([name in (GLOBAL, p.category) for p in held])
        safe, unsafe = pooled[3][pick], pooled[4][pick]
        native = (pooled[1][pick_train] - pooled[2][pick_train]).mean(0)
        benign = torch.cat([pooled[3], pooled[5]])
        reader = fit_reader(torch.cat([plain, pooled[1]]), pooled[2][pick_train])

        def order(vector: Tensor) -> float:
            return ((safe - unsafe) @ vector > 0).float().mean().item()

        base = {"source": source, "target": target, "category": name, "pairs": int(pick.sum())}
        rows.append({**base, "method": "native", "order": order(native), "order_by_pooled_score": order(-reader), "cosine": 1.0,
                     "tpr1": _found(benign @ reader, unsafe @ reader, 0.01), "tpr5": _found(benign @ reader, unsafe @ reader, 0.05)})  # fmt: skip
        noise = torch.randn(200, len(native), generator=generator) * plain.std(0)
        cosine = torch.nn.functional.cosine_similarity
        orders = torch.tensor([order(vector) for vector in noise])
        found = [[_found(benign @ v, unsafe @ v, share) for v in noise] for share in (0.01, 0.05)]
        rows.append({**base, "method": "random", "order": orders.mean().item(), "order_best_of_200": orders.max().item(),
                     "cosine": cosine(noise, native.unsqueeze(0)).mean().item(),
                     "tpr1": sum(found[0]) / 200, "tpr5": sum(found[1]) / 200})  # fmt: skip
        own = [
            torch.stack([native_aligned.prompt_score(s, name) for s in part]) for part in (parts[3], parts[4], parts[5])
        ]
        benign_scores, unsafe_scores = torch.cat([own[0], own[2]]), own[1][pick]
        rows.append({**base, "method": "native, aligned", "order": order(native_aligned.slot.vectors[names.index(name)]),
                     "cosine": cosine(native_aligned.slot.vectors[names.index(name)], native, dim=0).item(),
                     "tpr1": _found(benign_scores, unsafe_scores, 0.01), "tpr5": _found(benign_scores, unsafe_scores, 0.05)})  # fmt: skip
        # The reader is regressed on the target whatever the map, so one method's scores are all methods'.
        scores = [
            torch.stack([next(iter(candidates.values())).prompt_score(s, name) for s in part]) for part in parts[3:]
        ]
        for method, aligned in candidates.items():
            index = aligned.names.index(name)
            benign_scores, unsafe_scores = torch.cat([scores[0], scores[2]]), scores[1][pick]
            threshold = aligned.threshold(0.01, name)
            rows.append({
                **base, "method": method if method != "auto" else f"auto ({aligned.fit['method']})", "r2": aligned.fit["r2"],
                "order": order(aligned.slot.vectors[index]), "cosine": cosine(aligned.slot.vectors[index], native, dim=0).item(),
                "order_by_score": (unsafe_scores > scores[0][pick]).float().mean().item(),
                "order_by_pooled_score": ((unsafe - safe) @ aligned.slot.prompt_readers[index] > 0).float().mean().item(),
                "tpr1": _found(benign_scores, unsafe_scores, 0.01), "tpr5": _found(benign_scores, unsafe_scores, 0.05),
                "flagged_fresh_benign": (scores[2] > threshold).float().mean().item(),
                "flagged_held_out_safe_halves": (scores[0] > threshold).float().mean().item(),
                "flagged_unsafe": (unsafe_scores > threshold).float().mean().item(),
                "flagged_mentions": (scores[3] > threshold).float().mean().item(),
            })  # fmt: skip
    return rows


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=["smollm2-135m-instruct"], help="directions, by name or path")
    parser.add_argument("--targets", nargs="+", default=["minilm", "gemma-3-270m"])
    parser.add_argument(
        "--split",
        default="held_out",
        choices=("held_out", "fresh"),
        help="fresh: themes that nothing was chosen on (%(default)s)",
    )
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "transfer.json")
    args = parser.parse_args()
    rows = [
        row for source in args.sources for target in args.targets for row in measure(source, target, split=args.split)
    ]
    columns = ("order", "order_by_score", "order_by_pooled_score", "cosine", "tpr1", "tpr5",
               "flagged_fresh_benign", "flagged_held_out_safe_halves", "flagged_mentions", "flagged_unsafe")  # fmt: skip
    print(
        f"{'target':14}{'category':13}{'method':15}"
        + "".join(f"{c.replace('flagged_', 'flag_').replace('order_by_', 'by_')[:13]:>14}" for c in columns)
    )
    for row in rows:
        cells = "".join(f"{row[c]:14.3f}" if c in row else f"{'-':>14}" for c in columns)
        print(f"{row['target']:14}{row['category']:13}{row['method']:15}{cells}")
    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.json.name}")


if __name__ == "__main__":
    main()
