//! The encoder's shape: candle-transformers' BERT `Config`, written and read as Hugging Face's
//! `config.json`.

use candle_transformers::models::bert::{Config, HiddenAct, PositionEmbeddingType};
use serde_json::{Value, json};

use crate::domain::label::LabelSet;

/// The shape trained when no base encoder is given: two layers, 256 wide.
pub fn small(vocab_size: usize) -> Config {
    Config {
        vocab_size,
        hidden_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 768,
        hidden_act: HiddenAct::Gelu,
        hidden_dropout_prob: 0.1,
        max_position_embeddings: 256,
        type_vocab_size: 2,
        initializer_range: 0.02,
        layer_norm_eps: 1e-12,
        pad_token_id: 0,
        position_embedding_type: PositionEmbeddingType::Absolute,
        use_cache: false,
        classifier_dropout: Some(0.1),
        model_type: Some("bert".into()),
    }
}

/// # Errors
/// When the heads do not share the width evenly.
pub fn check_heads(config: &Config) -> candle_core::Result<()> {
    let (n_heads, hidden) = (config.num_attention_heads, config.hidden_size);
    if n_heads == 0 || !hidden.is_multiple_of(n_heads) {
        candle_core::bail!("{n_heads} heads do not divide a width of {hidden}")
    }
    Ok(())
}

/// `config.json` for `config` with the type head's labels, under Hugging Face's names.
pub fn to_json(config: &Config, types: &LabelSet) -> Value {
    let hidden_act = match config.hidden_act {
        HiddenAct::Gelu => "gelu",
        HiddenAct::GeluApproximate => "gelu_new",
        HiddenAct::Relu => "relu",
    };
    let id2label: serde_json::Map<String, Value> =
        types.codes().enumerate().map(|(idx, code)| (idx.to_string(), json!(code))).collect();
    let label2id: serde_json::Map<String, Value> =
        types.codes().enumerate().map(|(idx, code)| (code.to_owned(), json!(idx))).collect();
    json!({
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": hidden_act,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": config.pad_token_id,
        "position_embedding_type": "absolute",
        "use_cache": config.use_cache,
        "classifier_dropout": config.classifier_dropout,
        "problem_type": "single_label_classification",
        "id2label": id2label,
        "label2id": label2id,
    })
}

/// The shape in a `config.json`.
///
/// # Errors
/// What serde says when a name is missing, or when the activation is one candle does not know.
pub fn from_json(mut value: Value) -> Result<Config, serde_json::Error> {
    // The tanh approximation has three names, none of which candle's `Deserialize` knows.
    let is_approximate = matches!(
        value["hidden_act"].as_str(),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_approximate")
    );
    if is_approximate {
        value["hidden_act"] = json!("gelu");
    }
    let mut config: Config = serde_json::from_value(value)?;
    if is_approximate {
        config.hidden_act = HiddenAct::GeluApproximate;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_survives_the_file() {
        for hidden_act in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
            let config = Config { hidden_act, ..small(99) };
            let types = LabelSet::new(["a", "b"]).unwrap();
            assert_eq!(from_json(to_json(&config, &types)).unwrap(), config);
        }
    }
}
