//! The Open Inference Protocol, version 2 (KServe, Triton): one BYTES tensor of texts in, labels and
//! probabilities out.
//!
//! Requests may carry the texts as JSON or, as Triton's clients do unasked, as raw bytes after the JSON.
//! Replies are JSON always.
//!
//! Source: the Open Inference Protocol's REST specification and Triton's binary tensor data extension.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header::HeaderName};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{MODEL, fields, semantic, skip_object};
use crate::http::Service;
use crate::http::answer::{Answer, Submitted, all_or_none};
use crate::http::body::{self, Media};
use crate::http::documented;
use crate::http::error::ApiError;

/// Header with the length of the JSON before binary data.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

const INPUT: &str = "text";
const OUTPUTS: [&str; 2] = ["label", "probabilities"];

/// What the server is.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ServerMetadata {
    /// Its name.
    #[schema(example = "opinion-triage")]
    pub name: &'static str,
    /// Its version.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
    /// Protocol extensions.
    pub extensions: Vec<&'static str>,
}

/// Whether the server lives.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Live {
    /// It does.
    #[schema(example = true)]
    pub live: bool,
}

/// Whether the server is ready.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct Ready {
    /// Whether it is.
    pub ready: bool,
}

/// Whether the model is ready.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ModelReady {
    /// The model.
    #[schema(example = "triage")]
    pub name: &'static str,
    /// Whether it is.
    pub ready: bool,
}

/// What the model takes and gives.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct ModelMetadata {
    /// Its name.
    #[schema(example = "triage")]
    pub name: &'static str,
    /// The version in use.
    pub versions: Vec<String>,
    /// What runs it.
    #[schema(example = "opinion-triage")]
    pub platform: &'static str,
    /// Tensors it takes.
    pub inputs: Vec<TensorMetadata>,
    /// Tensors it gives.
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor's name, type and shape; -1 is any size.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct TensorMetadata {
    /// Name.
    #[schema(example = "text")]
    pub name: &'static str,
    /// Type.
    #[schema(example = "BYTES")]
    pub datatype: &'static str,
    /// Shape.
    pub shape: Vec<i64>,
}

/// Texts to classify.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InferRequest {
    /// The caller's name for the request.
    #[schema(max_length = 128)]
    pub id: Option<String>,
    /// Accepted and without effect.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Exactly one tensor, `text`.
    #[schema(min_items = 1, max_items = 1)]
    pub inputs: Vec<InputTensor>,
    /// Outputs wanted; all when absent.
    pub outputs: Option<Vec<OutputWanted>>,
}

/// The texts.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputTensor {
    /// Always `text`.
    #[schema(example = "text", pattern = "^text$")]
    pub name: String,
    /// Number of texts: `[n]` or `[n, 1]`.
    #[schema(min_items = 1, max_items = 2)]
    pub shape: Vec<u64>,
    /// Always `BYTES`.
    #[schema(example = "BYTES", pattern = "^BYTES$")]
    pub datatype: String,
    /// `binary_data_size` when the texts come after the JSON.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// The texts.
    pub data: Option<Vec<String>>,
}

/// An output wanted.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputWanted {
    /// `label` or `probabilities`.
    #[schema(example = "label", pattern = "^(label|probabilities)$")]
    pub name: String,
    /// Accepted and without effect: replies are JSON.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
}

/// The answer.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct InferReply {
    /// The caller's name for the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The model.
    #[schema(example = "triage")]
    pub model_name: &'static str,
    /// Its version.
    pub model_version: String,
    /// Digests of the model and of the policy, and the columns of `probabilities`.
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// `label`: BYTES `[n]`; `probabilities`: FP32 `[n, labels]`, row by row.
    pub outputs: Vec<OutputTensor>,
}

/// An output.
#[derive(Debug, serde::Serialize, ToSchema)]
pub struct OutputTensor {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub datatype: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values, row by row.
    pub data: Data,
}

/// Values of an output.
#[derive(Debug, serde::Serialize, ToSchema)]
#[serde(untagged)]
pub enum Data {
    /// Of `label`.
    Labels(Vec<String>),
    /// Of `probabilities`.
    Numbers(Vec<f32>),
}

/// Its error.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct InferenceError {
    /// What is wrong and how to put it right.
    pub error: String,
}

/// What the server is.
#[utoipa::path(get, path = "/v2", tag = "compatible", responses((status = 200, description = "The server", body = ServerMetadata, example = json!({"name": "opinion-triage", "version": "0.1.0", "extensions": []})), documented::InferenceServer))]
pub async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        extensions: Vec::new(),
    })
}

/// Whether the server lives.
#[utoipa::path(get, path = "/v2/health/live", tag = "compatible", responses((status = 200, description = "It lives", body = Live, example = json!({"live": true}))))]
pub async fn live() -> Json<Live> {
    Json(Live { live: true })
}

/// Whether new texts would be taken now.
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    tag = "compatible",
    responses(
        (status = 200, description = "Ready", body = Ready, example = json!({"ready": true})),
        (status = 503, description = "Loading, full, stopping or stopped", body = Ready, example = json!({"ready": false})),
    )
)]
pub async fn ready(State(service): State<Arc<Service>>) -> Response {
    let ready = service.readiness().is_ready();
    (status_of(ready), Json(Ready { ready })).into_response()
}

fn status_of(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// What the model takes and gives.
#[utoipa::path(
    get,
    path = "/v2/models/{model}",
    tag = "compatible",
    params(("model" = String, Path, description = "Always `triage`", example = "triage")),
    responses(
        (status = 200, description = "The model", body = ModelMetadata, example = json!({
            "name": "triage", "versions": ["0.1.0"], "platform": "opinion-triage",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}, {"name": "probabilities", "datatype": "FP32", "shape": [-1, 6]}]
        })),
        documented::InferenceAbout,
    )
)]
pub async fn model(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Json<ModelMetadata>, ApiError> {
    require_model(&name)?;
    let serving = service.serving()?;
    let n_labels = serving.pipeline.type_labels().len() as i64;
    let tensor = |name, datatype, shape| TensorMetadata { name, datatype, shape };
    Ok(Json(ModelMetadata {
        name: MODEL,
        versions: vec![serving.pipeline.identity().version.clone()],
        platform: env!("CARGO_PKG_NAME"),
        inputs: vec![tensor(INPUT, "BYTES", vec![-1])],
        outputs: vec![
            tensor(OUTPUTS[0], "BYTES", vec![-1]),
            tensor(OUTPUTS[1], "FP32", vec![-1, n_labels]),
        ],
    }))
}

/// Whether new texts for the model would be taken now.
#[utoipa::path(
    get,
    path = "/v2/models/{model}/ready",
    tag = "compatible",
    params(("model" = String, Path, description = "Always `triage`", example = "triage")),
    responses(
        (status = 200, description = "Ready", body = ModelReady, example = json!({"name": "triage", "ready": true})),
        documented::InferenceReady,
        (status = 503, description = "Loading, full, stopping or stopped", body = ModelReady, example = json!({"name": "triage", "ready": false})),
    )
)]
pub async fn model_ready(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    require_model(&name)?;
    let ready = service.readiness().is_ready();
    Ok((status_of(ready), Json(ModelReady { name: MODEL, ready })).into_response())
}

/// Classifies texts as the Open Inference Protocol does.
#[utoipa::path(
    post,
    path = "/v2/models/{model}/infer",
    tag = "compatible",
    params(("model" = String, Path, description = "Always `triage`", example = "triage")),
    request_body(
        content = InferRequest,
        example = json!({"id": "r1", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["小区停水三天了，物业没人管", "谢谢"]}]}),
    ),
    responses(
        (status = 200, description = "Labels and probabilities", body = InferReply, example = json!({
            "id": "r1", "model_name": "triage", "model_version": "0.1.0",
            "parameters": {"labels": "problem,emergency,sensitive,suggestion,disputed_claim,none", "model_digest": "sha256:…", "policy_digest": "sha256:…"},
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["problem"]},
                {"name": "probabilities", "datatype": "FP32", "shape": [1, 6], "data": [0.9645, 0.0059, 0.0024, 0.0079, 0.0133, 0.006]}
            ]
        })),
        documented::Infer,
    )
)]
pub async fn infer(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    require_model(&name)?;
    let json_bytes = json_length(&headers)?;
    let read = move |it: &axum::body::Bytes| parse(it, json_bytes);
    let (answer, asked) = all_or_none(&service, &headers, body, Media::Any, read).await?;
    let timing = [(HeaderName::from_static("server-timing"), answer.timing.header())];
    Ok((timing, Json(reply(&answer, asked))).into_response())
}

fn reply(answer: &Answer, asked: Asked) -> InferReply {
    let pipeline = &answer.serving.pipeline;
    let (mut labels, mut probabilities) = (Vec::new(), Vec::new());
    for item in answer.items() {
        labels.push(item.incident_type.code.to_owned());
        probabilities.extend(item.probabilities.0.iter().map(|it| it.1));
    }
    let n_rows = labels.len();
    let n_labels = pipeline.type_labels().len();
    let outputs = [
        OutputTensor {
            name: OUTPUTS[0],
            datatype: "BYTES",
            shape: vec![n_rows],
            data: Data::Labels(labels),
        },
        OutputTensor {
            name: OUTPUTS[1],
            datatype: "FP32",
            shape: vec![n_rows, n_labels],
            data: Data::Numbers(probabilities),
        },
    ];
    InferReply {
        id: asked.id,
        model_name: MODEL,
        model_version: pipeline.identity().version.clone(),
        parameters: json!({
            "labels": pipeline.type_labels().codes().collect::<Vec<_>>().join(","),
            "model_digest": pipeline.identity().digest,
            "policy_digest": pipeline.policy_digest(),
        }),
        outputs: outputs.into_iter().filter(|it| asked.outputs.contains(&it.name)).collect(),
    }
}

fn require_model(name: &str) -> Result<(), ApiError> {
    if name == MODEL { Ok(()) } else { Err(ApiError::UnknownModel) }
}

/// How much of the body is JSON, when not all of it.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|it| it.parse().ok());
    let wrong = || {
        let detail = "`Inference-Header-Content-Length` is the JSON's length in bytes";
        semantic("wrong_header", detail.into(), String::new())
    };
    length.map(Some).ok_or_else(wrong)
}

struct Asked {
    id: Option<String>,
    outputs: Vec<&'static str>,
}

fn parse(bytes: &[u8], json_bytes: Option<usize>) -> Result<(Vec<Submitted>, Asked), ApiError> {
    let too_short = || {
        let detail = "the body is shorter than `Inference-Header-Content-Length` says";
        semantic("wrong_header", detail.into(), String::new())
    };
    let (head, tail) =
        bytes.split_at_checked(json_bytes.unwrap_or(bytes.len())).ok_or_else(too_short)?;
    let known = ["id", "parameters", "inputs", "outputs"];
    let mut request = fields(body::json(head)?, &known, "")?;
    let id = match request.remove("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(it)) if it.chars().count() <= 128 => Some(it),
        Some(_) => {
            let detail = "`id` is a text of at most 128 characters".to_owned();
            return Err(semantic("invalid_id", detail, "/id".into()));
        }
    };
    skip_object(&mut request, "parameters", "")?;
    let outputs = outputs(request.remove("outputs"))?;
    let Some(Value::Array(mut inputs)) = request.remove("inputs") else { return Err(wrong("")) };
    let input = inputs.pop().filter(|_| inputs.is_empty()).ok_or_else(|| wrong(""))?;
    let known = ["name", "shape", "datatype", "parameters", "data"];
    let mut input = fields(input, &known, "/inputs/0")?;
    if input.get("name").and_then(Value::as_str) != Some(INPUT) {
        return Err(wrong("/name"));
    }
    if input.get("datatype").and_then(Value::as_str) != Some("BYTES") {
        return Err(wrong("/datatype"));
    }
    let n_texts = n_texts(&input).ok_or_else(|| wrong("/shape"))?;
    let texts = match input.remove("data") {
        Some(data) => {
            skip_object(&mut input, "parameters", "/inputs/0")?;
            let mut texts = Vec::new();
            flatten(data, &mut texts).ok_or_else(|| wrong("/data"))?;
            texts
        }
        None => {
            let size = input.get("parameters").and_then(|it| it.get("binary_data_size"));
            if size.and_then(Value::as_u64) != Some(tail.len() as u64) {
                return Err(wrong("/data"));
            }
            unpack(tail).ok_or_else(|| wrong("/data"))?
        }
    };
    if texts.len() as u64 != n_texts || texts.is_empty() {
        return Err(wrong("/shape"));
    }
    let texts = texts
        .into_iter()
        .enumerate()
        .map(|(idx, text)| Submitted { text, pointer: format!("/inputs/0/data/{idx}") })
        .collect();
    Ok((texts, Asked { id, outputs }))
}

fn outputs(value: Option<Value>) -> Result<Vec<&'static str>, ApiError> {
    let wrong = |idx: usize| {
        let detail = format!("outputs are {}", OUTPUTS.join(", "));
        semantic("unknown_output", detail, format!("/outputs/{idx}"))
    };
    match value {
        None | Some(Value::Null) => Ok(OUTPUTS.to_vec()),
        Some(Value::Array(list)) if list.is_empty() => Ok(OUTPUTS.to_vec()),
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(idx, it)| {
                let at = format!("/outputs/{idx}");
                let mut output = fields(it, &["name", "parameters"], &at)?;
                skip_object(&mut output, "parameters", &at)?;
                let name = output.get("name").and_then(Value::as_str);
                OUTPUTS.into_iter().find(|it| Some(*it) == name).ok_or_else(|| wrong(idx))
            })
            .collect(),
        Some(_) => Err(wrong(0)),
    }
}

/// The product of the shape, when it is `[n]` or `[n, 1]`.
fn n_texts(input: &Map<String, Value>) -> Option<u64> {
    match input.get("shape")?.as_array()?.as_slice() {
        [n] => n.as_u64(),
        [n, one] if one.as_u64() == Some(1) => n.as_u64(),
        _ => None,
    }
}

/// Row-major data may be nested as the shape is.
fn flatten(value: Value, texts: &mut Vec<String>) -> Option<()> {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(list) => {
            for it in list {
                flatten(it, texts)?;
            }
        }
        _ => return None,
    }
    Some(())
}

/// Texts of the binary extension: each after its length in four bytes, little-endian.
fn unpack(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (text, rest) = rest.split_at_checked(length)?;
        texts.push(String::from_utf8(text.to_vec()).ok()?);
        bytes = rest;
    }
    Some(texts)
}

fn wrong(place: &str) -> ApiError {
    let detail = "`inputs` is one tensor named \"text\" of datatype \"BYTES\" and shape [n], with n UTF-8 texts as \
                  `data`";
    semantic("invalid_inputs", detail.into(), format!("/inputs/0{place}"))
}

/// Errors in the shape its clients read.
pub async fn shape_errors(response: Response) -> Response {
    super::reshape(response, error_body)
}

/// Status and body of `error`.
pub fn error_body(error: &ApiError) -> (StatusCode, Value) {
    (error.status(), json!({ "error": error.problem().detail }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(texts: &[String]) -> Vec<u8> {
        let one = |it: &String| [&(it.len() as u32).to_le_bytes(), it.as_bytes()].concat();
        texts.iter().flat_map(one).collect()
    }

    #[test]
    fn a_tensor_must_be_what_it_says() {
        let good = json!({"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]});
        let cases = [
            (json!({}), Ok(2)),
            (json!({"shape": [2, 1], "data": [["a"], ["b"]]}), Ok(2)),
            (json!({"name": "x"}), Err("/inputs/0/name")),
            (json!({"datatype": "FP32"}), Err("/inputs/0/datatype")),
            (json!({"shape": [3]}), Err("/inputs/0/shape")),
            (json!({"shape": [1, 2]}), Err("/inputs/0/shape")),
            (json!({"shape": [0], "data": []}), Err("/inputs/0/shape")),
            (json!({"data": [1, 2]}), Err("/inputs/0/data")),
        ];
        for (change, expected) in cases {
            let mut input = good.clone();
            for (name, value) in change.as_object().unwrap() {
                input[name] = value.clone();
            }
            let body = json!({ "inputs": [input] }).to_string();
            let actual = parse(body.as_bytes(), None)
                .map(|it| it.0.len())
                .map_err(|it| it.problem().pointer.unwrap());
            assert_eq!(actual, expected.map_err(str::to_owned), "{change}");
        }
    }

    proptest! {
        #[test]
        fn packed_texts_are_unpacked(texts in proptest::collection::vec(".{0,20}", 0..8)) {
            prop_assert_eq!(unpack(&pack(&texts)), Some(texts));
        }

        #[test]
        fn hostile_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0_usize..80) {
            let _ = unpack(&bytes);
            let _ = parse(&bytes, Some(at));
        }
    }
}
