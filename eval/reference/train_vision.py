"""Stage 1: the CLIP model. All losses together, from the first step.

* Dense heads on the layer that the language model reads: what each patch shows, the character in
  it, the whole number and word of its object, its row and column. Local characters make reading
  learnable; object-level labels make look-up easy for the language model; rows and columns let it
  say where things are, whatever number a token has in the sequence.
* CLIP loss between the CLS token (last layer) and a caption of the tile.
* Presence of everything in the tile, from the CLS token: its attention must land on objects.
* Patch-text alignment: projected patches of the last layer against a phrase or a question.

Run: ``python -m vtc.eval.reference.train_vision --folder runs/vision --minutes 25``
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .labels import DENSE, IGNORE, PRESENCE, label, phrase
from .model import FEATURE_LAYER, build_clip
from .scene import make_scene
from .tiles import normalise, split_tiles
from .tokenizer import build_tokenizer
from .training import Log, Optimiser, Schedule, add_arguments, average, launch, save_state

KINDS = {"full": 0.3, "cluster": 0.15, "document": 0.35, "mixed": 0.2}
DENSE_WEIGHT = {"kind": 0.7, "row": 0.3, "col": 0.3, "thumb": 0.2}


class Heads(nn.Module):
    """Linear read-outs that only exist during training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleDict({name: nn.Linear(width, n) for name, n in DENSE.items()})
        self.norm = nn.LayerNorm(width)
        self.presence = nn.Linear(width, PRESENCE)
        self.align_scale = nn.Parameter(torch.tensor(2.3))
        self.align_bias = nn.Parameter(torch.tensor(-4.0))


def tower_states(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of the layer that the language model reads, and of the last layer."""
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    states = [hidden]
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
        states.append(hidden)
    return states[FEATURE_LAYER], hidden


class Batches:
    """Endless tiles with labels, captions and one aligned text each."""

    def __init__(self, split: str, seed: int, size: int, first: int = 0, stride: int = 1) -> None:
        self.split, self.seed, self.size = split, seed, size
        self.index, self.stride = first, stride
        self.tokenizer = build_tokenizer(end_token=True, max_length=77)
        self.pool: list[dict] = []

    def _more(self) -> None:
        scene = make_scene(self.split, self.seed, self.index, KINDS, questions=12, per_type=2)
        rng = np.random.default_rng([7, self.seed, self.index])
        self.index += self.stride
        tiles = label(scene)
        pixels = normalise(split_tiles(scene.image))
        for tile in range(len(pixels)):
            seen = tiles.seen[tile]
            keep = 0.6 if tile == 0 else (1.0 if seen else 0.12)
            if rng.random() >= keep:
                continue
            text, mask = self._aligned(scene, tiles.owner[tile], seen, tile, rng)
            some = rng.permutation(seen)[: 8 if tile else 6]
            caption = " , ".join(phrase(scene.objects[i], tile > 0) for i in some)
            self.pool.append(
                {
                    "pixels": pixels[tile],
                    "dense": {name: values[tile] for name, values in tiles.dense.items()},
                    "presence": tiles.presence[tile],
                    "caption": caption or "nothing",
                    "text": text or "nothing",
                    "mask": mask,
                }
            )

    def _aligned(
        self, scene: Any, owner: np.ndarray, seen: list[int], tile: int, rng: np.random.Generator
    ) -> tuple[str, np.ndarray]:
        """A phrase or a question, and the patches of the tile that it is about."""
        none = "", np.zeros(len(owner), dtype=bool)
        shown = [i for i in seen if (owner == i).any()]
        if not shown:
            return none
        asked = []
        for question in scene.questions:
            if question.type == "at" or (tile == 0 and question.group == "reading"):
                continue
            about = question.about
            if question.type == "exist":
                name = question.text.removeprefix("is there a ").removesuffix(" ?")
                exact = tuple(i for i in about if phrase(scene.objects[i]) == name)
                about = exact or about
            about = [i for i in about if i in shown]
            if about:
                asked.append((question.text, about))
        if asked and rng.random() < 0.65:
            text, about = asked[int(rng.integers(len(asked)))]
        else:
            text = phrase(scene.objects[int(rng.choice(shown))], tile > 0)
            about = [i for i in shown if phrase(scene.objects[i], tile > 0) == text]
        return text, np.isin(owner, about)

    def next(self) -> dict[str, Any]:
        """One batch of tensors."""
        while len(self.pool) < self.size:
            self._more()
        rows, self.pool = self.pool[: self.size], self.pool[self.size :]
        texts = [row["caption"] for row in rows] + [row["text"] for row in rows]
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
        return {
            "pixels": torch.from_numpy(np.stack([row["pixels"] for row in rows])),
            "dense": {
                name: torch.from_numpy(np.stack([row["dense"][name] for row in rows]))
                for name in DENSE
            },
            "presence": torch.from_numpy(np.stack([row["presence"] for row in rows])),
            "mask": torch.from_numpy(np.stack([row["mask"] for row in rows])),
            "captioned": torch.tensor([row["caption"] != "nothing" for row in rows]),
            "ids": ids,
        }


def losses(clip: Any, heads: Heads, batch: dict[str, Any]) -> tuple[Tensor, dict]:
    """Total loss and its parts, with accuracies of the dense heads."""
    read, last = tower_states(clip.vision_model, batch["pixels"])
    patches = read[:, 1:]
    parts: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}
    total = torch.zeros(())
    for name, target in batch["dense"].items():
        keep = target != IGNORE
        if not keep.any():
            continue
        logits, target = heads.dense[name](patches[keep]), target[keep]
        parts[name] = F.cross_entropy(logits, target)
        right = logits.argmax(-1) == target
        if name in ("char", "kind"):
            right = right[target > 0]  # background would drown the rest
        scores[name] = right.float().mean()
        total = total + DENSE_WEIGHT.get(name, 1.0) * parts[name]
    cls = heads.norm(last[:, 0])
    parts["presence"] = F.binary_cross_entropy_with_logits(heads.presence(cls), batch["presence"])
    size = len(patches)
    text = F.normalize(clip.get_text_features(input_ids=batch["ids"]).pooler_output, dim=-1)
    captions, aligned = text[:size], text[size:]
    seen = batch["captioned"]
    image = clip.visual_projection(clip.vision_model.post_layernorm(last[:, 0]))
    image = F.normalize(image, dim=-1)[seen]
    logits = image @ captions[seen].t() * clip.logit_scale.clamp(max=4.0).exp()
    target = torch.arange(len(logits))
    parts["clip"] = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    scores["clip"] = (logits.argmax(-1) == target).float().mean()

    mask = batch["mask"]
    used = mask.any(1)
    projected = F.normalize(clip.visual_projection(last[:, 1:]), dim=-1)[used]
    mask, aligned = mask[used].float(), aligned[used]
    scale = heads.align_scale.clamp(max=4.0).exp()
    cosine = torch.einsum("bnd,bd->bn", projected, aligned)
    wanted = mask / mask.sum(1, keepdim=True)
    parts["align"] = -(wanted * F.log_softmax(cosine * scale, -1)).sum(1).mean()
    # An absolute level too: patches of another tile should not answer this text.
    other = torch.einsum("bnd,bd->bn", projected.roll(1, 0), aligned)
    level = torch.cat([cosine, other], 1) * scale + heads.align_bias
    goal = torch.cat([mask, torch.zeros_like(mask)], 1)
    parts["level"] = F.binary_cross_entropy_with_logits(level, goal, pos_weight=torch.tensor(8.0))
    best = cosine.argmax(1, keepdim=True)
    scores["align"] = mask.gather(1, best).mean()
    total = total + 10 * parts["presence"] + 0.3 * parts["clip"]
    total = total + 0.4 * parts["align"] + 0.5 * parts["level"]
    return total, {"loss": parts, "score": scores}


def evaluate(clip: nn.Module, heads: Heads, batches: list[dict]) -> dict[str, float]:
    """Mean scores over fixed validation batches."""
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in batches:
            for name, value in losses(clip, heads, batch)[1]["score"].items():
                sums.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in sums.items()}


def work(rank: int, args: argparse.Namespace) -> None:
    """One rank of the training."""
    clip: Any = build_clip(args.seed)
    clip.set_attn_implementation("eager")
    torch.manual_seed(args.seed)
    heads = Heads(clip.config.vision_config.hidden_size)
    both = nn.ModuleDict({"clip": clip, "heads": heads})
    optimiser = Optimiser(both.named_parameters(), lambda name: ".encoder.layers." in name, args.lr)
    state_path = args.folder / f"state{rank}.pt"
    step, index, used = 0, rank, 0.0
    if args.resume:
        state = torch.load(state_path, weights_only=True)
        both.load_state_dict(state["model"])
        optimiser.load(state["optimiser"])
        step, index, used = state["step"], state["index"], state["seconds"]
    average(both.parameters())
    data = Batches("train", args.seed, args.batch, index, args.ranks)
    log = Log(args.folder, args.resume) if rank == 0 else None
    checks = [Batches("val", 0, 64).next() for _ in range(1)] if rank == 0 else []
    schedule = Schedule(args, used)
    schedule.update(step)
    saved, parts, busy, render = time.monotonic(), None, 0.0, 0.0
    while schedule.progress < 1:
        begun = time.monotonic()
        batch = data.next()
        render += time.monotonic() - begun
        total, parts = losses(clip, heads, batch)
        total.backward()
        optimiser.step(schedule.factor(step))
        step += 1
        if step % args.sync == 0:
            average(both.parameters())
            schedule.update(step)
        busy += time.monotonic() - begun
        if step % args.log_every == 0 and log is not None:
            log.write(
                step=step,
                seconds=schedule.seconds(),
                tiles_per_second=args.log_every * args.batch * args.ranks / busy,
                render=render / busy,
                lr=args.lr * schedule.factor(step),
                loss=float(total.detach()),
                **{f"loss_{k}": float(v.detach()) for k, v in parts["loss"].items()},
            )
        if step % args.log_every == 0:
            busy = render = 0.0
        if step % (args.log_every * 4) == 0 and log is not None:
            log.write(step=step, val=evaluate(clip, heads, checks))
        if time.monotonic() - saved > args.save_minutes * 60 or schedule.progress >= 1:
            saved = time.monotonic()
            save_state(
                state_path,
                model=both.state_dict(),
                optimiser=optimiser.state(),
                step=step,
                index=data.index,
                seconds=schedule.seconds(),
            )
    average(both.parameters())
    if log is not None:
        checks = [Batches("val", 0, 64, first=i * 1000).next() for i in range(8)]
        log.write(step=step, seconds=schedule.seconds(), final=evaluate(clip, heads, checks))
        torch.save(clip.state_dict(), args.folder / "clip.pt")
        torch.save(heads.state_dict(), args.folder / "heads.pt")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser, "runs/vision", 25.0)
    parser.add_argument("--batch", type=int, default=48, help="tiles per rank and step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--log-every", type=int, default=25)
    args = parser.parse_args(argv)
    if args.batch < 2:
        raise ValueError(f"batch must be at least 2, got {args.batch}")
    launch(work, args)


if __name__ == "__main__":
    main()
