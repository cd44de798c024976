//! Long examples of the contract.

use serde_json::{Value, json};

/// A reply of `POST /v1/classify`: one item answered, one refused.
pub fn classified() -> Value {
    json!({
        "results": [
            {
                "id": "a1", "status": "ok",
                "type": {"code": "problem", "zh": "问题类", "probability": 0.9645},
                "probabilities": {"problem": 0.9645, "emergency": 0.0059, "sensitive": 0.0024, "suggestion": 0.0079, "disputed_claim": 0.0133, "none": 0.006},
                "prediction_set": ["problem"],
                "sensitivity": {"score": 0.443, "level": 1, "zh": "一般", "grounds": [{"code": "wide", "probability": 0.519}]},
                "decision": "route", "review": {"required": false, "reasons": []},
                "handling": {
                    "principle": "及时致歉叫停，后续整改到位",
                    "steps": ["当日联系反映人，先致歉、表明已受理，并核对时间、地点和经过"],
                    "due": {"first_response_hours": 48, "outcome_hours": 168}
                },
                "input": {"characters": 13, "words": 7, "chunks": 1, "truncated": false, "normalizations": ["width"], "redactions": []}
            },
            {
                "id": "a2", "status": "error",
                "error": {"code": "empty_text", "detail": "the text is empty; send at least one visible character", "pointer": "/items/1/text"}
            }
        ],
        "model": model(),
        "policy_digest": "sha256:…"
    })
}

/// A model's identity.
pub fn model() -> Value {
    json!({"name": "triage-base", "version": "0.1.0", "digest": "sha256:…"})
}

/// A reply of `GET /v1/model`, its manifest and metrics left empty.
pub fn model_reply() -> Value {
    let mut reply = model();
    reply["bundle"] = json!({});
    reply["metrics"] = json!({});
    reply["policy_digest"] = json!("sha256:…");
    reply
}

/// A reply of `GET /v1/taxonomy`, shortened.
pub fn taxonomy() -> Value {
    json!({
        "types": [{
            "code": "problem", "zh": "问题类", "definition": "…", "principle": "及时致歉叫停，后续整改到位",
            "steps": ["…"], "due": {"first_response_hours": 48, "outcome_hours": 168}
        }],
        "levels": [{"level": 0, "zh": "…"}],
        "grounds": [{"code": "wide", "zh": "…"}],
        "policy_digest": "sha256:…"
    })
}
