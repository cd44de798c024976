#!/usr/bin/env python3
"""Real clients of other systems against a running service: their scores must be those of /v1/classify.

    pip install -r scripts/requirements-clients.txt
    python3 scripts/compatible_clients.py --url http://127.0.0.1:8080 [--key KEY]

Hugging Face's InferenceClient, Triton's HTTP client (JSON and binary tensors), and the request shapes of
text-embeddings-inference. Prints one line a check and exits 1 when one fails.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

# No token of the machine's user goes to the service.
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"

import numpy as np  # noqa: E402
import tritonclient.http as triton  # noqa: E402
from huggingface_hub import InferenceClient  # noqa: E402

TEXTS = ["小区停水三天了，物业没人管", "化工厂着火了，有人被困", "建议在学校门口加装红绿灯", "谢谢你们的帮助"]
failed = []


def check(name, condition, seen=""):
    print("ok    " if condition else "FAILED", name, "" if condition else seen)
    if not condition:
        failed.append(name)


def post(args, path, body):
    """Status and JSON of a POST."""
    headers = {"content-type": "application/json", **args.headers}
    request = urllib.request.Request(args.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def same(scored, expected):
    """Whether a list of (label, score) pairs holds exactly the expected numbers."""
    return {label: round(score, 4) for label, score in scored} == {k: round(v, 4) for k, v in expected.items()}


def hugging_face(args, expected, logits):
    client = InferenceClient(model=f"{args.url}/models/triage", token=args.key)
    for text, numbers in zip(TEXTS, expected):
        rows = client.text_classification(text)
        check(f"huggingface_hub {text}", same([(it.label, it.score) for it in rows], numbers), rows)
    rows = client.text_classification(TEXTS[0], top_k=2)
    best = sorted(expected[0].values(), reverse=True)[:2]
    check("huggingface_hub top_k", [round(it.score, 4) for it in rows] == [round(it, 4) for it in best], rows)
    rows = client.text_classification(TEXTS[0], function_to_apply="none")
    check("huggingface_hub raw scores", same([(it.label, it.score) for it in rows], logits[0]), rows)


def triton_client(args, expected):
    client = triton.InferenceServerClient(urllib.parse.urlparse(args.url).netloc)
    check("tritonclient live", client.is_server_live(headers=args.headers))
    check("tritonclient ready", client.is_server_ready(headers=args.headers))
    check("tritonclient model ready", client.is_model_ready("triage", headers=args.headers))
    metadata = client.get_model_metadata("triage", headers=args.headers)
    check("tritonclient metadata", metadata["inputs"][0]["datatype"] == "BYTES", metadata)
    texts = np.array([it.encode() for it in TEXTS], dtype=object)
    for binary in (False, True):
        tensor = triton.InferInput("text", list(texts.shape), "BYTES")
        tensor.set_data_from_numpy(texts, binary_data=binary)
        outputs = [triton.InferRequestedOutput(it, binary_data=binary) for it in ("label", "probabilities")]
        for wanted in (outputs, None):
            result = client.infer("triage", [tensor], outputs=wanted, headers=args.headers)
            labels = result.get_response()["parameters"]["labels"].split(",")
            rows = result.as_numpy("probabilities")
            right = all(same(zip(labels, map(float, row)), numbers) for row, numbers in zip(rows, expected))
            best = [max(it, key=it.get) for it in expected]
            right = right and list(result.as_numpy("label").astype(str)) == best
            check(f"tritonclient infer, binary={binary}, outputs {'named' if wanted else 'not named'}", right, rows)
    try:
        client.get_model_metadata("other", headers=args.headers)
        check("tritonclient unknown model", False)
    except Exception as error:  # Its own exception class carries the server's message.
        check("tritonclient unknown model", "triage" in str(error), error)


def text_embeddings_inference(args, expected, logits):
    pairs = lambda row: [(it["label"], it["score"]) for it in row]
    for inputs in (TEXTS[0], [TEXTS[0]]):
        _, row = post(args, "/predict", {"inputs": inputs, "truncate": True})
        check(f"TEI {type(inputs).__name__}", same(pairs(row), expected[0]), row)
    _, rows = post(args, "/predict", {"inputs": [[it] for it in TEXTS]})
    check("TEI batch", all(same(pairs(row), it) for row, it in zip(rows, expected)), rows)
    _, row = post(args, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    check("TEI raw scores", same(pairs(row), logits[0]), row)
    status, error = post(args, "/predict", {"inputs": TEXTS[:2]})
    check("TEI sentence pair refused", status == 422 and error["error_type"] == "Validation", error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", help="when the service has keys")
    args = parser.parse_args()
    args.url = args.url.rstrip("/")
    args.headers = {"authorization": f"Bearer {args.key}"} if args.key else {}
    items = [{"id": str(idx), "text": text} for idx, text in enumerate(TEXTS)]
    status, reply = post(args, "/v1/classify", {"items": items, "include": ["logits"]})
    check("/v1/classify", status == 200, reply)
    expected = [it["probabilities"] for it in reply["results"]]
    logits = [it["logits"] for it in reply["results"]]
    hugging_face(args, expected, logits)
    triton_client(args, expected)
    text_embeddings_inference(args, expected, logits)
    sys.exit(1 if failed else 0)


main()
