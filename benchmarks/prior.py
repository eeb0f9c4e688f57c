"""A prior of image embeddings, measured by retrieval: ``python -m benchmarks.prior``.

Of each test caption the prior draws an image embedding. Among the captions of a group the draw should find its own as
often as the embedding of the true image does, since given its caption the one is distributed as the other; so should
its cosine with the true image's be that of two draws. Beside it is the caption's own embedding in place of an image's.
With ``--decoder`` images are drawn of all three embeddings, and graded against the captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.timing import table
from benchmarks.trained import add_run, load_named_run, unguided
from data import ImageDataset, VectorDataset, load_dataset
from data.sources.scene_words import scenes_of
from evaluation.quality import Estimate
from evaluation.samples.sample_batch import draw_batch
from evaluation.scenes import GRADES, SceneReader, grade_estimates, grade_scenes, train_scene_reader
from experiment import TrainedRun, load_run
from experiment.build import build_dataset, build_sampler
from experiment.workdir import write_json
from likelihood import mean_and_stderr
from models import Condition

RESULT = Path(__file__).parent / "results" / "prior.json"


def ranks_of_own(
    queries: Float[Tensor, "n dim"], gallery: Float[Tensor, "n dim"], *, group: int
) -> Int64[Tensor, " n"]:
    """The rank that each query's own entry has among the entries of its group by cosine, 1 for the nearest, int64 [N].

    Args:
        queries: One vector a row, [N, D].
        gallery: Entry i is query i's own, [N, D].
        group: Rows of a group, which divides N.

    Raises:
        ValueError: If it does not.
    """
    if len(queries) % group:
        raise ValueError(f"group must divide the {len(queries)} queries, got {group}; pass another one")
    near = (
        F.normalize(queries, dim=1).unflatten(0, (-1, group)) @ F.normalize(gallery, dim=1).unflatten(0, (-1, group)).mT
    )
    own = near.diagonal(dim1=1, dim2=2).unsqueeze(2)
    return 1 + (near > own).sum(2).flatten()


def draw_told(run: TrainedRun, values: Tensor, args: argparse.Namespace, *, weight: float, seed: int) -> Tensor:
    """One sample x0 of each row of values [N, K], sample k from noise stream (seed, k)."""
    config = unguided(run, guidance_weight=weight)
    sampler = build_sampler(config)
    model, device = run.sampled_model(sampler, config), next(run.model.parameters()).device
    parts = [
        draw_batch(
            sampler, model, range(k, min(k + args.batch_size, len(values))), sample_shape=run.sample_shape,
            seed=seed, cond=Condition(values=values[k : k + args.batch_size].float()).to(device), device=device,
        )[0].x0.cpu()
        for k in tqdm(range(0, len(values), args.batch_size), desc=f"draw at {weight:g}", unit="batch")
    ]  # fmt: skip
    return torch.cat(parts)


def retrieval(found: Tensor) -> dict[str, dict[str, float]]:
    """The share of ranks that are 1, and the mean rank, with standard errors over queries."""
    return {name: _said(values.double()) for name, values in (("first", found == 1), ("rank", found))}


def measure(images: Tensor, captions: Tensor, draws: Sequence[Tensor], *, group: int) -> dict[str, Any]:
    """Retrieval by two draws of each caption, and by what they are compared with, paired.

    Args:
        images: Embeddings of the true images, [N, D].
        captions: Embeddings of their captions, [N, D].
        draws: Two draws of the prior for each caption, [N, D].
        group: Captions that one is looked for among.

    Returns:
        ``retrieval``: ``first`` and ``rank`` of each pair of query and gallery; ``paired``: differences of ``first``,
        the draws' minus another's; ``cosine``: the means of vectors that belong together.
    """
    draw, other = draws
    pairs = {
        "draw -> captions": (draw, captions),
        "draw -> images": (draw, images),
        "image -> captions": (images, captions),
        "caption -> images": (captions, images),
    }
    ranks = {name: ranks_of_own(*pair, group=group) for name, pair in pairs.items()}
    first = {name: (found == 1).double() for name, found in ranks.items()}
    compared = (
        ("draw -> captions", "caption -> images"),
        ("draw -> images", "caption -> images"),
        ("draw -> captions", "image -> captions"),
    )
    cosines = {
        "draw, image": F.cosine_similarity(draw, images),
        "draw, draw": F.cosine_similarity(draw, other),
        "caption, image": F.cosine_similarity(captions, images),
        "draw, caption": F.cosine_similarity(draw, captions),
    }
    return {
        "retrieval": {name: retrieval(found) for name, found in ranks.items()},
        "paired": {f"({a}) - ({b})": _said(first[a] - first[b]) for a, b in compared},
        "cosine": {name: _said(one) for name, one in cosines.items()}
        | {"(draw, image) - (draw, draw)": _said(cosines["draw, image"] - cosines["draw, draw"])},
    }


def scene_reader() -> SceneReader:
    """A reader of 16x16 scenes, trained here."""
    train = load_dataset("scenes", root=".", split="train")
    assert isinstance(train, ImageDataset)
    return train_scene_reader(train)


def obedience(decoder: TrainedRun, embeddings: dict[str, Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """The grades of images that are decoded from embeddings of test scenes, by the name of these."""
    reader, report = scene_reader(), {}
    for name, values in embeddings.items():
        x0 = draw_told(decoder, values[: args.num_decoded], args, weight=args.decoder_weight, seed=args.seed)
        grades = grade_scenes(scenes_of("test", len(x0)), reader.read(x0))
        report[name] = {name: asdict(one) for name, one in grade_estimates(grades).items()}
    return report


def _said(values: Tensor) -> dict[str, float]:
    return asdict(Estimate(*mean_and_stderr(values)))


def _in_words(one: dict[str, float], scale: float, digits: int) -> str:
    return f"{scale * one['value']:.{digits}f} ± {scale * one['stderr']:.{digits}f}"


def print_report(report: dict[str, Any]) -> None:
    """Tables of retrieval and of grades, and the differences in lines."""
    rows = [
        {
            "guidance": weight,
            "query -> gallery": name,
            "own is first, %": _in_words(found["first"], 100, 1),
            "mean rank": _in_words(found["rank"], 1, 2),
        }
        for weight, one in report["guidance"].items()
        for name, found in one["retrieval"].items()
    ]
    print(table(rows))
    for weight, one in report["guidance"].items():
        for name, found in one["paired"].items():
            print(f"guidance {weight}, own is first: {name} = {_in_words(found, 100, 1)} %")
        for name, found in one["cosine"].items():
            print(f"guidance {weight}, cosine: {name} = {_in_words(found, 1, 3)}")
    if "decoder" in report:
        rows = [
            {"embedding": name} | {f"{grade}, %": _in_words(found[grade], 100, 1) for grade in GRADES}
            for name, found in report["decoder"].items()
        ]
        print(table(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, look for captions, decode, print, write."""
    parser = argparse.ArgumentParser(description="Retrieval by a prior of image embeddings.", allow_abbrev=False)
    add_run(parser)
    parser.set_defaults(config="configs/text/scenes_prior.py")
    parser.add_argument("--weights", type=listed(float), default=[1.0, 2.0], help="of guidance of the prior")
    parser.add_argument("--group", type=whole(2), default=200, help="captions that one is looked for among")
    parser.add_argument("--decoder", help="work directory of a decoder; default: none")
    parser.add_argument("--decoder-weight", type=float, default=1.0, help="of guidance of the decoder")
    parser.add_argument("--num-decoded", type=whole(2), default=200, help="captions whose images are drawn")
    parser.add_argument("--batch-size", type=whole(1), default=500)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--output", type=output, default=RESULT)
    args = parser.parse_args(arguments)
    run = load_named_run(args)
    held_out = build_dataset(run.config, "test")
    if not isinstance(held_out, VectorDataset) or held_out.values is None:
        raise SystemExit("the run is of no vectors that are told values; train configs/text/scenes_prior.py")
    count = len(held_out) // args.group * args.group
    if not count:
        raise SystemExit(f"--group must be at most {len(held_out)}, the number of captions, got {args.group}; lower it")
    images, captions = held_out.vectors[:count], held_out.values[:count].double()
    report: dict[str, Any] = {"step": run.step, "captions": count, "group": args.group, "guidance": {}}
    embeddings = {"image": images, "caption": captions}
    for weight in args.weights:
        draws = [run.decode(draw_told(run, captions, args, weight=weight, seed=args.seed + k)) for k in (0, 1)]
        report["guidance"][f"{weight:g}"] = measure(images, captions, draws, group=args.group)
        embeddings[f"draw at {weight:g}"] = draws[0]
        write_json(args.output, report)
    if args.decoder:
        report["decoder"] = obedience(load_run(args.decoder), embeddings, args)
        write_json(args.output, report)
    print_report(report)


if __name__ == "__main__":
    run_benchmark(main)
