#!/usr/bin/env python3
"""Logits of Python's `transformers` for the shipped bundle: `tests/vectors/transformers.json`.

    pip install torch transformers
    python3 scripts/transformers_fixture.py

`tests/parity.rs` holds our own logits to them. Run it again whenever `models/triage-base` changes.
"""

import argparse
import json
import tomllib
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

ROOT = Path(__file__).parent.parent
# Normalised and with words separated: that is done before the tokenizer.
TEXTS = [
    "小区 停水 三天 了 , 物业 没人管",
    "听说 城东 化工厂 爆炸 了 , 是 真的 吗 ?",
    "建议 在 学校 门口 加装 红绿灯",
    "今天 天气 真好",
    "拖欠 工资 半年 , 孩子 学费 都 交不起",
    "龘 𠮷 x1y2 ...... <电话>",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models/triage-base")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    model = BertForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()
    digests = tomllib.loads((args.model / "bundle.toml").read_text("utf-8"))["digests"]
    cls, sep = (tokenizer.token_to_id(it) for it in ("[CLS]", "[SEP]"))
    rows = []
    for text in TEXTS:
        ids = [cls, *tokenizer.encode(text, add_special_tokens=False).ids, sep]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].tolist()
        rows.append({"words": text.split(), "ids": ids, "logits": logits})
    longest = [cls, *(5 + (it * 37) % 15000 for it in range(model.config.max_position_embeddings - 2)), sep]
    with torch.no_grad():
        logits = model(torch.tensor([longest])).logits[0].tolist()
    rows.append({"words": None, "ids": longest, "logits": logits})
    out = {"weights": digests["model.safetensors"], "rows": rows}
    path = ROOT / "tests/vectors/transformers.json"
    path.write_text(json.dumps(out, ensure_ascii=False) + "\n", "utf-8")
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
