//! Triage of Chinese public-opinion items: text in, a calibrated proposal out.
//!
//! The rooms, in the order a newcomer should read them; arrows point one way:
//!
//! ```text
//! main -> commands -> training -> model, evaluation --> domain
//!                 \-> corpus ---> text ---------------> domain
//!         pipeline -------------> text, model --------> domain
//! ```

pub mod domain;
pub mod text;

pub mod model;
pub mod pipeline;

pub mod evaluation;
pub mod training;

pub mod corpus;

pub mod commands;
