#!/usr/bin/env python3
"""Pretrains an encoder for `triage train --base`: masked words, on a CPU or a GPU.

    triage encode vocab CORPUS... -o tokenizer.json
    triage encode ids CORPUS... --tokenizer tokenizer.json -o corpus.ids
    python3 scripts/warm_start.py --tokenizer tokenizer.json --ids corpus.ids --output start/
    python3 scripts/pretrain.py --start start/ --ids corpus.ids --checkpoint run.pt --output base/ --minutes 100

Tokens are words, so masking is whole-word by construction. Two objectives share one output table:
- each masked word from its own state (Devlin et al. 2019, 20 % masked);
- every masked word of a text from the text's pooled vector alone, so that what the classifier reads
  holds the text's content before a label is seen (after Gao and Callan 2021, "Condenser").
Their softmax runs over a sample of the vocabulary, corrected for how likely each word was to be in it
(Jean et al. 2015); the curve is measured with the whole one.

With `--tasks`, a share of the steps classifies labelled texts of other tasks instead, a linear layer
each on the pooled vector (Aghajanyan et al. 2021, "Muppet"): `prepare_tasks.py` makes that directory.

A word's vector is its own plus the mean of its characters' (shared between words, so that rare words
learn from common ones); `--output` holds their sum, one plain table that costs nothing when serving.

Matrices inside the encoder learn by Muon (Jordan 2024), the rest by AdamW. The rate is constant
until `--decay-share` of the time is left, then falls to zero. The checkpoint is taken before the
fall, so that a later call with the same `--checkpoint` goes on where this one was.
"""

import argparse
import contextlib
import csv
import json
import math
import shutil
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the backend is chosen)

MASK_SHARE = 0.2
POOLED_WEIGHT = 0.3
N_SAMPLED = 3000  # words drawn beside a batch's own targets
N_HELD_OUT = 2000  # documents never trained on, for the curve


class Layer(nn.Module):
    def __init__(self, hidden, heads, inner, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.attention_output = (
            nn.Linear(hidden, hidden) for _ in range(4)
        )
        self.intermediate, self.output = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.output_norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, xs, mask):
        split = [
            it(xs).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for it in (self.query, self.key, self.value)
        ]
        context = F.scaled_dot_product_attention(*split, attn_mask=mask)
        context = self.attention_output(context.transpose(1, 2).flatten(2))
        xs = self.attention_norm(xs + F.dropout(context, self.dropout, self.training))
        inner = self.output(F.gelu(self.intermediate(xs)))
        return self.output_norm(xs + F.dropout(inner, self.dropout, self.training))


class Encoder(nn.Module):
    """BERT (post-norm), its word table composed of words and characters."""

    def __init__(self, config, words, task_sizes):
        super().__init__()
        hidden = config["hidden_size"]
        self.config = config
        self.own = nn.Parameter(torch.randn(len(words), hidden) * 0.02)
        characters = sorted({it for word in words for it in word})
        index = {it: idx for idx, it in enumerate(characters)}
        self.character = nn.Parameter(torch.zeros(len(characters), hidden))
        # A word of one character is its own character: no parts.
        parts = [[index[it] for it in word] if 1 < len(word) <= 8 and word[0] != "[" else [] for word in words]
        flat = torch.tensor([it for part in parts for it in part])
        begins = torch.tensor(np.cumsum([0] + [len(it) for it in parts[:-1]]))
        self.register_buffer("parts", flat, persistent=False)
        self.register_buffer("begins", begins, persistent=False)
        self.position = nn.Parameter(torch.randn(config["max_position_embeddings"], hidden) * 0.02)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(hidden, config["num_attention_heads"], config["intermediate_size"], config["hidden_dropout_prob"])
            for _ in range(config["num_hidden_layers"])
        )
        self.pooler = nn.Linear(hidden, hidden)
        self.transform, self.transform_norm = nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.pooled_transform, self.pooled_norm = nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.output_bias = nn.Parameter(torch.zeros(len(words)))
        self.tasks = nn.ModuleDict({name: nn.Linear(hidden, n) for name, n in task_sizes.items()})
        for name, it in self.named_parameters():
            if it.ndim == 2 and ("layers" in name or "pooler" in name or "transform" in name):
                nn.init.normal_(it, std=0.02 if "output" in name else hidden**-0.5 * 0.5)
            if name.endswith("bias"):
                nn.init.zeros_(it)

    def table(self):
        return self.own + F.embedding_bag(self.parts, self.character, self.begins, mode="mean")

    def forward(self, ids, lengths, table):
        """`ids` is `(batch, seq)`; gives states `(batch, seq, hidden)`."""
        xs = F.embedding(ids, table) + self.position[: ids.shape[1]]
        xs = F.dropout(self.norm(xs), self.config["hidden_dropout_prob"], self.training)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        mask = mask[:, None, None, :]
        for layer in self.layers:
            xs = layer(xs, mask)
        return xs

    def losses(self, ids, lengths, masked, targets, words=None, log_chance=None):
        """Both objectives; `masked` is `(batch, seq)`, `targets` its original ids in order.

        `words` (ascending ids) bounds the softmax, `log_chance` is how likely each was to be there.
        """
        table = self.table()
        xs = self(ids, lengths, table)
        output, bias = table, self.output_bias
        if words is not None:
            output, bias = table[words], bias[words] - log_chance
            targets = torch.searchsorted(words, targets)
        states = self.transform_norm(F.gelu(self.transform(xs[masked])))
        by_state = F.cross_entropy((states @ output.T + bias).float(), targets)
        pooled = self.pooled_norm(F.gelu(self.pooled_transform(self.pool(xs))))
        log_probabilities = F.log_softmax((pooled @ output.T + bias).float(), -1)
        rows = masked.nonzero()[:, 0]
        by_pooled = -log_probabilities[rows, targets].mean()
        return by_state, by_pooled

    def pool(self, xs):
        return torch.tanh(self.pooler(xs[:, 0]))

    def task_loss(self, name, ids, lengths, labels):
        pooled = self.pool(self(ids, lengths, self.table()))
        logits = self.tasks[name](F.dropout(pooled, self.config["hidden_dropout_prob"], self.training))
        return F.cross_entropy(logits.float(), labels)

    def export(self):
        """Tensors under Hugging Face's BERT names."""
        hidden = self.config["hidden_size"]
        out = {
            "embeddings.word_embeddings.weight": self.table(),
            "embeddings.position_embeddings.weight": self.position,
            "embeddings.token_type_embeddings.weight": torch.zeros(2, hidden),
            "embeddings.LayerNorm": self.norm,
            "pooler.dense": self.pooler,
        }
        for idx, layer in enumerate(self.layers):
            at = f"encoder.layer.{idx}"
            out |= {f"{at}.attention.self.{it}": getattr(layer, it) for it in ("query", "key", "value")}
            out[f"{at}.attention.output.dense"] = layer.attention_output
            out[f"{at}.attention.output.LayerNorm"] = layer.attention_norm
            out[f"{at}.intermediate.dense"] = layer.intermediate
            out[f"{at}.output.dense"] = layer.output
            out[f"{at}.output.LayerNorm"] = layer.output_norm
        flat = {}
        for name, it in out.items():
            if isinstance(it, nn.Module):
                flat[f"bert.{name}.weight"], flat[f"bert.{name}.bias"] = it.weight, it.bias
            else:
                flat[f"bert.{name}"] = it
        return {name: it.detach().float().cpu().contiguous() for name, it in flat.items()}


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal by five Newton-Schulz steps (Jordan 2024)."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for it in group["params"]:
                state = self.state[it]
                momentum = state.setdefault("momentum", torch.zeros_like(it))
                momentum.lerp_(it.grad, 1 - group["momentum"])
                update = it.grad.lerp(momentum, group["momentum"])
                update = orthogonal(update) * max(1, it.shape[0] / it.shape[1]) ** 0.5
                it.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def orthogonal(matrix, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    xs = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = xs @ xs.T
        xs = a * xs + (b * square + c * square @ square) @ xs
    return xs if matrix.shape[0] <= matrix.shape[1] else xs.T


class Documents:
    """Documents of a packed id file, in batches of about one length."""

    def __init__(self, ids, separator, vocab, min_length=4):
        self.ids = ids
        ends = np.flatnonzero(ids == separator)
        begins = np.concatenate([[0], ends[:-1] + 1])
        keep = ends - begins >= min_length
        self.begins, self.lengths = begins[keep], (ends - begins)[keep]
        self.cls, self.sep, self.mask = vocab["[CLS]"], vocab["[SEP]"], vocab["[MASK]"]
        self.n_special = max(vocab[it] for it in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) + 1
        self.vocab_size = len(vocab)
        counts = np.bincount(ids, minlength=len(vocab)).astype(np.float64)
        counts[: self.n_special] = 0
        self.frequency = counts / counts.sum()
        roots = np.sqrt(counts)
        self.sampling = roots / roots.sum()
        self.cumulative = np.cumsum(self.sampling)

    def sample(self, targets, rng):
        """Ascending ids: the targets and a draw of others; and the logarithm of each one's chance."""
        drawn = np.searchsorted(self.cumulative, rng.random(N_SAMPLED) * self.cumulative[-1])
        words = np.union1d(targets.numpy(), drawn)
        expected = len(targets) * self.frequency[words] + N_SAMPLED * self.sampling[words]
        log_chance = np.log(-np.expm1(-np.maximum(expected, 1e-9)))
        return torch.from_numpy(words), torch.from_numpy(log_chance.astype(np.float32))

    def batches(self, documents, max_length, batch_tokens, rng):
        """Endless lists of documents of about one length."""
        while True:
            order = rng.permutation(documents)
            for begin in range(0, len(order), 16384):
                pool = order[begin : begin + 16384]
                pool = pool[np.argsort(self.lengths[pool], kind="stable")]
                longest = np.minimum(self.lengths[pool], max_length - 2) + 2
                cuts, first = [], 0
                for at in range(len(pool)):
                    if (at + 1 - first) * longest[at] > batch_tokens and at > first:
                        cuts.append((first, at))
                        first = at
                cuts.append((first, len(pool)))
                for first, last in (cuts[it] for it in rng.permutation(len(cuts))):
                    yield pool[first:last]

    def rows(self, documents, max_length, rng):
        """Ids `(batch, seq)` and lengths; a long document gives a random window."""
        lengths = np.minimum(self.lengths[documents], max_length - 2)
        rows = np.zeros((len(documents), lengths.max() + 2), np.int64)
        for row, document, length in zip(rows, documents, lengths):
            begin = self.begins[document] + rng.integers(self.lengths[document] - length + 1)
            row[0], row[1 : length + 1], row[length + 1] = self.cls, self.ids[begin : begin + length], self.sep
        return rows, lengths + 2

    def masked(self, documents, max_length, rng):
        """`(ids, lengths, masked, targets)`"""
        rows, lengths = self.rows(documents, max_length, rng)
        masked = (rng.random(rows.shape) < MASK_SHARE) & (rows >= self.n_special)
        targets = rows[masked]
        draw = rng.random(len(targets))
        hidden = np.where(draw < 0.8, self.mask, targets)
        swap = draw > 0.9
        hidden[swap] = rng.integers(self.n_special, self.vocab_size, swap.sum())
        rows[masked] = hidden
        return [torch.from_numpy(it) for it in (rows, lengths, masked, targets)]


class Task:
    """A labelled set of `prepare_tasks.py`: `NAME.ids`, and `NAME.labels` with a number a line."""

    def __init__(self, path, vocab, max_length, batch_tokens, rng):
        ids = np.fromfile(path, "<u4").astype(np.int32)
        self.documents = Documents(ids, vocab["[SEP]"], vocab, min_length=0)
        self.labels = np.loadtxt(path.with_suffix(".labels"), dtype=np.int64)
        if len(self.labels) != len(self.documents.begins):
            raise SystemExit(f"{path}: {len(self.documents.begins)} texts, {len(self.labels)} labels")
        self.max_length, self.rng = max_length, rng
        everything = np.arange(len(self.labels))
        self.order = self.documents.batches(everything, max_length, batch_tokens, rng)

    def batch(self):
        documents = next(self.order)
        rows, lengths = self.documents.rows(documents, self.max_length, self.rng)
        return [torch.from_numpy(it) for it in (rows, lengths, self.labels[documents])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="directory of warm_start.py")
    parser.add_argument("--ids", type=Path, required=True, help="output of `triage encode ids`")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="base directory to write")
    parser.add_argument("--tasks", type=Path, help="output of prepare_tasks.py")
    parser.add_argument("--task-share", type=float, default=0.25, help="share of the steps")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--decay-share", type=float, default=0.25)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--intermediate-size", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--muon-rate", type=float, default=0.01)
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--f32", action="store_true", help="no bf16")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    vocab = json.loads((args.start / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    config = json.loads((args.start / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": args.layers, "num_attention_heads": args.heads}
    config["intermediate_size"] = args.intermediate_size
    words = sorted(vocab, key=vocab.get)
    paths = sorted(args.tasks.glob("*.ids")) if args.tasks else []
    # Its own stream of chance, so that tasks do not change which words are masked.
    task_rng = np.random.default_rng([args.seed, time.time_ns()])
    tasks = {it.stem: Task(it, vocab, args.max_length, args.batch_tokens, task_rng) for it in paths}
    # Between "each task alike" and "each text alike".
    task_weights = np.sqrt([len(it.labels) for it in tasks.values()])
    task_losses = {}
    model = Encoder(config, words, {name: int(it.labels.max()) + 1 for name, it in tasks.items()})
    model = model.to(args.device)
    given = load_file(args.start / "model.safetensors")
    model.own.data.copy_(given["bert.embeddings.word_embeddings.weight"])

    matrices = [it for name, it in model.named_parameters() if it.ndim == 2 and name.startswith("layers")]
    inside = {id(it) for it in matrices}
    others = [it for it in model.parameters() if id(it) not in inside]
    muon = Muon(matrices, lr=args.muon_rate)
    adam = torch.optim.AdamW(others, lr=args.adam_rate, betas=(0.9, 0.98), weight_decay=0.01)
    progress = {"step": 0, "tokens": 0, "minutes": 0.0, "curve": []}
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=args.device, weights_only=False)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        progress = saved["progress"]
    minutes_before = progress["minutes"]

    def save():
        temporary = args.checkpoint.with_suffix(".new")
        states = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
        torch.save(states | {"progress": progress}, temporary)
        temporary.replace(args.checkpoint)

    documents = Documents(np.fromfile(args.ids, "<u4").astype(np.int32), vocab["[SEP]"], vocab)
    order = np.random.default_rng(args.seed).permutation(len(documents.begins))
    held_out, training = order[:N_HELD_OUT], order[N_HELD_OUT:]
    # A resumed run must not see the same order again.
    rng = np.random.default_rng([args.seed, progress["step"]])
    batches = documents.batches(training, args.max_length, args.batch_tokens, rng)
    if args.f32:
        precision = contextlib.nullcontext
    else:
        def precision():
            return torch.autocast(args.device, torch.bfloat16)

    @torch.no_grad()
    def validate():
        model.eval()
        fixed = np.random.default_rng(0)
        pool = held_out[np.argsort(documents.lengths[held_out], kind="stable")]
        sums, n = np.zeros(2), 0
        for begin in range(0, len(pool), 100):
            batch = [it.to(args.device) for it in documents.masked(pool[begin : begin + 100], args.max_length, fixed)]
            with precision():
                losses = model.losses(*batch)
            sums += [it.item() * len(batch[3]) for it in losses]
            n += len(batch[3])
        model.train()
        return sums / n

    began = time.monotonic()
    last_seen = last_saved = began
    warm_up = 100
    model.train()
    while True:
        now = time.monotonic()
        left = 1 - (now - began) / 60 / args.minutes
        if left <= 0:
            break
        is_falling = left < args.decay_share
        progress["minutes"] = minutes_before + (now - began) / 60
        if not is_falling and now - last_saved > 180:
            save()
            last_saved = now
        rate = min(1.0, left / args.decay_share, (progress["step"] + 1) / warm_up)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = args.muon_rate * rate, args.adam_rate * rate
        if tasks and task_rng.random() < args.task_share:
            name = task_rng.choice(list(tasks), p=task_weights / task_weights.sum())
            batch = [it.to(args.device) for it in tasks[name].batch()]
            with precision():
                loss = model.task_loss(name, *batch)
            task_losses[name] = 0.9 * task_losses.get(name, loss.item()) + 0.1 * loss.item()
        else:
            batch = documents.masked(next(batches), args.max_length, rng)
            if not len(batch[3]):
                continue
            batch += documents.sample(batch[3], rng)
            batch = [it.to(args.device) for it in batch]
            with precision():
                by_state, by_pooled = model.losses(*batch)
            loss = by_state + POOLED_WEIGHT * by_pooled
        # Heads of other tasks keep no gradient, so that AdamW passes them by.
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        progress["step"] += 1
        progress["tokens"] += int(batch[1].sum())
        if now - last_seen > 180 or progress["step"] == 20:
            last_seen = now
            state, pooled = validate()
            rate_now = (progress["tokens"] - (progress["curve"] or [{"tokens": 0}])[-1]["tokens"])
            row = {"minutes": round(progress["minutes"], 2), "step": progress["step"], "tokens": progress["tokens"]}
            row |= {"masked_loss": round(float(state), 4), "pooled_loss": round(float(pooled), 4), "rate": round(rate, 3)}
            progress["curve"].append(row)
            if not math.isfinite(state):
                raise SystemExit("the loss is not finite; lower the rates")
            shown = " ".join(f"{name} {it:.3f}" for name, it in sorted(task_losses.items()))
            print(row, f"{rate_now:,} tokens since the last line", shown, flush=True)

    args.output.mkdir(parents=True, exist_ok=True)
    save_file(model.export(), args.output / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(args.start / "tokenizer.json", args.output / "tokenizer.json")
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    curve(progress["curve"], args.output)
    print(f"{args.output}: {progress['tokens']:,} tokens in {progress['minutes']:.1f} minutes")


def curve(rows, output):
    """The loss curve as `curve.csv` and `curve.png`."""
    with (output / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("masked_loss", "pooled_loss"):
        plt.plot([it["tokens"] / 1e6 for it in rows], [it[name] for it in rows], label=name)
    plt.xlabel("million tokens")
    plt.ylabel("held-out loss (nats a word)")
    plt.legend()
    plt.savefig(output / "curve.png", dpi=120)


if __name__ == "__main__":
    main()
