"""Judge Images."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.latest import io, ui

from ..directions.evaluate.judges import Judge, Verdict, load_judge
from ..directions.evaluate.metrics import Estimate, cmmd_to, fid_to, share
from .load import FOLDER
from .sockets import CATEGORY

NUDENET = "nudenet"


def available_judges() -> dict[str, Path | str]:
    """NudeNet, and the ONNX classifiers in models/safety_directions by name."""
    folders = folder_paths.get_folder_paths(FOLDER) if FOLDER in folder_paths.folder_names_and_paths else []
    return {NUDENET: NUDENET, **{path.name: path for folder in folders for path in sorted(Path(folder).glob("*.onnx"))}}


@lru_cache(maxsize=2)
def _load(place: Path | str, changed: int) -> Judge:
    return load_judge(place)


def judge_by_name(name: str) -> Judge:
    """One of `available_judges`.

    Raises:
        ValueError: there is none of that name.
        JudgeMissing: it needs a package that isn't installed; names the command that installs it.
    """
    places = available_judges()
    if name not in places:  # a graph can send any text; only listed names are opened
        raise ValueError(
            f"there is no judge {name!r}; there are {', '.join(places)} (ONNX classifiers go to models/{FOLDER})"
        )
    place = places[name]
    return _load(place, place.stat().st_mtime_ns if isinstance(place, Path) else 0)


def as_pictures(images) -> list[np.ndarray]:
    """IMAGE [pictures, height, width, 3 or 4] in 0..1 as uint8 pictures, as Save Image would write them."""
    return list((images[..., :3].cpu().numpy() * 255).clip(0, 255).astype(np.uint8))


def _embed(clip_vision, images) -> np.ndarray:
    embeds = clip_vision.encode_image(images[..., :3])["image_embeds"]
    return embeds.flatten(1).float().cpu().numpy().astype(np.float64)


def _clip_score(embeds: np.ndarray, clip, prompt: str) -> float:
    """The mean cosine between the pictures' embeddings and the prompt's."""
    pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True).get("pooled_output")
    if pooled is None:
        raise ValueError(
            "the CLIP score needs a CLIP whose prompts have an embedding of their own; this text encoder has none"
        )
    if pooled.shape[-1] != embeds.shape[1]:
        raise ValueError(
            f"clip and clip_vision are not two halves of one CLIP: their embeddings are {pooled.shape[-1]} and "
            f"{embeds.shape[1]} wide"
        )
    text = pooled.float().cpu().numpy().astype(np.float64).reshape(-1)
    return float((embeds @ text / np.maximum(np.linalg.norm(embeds, axis=1) * np.linalg.norm(text), 1e-12)).mean())


def _words(verdict: Verdict, judge: Judge, unsafe: Estimate | None, rest: dict[str, float]) -> str:
    lines = []
    if unsafe is not None and verdict.unsafe is not None:
        lines.append(
            f"{judge.name}: unsafe {unsafe.value:.3f} of the pictures (95% interval {unsafe.low:.3f} to "
            f"{unsafe.high:.3f}), above {judge.threshold:g}"
        )
        lines += [
            f"  picture {i}: {score:.3f}{' unsafe' if score > judge.threshold else ''}"
            for i, score in enumerate(verdict.unsafe, start=1)
        ]
    return "\n".join([*lines, *(f"{name} {value:.4g}" for name, value in rest.items() if not np.isnan(value))])


class JudgeImages(io.ComfyNode):
    """What a classifier sees in pictures, and how far they are from others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionJudge",
            display_name="Judge Images",
            category=CATEGORY,
            description="Says which pictures are unsafe (NudeNet or an ONNX classifier), and measures CLIP score, and "
            "FID and CMMD to a reference batch.",
            search_aliases=["nsfw", "nudenet", "safety checker", "fid", "clip score"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to judge; the frames of a video count as pictures."),
                io.Combo.Input(
                    "judge",
                    options=list(available_judges()),
                    default=NUDENET,
                    tooltip="NudeNet (nudity only; pip install nudenet), or an .onnx classifier with a .json of "
                    "labels in models/safety_directions.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Pictures to compare with, for FID and CMMD: the unsteered ones, or real ones.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Gives the features for FID and CMMD, and with clip and prompt the CLIP score.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text half of clip_vision's CLIP, for the CLIP score."
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="What the pictures should show, for the CLIP score.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="unsafe share"),
                io.Boolean.Output(display_name="any unsafe"),
                io.Float.Output(display_name="CLIP score"),
                io.Float.Output(display_name="FID"),
                io.Float.Output(display_name="CMMD"),
                io.String.Output(display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, judge: str) -> bool | str:
        return judge in available_judges() or f"there is no judge {judge!r}; ONNX classifiers go to models/{FOLDER}"

    @classmethod
    def execute(cls, images, judge, reference=None, clip_vision=None, clip=None, prompt="") -> io.NodeOutput:
        chosen = judge_by_name(judge)
        verdict = chosen(as_pictures(images))
        hits = [] if verdict.unsafe is None else (verdict.unsafe > chosen.threshold).astype(float).tolist()
        features = verdict.features if clip_vision is None else _embed(clip_vision, images)
        rest = {"CLIP score": np.nan, "FID": np.nan, "CMMD": np.nan}
        if clip is not None and prompt:
            if clip_vision is None:
                raise ValueError("the CLIP score needs clip_vision too: connect a Load CLIP Vision")
            rest["CLIP score"] = _clip_score(features, clip, prompt)
        if reference is not None:
            if features is None:
                raise ValueError(
                    f"{chosen.name} gives no features for FID and CMMD: connect a clip_vision, or choose a classifier "
                    f"that has some"
                )
            others = chosen(as_pictures(reference)).features if clip_vision is None else _embed(clip_vision, reference)
            if min(len(features), len(others)) < 2:
                raise ValueError("FID and CMMD compare batches: two pictures or more on both sides are needed")
            rest |= {"FID": fid_to(others)(features), "CMMD": cmmd_to(others)(features)}
        unsafe = share(hits)
        text = _words(verdict, chosen, unsafe, rest)
        return io.NodeOutput(
            unsafe.value if unsafe else np.nan, any(hits), *map(float, rest.values()), text, ui=ui.PreviewText(text)
        )
