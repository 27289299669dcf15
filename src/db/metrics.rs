//! The store's figures: what was counted, and how it is now.
//!
//! Everything here is looked up where it is kept anyway; nothing walks over tables.

use super::Engine;
use crate::metrics::Metrics;

impl Engine {
    /// The figures of this moment. Each is taken by itself, so that those of a store that is working need not fit together exactly.
    pub(super) fn metrics(&self) -> Metrics {
        let mut metrics = self.meters.metrics();
        let now = self.env.clock.tick();

        let store = &mut metrics.store;
        store.open_ms = now.since(self.opened) / 1_000_000;
        store.tables = self.catalog.len() as u64;
        (store.open_files, store.obsolete_files) = self.readers.counts();
        self.manifest.look_at(&mut metrics);

        let cache = self.readers.cache();
        let (kept_bytes, all_bytes) = (cache.kept_bytes(), cache.used_bytes());
        metrics.cache.bytes = kept_bytes;
        metrics.cache.capacity_bytes = cache.capacity_bytes();
        metrics.cache.pinned_bytes = all_bytes.saturating_sub(kept_bytes);

        self.background.look_at(&mut metrics);
        metrics.memtables.budget_bytes = self.options.write_budget_bytes as u64;
        metrics.keys.permits = self.agenda.len() as u64;
        metrics.keys.inaccessible_tables = self.background.custody.refused_count() as u64;
        self.log.look_at(&mut metrics.log);

        let pins = &mut metrics.pins;
        let (moments, oldest) = self.moments.oldest();
        pins.moments = moments as u64;
        pins.visible_seq = self.visible.load().get();
        pins.oldest_seq = oldest.map_or(pins.visible_seq, |(seq, _)| seq.get());
        pins.oldest_ms = oldest.map_or(0, |(_, since)| now.since(since) / 1_000_000);
        metrics
    }
}
