//! `POST /v1/classify`: texts in, one result per item out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::access::{Caller, UNCALIBRATED};
use super::answer::{self, Due, Places, Timing, on_cpu};
use super::body::{self, Media};
use super::documented;
use super::error::ApiError;
use super::examples;
use super::idempotency::Transient;
use super::wire::{self, ClassifyReply, ClassifyRequest, Fault, ItemError, ItemResult, Model};
use super::{Service, Serving};
use crate::domain::case::CaseId;
use crate::domain::prediction::Prediction;
use crate::evidence::{self, Evidence, Reason};
use crate::inference::InferError;
use crate::inference::plan::Lane;
use crate::pipeline::{InputReport, PrepareError, Prepared, Probe};
use crate::reply::{self, reply};
use crate::telemetry::metrics::Received;

/// Predictions asked for at once to explain one type, so that other callers' items come between.
const EVIDENCE_AT_A_TIME: usize = 32;

/// Classifies the items of a request.
#[utoipa::path(
    post,
    path = "/v1/classify",
    request_body(content = ClassifyRequest, examples(
        ("one" = (summary = "One text", value = json!({"items": [{"id": "a1", "text": "小区停水三天了，物业没人管"}]}))),
        ("all" = (summary = "Everything", value = json!({"items": [{"id": "a1", "text": "小区停水三天了，物业没人管"}, {"id": "a2", "text": "谢谢"}], "include": ["evidence", "logits"], "deadline_ms": 800, "lane": "interactive"}))),
    )),
    responses(
        (status = 200, description = "One result per item, in order", body = ClassifyReply, example = json!(examples::classified())),
        documented::Classify,
    )
)]
pub async fn classify(
    State(service): State<Arc<Service>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let serving = service.serving()?;
    body::require(Media::Json, &headers)?;
    let lane = answer::lane(&headers)?;
    let (body, _in_memory) = body::read(&service, &headers, body).await?;
    // Text work is the CPU's: it must not hold up the threads that answer everyone else.
    let taken = on_cpu({
        let (service, serving) = (Arc::clone(&service), Arc::clone(&serving));
        move || take(&service, &serving, &caller, lane, &body)
    })
    .await??;
    let Taken { rows, probes, items, received, include_logits, deadline_ms, lane, _places } = taken;
    let limit = deadline_ms.map_or(service.limits.max_deadline, Duration::from_millis);
    let due = Due { began: started, limit };
    tracing::Span::current().record("items.count", items.len());
    let text_duration = started.elapsed();
    let at_a_time = EVIDENCE_AT_A_TIME.min(service.limits.max_waiting_items);
    let asking = Asking { serving: &serving, lane, due, at_a_time };
    let answer = async {
        let predictions = answer::predict(&service, &serving, lane, rows, due).await?;
        if predictions.contains(&Err(InferError::TooLate)) {
            return Err(due.error(InferError::TooLate));
        }
        let mut evidence = Vec::with_capacity(probes.len());
        for (probe, prediction) in probes.into_iter().zip(&predictions) {
            evidence.push(match prediction {
                Ok(prediction) => Some(explain_type(&asking, probe, prediction).await?),
                Err(_) => None,
            });
        }
        Ok::<_, ApiError>((predictions, evidence))
    };
    let (predictions, evidence) = due.wait(answer).await?;
    let timing = Timing { text: text_duration, model: started.elapsed() - text_duration };
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
                                reply(&serving.pipeline, id, report, &prediction, include_logits);
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
            .collect::<Vec<_>>();
        // Ours, not the item's: the same item may do well next time.
        let is_transient = results.iter().any(|it| {
            matches!(it, ItemResult::Refused(it) if ["model_failed", "stopping"].contains(&it.error.code))
        });
        let n_ok = results.iter().filter(|it| matches!(it, ItemResult::Classified(_))).count();
        let model = serving.pipeline.identity();
        let reply = ClassifyReply {
            results,
            model: Model { name: &model.name, version: &model.version, digest: &model.digest },
            policy_digest: serving.pipeline.policy_digest(),
        };
        let json = serde_json::to_vec(&reply).map_err(|_| ApiError::Internal)?;
        tracing::debug!(
            http.items = items.len(),
            http.duration_ms = started.elapsed().as_millis() as u64,
            "classified"
        );
        received.answered(n_ok);
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (HeaderName::from_static("server-timing"), timing.header()),
        ];
        let mut response = (headers, json).into_response();
        if is_transient {
            response.extensions_mut().insert(Transient);
        }
        Ok(response)
    })
    .await?
}

fn refused(id: Option<&str>, error: Fault) -> ItemResult<'_> {
    ItemResult::Refused(ItemError { id, status: "error", error })
}

/// How the many small predictions behind an explanation are asked for.
struct Asking<'a> {
    serving: &'a Arc<Serving>,
    lane: Lane,
    due: Due,
    at_a_time: usize,
}

/// The words that carried the predicted type. Their many small predictions go in a few at a time, so that
/// other callers' items come between.
async fn explain_type(
    asking: &Asking<'_>,
    probe: Probe,
    prediction: &Prediction,
) -> Result<(Probe, Evidence), ApiError> {
    let singles = match evidence::singles(probe.n_words()) {
        Ok(singles) => singles,
        Err(reason) => return Ok((probe, Evidence::Withheld(reason))),
    };
    let type_idx = asking.serving.pipeline.propose(prediction);
    let whole = prediction.type_probabilities[type_idx].get();
    let probe = Arc::new(probe);
    let found = match losses(asking, &probe, singles, type_idx, whole).await? {
        None => Evidence::Withheld(Reason::Overloaded),
        Some(effects) => {
            let tests = evidence::tests(&effects);
            match losses(asking, &probe, tests, type_idx, whole).await? {
                None => Evidence::Withheld(Reason::Overloaded),
                Some(losses) => evidence::explain(&effects, &losses),
            }
        }
    };
    Ok((Arc::unwrap_or_clone(probe), found))
}

/// What the type's probability, `whole`, loses without each of `sets`; none when there was no room.
async fn losses(
    asking: &Asking<'_>,
    probe: &Arc<Probe>,
    sets: Vec<Vec<usize>>,
    type_idx: usize,
    whole: f32,
) -> Result<Option<Vec<f32>>, ApiError> {
    let Asking { serving, lane, due, at_a_time } = *asking;
    let mut losses = Vec::with_capacity(sets.len());
    for part in sets.chunks(at_a_time) {
        let (probe, part) = (Arc::clone(probe), part.to_vec());
        let rows = {
            let serving = Arc::clone(serving);
            on_cpu(move || part.iter().map(|it| serving.pipeline.without(&probe, it)).collect())
        };
        let predictions = match serving.engine.predict_many(lane, rows.await?, Some(due.at())).await
        {
            Ok(predictions) => predictions,
            Err(InferError::Overloaded) => return Ok(None),
            Err(error) => return Err(due.error(error)),
        };
        for prediction in predictions {
            let prediction = prediction.map_err(|it| due.error(it))?;
            losses.push(whole - prediction.type_probabilities[type_idx].get());
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
    received: Received,
    include_logits: bool,
    deadline_ms: Option<u64>,
    lane: Lane,
    _places: Places,
}

fn take(
    service: &Service,
    serving: &Serving,
    caller: &Caller,
    lane: Lane,
    body: &Bytes,
) -> Result<Taken, ApiError> {
    let limits = service.limits;
    let parsed = wire::parse(body, limits.max_items, limits.max_deadline.as_millis() as u64)?;
    if parsed.include_logits {
        caller.require(UNCALIBRATED)?;
    }
    // Places before work: a full service must say so cheaply.
    let lane = parsed.lane.unwrap_or(lane);
    let received = service.metrics.receive(parsed.items.len());
    let places = Places::take(service, parsed.items.len(), lane)?;
    let (mut rows, mut probes) = (Vec::new(), Vec::new());
    let mut items = Vec::with_capacity(parsed.items.len());
    for (idx, item) in parsed.items.into_iter().enumerate() {
        let outcome = item.text.and_then(|text| {
            let fault = |error: PrepareError| match error {
                PrepareError::NothingVisible => {
                    wire::fault("empty_text", error.to_string(), idx, &["text"])
                }
            };
            let prepared = serving.pipeline.prepare(&text).map_err(fault)?;
            if parsed.include_evidence {
                probes.push(serving.pipeline.probe(&text).map_err(fault)?);
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
        received,
        include_logits: parsed.include_logits,
        deadline_ms: parsed.deadline_ms,
        lane,
        _places: places,
    })
}
