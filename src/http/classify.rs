//! `POST /v1/classify`: texts in, one result per item out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::OwnedSemaphorePermit;

use super::error::{ApiError, Problem};
use super::wire::{self, ClassifyReply, ClassifyRequest, Fault, ItemError, ItemResult, Model};
use super::{BODY_STEP, Service};
use crate::domain::case::CaseId;
use crate::domain::prediction::Prediction;
use crate::evidence::{self, Evidence, Reason};
use crate::inference::InferError;
use crate::pipeline::{InputReport, PrepareError, Prepared, Probe};
use crate::reply::{self, reply};

/// Classifies the items of a request.
#[utoipa::path(
    post,
    path = "/v1/classify",
    request_body = ClassifyRequest,
    responses(
        (status = 200, description = "One result per item, in order", body = ClassifyReply),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body came too slowly", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not announced as JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The envelope is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Full or stopping; see Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "Too late", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn classify(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    if service.is_draining() {
        return Err(ApiError::Stopping);
    }
    require_json(&headers)?;
    let (body, _in_memory) = read(&service, &headers, body).await?;
    // Text work is the CPU's: it must not hold up the threads that answer everyone else.
    let taken = on_cpu({
        let service = Arc::clone(&service);
        move || take(&service, &body)
    })
    .await??;
    let Taken { rows, probes, items, include_logits, deadline_ms, _places } = taken;
    let limit = deadline_ms.map_or(service.limits.max_deadline, Duration::from_millis);
    let too_late = ApiError::DeadlineExceeded { limit: limit.as_millis() as u64 };
    let left = limit.checked_sub(started.elapsed()).ok_or(too_late.clone())?;
    let answer = async {
        let predictions = service.engine.predict_many(rows).await?;
        let mut evidence = Vec::with_capacity(probes.len());
        for (probe, prediction) in probes.into_iter().zip(&predictions) {
            evidence.push(match prediction {
                Ok(prediction) => Some(explain_type(&service, probe, prediction).await?),
                Err(_) => None,
            });
        }
        Ok::<_, ApiError>((predictions, evidence))
    };
    let (predictions, evidence) =
        tokio::time::timeout(left, answer).await.map_err(|_| too_late)??;
    on_cpu(move || {
        let mut predictions = predictions.into_iter();
        // As many as predictions, or none at all when nobody asked.
        let mut evidence = evidence.iter();
        let results = items
            .iter()
            .enumerate()
            .map(|(idx, (id, outcome))| match outcome {
                Ok(report) => {
                    let id = id.as_ref().map_or("", CaseId::as_str);
                    let evidence = evidence.next().and_then(Option::as_ref);
                    match predictions.next() {
                        Some(Ok(prediction)) => {
                            let mut item =
                                reply(&service.pipeline, id, report, &prediction, include_logits);
                            item.evidence =
                                evidence.map(|(probe, it)| reply::Evidence::new(it, probe));
                            ItemResult::Classified(Box::new(item))
                        }
                        Some(Err(InferError::Model)) | None => {
                            let detail = InferError::Model.to_string();
                            refused(Some(id), wire::fault("model_failed", detail, idx, &[]))
                        }
                        Some(Err(error)) => {
                            refused(Some(id), wire::fault("stopping", error.to_string(), idx, &[]))
                        }
                    }
                }
                Err(fault) => refused(id.as_ref().map(CaseId::as_str), fault.clone()),
            })
            .collect();
        let model = service.pipeline.identity();
        let reply = ClassifyReply {
            results,
            model: Model { name: &model.name, version: &model.version, digest: &model.digest },
            policy_digest: service.pipeline.policy_digest(),
        };
        let json = serde_json::to_vec(&reply).map_err(|_| ApiError::Internal)?;
        tracing::debug!(
            http.items = items.len(),
            http.duration_ms = started.elapsed().as_millis() as u64,
            "classified"
        );
        Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], json).into_response())
    })
    .await?
}

fn refused(id: Option<&str>, error: Fault) -> ItemResult<'_> {
    ItemResult::Refused(ItemError { id, status: "error", error })
}

/// The words that carried the predicted type. Their many small predictions go in a few at a time, so that
/// other callers' items come between.
async fn explain_type(
    service: &Arc<Service>,
    probe: Probe,
    prediction: &Prediction,
) -> Result<(Probe, Evidence), ApiError> {
    let singles = match evidence::singles(probe.n_words()) {
        Ok(singles) => singles,
        Err(reason) => return Ok((probe, Evidence::Withheld(reason))),
    };
    let type_idx = service.pipeline.propose(prediction);
    let whole = prediction.type_probabilities[type_idx].get();
    let probe = Arc::new(probe);
    let found = match losses(service, &probe, singles, type_idx, whole).await? {
        None => Evidence::Withheld(Reason::Overloaded),
        Some(effects) => {
            let tests = evidence::tests(&effects);
            match losses(service, &probe, tests, type_idx, whole).await? {
                None => Evidence::Withheld(Reason::Overloaded),
                Some(losses) => evidence::explain(&effects, &losses),
            }
        }
    };
    Ok((Arc::unwrap_or_clone(probe), found))
}

/// What the type's probability, `whole`, loses without each of `sets`; none when there was no room.
async fn losses(
    service: &Arc<Service>,
    probe: &Arc<Probe>,
    sets: Vec<Vec<usize>>,
    type_idx: usize,
    whole: f32,
) -> Result<Option<Vec<f32>>, ApiError> {
    const AT_A_TIME: usize = 32;
    let at_a_time = AT_A_TIME.min(service.limits.max_waiting_items);
    let mut losses = Vec::with_capacity(sets.len());
    for part in sets.chunks(at_a_time) {
        let (service, probe, part) = (Arc::clone(service), Arc::clone(probe), part.to_vec());
        let rows = {
            let service = Arc::clone(&service);
            on_cpu(move || part.iter().map(|it| service.pipeline.without(&probe, it)).collect())
        };
        let predictions = match service.engine.predict_many(rows.await?).await {
            Ok(predictions) => predictions,
            Err(InferError::Overloaded) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for prediction in predictions {
            losses.push(whole - prediction?.type_probabilities[type_idx].get());
        }
    }
    Ok(Some(losses))
}

/// A request whose items have their places.
struct Taken {
    /// Texts ready for the model.
    rows: Vec<Prepared>,
    /// The same texts taken apart, when their evidence was asked for.
    probes: Vec<Probe>,
    /// Each item's report, in order, or what is wrong with it.
    items: Vec<(Option<CaseId>, Result<InputReport, Fault>)>,
    include_logits: bool,
    deadline_ms: Option<u64>,
    _places: OwnedSemaphorePermit,
}

fn take(service: &Service, body: &Bytes) -> Result<Taken, ApiError> {
    let limits = service.limits;
    let parsed = wire::parse(body, limits.max_items, limits.max_deadline.as_millis() as u64)?;
    // Places before work: a full service must say so cheaply.
    let places = Arc::clone(&service.items)
        .try_acquire_many_owned(parsed.items.len() as u32)
        .map_err(|_| ApiError::Overloaded)?;
    let (mut rows, mut probes) = (Vec::new(), Vec::new());
    let mut items = Vec::with_capacity(parsed.items.len());
    for (idx, item) in parsed.items.into_iter().enumerate() {
        let outcome = item.text.and_then(|text| {
            let fault = |error: PrepareError| match error {
                PrepareError::NothingVisible => {
                    wire::fault("empty_text", error.to_string(), idx, &["text"])
                }
            };
            let prepared = service.pipeline.prepare(&text).map_err(fault)?;
            if parsed.include_evidence {
                probes.push(service.pipeline.probe(&text).map_err(fault)?);
            }
            let report = prepared.report.clone();
            rows.push(prepared);
            Ok(report)
        });
        items.push((item.id, outcome));
    }
    Ok(Taken {
        rows,
        probes,
        items,
        include_logits: parsed.include_logits,
        deadline_ms: parsed.deadline_ms,
        _places: places,
    })
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let text =
        |name| headers.get(name).map(|it: &axum::http::HeaderValue| it.to_str().unwrap_or(""));
    let media_type =
        text(header::CONTENT_TYPE).unwrap_or("").split(';').next().unwrap_or("").trim();
    let is_json = media_type.eq_ignore_ascii_case("application/json");
    let is_plain =
        text(header::CONTENT_ENCODING).is_none_or(|it| it.eq_ignore_ascii_case("identity"));
    if is_json && is_plain { Ok(()) } else { Err(ApiError::UnsupportedMediaType) }
}

/// The body, and its share of the memory all bodies may take together.
async fn read(
    service: &Service,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let limit = service.limits.max_body_bytes;
    let announced: Option<usize> = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok())
        .and_then(|it| it.parse().ok());
    let too_large = |actual: Option<usize>| ApiError::BodyTooLarge {
        limit: limit as u64,
        actual: actual.map(|it| it as u64),
    };
    if announced.is_some_and(|it| it > limit) {
        return Err(too_large(announced));
    }
    let n_steps = announced.unwrap_or(limit).div_ceil(BODY_STEP).max(1);
    let in_memory = Arc::clone(&service.bodies)
        .try_acquire_many_owned(n_steps as u32)
        .map_err(|_| ApiError::Overloaded)?;
    let timeout = service.limits.body_timeout;
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect())
        .await
        .map_err(|_| ApiError::SlowBody { limit: timeout.as_secs() })?;
    match collected {
        Ok(body) => Ok((body.to_bytes(), in_memory)),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(None)),
        Err(_) => Err(ApiError::BrokenBody),
    }
}

async fn on_cpu<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    // A panic was printed where it happened.
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Internal)
}
