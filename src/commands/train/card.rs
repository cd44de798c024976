//! The model card `triage train` writes into a bundle.

use crate::commands::evaluate::table;
use crate::domain::taxonomy::Taxonomy;
use crate::evaluation::report::Report;
use crate::model::bundle::Manifest;

/// The model card.
pub fn card(
    manifest: &Manifest,
    validation: &Report,
    test: Option<&Report>,
    taxonomy: &Taxonomy,
) -> String {
    let training = &manifest.training;
    let calibration = &manifest.calibration;
    let mixes = [calibration.kind, calibration.level, calibration.grounds];
    let mut out = format!(
        "# {} {}\n\nWritten by `triage train`; change the training, not this file.\n\n\
         Labels a Chinese public-opinion item with one of {} types, a sensitivity level and its grounds. \
         A result is a proposal, a person decides. `disputed_claim` means \"needs a fact check\", never \
         \"is false\". The model sees no author and no personal data: these are refused or masked before it.\n\n\
         Not for: acting on a text or a person without a person's decision; languages other than Chinese.\n\n\
         ## Training\n\n\
         | what | value |\n| --- | --- |\n\
         | cases trained on / held out | {} / {} |\n| epoch kept | {} |\n| seed | {} |\n| base | {} |\n\
         | stopped early by the operator | {} |\n| data | `{}` |\n| split | {} `{}` |\n| code | opinion-triage {} |\n| coverage asked of prediction sets | {} |\n\n\
         Mix of the halves (encoder temperature, weight of the n-grams): type {:.3}, {:.3}; level {:.3}, {:.3}; \
         grounds {:.3}, {:.3}. A type is in the prediction set from {:.4} on.\n",
        manifest.name,
        manifest.version,
        taxonomy.types.len(),
        training.train_cases,
        training.validation_cases,
        training.epoch,
        training.seed,
        training.base,
        if training.stopped_early {
            "yes: what more epochs would have given is not known"
        } else {
            "no"
        },
        training.data_digest,
        training.split,
        training.split_digest,
        training.code_version,
        manifest.calibration.coverage,
        mixes[0].temperature,
        mixes[0].lexical_weight,
        mixes[1].temperature,
        mixes[1].lexical_weight,
        mixes[2].temperature,
        mixes[2].lexical_weight,
        manifest.calibration.set_threshold,
    );
    out += "\n## Quality\n\nThe held-out cases chose the epoch and fitted the calibration, so their figures flatter.\n";
    for (title, report) in [("Held-out cases", Some(validation)), ("Test cases", test)] {
        if let Some(report) = report {
            out += &format!("\n### {title}\n\n```text\n{}```\n", table(report, None, taxonomy));
        }
    }
    out
}
