//! `stats`: what a store holds and how it is; and a store's figures as JSON, which `bench` writes too.

use serde_json::{Map, Value as Json, json};
use strongroom::metrics::{Distribution, MetricValue, Metrics};
use strongroom::{RecoveryReport, Store};

use crate::args::Place;
use crate::failure::Result;
use crate::output::{grouped, line, size};
use crate::session;

/// Open the store, and say what is in it.
pub fn run(place: &Place, json: bool) -> Result<()> {
    let store = session::look(place)?;
    let shown = if json { as_json(&store) } else { as_text(&store) };
    store.close()?;
    line(shown?)
}

fn as_json(store: &Store) -> Result<String> {
    let metrics = store.metrics();
    let system: Vec<u32> = store.system_key_generations()?.iter().map(|generation| generation.0).collect();
    let recovery = store.recovery();
    Ok(format!(
        "{:#}",
        json!({
            "StoreId": store.id().to_string(),
            "Epoch": store.epoch().0,
            "ClosedCleanly": recovery.clean,
            "DiscardedLogBytes": recovery.discarded_log_bytes,
            "SystemKeyGenerations": system,
            "SpaceAmplification": metrics.space_amplification(),
            "Metrics": figures(&metrics),
        })
    ))
}

fn as_text(store: &Store) -> Result<String> {
    let Metrics { store: held, log, manifest, keys, .. } = &store.metrics();
    let system: Vec<String> =
        store.system_key_generations()?.iter().map(|generation| generation.0.to_string()).collect();
    let mut lines = vec![
        format!("store      {} in {}", store.id(), store.path().display()),
        format!("opening    {}", opening(store.recovery())),
        format!("tables     {}", grouped(held.tables)),
        format!("keys       system key of generation {}", system.join(" and ")),
        format!("           {} tables inaccessible, {} being rotated", keys.inaccessible_tables, keys.rotating_tables),
        format!("manifest   {}, epoch {}", size(manifest.bytes), manifest.epoch),
        format!(
            "log        {} in segments {} to {}; {} parked in {} files",
            size(log.bytes),
            log.oldest_segment,
            log.newest_segment.max(log.oldest_segment),
            size(log.parked_bytes),
            log.parked_files,
        ),
    ];
    for (level, (files, bytes)) in held.level_files.iter().zip(held.level_bytes).enumerate() {
        if *files > 0 {
            lines.push(format!("level {level}    {} in {} files", size(bytes), grouped(*files)));
        }
    }
    if let Some(amplification) = store.metrics().space_amplification() {
        lines.push(format!("           {amplification:.2} times what the deepest level holds"));
    }
    Ok(lines.join("\n"))
}

fn opening(recovery: &RecoveryReport) -> String {
    match recovery.clean {
        true => "it had been closed in good order".to_owned(),
        false => format!("it had not been closed; {} of its log discarded", size(recovery.discarded_log_bytes)),
    }
}

/// Figures by their names: a number each, or an object for a distribution.
pub fn figures(metrics: &Metrics) -> Map<String, Json> {
    let value = |value: &MetricValue| match value {
        MetricValue::Number(number) => json!(number),
        MetricValue::Distribution(found) => distribution(found),
        _ => Json::Null,
    };
    metrics.list().iter().map(|metric| (metric.name.clone(), value(&metric.value))).collect()
}

/// As [`figures`], without those that are 0.
pub fn counted(metrics: &Metrics) -> Map<String, Json> {
    let is_zero = |value: &Json| value == &json!(0) || value.get("count") == Some(&json!(0));
    figures(metrics).into_iter().filter(|(_, value)| !is_zero(value)).collect()
}

fn distribution(found: &Distribution) -> Json {
    json!({
        "count": found.count(),
        "sum": found.sum(),
        "mean": found.mean(),
        "p50": found.percentile(50.0),
        "p99": found.percentile(99.0),
        "p99.9": found.percentile(99.9),
        "max": found.max(),
    })
}
